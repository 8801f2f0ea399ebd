"""What a publisher can send again."""

from __future__ import annotations

from services.messages.sent_gops import MAX_AGE_S, SentGops
from services.messages.video_record import RawRecord


def record(name: str, num_bytes: int = 10) -> RawRecord:
    return RawRecord(key=name.encode(), value=bytes(num_bytes), headers=(), timestamp_ms=0)


def test_the_newest_gop_of_each_camera_is_kept() -> None:
    sent = SentGops()
    sent.add("door", record("before"), keyframe=False, now_s=0.0)
    assert sent.records("door", now_s=0.0) == []
    for n in range(6):
        sent.add("door", record(f"{n}"), keyframe=n % 4 == 0, now_s=float(n))
        sent.add("yard", record(f"yard {n}"), keyframe=True, now_s=float(n))
    assert sent.records("door", now_s=6.0) == [record("4"), record("5")]
    assert sent.records("yard", now_s=6.0) == [record("yard 5")]
    assert sent.num_bytes == 30


def test_an_old_keyframe_is_not_sent_again() -> None:
    sent = SentGops()
    sent.add("door", record("key"), keyframe=True, now_s=0.0)
    assert sent.records("door", now_s=MAX_AGE_S) != []
    assert sent.records("door", now_s=MAX_AGE_S + 1) == []
    sent.add("door", record("long after"), keyframe=False, now_s=MAX_AGE_S + 1)
    assert (sent.records("door", now_s=MAX_AGE_S + 1), sent.num_bytes) == ([], 0)


def test_the_memory_is_bounded() -> None:
    sent = SentGops(max_bytes=100)
    sent.add("old", record("old", 60), keyframe=True, now_s=0.0)
    sent.add("door", record("key", 30), keyframe=True, now_s=1.0)
    sent.add("door", record("next", 30), keyframe=False, now_s=1.0)
    assert sent.records("old", now_s=1.0) == []
    assert len(sent.records("door", now_s=1.0)) == 2
    sent.add("door", record("too much", 50), keyframe=False, now_s=1.0)
    assert (sent.records("door", now_s=1.0), sent.num_bytes) == ([], 0)
    sent.add("door", record("without its keyframe"), keyframe=False, now_s=1.0)
    assert sent.records("door", now_s=1.0) == []
