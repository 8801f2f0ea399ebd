"""Files of clips: exact captions, questions with right answers, the same for the same seed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.training.sample_worlds import STORY, many_worlds
from training.data.word_times import word_times
from training.live_world.accuracy import question_of
from training.live_world.clips import Clip
from training.live_world.word_scores import SpokenWord, score_words, word_accuracy
from training.live_world.world import World
from training.live_world.write_clips import captions, main, questions, write_clips


def test_captions_have_the_exact_intervals() -> None:
    assert [(c["start_s"], c["end_s"], c["caption"]) for c in captions(STORY)] == [
        (0.0, 5.0, "A red dog is at top-left."),
        (0.0, 11.0, "A blue cat is at bottom-right."),
        (2.0, 4.0, "A white car appears at middle."),
        (5.0, 7.0, "The dog moves to top-right."),
        (8.0, 10.0, "The dog turns green."),
        (11.0, 13.0, "The cat leaves."),
    ]


def test_captions_end_with_the_clip() -> None:
    for world in many_worlds(60):
        assert all(0.0 <= c["start_s"] < c["end_s"] <= world.duration_s for c in captions(world))


def test_questions_have_words_at_the_papers_times() -> None:
    for world in many_worlds(40):
        for row in questions(world):
            words, times = [w["word"] for w in row["words"]], [w["time_s"] for w in row["words"]]
            assert row["answer"] == " ".join(words)
            assert times == pytest.approx(word_times(row["ask_s"], row["end_s"], len(words)), abs=0.002)
            assert 1.0 <= row["ask_s"] <= 0.6 * world.duration_s
            assert question_of(row).instruction == row["instruction"]
            assert question_of(row).kind == row["kind"]


def test_the_answers_obey_the_truth() -> None:
    after = 0
    for world in many_worlds(80):
        for row in questions(world):
            words = [SpokenWord(text=w["word"], seen_s=w["time_s"]) for w in row["words"]]
            judged = score_words(question_of(row), world, row["ask_s"], words, False)
            assert word_accuracy(judged) == 1.0
            after += sum(v.after for v in judged)
    assert after > 500, "answers must depend on what happens after the question"


def test_the_files_of_a_folder(clips: list[Clip]) -> None:
    folder = clips[0].path.parent
    assert sorted(p.name for p in folder.iterdir()) == [
        "0000.mp4",
        "0001.mp4",
        "captions.json",
        "questions.json",
    ]
    told = json.loads((folder / "captions.json").read_text())
    asked = json.loads((folder / "questions.json").read_text())
    for clip in clips:
        name = clip.path.name
        assert World.from_json(told[name]["world"]) == clip.world
        assert told[name]["captions"] == captions(clip.world)
        assert asked[name] == questions(clip.world)


def test_the_same_seed_gives_the_same_files_byte_for_byte(clips: list[Clip], tmp_path: Path) -> None:
    write_clips(clips[0].world.seed, len(clips), tmp_path)
    for path in clips[0].path.parent.iterdir():
        assert (tmp_path / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("numbers", [("-1", "2"), ("3", "0")])
def test_impossible_numbers_are_refused(
    numbers: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seed, num = numbers
    monkeypatch.setattr(
        sys, "argv", ["live_world.py", "--seed", seed, "--num", num, "--out", str(tmp_path / "out")]
    )
    with pytest.raises(SystemExit):
        main()
    assert f"got {seed} and {num}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
