"""The whole run: Ray Data, a real endpoint, rejected replies, near-duplicates, and resuming."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from model.config import PROJECT_ROOT
from tests.training.scripted_endpoint import ChatRequest, scripted
from training.data.bad_row import BadRowCounter
from training.data.row_files import read_rows, write_rows
from training.data.training_row import TrainingRow, Turn
from training.dense.dense_instructions import InstructionRun, TokenPrice, split_dialogs
from training.dense.instruction_writer import WriterConfig
from training.dense.near_duplicates import word_vectors

pytestmark = pytest.mark.slow

THINGS = ("dog", "cat", "car", "bus", "tree", "boat", "bird", "cup", "hat", "key", "lamp", "sock")


def caption(start_s: float, text: str) -> Turn:
    return Turn(start_s=start_s, end_s=start_s + 3, instruction="Tell me what happens.", answer=text)


def captions(num: int) -> list[TrainingRow]:
    """One-caption rows, each about another thing or at another place."""
    return [
        TrainingRow(
            video=f"{number}.mp4",
            time_range=(0.0, 20.0),
            turns=(caption(2.0, f"A {THINGS[number % len(THINGS)]} number{number} appears."),),
            kind="dense",
            source="live_world",
        )
        for number in range(num)
    ]


def proper(request: ChatRequest) -> str:
    """The reply of a good model about the last caption."""
    thing = request.text.rsplit("A ", 1)[1].removesuffix(" appears.")
    said = {"start_s": 2.0, "instruction": f"What about the {thing}?", "answer": f"A {thing} appears."}
    return json.dumps(said)


class Command:
    """`python training/dense/dense_instructions.py`."""

    def __init__(self, folder: Path, rows: Sequence[TrainingRow], url: str, *more: str) -> None:
        self.out, captioned = folder / "dense", folder / "captions.parquet"
        write_rows(str(captioned), rows)
        self.words = [
            sys.executable,
            "training/dense/dense_instructions.py",
            str(captioned),
            "--url",
            f"{url}/v1",
        ]
        self.words += [
            "--model",
            "scripted",
            "--out",
            str(self.out),
            "--together",
            "4",
            "--tries",
            "1",
            *more,
        ]

    def start(self) -> subprocess.Popen[str]:
        """In a process group of its own: Ray's processes belong to it."""
        return subprocess.Popen(
            self.words,
            cwd=PROJECT_ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def run(self) -> tuple[int, str, str]:
        """Exit status, last line of stdout, stderr."""
        with self.start() as process:
            out, err = process.communicate(timeout=240)
        return process.returncode, (out.splitlines() or [""])[-1], err

    def ledger(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.out / name).read_text().splitlines()]

    def requests(self, name: str) -> set[str]:
        """Of a ledger, those that will not be asked again."""
        path = self.out / name
        return {o["request"] for o in self.ledger(name) if not o.get("again")} if path.is_file() else set()


def test_a_killed_run_goes_on_and_asks_nothing_twice(tmp_path: Path) -> None:
    """The report of the resumed run covers both runs."""
    waits = threading.Event()
    failed: set[str] = set()
    bad: dict[int, str | int] = {3: "Sorry.", 7: json.dumps({"start_s": 2.0})}

    def reply(request: ChatRequest) -> str | int:
        if len(endpoint.requests) > 12:
            waits.wait(120)  # the rest hangs until the run was killed
        number = int(request.text.rsplit("number", 1)[1].split()[0])
        if number not in bad and not failed:
            failed.add(request.text)
            return 503
        return bad.get(number, proper(request))

    with scripted(reply) as endpoint:
        more = ("--price-prompt", "2", "--price-reply", "8")
        command = Command(tmp_path, captions(24), endpoint.url, *more)
        with command.start() as process:
            answers = command.out / "answers.jsonl"
            while not answers.is_file() or answers.read_bytes().count(b"\n") < 4:
                assert process.poll() is None, process.communicate()
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
        done = command.requests("answers.jsonl")
        assert 4 <= len(done) < 24
        done |= command.requests("rejected.jsonl")
        waits.set()
        with answers.open("a") as file:
            file.write('{"request": "cut sho')  # as a kill in the middle of a line would
        asked_before = len(endpoint.requests)
        status, last, err = command.run()
        assert status == 0, err
        # What the killed run had sent may be counted late: it is asked again, once.
        assert len({request.text for request in endpoint.requests[asked_before:]}) == 24 - len(done)
        check_told(command, json.loads(last), err)
        asked_before = len(endpoint.requests)
        status, last, err = command.run()
        assert (status, json.loads(last)["kept"]) == (0, 22)
        assert len(endpoint.requests) == asked_before, "a finished run asks nothing"


