"""Questions of a streaming evaluation from captions: written and filtered by a model, and reviewed on a page."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.scripted_endpoint import ChatRequest, scripted
from training.data.bad_row import BadRowCounter
from training.data.row_files import write_rows
from training.data.training_row import TrainingRow, Turn
from training.evaluation.eval_questions import read_questions
from training.evaluation.stream_eval.build_stream_eval import main


def captioned(folder: Path, name: str, num_videos: int, num_captions: int = 3) -> str:
    """A file of captioned videos, each in windows of one caption."""
    rows = [
        TrainingRow(
            video=f"{name}{video}.mp4",
            time_range=(0.0, 100.0 * num_captions),
            turns=tuple(
                Turn(
                    start_s=100.0 * n,
                    end_s=100.0 * n + 8,
                    instruction="Tell me.",
                    answer=f"A {name} {video}-{n} jumps.",
                )
                for n in range(num_captions)
            ),
            kind="dense",
            source=name,
        )
        for video in range(num_videos)
    ]
    path = str(folder / f"{name}.parquet")
    write_rows(path, rows)
    return path


def model(request: ChatRequest) -> str:
    """Writes a question about the caption, and keeps it unless it is about the second caption of a video."""
    caption = next(line for line in request.text.splitlines() if " to " in line and ": " in line)
    time_s, text = caption.split(" to ")[0], caption.split(": ")[1]
    if "Keep the question" in request.text:
        return json.dumps({"keep": "-1 " not in text, "reason": "because"})
    if "-2 " in text:
        return "Sorry."
    return json.dumps({"start_s": float(time_s), "instruction": "What <jumps> now?", "answer": text})


def built(monkeypatch: pytest.MonkeyPatch, out: Path, url: str, *words: str) -> None:
    command = ["build_stream_eval.py", "--url", f"{url}/v1", "--model", "m", "--out", str(out), *words]
    monkeypatch.setattr(sys, "argv", command)
    main()


def test_as_many_good_questions_of_each_source_as_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    vript, ego4d = captioned(tmp_path, "vript", 6), captioned(tmp_path, "ego4d", 3)
    words = ("--take", "5", vript, "--take", "2", ego4d)
    out = tmp_path / "out"
    with scripted(model) as endpoint:
        built(monkeypatch, out, endpoint.url, *words)
        num_asked = len(endpoint.requests)
        first = (out / "questions.jsonl").read_text()
        built(monkeypatch, out, endpoint.url, *words)
        assert len(endpoint.requests) == num_asked, "what is known is not asked again"
        assert (out / "questions.jsonl").read_text() == first
    for name in ("vript", "ego4d"):
        for number in range(6):
            (out / f"{name}{number}.mp4").touch()
    questions = read_questions(out / "questions.jsonl", BadRowCounter(max_share=0.0))
    assert [question.video.name[:5] for question in questions] == ["vript"] * 5 + ["ego4d"] * 2
    assert len({question.name for question in questions}) == 7
    for question in questions:
        assert question.ask_s == 0.0, "only questions about the first captions are good"
        assert [caption.caption for caption in question.captions] == [question.answer]
    page = (out / "review.html").read_text()
    assert page.count("<article>") == 7
    assert "What &lt;jumps&gt; now?" in page
    assert "vript" in page


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (lambda request: 401, "answers 401"),
        (lambda request: "Sorry.", "got 0 good questions of 3 windows, wanted 1"),
    ],
)
def test_what_stops_it(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    reply: Callable[[ChatRequest], str | int],
    message: str,
) -> None:
    with scripted(reply) as endpoint, pytest.raises(SystemExit):
        built(monkeypatch, tmp_path / "out", endpoint.url, "--take", "1", captioned(tmp_path, "vript", 1))
    assert message in capsys.readouterr().err
