"""The whole evaluation against real endpoints: both orders, failures, and resuming."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.config import PROJECT_ROOT
from tests.training.scripted_endpoint import ChatRequest, scripted
from training.evaluation.answer_judge import ASPECTS
from training.evaluation.eval_questions import live_world_questions
from training.evaluation.streaming_eval import main
from training.live_world.clips import Clip

pytestmark = pytest.mark.slow


def judgement(better: str) -> str:
    scores = dict.fromkeys(ASPECTS, 5)
    return json.dumps(
        {"answer_1": scores, "answer_2": scores, "better": better, "justification": "So it is."}
    )


def prefer_good(request: ChatRequest) -> str:
    """A judge that prefers the good answer in both orders."""
    first, second = ("GOOD" in part for part in request.text.split("Answer 1:")[1].split("Answer 2:"))
    return judgement("tie" if first == second else "1" if first else "2")


def rows(out: Path, name: str) -> list[dict[str, Any]]:
    path = out / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


class Evaluation:
    """The command, with two servers and a judge."""

    def __init__(self, clips: Path, out: Path, first: str, second: str, judge: str, *more: str) -> None:
        self.out = out
        self.command = ["streaming_eval.py", "--clips", str(clips), "--out", str(out), "--judge", judge]
        self.command += ["--first", f"name=good,url={first},sees=frames,tokens_per_second=50"]
        self.command += ["--second", f"name=bad,url={second},sees=frames,tokens_per_second=50", *more]

    def run(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        with monkeypatch.context() as patched:
            patched.setattr(sys, "argv", self.command)
            main()
        return json.loads((self.out / "summary.json").read_text())


@pytest.fixture
def folder(held_out: list[Clip]) -> Path:
    return held_out[0].path.parent


def evaluated(
    folder: Path,
    out: Path,
    monkeypatch: pytest.MonkeyPatch,
    judge: Callable[[ChatRequest], str | int],
    *more: str,
    bad: Callable[[ChatRequest], str | int] = lambda request: "a poor one",
) -> tuple[dict[str, Any], int, int]:
    """The summary, and how often the second server and the judge were asked."""
    with scripted(lambda request: "GOOD one.") as first, scripted(bad) as second, scripted(judge) as third:
        evaluation = Evaluation(folder, out, first.url, second.url, third.url, *more)
        summary = evaluation.run(monkeypatch)
    return summary, len(second.requests), len(third.requests)


def test_the_better_one_wins_in_both_orders(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary, num_answers, num_judged = evaluated(folder, tmp_path, monkeypatch, prefer_good)
    assert (num_answers, num_judged) == (12, 24)
    assert summary["win"] == {"share": 1.0, "low": 1.0, "high": 1.0}
    assert (summary["questions"], summary["groups"], summary["not_judged"]) == (12, 2, 0)
    assert summary["preferred_when_shown_first"] == 0.5
    assert summary["judge_cost"] == {"num_prompt_tokens": 2400, "num_reply_tokens": 240}
    assert summary["scores"]["accuracy"] == {"good": 5.0, "bad": 5.0}
    kept = rows(tmp_path, "judgements")
    assert {(row["sample"], row["swapped"]) for row in kept} == {
        (s.name, swapped) for s in live_world_questions(folder) for swapped in (False, True)
    }
    assert all(row["justification"] == "So it is." and row["better"] == "good" for row in kept)
    assert (
        "| good | bad | 100 % (100–100) | 0 % (0–0) | 0 % (0–0) | 12 |" in (tmp_path / "table.md").read_text()
    )


def test_a_judge_that_goes_by_the_order_decides_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary, _, _ = evaluated(folder, tmp_path, monkeypatch, lambda request: judgement("1"))
    assert summary["tie"]["share"] == 1.0
    assert summary["preferred_when_shown_first"] == 1.0


def test_invalid_judgements_are_recorded_and_repeated_by_the_next_start(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlucky = live_world_questions(folder)[0]

    def judge(request: ChatRequest) -> str:
        return (
            "Both are fine."
            if unlucky.answer in request.text and unlucky.instruction in request.text
            else prefer_good(request)
        )

    summary, _, _ = evaluated(folder, tmp_path, monkeypatch, judge)
    missing = summary["not_judged"]
    assert 1 <= missing < 6
    assert summary["rejected"] == {"no JSON": 2 * missing}
    assert all(row["raw"] == "Both are fine." for row in rows(tmp_path, "rejected"))
    assert summary["questions"] == 12 - missing
    summary, num_answers, num_judged = evaluated(folder, tmp_path, monkeypatch, prefer_good)
    assert (num_answers, num_judged) == (0, 2 * missing)  # only what failed is repeated
    assert (summary["questions"], summary["not_judged"]) == (12, 0)
    assert summary["rejected"] == {"no JSON": 2 * missing}  # earlier failures stay in the summary


def test_a_server_that_fails_too_often_ends_it_with_an_error(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        evaluated(folder, tmp_path, monkeypatch, prefer_good, bad=lambda request: 400)
    assert ended.value.code == 1
    assert "12 of 24 rows are bad" in capsys.readouterr().err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["questions"], summary["not_judged"]) == (0, 12)
    assert summary["rejected"] == {"no answer": 12}
    summary, num_answers, _ = evaluated(folder, tmp_path, monkeypatch, prefer_good)
    assert (num_answers, summary["questions"]) == (12, 12)


def test_another_evaluation_in_the_same_folder_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(folder, tmp_path, monkeypatch, prefer_good, "--num", "1")
    with pytest.raises(SystemExit):
        evaluated(folder, tmp_path, monkeypatch, prefer_good, "--judge-model", "another")
    assert "holds another evaluation" in capsys.readouterr().err


def test_killed_and_started_again_it_asks_for_the_rest_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dies(request: ChatRequest) -> str:
        if len(third.requests) == 9:
            run.send_signal(signal.SIGKILL)
        return prefer_good(request)

    with (
        scripted(lambda request: "GOOD one.") as first,
        scripted(lambda request: "poor") as second,
        scripted(dies) as third,
    ):
        evaluation = Evaluation(folder, tmp_path, first.url, second.url, third.url, "--together", "1")
        command = [sys.executable, "training/evaluation/streaming_eval.py", *evaluation.command[1:]]
        run = subprocess.Popen(
            command, cwd=PROJECT_ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL
        )
        assert run.wait() == -signal.SIGKILL
        kept = len(rows(tmp_path, "judgements"))
        assert 7 <= kept <= 9
        summary = evaluation.run(monkeypatch)
    assert len(second.requests) == 12
    assert len(third.requests) - 9 == 24 - kept
    assert summary["questions"] == 12
    pairs = [(row["sample"], row["swapped"]) for row in rows(tmp_path, "judgements")]
    assert len(set(pairs)) == len(pairs) == 24


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--first", "name=bad,url=http://127.0.0.1:1,sees=frames"], "the name 'bad' twice"),
        (["--num", "0"], "there is nothing to ask"),
        (["--clips", "nowhere"], "holds no live-world clips"),
        (["--judge", "http://127.0.0.1:1"], "127.0.0.1:1/v1/models"),
    ],
)
def test_mistakes_are_told_in_a_line(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    nobody = "http://127.0.0.1:1"
    with pytest.raises(SystemExit) as ended:
        Evaluation(folder, tmp_path / "out", nobody, nobody, "truth", *options).run(monkeypatch)
    assert ended.value.code == 1
    assert message in capsys.readouterr().err
