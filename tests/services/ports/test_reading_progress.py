"""When a reader stands still."""

from __future__ import annotations

from services.ports.reading_progress import REBUILD_EVERY_S, ReadingProgress

DOOR, YARD = ("cameras", 0), ("cameras", 1)


def test_a_partition_stands_still_while_unread_records_wait() -> None:
    progress = ReadingProgress()
    progress.update([DOOR, YARD], {DOOR: 5, YARD: 7}, {DOOR: 5, YARD: 9}, 0.0)
    assert progress.lag() == {DOOR: 0, YARD: 2}
    progress.update([DOOR, YARD], {DOOR: 5, YARD: 7}, {DOOR: 5, YARD: 12}, 6.0)
    assert progress.standstill(6.0) == (6.0, YARD)
    progress.update([DOOR, YARD], {DOOR: 5, YARD: 8}, {DOOR: 5, YARD: 12}, 7.0)
    assert progress.standstill(8.0) == (1.0, YARD)
    progress.update([DOOR, YARD], {DOOR: 5, YARD: 12}, {DOOR: 5, YARD: 12}, 9.0)
    assert progress.standstill(99.0) == (0.0, None)


def test_a_partition_that_is_gone_does_not_stand_still() -> None:
    progress = ReadingProgress()
    progress.update([DOOR, YARD], {DOOR: 5, YARD: 7}, {YARD: 9}, 0.0)
    progress.update([DOOR], {DOOR: 5, YARD: 7}, {YARD: 9}, 6.0)
    assert progress.standstill(6.0) == (0.0, None)


def test_rebuilds_are_apart() -> None:
    progress = ReadingProgress()
    assert progress.may_rebuild(1.0)
    assert not progress.may_rebuild(2.0)
    assert progress.may_rebuild(1.0 + REBUILD_EVERY_S)
