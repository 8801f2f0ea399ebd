"""A decoder replica's engine thread: frames in, one step for all dialogs that are due, tokens out. Again and again.

The thread owns the engine: others only hand it frames, new dialogs and cancellations. Between steps it takes in frames
and reads prompts, in pieces: neither a frame nor a long prompt makes anyone wait for more than part of a step.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from model.engine.dialog import PriorToken
from model.engine.engine import Engine, EngineFull, GeneratedToken
from model.engine.options import DialogOptions
from services.llm_decoder.live_dialog import LiveDialog, refusal
from services.llm_decoder.metrics import DecoderGauges
from services.llm_decoder.resting_dialogs import RestingDialogs
from services.messages.dialog import (
    DialogEnded,
    DialogFailed,
    DialogRequest,
    DialogStarted,
    TokenEvent,
    TokenLogprob,
)
from services.messages.video import Frame
from services.ports.frame_store import is_private, parse_frame_id
from services.ports.metric_catalogue import BUSY, FRAME_AGE, REFRESHES, STEP, STEP_DIALOGS
from services.ports.recorder import MetricsRecorder

log = logging.getLogger(__name__)

IDLE_S = 0.5  # how often an idle loop looks whether cameras can be forgotten
BESIDE = 0.5  # of a step's time, for frames and prompts after each step
FIRST_BESIDE_S = 0.01  # as long as no step was made


def frame_features(frame: Frame) -> Tensor:
    """The visual tokens [P, Dv] of a frame as a tensor."""
    if frame.dtype == "bfloat16":
        bits = np.frombuffer(frame.visual_tokens, dtype=np.int16).copy()
        return torch.from_numpy(bits).view(torch.bfloat16).view(frame.shape)
    return torch.from_numpy(np.frombuffer(frame.visual_tokens, dtype=frame.dtype).reshape(frame.shape).copy())


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
        resting: RestingDialogs,
        token_text: Callable[[int], str],
        stale_after_s: float,
        forget_after_s: float,
        forgotten: Callable[[str], None],
        recorder: MetricsRecorder,
    ) -> None:
        self._engine = engine
        self._stop_ids = frozenset(stop_ids)
        self._resting, self._token_text = resting, token_text
        self._stale_after_s, self._forget_after_s = stale_after_s, forget_after_s
        self._forgotten, self._recorder = forgotten, recorder
        self._inbox = _Inbox()
        self._changed = threading.Condition()
        self._dialogs: dict[str, LiveDialog] = {}  # by the names of the engine's dialogs
        self._asking: list[LiveDialog] = []  # their cameras' frames are on their way into the ring
        self._working = False  # frames or prompts wait
        self._newest: dict[str, tuple[int, int]] = {}  # newest frame id of each camera
        self._used_s: dict[str, float] = {}
        self._ended = False
        self._gauges = DecoderGauges(engine, recorder)
        self._num_begun = 0
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

    def put_dialog(self, dialog: LiveDialog, frames: Sequence[Frame] = ()) -> None:
        """A dialog to be answered, and its camera's frames unless they were put before. From any thread."""
        with self._changed:
            self._inbox.frames.extend(frames)
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
            # Cancellations first: they give back the places that new dialogs take.
            for request_id in inbox.cancelled:
                self._cancel(request_id)
            self._asking += [d for d in inbox.dialogs if d.request.request_id not in inbox.cancelled]
            self._open_all()
            now_s = time.time()
            due = [name for name, dialog in self._dialogs.items() if dialog.next_due_s <= now_s]
            if due := [name for name in due if self._engine.is_prefilled(name)]:
                self._step(due)
            self._work()
            self._forget_cameras(now_s)
            self._gauges.show([dialog.request.camera for dialog in self._dialogs.values()])

    def _wait(self) -> _Inbox | None:
        """Sleep until there is something to do; what has arrived, or None at the end."""
        with self._changed:
            inbox = self._inbox
            arrived = inbox.frames or inbox.dialogs or inbox.cancelled
            if not (self._working or self._asking or arrived or self._ended):
                due_s = min((d.next_due_s for d in self._dialogs.values()), default=time.time() + IDLE_S)
                if (wait_s := due_s - time.time()) > 0:
                    self._changed.wait(wait_s)
            taken, self._inbox = self._inbox, _Inbox()
            return None if self._ended else taken

    def _work(self) -> None:
        """Frames and prompts, for part of a step's time."""
        try:
            self._working = self._engine.run_background(BESIDE * self._engine.step_s or FIRST_BESIDE_S)
        except Exception as error:
            log.exception("frames or prompts could not be read; the dialogs whose prompts they were end")
            self._working = True
            for name, dialog in list(self._dialogs.items()):
                if not self._engine.is_prefilled(name):
                    self._fail(dialog, error)

    def _take_frames(self, frames: deque[Frame]) -> None:
        """Offer frames to the engine, all of one camera that lie together in one go."""
        by_camera: dict[str, list[Frame]] = {}
        for frame in frames:
            position = parse_frame_id(frame.frame_id)
            if position > self._newest.get(frame.camera, (-1, -1)):
                self._newest[frame.camera] = position
                by_camera.setdefault(frame.camera, []).append(frame)
        for camera, new in by_camera.items():
            self._used_s.setdefault(camera, time.monotonic())
            try:
                if camera not in self._engine.cameras and (dropped := self._engine.add_camera(camera)):
                    self._forget(dropped)
                self._engine.enqueue_frames(
                    camera, [(f.frame_id, f.captured_s, frame_features(f)) for f in new]
                )
                self._working = True
                self.num_frames += len(new)
                self._recorder.count(REFRESHES, by=len(new))
            except Exception:
                log.exception("frames of camera %s could not be taken in", camera)
                if camera not in self._engine.cameras:
                    self._forget(camera)

    def _open_all(self) -> None:
        """Open the dialogs whose cameras' frames are there. Their prompts are read later, in pieces."""
        asking, self._asking = self._asking, []
        for dialog in asking:
            camera = dialog.request.camera
            dialog.awaits = dialog.awaits or self._newest.get(camera)
            newest = self._engine.cameras.get(camera)
            if newest is not None and dialog.awaits and parse_frame_id(newest.frame_id) >= dialog.awaits:
                self._open(dialog)
            elif self._working and camera in self._engine.cameras:
                self._asking.append(dialog)
            else:
                message = (
                    "all places for cameras are taken, or this one's frames are unusable: ask again shortly"
                )
                dialog.emit([refusal(429, "decoder_full", message)])

    def _open(self, dialog: LiveDialog) -> None:
        request = dialog.request
        dialog.started_s = dialog.next_due_s = time.time()
        try:
            num_cached = self._go_on(dialog)
            if num_cached is None:
                self._begin(dialog)
        except EngineFull as error:
            dialog.emit([refusal(429, "decoder_full", f"{error}: ask again shortly")])
            return
        except ValueError as error:
            dialog.emit([DialogFailed(status=400, code="bad_option", message=str(error))])
            return
        except Exception as error:
            log.exception("dialog %s could not be opened", request.request_id)
            self._fail(dialog, error)
            return
        for token in request.prior_tokens:
            dialog.text.push(token.token_id)
            dialog.num_made += 1
        self._working = True
        self._used_s[request.camera] = time.monotonic()
        self._dialogs[dialog.name] = dialog
        dialog.emit([DialogStarted(num_prompt_tokens=len(dialog.prompt), num_cached_tokens=num_cached or 0)])

    def _go_on(self, dialog: LiveDialog) -> int | None:
        """Ask the dialog at rest that knows all but the last question; how many tokens it knew, None: there is none."""
        request, engine = dialog.request, self._engine
        if request.prior_tokens:
            return None
        found = self._resting.take(request.camera, request.messages, dialog.prompt_text, engine.dialogs)
        if found is None:
            return None
        name, new = found
        before = engine.dialogs[name]
        if new and new[0] == before.last_token_id:  # the end of the answer: it was said
            del new[0]
        num_held = before.num_cached_tokens
        try:
            engine.start_turn(name, new, self._options(request), prefill_now=False)
        except EngineFull:
            engine.close_dialog(name)
            return None
        dialog.name = name
        return min(num_held, len(dialog.prompt))

    def _begin(self, dialog: LiveDialog) -> None:
        request = dialog.request
        self._num_begun += 1
        dialog.name = f"{request.request_id}/{self._num_begun}"  # a request may come again, after it was lost
        self._engine.open_dialog(
            dialog.name,
            request.camera,
            dialog.prompt,
            self._options(request),
            prior_tokens=[PriorToken(token.token_id, token.generated_s) for token in request.prior_tokens],
            asked_s=request.asked_s or dialog.started_s,
            num_pinned_tokens=dialog.num_kept,
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

    def _cancel(self, request_id: str) -> None:
        self._asking = [dialog for dialog in self._asking if dialog.request.request_id != request_id]
        for dialog in list(self._dialogs.values()):
            if dialog.request.request_id == request_id:
                self._end(dialog)

    def _end(self, dialog: LiveDialog) -> None:
        """A turn is over. Its dialog rests if all that it said was heard, so that a next turn can go on from it."""
        del self._dialogs[dialog.name]
        request = dialog.request
        self._used_s[request.camera] = time.monotonic()
        heard = not (dialog.text.stopped or request.prior_tokens or is_private(request.camera))
        if not heard or not self._engine.is_prefilled(dialog.name):
            self._engine.close_dialog(dialog.name)
            return
        self._engine.suspend_dialog(dialog.name)
        self._resting.put(dialog.name, request.camera, request.messages, dialog.prompt_text, dialog.answer)

    def _fail(self, dialog: LiveDialog, error: Exception) -> None:
        message = f"the decoder failed: {type(error).__name__}"
        dialog.emit([DialogFailed(status=500, code="decoder_error", message=message)])
        if self._dialogs.pop(dialog.name, None) is not None:
            self._engine.close_dialog(dialog.name)

    def _step(self, due: list[str]) -> None:
        try:
            began_s = time.monotonic()
            made = self._engine.step(due)
        except Exception as error:
            log.exception("a step failed; its dialogs end")
            for name in due:
                self._fail(self._dialogs[name], error)
            return
        self.num_steps += 1
        self.num_tokens += len(made)
        took_s = time.monotonic() - began_s
        self._recorder.observe(STEP, took_s)
        self._recorder.count(BUSY, by=took_s)
        self._recorder.observe(STEP_DIALOGS, len(made))
        for token in made:
            self._tell(self._dialogs[token.dialog_id], token)

    def _tell(self, dialog: LiveDialog, made: GeneratedToken) -> None:
        request = dialog.request
        events = dialog.said(made, time.time(), self._logprobs(made), self._stop_ids, self._stale_after_s)
        if (
            dialog.clip_end_s is None
            and request.visual_context == "live"
            and isinstance(events[0], TokenEvent)
        ):
            self._recorder.observe(FRAME_AGE, max(0.0, events[0].frame_age_ms / 1000), request.camera)
        if isinstance(events[-1], DialogEnded):
            self._end(dialog)
        dialog.emit(events)

    def _logprobs(self, made: GeneratedToken) -> tuple[TokenLogprob, ...]:
        if made.logprobs is None:
            return ()
        pairs = [(made.token_id, made.logprobs.token), *made.logprobs.top]
        return tuple(TokenLogprob(text=self._token_text(token), logprob=chance) for token, chance in pairs)

    def _forget_cameras(self, now_s: float) -> None:
        """Drop the rings of cameras that nobody has asked about for a while; private clips at once."""
        asked = {dialog.request.camera for dialog in [*self._dialogs.values(), *self._asking]}
        for camera, used_s in list(self._used_s.items()):
            keep_s = 0.0 if is_private(camera) else self._forget_after_s
            if camera not in asked and time.monotonic() - used_s > keep_s:
                if camera in self._engine.cameras:
                    self._engine.drop_camera(camera)
                self._forget(camera)

    def _forget(self, camera: str) -> None:
        self._newest.pop(camera, None)
        self._used_s.pop(camera, None)
        self._forgotten(camera)
