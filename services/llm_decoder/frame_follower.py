"""A thread of the decoder that follows the FIFOs of the cameras in use."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence

from services.messages.video import Frame
from services.ports.frame_store import BEFORE_ALL, FrameStore, StoreLost
from services.processes.thread_progress import ThreadProgress

BLOCK_S = 0.1  # a newly followed camera waits at most this long for its first frame
RETRY_S = 0.2

log = logging.getLogger(__name__)


class FrameFollower:
    """Reads each new frame once for all dialogs and hands it on. It waits for a lost store to come back."""

    def __init__(self, store: FrameStore, on_frames: Callable[[Sequence[Frame]], None]) -> None:
        self._store, self._on_frames = store, on_frames
        self._positions: dict[str, str] = {}
        self._changed = threading.Condition()
        self._ended = False
        self.store_lost = False
        self.progress = ThreadProgress()
        self._thread = threading.Thread(target=self._run, name="frame-follower", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def follow(self, camera: str, after: str = BEFORE_ALL) -> None:
        """Follow a camera from a frame id on. One that is followed already keeps its position."""
        with self._changed:
            self._positions.setdefault(camera, after)
            self._changed.notify()

    def unfollow(self, camera: str) -> None:
        """Stop following a camera."""
        with self._changed:
            self._positions.pop(camera, None)

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._ended = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=5)

    @property
    def alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._positions:
                    self.progress.rest()
                self._changed.wait_for(lambda: self._ended or self._positions)
                if self._ended:
                    return
                positions = dict(self._positions)
            self.progress.mark()
            try:
                frames = self._store.newer(positions, block_s=BLOCK_S)
                self.store_lost = False
            except Exception as error:
                if not isinstance(error, StoreLost):
                    log.exception("new frames could not be read")
                if not self.store_lost:
                    log.warning("the frame store is lost; answers go on from what is in the ring: %s", error)
                self.store_lost = True
                with self._changed:
                    self._changed.wait_for(lambda: self._ended, timeout=RETRY_S)
                continue
            self._advance(frames)
            if frames:
                self._on_frames(frames)

    def _advance(self, frames: Sequence[Frame]) -> None:
        with self._changed:
            for frame in frames:
                if frame.camera in self._positions:
                    self._positions[frame.camera] = frame.frame_id
