"""Recording: when it begins, that it is used, and that a failure stops nobody."""

from __future__ import annotations

import logging

import pytest

from model.runtime.cuda_graph import ENOUGH, Replay, Run


def test_it_is_recorded_once_it_goes_on():
    said: list[str] = []

    def record(run: Run) -> Run:
        assert len(said) == ENOUGH
        run()  # a recording runs nothing on a GPU; here it shows what was recorded
        assert said.pop() == "piece by piece"
        return lambda: said.append("recorded")

    replay = Replay(lambda: said.append("piece by piece"), record)
    for _ in range(ENOUGH + 2):
        replay()
    assert said == ["piece by piece"] * ENOUGH + ["recorded"] * 2


def test_what_cannot_be_recorded_is_run_as_before(caplog: pytest.LogCaptureFixture):
    said: list[str] = []
    num_tries = 0

    def record(run: Run) -> Run:
        nonlocal num_tries
        num_tries += 1
        raise RuntimeError("operation not permitted when stream is capturing")

    replay = Replay(lambda: said.append("run"), record)
    with caplog.at_level(logging.ERROR):
        for _ in range(ENOUGH + 3):
            replay()
    assert len(said) == ENOUGH + 3
    assert num_tries == 1
    assert "could not be recorded" in caplog.text
