"""A thread that hangs is seen by its lack of progress; one without work is not."""

from __future__ import annotations

from services.processes.thread_progress import ThreadProgress


def test_a_thread_is_stuck_from_its_last_mark_on_unless_it_rests() -> None:
    now_s = 0.0
    progress = ThreadProgress(lambda: now_s)
    assert progress.stuck_s == 0.0
    progress.mark()
    now_s = 3.0
    assert progress.stuck_s == 3.0
    progress.mark()
    assert progress.stuck_s == 0.0
    now_s = 5.0
    progress.rest()
    assert progress.stuck_s == 0.0
