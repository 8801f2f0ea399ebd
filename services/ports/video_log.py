"""The ports of the video log: its writing and its reading side.

`services/adapters/kafka_writer.py` and `kafka_reader.py` are the log in production. Tests have a twin in memory
(`tests/services/adapters/memory_video_log.py`); one contract suite runs on both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from services.messages.video import VideoPacket
from services.messages.video_record import Partition, VideoRecord


class LogLost(ConnectionError):
    """The broker cannot be reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReaderStatus:
    """How a reader gets on."""

    standstill_s: float = (
        0.0  # for so long, records have waited of which none was read, or the log has been away
    )
    problem: str = ""  # why it stands still; empty: it does not
    away: bool = False  # the log cannot be reached: another reader could not reach it either
    lag: Mapping[Partition, int] = field(default_factory=dict[Partition, int])  # unread records
    num_failing: int = 0  # partitions that the broker does not let us read
    num_skipped: Mapping[str, int] = field(
        default_factory=dict[str, int]
    )  # batches since the start, by reason
    num_rebuilds: int = 0  # how often it connected anew because it stood still


class VideoWriter(Protocol):
    """Writes packets. A live camera never waits: a packet that cannot be written in time is dropped and counted."""

    def send(self, packet: VideoPacket) -> None:
        """Write soon or drop; never blocks for long. ValueError for a packet that readers would refuse."""
        ...

    def flush(self, timeout_s: float) -> bool:
        """Wait until all pending packets are written; False if that takes longer than `timeout_s`."""
        ...

    def close(self) -> None:
        """Write pending packets for a short time, then disconnect."""
        ...


class VideoReader(Protocol):
    """One member of a consumer group. One thread uses it; `lag` and `status` may be called from any thread."""

    def poll(self, timeout_s: float, max_records: int) -> list[VideoRecord]:
        """Next records, in order per partition; empty after `timeout_s` or while the log cannot be reached."""
        ...

    def commit(self, offsets: Mapping[Partition, int]) -> None:
        """Set where a restart continues. Written within about a second, and before a partition is revoked."""
        ...

    def take_lost(self) -> set[Partition]:
        """Partitions that were lost to another member since the last call: drop all state about them."""
        ...

    def dead_letter(self, record: VideoRecord, reason: str) -> None:
        """Copy a record to the dead-letter topic with a reason. Never blocks for long, never raises."""
        ...

    def lag(self) -> int:
        """Number of records written but not yet read, as far as known."""
        ...

    def status(self) -> ReaderStatus:
        """How it gets on, for metrics and health."""
        ...

    def close(self) -> None:
        """Write the last commit and leave the group."""
        ...
