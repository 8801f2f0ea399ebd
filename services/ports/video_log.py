"""The ports of the video log: its writing and its reading side.

`services/adapters/kafka_writer.py` and `kafka_reader.py` are the log in production. Tests have a twin in memory
(`tests/services/adapters/memory_video_log.py`); one contract suite runs on both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from services.messages.video import VideoPacket
from services.messages.video_record import Partition, VideoRecord


class LogLost(ConnectionError):
    """The broker cannot be reached."""


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
    """One member of a consumer group. One thread uses it; only `lag` may be called from any thread."""

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

    def close(self) -> None:
        """Write the last commit and leave the group."""
        ...
