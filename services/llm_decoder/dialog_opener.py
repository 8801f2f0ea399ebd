"""Opens dialogs in the engine: a suspended one continues, any other starts with its whole prompt."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from model.engine.admission import EngineFull
from model.engine.dialog import PriorToken
from model.engine.engine import Engine
from model.engine.options import DialogOptions
from services.llm_decoder.live_dialog import LiveDialog
from services.llm_decoder.suspended_dialogs import SuspendedDialogs
from services.messages.dialog import DialogRequest
from services.ports.frame_store import is_private

log = logging.getLogger(__name__)


class DialogOpener:
    """Opens and closes the dialogs of one engine. The decode loop's thread uses it."""

    def __init__(self, engine: Engine, suspended: SuspendedDialogs, stop_ids: Iterable[int]) -> None:
        self._engine, self._suspended = engine, suspended
        self._stop_ids = frozenset(stop_ids)
        self._num_started = 0

    def open(self, dialog: LiveDialog) -> int:
        """Open a dialog; its prompt is read later, in pieces. Returns how many tokens were cached already.

        EngineFull when there is no room, ValueError for an option that the engine refuses.
        """
        num_cached = self._continue(dialog)
        if num_cached is None:
            self._start(dialog)
        for token in dialog.request.prior_tokens:
            dialog.text_stream.push(token.token_id)
            dialog.num_generated += 1
        return num_cached or 0

    def close(self, dialog: LiveDialog) -> None:
        """End a turn. The dialog is suspended when its client has received all of it, so that it can continue."""
        try:
            self._close(dialog)
        except Exception:
            log.exception("dialog %s could not be suspended", dialog.engine_id)
            self.discard(dialog)

    def discard(self, dialog: LiveDialog) -> None:
        """Free what a dialog holds in the engine, if anything."""
        if dialog.engine_id in self._engine.dialogs:
            self._engine.close_dialog(dialog.engine_id)

    def _close(self, dialog: LiveDialog) -> None:
        request = dialog.request
        complete = not (dialog.text_stream.stopped or request.prior_tokens or is_private(request.camera))
        if not complete or not self._engine.is_prefilled(dialog.engine_id):
            self._engine.close_dialog(dialog.engine_id)
            return
        self._engine.suspend_dialog(dialog.engine_id)
        self._suspended.put(
            dialog.engine_id, request.camera, request.messages, dialog.prompt_text, dialog.answer
        )

    def _continue(self, dialog: LiveDialog) -> int | None:
        """Continue the suspended dialog with the same history; how many tokens it had cached. None: there is none."""
        request, engine = dialog.request, self._engine
        if request.prior_tokens:
            return None
        found = self._suspended.take(request.camera, request.messages, dialog.prompt_text, engine.dialogs)
        if found is None:
            return None
        engine_id, new_ids = found
        before = engine.dialogs[engine_id]
        if new_ids and new_ids[0] == before.last_token_id:  # the end token, which was generated already
            del new_ids[0]
        num_cached = before.num_cached_tokens
        try:
            engine.start_turn(engine_id, new_ids, self._options(request), prefill_now=False)
        except (EngineFull, ValueError):  # it starts anew, and is refused then if it is wrong
            engine.close_dialog(engine_id)
            return None
        dialog.engine_id = engine_id
        return min(num_cached, len(dialog.prompt_ids))

    def _start(self, dialog: LiveDialog) -> None:
        request = dialog.request
        self._num_started += 1
        dialog.engine_id = f"{request.request_id}/{self._num_started}"  # a request may be sent again
        self._engine.open_dialog(
            dialog.engine_id,
            request.camera,
            dialog.prompt_ids,
            self._options(request),
            prior_tokens=[PriorToken(token.token_id, token.generated_s) for token in request.prior_tokens],
            asked_s=request.asked_s or dialog.started_s,
            num_pinned_tokens=dialog.num_pinned_tokens,
            prefill_now=False,
        )

    def _options(self, request: DialogRequest) -> DialogOptions:
        return DialogOptions(
            visual_context=request.visual_context,
            num_frames=request.num_frames,
            temperature=request.temperature,
            top_p=request.top_p,
            min_p=request.min_p,
            repetition_penalty=request.repetition_penalty,
            frequency_penalty=request.frequency_penalty,
            presence_penalty=request.presence_penalty,
            logit_bias=tuple(request.logit_bias),
            num_top_logprobs=request.num_top_logprobs,
            seed=request.seed,
            max_tokens=request.max_tokens,
            stop_ids=self._stop_ids,
        )
