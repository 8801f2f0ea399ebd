"""A decoder replica's engine thread: frames in, one step for all dialogs that are due, tokens out. Again and again.

The thread owns the engine: others only hand it frames, new dialogs and cancellations. Before every step it moves the
frames that have arrived into the cameras' rings, so each token is made from the newest picture there is.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.dialog import Options, Spoken
from model.engine import Engine, Made
from services.frame_store import is_private, parse_frame_id
from services.messages import (
    DialogEnded,
    DialogEvent,
    DialogFailed,
    DialogRequest,
    DialogStarted,
    Frame,
    TokenEvent,
)
from services.meters import CLIP, Meters
from services.metrics import (
    BUSY,
    CACHE_BYTES,
    CACHE_LIMIT_BYTES,
    DEVICE_BYTES,
    DEVICE_LIMIT_BYTES,
    DIALOGS,
    FRAME_AGE,
    REFRESHES,
    STEP,
    STEP_DIALOGS,
)
from services.text_stream import TextStream

log = logging.getLogger(__name__)

IDLE_S = 0.5  # how often an idle loop looks whether cameras can be forgotten
REPORT_EVERY_S = 1.0


def frame_features(frame: Frame) -> Tensor:
    """The visual tokens [P, Dv] of a frame as a tensor."""
    if frame.dtype == "bfloat16":
        bits = np.frombuffer(frame.visual_tokens, dtype=np.int16).copy()
        return torch.from_numpy(bits).view(torch.bfloat16).view(frame.shape)
    return torch.from_numpy(np.frombuffer(frame.visual_tokens, dtype=frame.dtype).reshape(frame.shape).copy())


def memory_of(device: torch.device) -> tuple[int, int]:
    """Bytes in use and bytes there are: of the whole GPU, or of this process and this machine."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return total - free, total
    page = os.sysconf("SC_PAGE_SIZE")
    resident = int(Path("/proc/self/statm").read_text().split()[1])
    return resident * page, os.sysconf("SC_PHYS_PAGES") * page


@dataclass(slots=True, kw_only=True)
class LiveDialog:
    """A dialog while it is answered. `emit` may be called from the engine's thread."""

    request: DialogRequest
    prompt: list[int]
    text: TextStream
    emit: Callable[[list[DialogEvent]], None]
    next_due_s: float = 0.0  # wall clock
    num_made: int = 0
    clip_end_s: float | None = None  # set for a private clip, whose clock stands still at its end
    started_s: float = 0.0


@dataclass(slots=True)
class _Inbox:
    frames: deque[Frame] = field(default_factory=lambda: deque[Frame]())
    dialogs: deque[LiveDialog] = field(default_factory=lambda: deque[LiveDialog]())
    cancelled: deque[str] = field(default_factory=lambda: deque[str]())


