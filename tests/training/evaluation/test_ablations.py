"""Table 3 in miniature: what is trained and measured, what is compared, and the report."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from tests.training.sample_worlds import STORY, WHERE, late_answer, speak
from training.evaluation.ablations import (
    VARIANTS,
    AblationStudy,
    collect_results,
    compare_variants,
    make_parser,
    over_seeds,
    run_all,
)
from training.evaluation.eval_questions import EvalQuestion, live_world_questions
from training.evaluation.reports import ablation_table, write_ablation_report
from training.live_world.answers import reference_answer
from training.live_world.clips import Clip


def test_variants_are_compared_question_by_question() -> None:
    one = EvalQuestion(
        name="a",
        video=Path("a.mp4"),
        ask_s=3.0,
        instruction="?",
        answer="!",
        world=STORY,
        world_question=WHERE,
    )
    questions = [one, replace(one, name="b"), replace(one, name="c", video=Path("c.mp4"))]
    mine = {"a": late_answer(0.0), "b": late_answer(2.0), "c": late_answer(1.0)}
    full = {"a": late_answer(1.0), "b": late_answer(0.0), "c": late_answer(1.0)}
    judged = compare_variants(questions, mine, full)
    assert [j.outcome for j in judged] == ["win", "loss", "tie"]
    assert [j.group for j in judged] == ["a.mp4", "a.mp4", "c.mp4"]


def test_spread_is_over_seeds() -> None:
    assert over_seeds([0.2, 0.4, 0.6]) == {"mean": 0.4, "spread": 0.2, "values": [0.2, 0.4, 0.6]}
    assert over_seeds([0.5])["spread"] == 0.0


def measured(study: AblationStudy, held_out: Path, seeds: tuple[int, ...]) -> None:
    """Folders as measuring leaves them: the later a variant stands in the table, the later it looks."""
    for number, variant in enumerate(VARIANTS):
        for seed in seeds:
            folder = study.folder(variant, seed) / "accuracy"
            folder.mkdir(parents=True)
            part = {"right": 0.9 - 0.1 * number + 0.01 * seed, "words": 10}
            names = ("live_after", "live_before", "frozen_after", "frozen_before")
            results = {"table": {"all": dict.fromkeys(names, part)}, "training_forward": 0.8}
            (folder / "results.json").write_text(json.dumps(results))
            with (folder / "answers.jsonl").open("w") as file:
                for question in live_world_questions(held_out):
                    assert question.world_question is not None
                    assert question.world is not None
                    right = reference_answer(
                        question.world_question,
                        question.world,
                        question.ask_s,
                        4.0,
                        20,
                        lambda t, late=float(number): t - late,
                    )
                    tokens = [(" " + word.text, word.seen_s) for word in speak(right)]
                    row: dict[str, Any] = {
                        "tokens": tokens,
                        "asked_seen_s": question.ask_s,
                        "ended": right.complete,
                    }
                    for context in ("live", "frozen"):
                        told = row if context == "live" else row | {"tokens": []}
                        line = {"sample": question.name, "candidate": context, "frame_ages_ms": []} | told
                        file.write(json.dumps(line) + "\n")


def test_findings_and_report(held_out: list[Clip], tmp_path: Path) -> None:
    folder = held_out[0].path.parent
    study = AblationStudy(clips=(), vision=Path(), held_out=folder, num=2, settings=(), out=tmp_path / "runs")
    measured(study, folder, (1, 2))
    variants = collect_results(study, (1, 2))
    assert tuple(variants) == VARIANTS
    assert variants["full"]["live_after"] == {"mean": 0.915, "spread": 0.0071, "values": [0.91, 0.92]}
    assert "against_full" not in variants["full"]
    losses = [variants[variant]["against_full"]["loss"]["share"] for variant in VARIANTS[1:]]
    assert losses[0] > 0
    assert losses == sorted(losses)
    assert all(variants[v]["against_full"]["win"]["share"] == 0 for v in VARIANTS[1:])
    assert variants["tanh_gate"]["against_full"]["questions"] == 24
    about = {"steps": 10, "settings": [], "seeds": [1, 2], "clips": 2}
    write_ablation_report(about, variants, tmp_path / "docs")
    page = (tmp_path / "docs" / "ablations.md").read_text()
    assert "| full | 91.5 ± 0.7 % |" in page
    assert "25/45/30" in page
    assert json.loads((tmp_path / "docs" / "ablations.json").read_text())["variants"] == variants
    with Image.open(tmp_path / "docs" / "ablations.png") as picture:
        assert picture.width > 1000
    assert ablation_table(variants).count("\n") == 2 + len(VARIANTS)


def test_a_run_that_fails_is_told_with_its_last_words(held_out: list[Clip], tmp_path: Path) -> None:
    folder = held_out[0].path.parent
    # Held-out clips are refused by the trainer.
    study = AblationStudy(
        clips=(folder,), vision=tmp_path, held_out=folder, num=2, settings=("steps=2",), out=tmp_path
    )
    (why,) = run_all(study, [("full", 1)], 1)
    assert why.startswith("full, seed 1: training/sft.py ended with status 2")
    assert "held out for tests" in why


def test_the_command_line_takes_several_folders_of_clips() -> None:
    folders = ["--vision", "V", "--held-out", "H", "--out", "O", "--docs", "D"]
    options = make_parser().parse_args([*folders, "--steps", "5", "--clips", "a", "b"])
    assert options.clips == [Path("a"), Path("b")]
    assert options.seeds == [1, 2, 3]
