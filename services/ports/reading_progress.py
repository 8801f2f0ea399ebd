"""Whether a reader gets on: what is unread, since when nothing of it was read, and when to connect anew."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from services.messages.video_record import Partition

REBUILD_AFTER_S = 5.0  # without progress
REBUILD_EVERY_S = 10.0


@dataclass(slots=True)
class ReadingProgress:
    """Times are monotonic. A partition stands still while it has unread records and its next offset does not move."""

    _moved_at: dict[Partition, float] = field(default_factory=dict[Partition, float])
    _next: dict[Partition, int] = field(default_factory=dict[Partition, int])
    _unread: dict[Partition, int] = field(default_factory=dict[Partition, int])
    _rebuilt_at: float = float("-inf")

    def update(
        self,
        partitions: Collection[Partition],
        next_offsets: Mapping[Partition, int],
        ends: Mapping[Partition, int],
        now: float,
    ) -> None:
        """What is assigned, which offset is read next, and where each partition ends, as far as known."""
        for gone in set(self._moved_at) - set(partitions):
            del self._moved_at[gone]
            self._next.pop(gone, None)
        self._unread = {}
        for partition in partitions:
            offset = next_offsets.get(partition)
            end = ends.get(partition, 0)
            unread = max(0, end - offset) if offset is not None else 0
            self._unread[partition] = unread
            if unread == 0 or offset != self._next.get(partition) or partition not in self._moved_at:
                self._moved_at[partition] = now
            if offset is not None:
                self._next[partition] = offset

    def lag(self) -> dict[Partition, int]:
        """Number of unread records of each partition."""
        return dict(self._unread)

    def standstill(self, now: float) -> tuple[float, Partition | None]:
        """Seconds since the slowest partition moved, and which it is; (0, None) while all move."""
        waiting = [(at, partition) for partition, at in self._moved_at.items() if self._unread.get(partition)]
        if not waiting:
            return 0.0, None
        at, partition = min(waiting)
        return now - at, partition

    def may_rebuild(self, now: float) -> bool:
        """Whether the last rebuild was long enough ago; if so, one begins now."""
        if now - self._rebuilt_at < REBUILD_EVERY_S:
            return False
        self._rebuilt_at = now
        return True