class DecodeLoop:
    """The thread. `forgotten` is told when a camera has not been asked about for a while."""

    def __init__(
        self,
        engine: Engine,
        *,
        stop_ids: Sequence[int],
        stale_after_s: float,
        forget_after_s: float,
        forgotten: Callable[[str], None],
        meters: Meters,
    ) -> None:
        self._engine = engine
        self._stop_ids = frozenset(stop_ids)
        self._stale_after_s, self._forget_after_s = stale_after_s, forget_after_s
        self._forgotten, self._meters = forgotten, meters
        self._inbox = _Inbox()
        self._changed = threading.Condition()
        self._dialogs: dict[str, LiveDialog] = {}
        self._newest: dict[str, tuple[int, int]] = {}  # newest frame id in each camera's ring
        self._used_s: dict[str, float] = {}
        self._ended = False
        self._reported_at = float("-inf")  # monotonic
        self._shown: set[str] = set()  # cameras that the gauge tells of
        self.num_steps = 0
        self.num_tokens = 0
        self.num_frames = 0
        self._thread = threading.Thread(target=self._run, name="decode-loop", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def close(self) -> None:
        """End the thread; dialogs that are still open get no further event."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    def put_frames(self, frames: Sequence[Frame]) -> None:
        """Frames that arrived, a camera's in order. From any thread."""
        with self._changed:
            self._inbox.frames.extend(frames)
            self._changed.notify()

    def put_dialog(self, dialog: LiveDialog) -> None:
        """A dialog to be answered; its camera's frames must have been put before. From any thread."""
        with self._changed:
            self._inbox.dialogs.append(dialog)
            self._changed.notify()

    def cancel(self, request_id: str) -> None:
        """Nobody listens to this dialog any more. From any thread."""
        with self._changed:
            self._inbox.cancelled.append(request_id)
            self._changed.notify()

    def has_frames(self, camera: str) -> bool:
        """Whether the camera's newest frames are in the ring already."""
        return camera in self._newest

    def _run(self) -> None:
        while (inbox := self._wait()) is not None:
            self._take_frames(inbox.frames)
            for request_id in inbox.cancelled:  # first: they give back the places that new dialogs take
                self._close(request_id)
            for dialog in inbox.dialogs:
                if dialog.request.request_id not in inbox.cancelled:
                    self._open(dialog)
            now_s = time.time()
            due = [name for name, dialog in self._dialogs.items() if dialog.next_due_s <= now_s]
            if due:
                self._step(due)
            self._forget_cameras(now_s)
            self._report()

    def _wait(self) -> _Inbox | None:
        """Sleep until there is something to do; what has arrived, or None at the end."""
        with self._changed:
            inbox = self._inbox
            if not (inbox.frames or inbox.dialogs or inbox.cancelled or self._ended):
                due_s = min((d.next_due_s for d in self._dialogs.values()), default=time.time() + IDLE_S)
                if (wait_s := due_s - time.time()) > 0:
                    self._changed.wait(wait_s)
            taken, self._inbox = self._inbox, _Inbox()
            return None if self._ended else taken

    def _take_frames(self, frames: deque[Frame]) -> None:
        """Move frames into the rings, all of one camera that lie together in one go."""
        by_camera: dict[str, list[Frame]] = {}
        for frame in frames:
            position = parse_frame_id(frame.frame_id)
            if position > self._newest.get(frame.camera, (-1, -1)):
                self._newest[frame.camera] = position
                by_camera.setdefault(frame.camera, []).append(frame)
        for camera, new in by_camera.items():
            self._used_s.setdefault(camera, time.monotonic())
            try:
                if camera not in self._engine.cameras:
                    self._engine.add_camera(camera)
                self._engine.add_frames(camera, [(f.frame_id, f.captured_s, frame_features(f)) for f in new])
                self.num_frames += len(new)
                self._meters.count(REFRESHES, by=len(new))
            except Exception:
                log.exception("frames of camera %s could not be taken in", camera)

    def _open(self, dialog: LiveDialog) -> None:
        request = dialog.request
        dialog.started_s = dialog.next_due_s = time.time()
        spoken = [Spoken(token.token_id, token.made_s) for token in request.spoken]
        asked_s = request.asked_s or dialog.started_s
        try:
            self._engine.open(
                request.request_id,
                request.camera,
                dialog.prompt,
                self._options(request),
                spoken=spoken,
                asked_s=asked_s,
            )
        except ValueError as error:
            dialog.emit([DialogFailed(status=400, code="bad_option", message=str(error))])
            return
        except Exception as error:
            log.exception("dialog %s could not be opened", request.request_id)
            dialog.emit(
                [
                    DialogFailed(
                        status=500,
                        code="decoder_error",
                        message=f"the decoder failed: {type(error).__name__}",
                    )
                ]
            )
            return
        for token in request.spoken:
            dialog.text.push(token.token_id)
            dialog.num_made += 1
        self._used_s[request.camera] = time.monotonic()
        self._dialogs[request.request_id] = dialog
        dialog.emit([DialogStarted(num_prompt_tokens=len(dialog.prompt))])

    def _options(self, request: DialogRequest) -> Options:
        return Options(
            visual_context=request.visual_context,
            num_frames=request.num_frames,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            max_tokens=request.max_tokens,
            stop_ids=self._stop_ids,
        )

    def _close(self, request_id: str) -> None:
        dialog = self._dialogs.pop(request_id, None)
        if dialog is not None:
            self._engine.close(request_id)
            self._used_s[dialog.request.camera] = time.monotonic()

    def _step(self, due: list[str]) -> None:
        try:
            began_s = time.monotonic()
            made = self._engine.step(due)
        except Exception as error:
            log.exception("a step failed; its dialogs end")
            for name in due:
                message = f"the decoder failed: {type(error).__name__}"
                self._dialogs[name].emit([DialogFailed(status=500, code="decoder_error", message=message)])
                self._close(name)
            return
        self.num_steps += 1
        self.num_tokens += len(made)
        took_s = time.monotonic() - began_s
        self._meters.observe(STEP, took_s)
        self._meters.count(BUSY, by=took_s)
        self._meters.observe(STEP_DIALOGS, len(made))
        for token in made:
            self._tell(self._dialogs[token.dialog_id], token, time.time())

    def _tell(self, dialog: LiveDialog, made: Made, made_s: float) -> None:
        request = dialog.request
        dialog.num_made += 1
        if request.tokens_per_second:
            # From when it was due, not from now: the pace holds although steps take time. Never more than one behind.
            dialog.next_due_s = max(dialog.next_due_s + 1 / request.tokens_per_second, made_s - 1)
        ends = made.finished == "stop" and made.token_id in self._stop_ids
        text = "" if ends else dialog.text.push(made.token_id)
        finished = "stop" if dialog.text.stopped else made.finished
        if finished:
            text += dialog.text.finish()
        assert made.frame_id is not None  # no dialog opens on an empty ring
        assert made.captured_s is not None
        now_s = made_s if dialog.clip_end_s is None else dialog.clip_end_s
        age_s = now_s - made.captured_s
        limit_ms = request.max_frame_age_ms or self._stale_after_s * 1000
        event = TokenEvent(
            token_id=made.token_id,
            text=text,
            made_s=made_s,
            time_s=made_s - dialog.started_s,
            frame_id=made.frame_id,
            captured_s=made.captured_s,
            frame_age_ms=age_s * 1000,
            stale=age_s * 1000 > limit_ms,
        )
        if dialog.clip_end_s is None and request.visual_context == "live":
            self._meters.observe(FRAME_AGE, max(0.0, age_s), request.camera)
        events: list[DialogEvent] = [event]
        if finished:
            counts = {"num_prompt_tokens": len(dialog.prompt), "num_completion_tokens": dialog.num_made}
            events.append(DialogEnded(finish_reason=finished, **counts))
            self._close(request.request_id)
        dialog.emit(events)

    def _forget_cameras(self, now_s: float) -> None:
        """Drop the rings of cameras that nobody has asked about for a while; private clips at once."""
        asked = {dialog.request.camera for dialog in self._dialogs.values()}
        for camera, used_s in list(self._used_s.items()):
            keep_s = 0.0 if is_private(camera) else self._forget_after_s
            if camera not in asked and time.monotonic() - used_s > keep_s:
                self._engine.drop_camera(camera)
                self._newest.pop(camera, None)
                self._used_s.pop(camera, None)
                self._forgotten(camera)

    def _report(self) -> None:
        """Tell how many dialogs there are on each camera; one that has no more gets its 0."""
        if time.monotonic() - self._reported_at < REPORT_EVERY_S:
            return
        self._reported_at = time.monotonic()
        names = [dialog.request.camera for dialog in self._dialogs.values()]
        dialogs = Counter(CLIP if is_private(name) else name for name in names)
        for camera in dialogs.keys() | self._shown:
            self._meters.set(DIALOGS, dialogs[camera], camera)
        self._shown = set(dialogs)
        self._meters.set(CACHE_BYTES, self._engine.frame_bytes, "frames")
        self._meters.set(CACHE_BYTES, self._engine.text_bytes, "text")
        self._meters.set(CACHE_LIMIT_BYTES, self._engine.cache_limit_bytes)
        used_bytes, limit_bytes = memory_of(self._engine.device)
        self._meters.set(DEVICE_BYTES, used_bytes, self._engine.device.type)
        self._meters.set(DEVICE_LIMIT_BYTES, limit_bytes, self._engine.device.type)