def check_told(command: Command, report: dict[str, Any], err: str) -> None:
    """The report, the ledgers and the rows of the run above."""
    outcomes = command.ledger("answers.jsonl")
    assert len({outcome["request"] for outcome in outcomes}) == len(outcomes) == 22
    assert (report["requests"], report["kept"], report["dropped"]) == (24, 22, 0)
    assert report["rejected"] == {"no JSON": 1, "wrong type": 1}
    assert (report["prompt_tokens"], report["reply_tokens"]) == (2400, 240)
    assert report["cost"] == round(2400 * 2e-6 + 240 * 8e-6, 4)
    assert "no JSON: got 'Sorry.'" in err
    told = Counter(o["reason"] for o in command.ledger("rejected.jsonl") if not o.get("again"))
    assert told == report["rejected"]
    assert command.ledger("dropped.jsonl") == []
    rows = list(read_rows([str(command.out / "rows.parquet")], BadRowCounter()))
    assert len(rows) == report["rows"] == 22
    assert all(row.kind == "dense" and row.source == "live_world" for row in rows)
    assert all("appears" in row.turns[0].answer and row.turns[0].start_s == 2.0 for row in rows)
    assert all(row.captions[0].caption == row.turns[0].answer for row in rows)


def test_the_examples_of_the_first_requests_are_reviewed_and_shown_in_the_others(tmp_path: Path) -> None:
    with scripted(proper) as endpoint:
        command = Command(tmp_path, captions(24), endpoint.url, "--first", "6", "--num-examples", "9")
        status, last, err = command.run()
        assert status == 0, err
        report = json.loads(last)
        examples = command.out / "examples.jsonl"
        assert (report["review"], report["examples"]) == (str(examples), 6)
        assert len(endpoint.requests) == 6
        assert not any("number" in shown for request in endpoint.requests for shown in request.shown)
        status, _, err = command.run()
        assert (status, len(endpoint.requests)) == (1, 6)
        assert f"{examples} waits for a review: delete and edit lines, then go on with --reviewed" in err
        kept = examples.read_text().splitlines(keepends=True)[1:3]  # a person deletes four
        examples.write_text("".join(kept).replace("What about the", "Where is the"))
        command.words.append("--reviewed")
        status, last, err = command.run()
        assert status == 0, err
        assert (json.loads(last)["requests"], json.loads(last)["kept"]) == (24, 24)
        assert len(endpoint.requests) == 24
        for request in endpoint.requests[6:]:
            assert len(request.shown) == 2
            assert all("Where is the" in shown for shown in request.shown)
        with examples.open("a") as file:
            file.write(kept[0])
        status, _, err = command.run()
        assert (status, len(endpoint.requests)) == (1, 24)
        assert "holds another run" in err


def test_too_many_useless_replies_and_a_wrong_key_stop_it(tmp_path: Path) -> None:
    replies: list[str | int] = ["nonsense"]
    with scripted(lambda request: replies[0]) as endpoint:
        command = Command(tmp_path, captions(40), endpoint.url, "--max-bad-share", "0.2")
        status, _, err = command.run()
        assert status == 1
        assert "12 of 12 replies are bad (100.0%), more than the limit of 20.0%: no JSON 12" in err
        replies[0] = 401
        command.words += ["--max-bad-share", "1"]  # what was bad before counts on
        status, _, err = command.run()
        assert status == 1
        assert f"dense_instructions: {endpoint.url}/v1 answers 401" in err


