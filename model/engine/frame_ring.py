"""Which frames of a camera are kept, and in which slots."""

from __future__ import annotations

from dataclasses import dataclass

from model.engine.retention import Retention


@dataclass(frozen=True, slots=True)
class RingFrame:
    """Who a frame in a ring is."""

    frame_id: str
    captured_s: float
    number: int  # how many frames of this camera came before it: what masks are made of, never slots


class FrameRing:
    """Which frames of a camera lie where: F of them, by default the newest. A slot is only where a frame lies.

    What may be seen is decided by the frames' numbers.
    """

    def __init__(self, page: int, retention: Retention) -> None:
        """`place`: the ring's page in the frame store."""
        self.page, self.retention, self.capacity = page, retention, retention.capacity
        self.frames: list[RingFrame | None] = [None] * self.capacity  # by slot
        self.num_arrived = 0
        self.num_dialogs = 0  # dialogs that look at it, of a ring that no camera fills
        self._order: list[int] = []  # slots, oldest frame first
        self.snapshot: FrameRing | None = None  # of this very moment

    @property
    def newest(self) -> RingFrame | None:
        """The frame that came last."""
        return self.frames[self._order[-1]] if self._order else None

    @property
    def is_full(self) -> bool:
        """Whether a next frame makes another one leave."""
        return len(self._order) == self.capacity

    def in_order(self) -> list[tuple[int, RingFrame]]:
        """Slots and frames, oldest first."""
        return [(slot, frame) for slot in self._order if (frame := self.frames[slot]) is not None]

    def add(self, frame_id: str, captured_s: float) -> int:
        """The newest frame comes; returns its slot, that of the frame which makes way."""
        if self.is_full:
            slot = self._order.pop(
                self.retention.frame_to_evict([frame.captured_s for _, frame in self.in_order()])
            )
        else:
            slot = len(self._order)
        self._order.append(slot)
        self.frames[slot] = RingFrame(frame_id, captured_s, self.num_arrived)
        self.num_arrived += 1
        self.snapshot = None
        return slot

    def copy_to(self, place: int) -> FrameRing:
        """The same frames at another place of the store (whoever asks copies the numbers there)."""
        copy = FrameRing(place, self.retention)
        copy.frames, copy.num_arrived, copy._order = list(self.frames), self.num_arrived, list(self._order)
        return copy
