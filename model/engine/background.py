"""Frame ingest and prefill, all at once or in pieces between decoding steps."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

from model.engine.admission import Admission
from model.engine.cameras import Cameras
from model.engine.dialog import Dialog, DialogsFailed
from model.engine.work_budget import WorkBudget
from model.runtime.model_runner import ModelRunner

MIN_PREFILL_TOKENS = 8


class BackgroundWork:
    """The work of an engine that is not a decoding step."""

    def __init__(
        self, runner: ModelRunner, cameras: Cameras, admission: Admission, max_prefill_tokens: int
    ) -> None:
        """`max_prefill_tokens`: the most prompt tokens of one forward."""
        self._runner, self._cameras, self._admission = runner, cameras, admission
        self._prefill_budget = WorkBudget(MIN_PREFILL_TOKENS, max_prefill_tokens)

    def run(self, allowed_s: float) -> bool:
        """Do pieces of what waits, at least one of frames and one of prompts; returns whether more waits.

        A piece is small enough for two of them to fit in `allowed_s`. Raises DialogsFailed for prompts that cannot be
        read, and what ingest raises for a frame that is lost; either way the rest can go on.
        """
        end_s = time.perf_counter() + allowed_s
        while True:
            if self._runner.ingest.busy:
                self._ingest(allowed_s)
            if self._has_prompts:
                self._prefill_some(allowed_s)
            more_waits = self._runner.ingest.busy or self._has_prompts
            if not more_waits or time.perf_counter() >= end_s:
                return more_waits

    def ingest_all(self) -> None:
        """Ingest every frame that waits."""
        while self._runner.ingest.busy:
            self._ingest(math.inf)

    def prefill(self, dialog: Dialog) -> None:
        """Prefill all of a dialog's pending tokens."""
        while dialog.pending_tokens:
            num = min(self._prefill_budget.num_tokens(math.inf), len(dialog.pending_tokens))
            self._prefill([(dialog, num)])

    @property
    def _has_prompts(self) -> bool:
        return any(dialog.pending_tokens for dialog in self._admission.dialogs.values())

    def _ingest(self, allowed_s: float) -> None:
        for frame, keys_values in self._runner.ingest.run_piece(allowed_s):
            stored = self._cameras.add_frame(frame.camera, frame.frame_id, frame.captured_s)
            if stored is None:
                continue
            page, slot = stored
            self._runner.frame_cache.write(page, slot, keys_values)
            for dialog in self._admission.dialogs.values():
                if dialog.camera == frame.camera:
                    dialog.camera_frame_index[slot] = dialog.clock.frame_arrived()

    def _prefill_some(self, allowed_s: float) -> None:
        """One forward over pending tokens of the dialogs, the fewest first: no short prompt waits for a long one."""
        room = self._prefill_budget.num_tokens(allowed_s)
        parts = list[tuple[Dialog, int]]()
        for dialog in sorted(self._admission.dialogs.values(), key=lambda one: len(one.pending_tokens)):
            if num := min(room, len(dialog.pending_tokens)):
                parts.append((dialog, num))
                room -= num
        started = time.perf_counter()
        try:
            self._prefill(parts)
        except Exception:
            self._prefill_alone(parts)
        self._prefill_budget.record(sum(num for _, num in parts), time.perf_counter() - started)

    def _prefill_alone(self, parts: Sequence[tuple[Dialog, int]]) -> None:
        """After a failure, one forward for each dialog. Raises DialogsFailed for those that fail again."""
        failed: dict[str, Exception] = {}
        for dialog, num in parts:
            try:
                self._prefill([(dialog, num)])
            except Exception as error:
                failed[dialog.dialog_id] = error
        if failed:
            raise DialogsFailed(list(failed), "a prompt could not be read") from next(iter(failed.values()))

    def _prefill(self, parts: Sequence[tuple[Dialog, int]]) -> None:
        for dialog, num in parts:
            self._admission.make_room(dialog, num)
        self._runner.prefill([(dialog, dialog.pending_tokens[:num]) for dialog, num in parts])
        for dialog, num in parts:
            dialog.mark_computed(num)