def test_bad_replies_of_an_earlier_try_count_on(tmp_path: Path) -> None:
    run = InstructionRun(
        captions(2), WriterConfig(url="", model="a"), tmp_path, BadRowCounter(), TokenPrice()
    )
    run.rejected.add({"request": "a#0", "reason": "no JSON", "detail": "got ''"})
    again = InstructionRun(
        captions(2), WriterConfig(url="", model="a"), tmp_path, BadRowCounter(), TokenPrice()
    )
    with pytest.raises(ValueError, match=r"1 of 1 rows are bad \(100.0%\)"):
        again.finish(word_vectors, 0.9)


def test_another_model_needs_another_folder(tmp_path: Path) -> None:
    InstructionRun(captions(1), WriterConfig(url="", model="a"), tmp_path, BadRowCounter(), TokenPrice())
    InstructionRun(
        captions(1), WriterConfig(url="elsewhere", model="a"), tmp_path, BadRowCounter(), TokenPrice()
    )
    with pytest.raises(ValueError, match="holds another run"):
        InstructionRun(captions(1), WriterConfig(url="", model="b"), tmp_path, BadRowCounter(), TokenPrice())


def test_more_requests_for_each_row(tmp_path: Path) -> None:
    run = InstructionRun(
        captions(2), WriterConfig(url="", model="a"), tmp_path, BadRowCounter(), TokenPrice()
    )
    names = [request["request"] for request in run.requests(3)]
    assert len(set(names)) == 6
    outcome = {"turn": {}, "prompt_tokens": 1, "reply_tokens": 1}
    run.answers.add({"request": names[0]} | outcome)
    run.rejected.add({"request": names[1], "reason": "no JSON"})
    run.rejected.add({"request": names[2], "reason": "endpoint: 429", "again": True})
    assert [request["request"] for request in run.requests(3)] == names[2:]


def test_the_same_instruction_at_another_moment_or_about_another_video_is_kept(tmp_path: Path) -> None:
    """1,050 instructions in five wordings. Only the second replies for 105 moments say nothing new."""
    turns = tuple(caption(60.0 * n, f"A {THINGS[n]} appears.") for n in range(10))
    videos = [replace(row, turns=turns, time_range=(0.0, 600.0)) for row in captions(105)]
    run = InstructionRun(videos, WriterConfig(url="", model="a"), tmp_path, BadRowCounter(), TokenPrice())
    for number, (name, window) in enumerate(run.windows.items()):
        asked = f"{('What', 'Who', 'Where', 'Why', 'How')[number % 5]} is that?"
        turn = asdict(replace(window.turns[0], instruction=asked))
        for again in range(1 if window.turns[0].start_s else 2):
            tokens = {"prompt_tokens": 1, "reply_tokens": 1}
            run.answers.add({"request": f"{name}#{again}", "turn": turn, **tokens})
    report = run.finish(word_vectors, 0.9)
    assert (report["kept"], report["dropped"]) == (1050, 105)
    assert report["rows"] == 105


def test_nothing_usable_is_reported_too(tmp_path: Path) -> None:
    run = InstructionRun(
        captions(2), WriterConfig(url="", model="a"), tmp_path, BadRowCounter(), TokenPrice()
    )
    run.rejected.add(
        {"request": "a#0", "reason": "endpoint: 500", "again": True, "prompt_tokens": 0, "reply_tokens": 0}
    )
    report = run.finish(word_vectors, 0.9)
    assert (report["kept"], report["rows"], report["rejected"]) == (0, 0, {"endpoint: 500": 1})
    assert list(read_rows([str(tmp_path / "rows.parquet")], BadRowCounter())) == []


def test_turns_of_a_window_that_do_not_overlap_are_one_dialog() -> None:
    (row,) = captions(1)
    turns = [caption(start_s, "A dog.") for start_s in (9.0, 0.0, 1.0, 4.0)]
    talks = [[turn.start_s for turn in talk.turns] for talk in split_dialogs(row, turns)]
    assert talks == [[0.0, 4.0, 9.0], [1.0]]
