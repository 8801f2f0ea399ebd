"""What other threads ask of the decode loop: frames to take in, dialogs to answer, dialogs to cancel."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.llm_decoder.live_dialog import LiveDialog
from services.messages.video import Frame


@dataclass(slots=True)
class Commands:
    """Everything that arrived since the last look."""

    frames: deque[Frame] = field(default_factory=lambda: deque[Frame]())
    dialogs: deque[LiveDialog] = field(default_factory=lambda: deque[LiveDialog]())
    cancelled: deque[LiveDialog] = field(default_factory=lambda: deque[LiveDialog]())

    @property
    def empty(self) -> bool:
        """Whether nothing arrived."""
        return not (self.frames or self.dialogs or self.cancelled)


class CommandInbox:
    """Filled by any thread, emptied by the decode loop."""

    def __init__(self) -> None:
        self._commands = Commands()
        self._changed = threading.Condition()
        self._closed = False

    def put_frames(self, frames: Sequence[Frame]) -> None:
        """New frames, in order for each camera."""
        with self._changed:
            self._commands.frames.extend(frames)
            self._changed.notify()

    def put_dialog(self, dialog: LiveDialog, frames: Sequence[Frame]) -> bool:
        """A dialog to be answered, and frames of its camera. False after `close`: nobody will answer it."""
        with self._changed:
            if self._closed:
                return False
            self._commands.frames.extend(frames)
            self._commands.dialogs.append(dialog)
            self._changed.notify()
            return True

    def cancel(self, dialog: LiveDialog) -> None:
        """A dialog that nobody reads any more."""
        with self._changed:
            self._commands.cancelled.append(dialog)
            self._changed.notify()

    def close(self) -> None:
        """Make `take` return None from now on."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def drain(self) -> Commands:
        """Close the inbox; returns what nobody has taken."""
        with self._changed:
            self._closed = True
            left, self._commands = self._commands, Commands()
            return left

    def take(self, wait_s: float) -> Commands | None:
        """All commands; waits at most `wait_s` for the first one. None after `close`."""
        with self._changed:
            if wait_s > 0 and self._commands.empty and not self._closed:
                self._changed.wait(wait_s)
            if self._closed:
                return None
            taken, self._commands = self._commands, Commands()
            return taken
