"""Which frames of a camera are kept, and in which slots."""

from __future__ import annotations

from dataclasses import dataclass

from model.engine.retention import Retention


@dataclass(frozen=True, slots=True)
class RingFrame:
    """Identity of a frame in a ring."""

    frame_id: str
    captured_s: float
    number: int  # frames of this camera that came before it; visibility depends on it, never on slots


class FrameRing:
    """The F frames of a camera that are kept, by default the newest. A slot is only where a frame is stored."""

    def __init__(self, page: int, retention: Retention) -> None:
        """`page`: the ring's page in the cache of frames."""
        self.page, self.retention, self.capacity = page, retention, retention.capacity
        self.frames: list[RingFrame | None] = [None] * self.capacity  # by slot
        self.num_arrived = 0
        self.num_dialogs = 0  # dialogs that see it, if it is a snapshot
        self.snapshot: FrameRing | None = None  # copy of the present frames, for frozen dialogs
        self._order: list[int] = []  # slots, oldest frame first

    @property
    def newest(self) -> RingFrame | None:
        """The frame that came last."""
        return self.frames[self._order[-1]] if self._order else None

    @property
    def is_full(self) -> bool:
        """Whether the next frame evicts another one."""
        return len(self._order) == self.capacity

    def in_order(self) -> list[tuple[int, RingFrame]]:
        """Slots and frames, oldest first."""
        return [(slot, frame) for slot in self._order if (frame := self.frames[slot]) is not None]

    def add(self, frame_id: str, captured_s: float) -> int:
        """Add the newest frame; returns its slot. In a full ring it takes the slot of the frame that it evicts."""
        if self.is_full:
            times = [frame.captured_s for _, frame in self.in_order()]
            slot = self._order.pop(self.retention.frame_to_evict(times))
        else:
            slot = len(self._order)
        self._order.append(slot)
        self.frames[slot] = RingFrame(frame_id, captured_s, self.num_arrived)
        self.num_arrived += 1
        self.snapshot = None
        return slot

    def copy_to(self, page: int) -> FrameRing:
        """A ring of the same frames on another page. The caller copies the keys and values."""
        copy = FrameRing(page, self.retention)
        copy.frames, copy.num_arrived, copy._order = list(self.frames), self.num_arrived, list(self._order)
        return copy
