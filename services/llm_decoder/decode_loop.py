"""The engine thread of a decoder replica: it takes in frames and makes one step for all dialogs that are due.

The thread owns the engine. Others only send it frames, new dialogs and cancellations. Between steps it reads frames
and prompts in pieces, so that neither a frame nor a long prompt delays anyone for more than part of a step.

What one dialog does wrong ends this dialog with an event; the others get their tokens. If the thread itself ends, every
open dialog gets an event, and the gateway sends it to another decoder.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

import torch

from model.engine.admission import EngineFull
from model.engine.dialog import DialogsFailed, GeneratedToken
from model.engine.engine import Engine
from services.llm_decoder.camera_frames import CameraFrames
from services.llm_decoder.command_inbox import CommandInbox, Commands
from services.llm_decoder.dialog_opener import DialogOpener
from services.llm_decoder.live_dialog import LiveDialog, decoder_lost, retryable_failure
from services.llm_decoder.metrics import LLMDecoderMetrics
from services.llm_decoder.suspended_dialogs import SuspendedDialogs
from services.messages.dialog import (
    NO_CAMERA,
    DialogEnded,
    DialogFailed,
    DialogStarted,
    TokenEvent,
    TokenLogprob,
)
from services.messages.video import Frame
from services.ports.frame_store import parse_frame_id
from services.processes.thread_progress import ThreadProgress

log = logging.getLogger(__name__)

IDLE_S = 0.5  # how often an idle loop checks whether cameras can be dropped
BACKGROUND_SHARE = 0.5  # of a step's time, for frames and prompts after each step
FIRST_BACKGROUND_S = 0.01  # before the first step
OPEN_WITHIN_S = 10.0  # a dialog whose frames are not in the ring after this time is refused
MAX_FAILED_ROUNDS = 3  # in a row; then the thread ends, and the replica is replaced


class DecodeLoop:
    """The thread. `on_forget` is called with a camera that no dialog has used for a while."""

    def __init__(
        self,
        engine: Engine,
        *,
        stop_ids: Sequence[int],
        suspended: SuspendedDialogs,
        token_text: Callable[[int], str],
        stale_after_s: float,
        forget_after_s: float,
        on_forget: Callable[[str], None],
        metrics: LLMDecoderMetrics,
    ) -> None:
        self._engine = engine
        self._stop_ids = frozenset(stop_ids)
        self._token_text = token_text
        self._stale_after_s = stale_after_s
        self._metrics = metrics
        self._cameras = CameraFrames(engine, forget_after_s=forget_after_s, on_forget=on_forget)
        self._opener = DialogOpener(engine, suspended, stop_ids)
        self._inbox = CommandInbox()
        self._dialogs: dict[str, LiveDialog] = {}  # by engine id
        self._waiting: list[LiveDialog] = []  # until the frames of their cameras are in the ring
        self._has_background = False  # frames or prompts remain to be read
        self.num_steps = 0
        self.num_tokens = 0
        self.num_frames = 0
        self.progress = ThreadProgress()
        self._thread = threading.Thread(target=self._run, name="decode-loop", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self.progress.mark()
        self._thread.start()

    def close(self) -> None:
        """End the thread. Open dialogs are told."""
        self._inbox.close()
        if self._thread.is_alive():
            self._thread.join(timeout=10)

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    def put_frames(self, frames: Sequence[Frame]) -> None:
        """New frames, in order for each camera. From any thread."""
        self._inbox.put_frames(frames)

    def put_dialog(self, dialog: LiveDialog, frames: Sequence[Frame] = ()) -> None:
        """A dialog to be answered, and frames of its camera unless they were put before. From any thread."""
        if not self._inbox.put_dialog(dialog, frames):
            dialog.emit([decoder_lost("it has ended")])

    def cancel(self, dialog: LiveDialog) -> None:
        """End a dialog that nobody reads any more. From any thread."""
        self._inbox.cancel(dialog)

    def has_frames(self, camera: str) -> bool:
        """Whether the frames of a camera are enqueued or in the ring already. From any thread."""
        return self._cameras.has(camera)

    def _run(self) -> None:
        num_failed = 0
        try:
            while (commands := self._inbox.take(self._wait_s())) is not None:
                self.progress.mark()
                try:
                    self._run_round(commands)
                    num_failed = 0
                except Exception as error:
                    num_failed += 1
                    if num_failed >= MAX_FAILED_ROUNDS or isinstance(error, torch.AcceleratorError):
                        raise
                    log.exception("a round of the decode loop failed")
        except Exception:
            log.exception("the decode loop ends")
        finally:
            left = [*self._dialogs.values(), *self._waiting, *self._inbox.drain().dialogs]
            for dialog in left:
                dialog.emit([decoder_lost("it has ended")])

    def _run_round(self, commands: Commands) -> None:
        self._waiting += commands.dialogs
        self._enqueue_frames(commands.frames)
        # Cancellations first: they free the places that new dialogs take.
        for dialog in commands.cancelled:
            self._cancel(dialog)
        self._open_waiting()
        now_s = time.monotonic()
        due = [name for name, dialog in self._dialogs.items() if dialog.next_due_s <= now_s]
        if due := [name for name in due if self._engine.is_prefilled(name)]:
            self._step(due)
        self._run_background()
        self._cameras.forget_unused({d.request.camera for d in [*self._dialogs.values(), *self._waiting]})
        self._metrics.update([dialog.request.camera for dialog in self._dialogs.values()])

    def _wait_s(self) -> float:
        """How long the loop may sleep unless something arrives, at most IDLE_S."""
        if self._has_background or self._waiting:
            return 0.0
        due_s = min((dialog.next_due_s for dialog in self._dialogs.values()), default=float("inf"))
        return min(IDLE_S, due_s - time.monotonic())

    def _run_background(self) -> None:
        """Read frames and prompts, for part of a step's time."""
        try:
            allowed_s = BACKGROUND_SHARE * self._engine.step_s or FIRST_BACKGROUND_S
            self._has_background = self._engine.run_background(allowed_s)
        except torch.AcceleratorError:
            raise
        except DialogsFailed as error:
            self._has_background = True
            self._fail_all(error.dialog_ids, error)
        except Exception:
            log.exception("frames could not be read, and are skipped")
            self._has_background = True

    def _enqueue_frames(self, frames: Sequence[Frame]) -> None:
        if num := self._cameras.enqueue(frames):
            self._has_background = True
            self.num_frames += num
            self._metrics.frames_enqueued(num)

    def _open_waiting(self) -> None:
        """Open the dialogs whose frames are in the ring. Their prompts are read later, in pieces."""
        waiting, self._waiting = self._waiting, []
        for dialog in waiting:
            camera = dialog.request.camera
            if camera == NO_CAMERA and self._cameras.add_without_frames(camera):
                self._open(dialog)
                continue
            dialog.required_frame = dialog.required_frame or self._cameras.newest(camera)
            newest = self._engine.cameras.get(camera)
            if newest is not None and (
                not self._has_background  # what is missing was skipped
                or (dialog.required_frame and parse_frame_id(newest.frame_id) >= dialog.required_frame)
            ):
                self._open(dialog)
            elif (
                self._has_background
                and camera in self._engine.cameras
                and time.monotonic() - dialog.put_s < OPEN_WITHIN_S
            ):
                self._waiting.append(dialog)
            else:
                message = (
                    "all places for cameras are taken, or this one's frames are unusable: ask again shortly"
                )
                dialog.emit([retryable_failure(429, "decoder_full", message)])

    def _open(self, dialog: LiveDialog) -> None:
        dialog.start()
        try:
            num_cached = self._opener.open(dialog)
        except EngineFull as error:
            dialog.emit([retryable_failure(429, "decoder_full", f"{error}: ask again shortly")])
            return
        except ValueError as error:
            self._opener.discard(dialog)
            dialog.emit([DialogFailed(status=400, code="bad_option", message=str(error))])
            return
        except Exception as error:
            log.exception("dialog %s could not be opened", dialog.request.request_id)
            self._fail(dialog, error)
            return
        self._has_background = True
        self._cameras.touch(dialog.request.camera)
        self._dialogs[dialog.engine_id] = dialog
        num_prompt_tokens = len(dialog.prompt_ids)
        dialog.emit([DialogStarted(num_prompt_tokens=num_prompt_tokens, num_cached_tokens=num_cached)])

    def _cancel(self, dialog: LiveDialog) -> None:
        if dialog in self._waiting:
            self._waiting.remove(dialog)
        if self._dialogs.get(dialog.engine_id) is dialog:
            self._end(dialog)

    def _end(self, dialog: LiveDialog) -> None:
        del self._dialogs[dialog.engine_id]
        self._cameras.touch(dialog.request.camera)
        self._opener.close(dialog)

    def _fail(self, dialog: LiveDialog, error: Exception) -> None:
        self._dialogs.pop(dialog.engine_id, None)
        message = f"the decoder failed: {type(error).__name__}"
        dialog.emit([DialogFailed(status=500, code="decoder_error", message=message)])
        self._opener.discard(dialog)

    def _fail_all(self, names: Sequence[str], error: Exception) -> None:
        log.error("dialogs %s end: %r", ", ".join(names), error, exc_info=error)
        for name in names:
            self._fail(self._dialogs[name], error)

    def _step(self, due: list[str]) -> None:
        began_s = time.monotonic()
        if not (tokens := self._step_rows(due)):
            return
        self.num_steps += 1
        self.num_tokens += len(tokens)
        self._metrics.step_made(time.monotonic() - began_s, len(tokens))
        for token in tokens:
            dialog = self._dialogs[token.dialog_id]
            try:
                self._emit_token(dialog, token)
            except Exception as error:
                self._fail_all([token.dialog_id], error)

    def _step_rows(self, names: list[str]) -> list[GeneratedToken]:
        """A token for each dialog that can have one; the others fail."""
        try:
            return self._engine.step(names)
        except torch.AcceleratorError:  # the device is lost, with all dialogs
            raise
        except DialogsFailed as error:
            self._fail_all(error.dialog_ids, error)
            rest = [name for name in names if name not in error.dialog_ids]
            return self._step_rows(rest) if rest else []
        except Exception as error:
            if len(names) == 1:
                self._fail_all(names, error)
                return []
            # Halves: the one that has nothing to do with the failure gets its tokens.
            half = len(names) // 2
            return self._step_rows(names[:half]) + self._step_rows(names[half:])

    def _emit_token(self, dialog: LiveDialog, token: GeneratedToken) -> None:
        request = dialog.request
        events = dialog.add_token(
            token, time.time(), self._logprobs(token), self._stop_ids, self._stale_after_s
        )
        is_live = dialog.clip_end_s is None and request.visual_context == "live"
        if is_live and isinstance(events[0], TokenEvent) and events[0].frame_age_ms is not None:
            self._metrics.live_token_made(request.camera, events[0].frame_age_ms / 1000)
        if isinstance(events[-1], DialogEnded):
            self._end(dialog)
        dialog.emit(events)

    def _logprobs(self, token: GeneratedToken) -> tuple[TokenLogprob, ...]:
        if token.logprobs is None:
            return ()
        pairs = [(token.token_id, token.logprobs.token), *token.logprobs.top]
        return tuple(TokenLogprob(text=self._token_text(one), logprob=logprob) for one, logprob in pairs)
