"""Capturing: when it begins, that the graph is used, and that a failure stops nothing."""

from __future__ import annotations

import logging

import pytest

from model.runtime.cuda_graph import WARMUP_RUNS, GraphRunner, Run


def test_it_is_captured_after_the_warm_up():
    said: list[str] = []

    def capture(run: Run) -> Run:
        assert len(said) == WARMUP_RUNS
        run()  # capturing runs nothing on a GPU; here it shows what was captured
        assert said.pop() == "one by one"
        return lambda: said.append("graph")

    runner = GraphRunner(capture)
    for _ in range(WARMUP_RUNS + 2):
        runner(lambda: said.append("one by one"))
    assert said == ["one by one"] * WARMUP_RUNS + ["graph"] * 2


def test_what_cannot_be_captured_is_run_as_before(caplog: pytest.LogCaptureFixture):
    said: list[str] = []
    num_tries = 0

    def capture(run: Run) -> Run:
        nonlocal num_tries
        num_tries += 1
        raise RuntimeError("operation not permitted when stream is capturing")

    runner = GraphRunner(capture)
    with caplog.at_level(logging.ERROR):
        for _ in range(WARMUP_RUNS + 3):
            runner(lambda: said.append("run"))
    assert len(said) == WARMUP_RUNS + 3
    assert num_tries == 1
    assert "could not be captured" in caplog.text
