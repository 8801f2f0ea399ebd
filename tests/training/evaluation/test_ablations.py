"""Table 3 in miniature: what is trained and examined, what is compared, and what people are shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from tests.training.worlds import STORY, aloud, question
from training.evaluation.ablation_report import TITLES, table, write_report
from training.evaluation.ablations import VARIANTS, Study, against, all_runs, findings, spread
from training.evaluation.spoken_answer import SpokenAnswer
from training.evaluation.streaming_samples import Sample, live_world_samples
from training.live_world.answers import reference_answer
from training.live_world.clips import Clip

WHERE = question("where")


def follows(seconds_late: float) -> SpokenAnswer:
    said = reference_answer(WHERE, STORY, 3.0, 4.0, 24, lambda time_s: time_s - seconds_late)
    tokens = tuple((" " + word.text, word.seen_s) for word in aloud(said))
    return SpokenAnswer(tokens=tokens, asked_seen_s=3.0, ended=False)


def test_variants_are_compared_question_by_question() -> None:
    sample = Sample(
        name="a", video=Path("a.mp4"), ask_s=3.0, instruction="?", answer="!", world=STORY, question=WHERE
    )
    samples = [sample, replace(sample, name="b"), replace(sample, name="c", video=Path("c.mp4"))]
    mine = {"a": follows(0.0), "b": follows(2.0), "c": follows(1.0)}
    full = {"a": follows(1.0), "b": follows(0.0), "c": follows(1.0)}
    judged = against(samples, mine, full)
    assert [j.outcome for j in judged] == ["win", "loss", "tie"]
    assert [j.group for j in judged] == ["a.mp4", "a.mp4", "c.mp4"]


def test_spread_is_over_seeds() -> None:
    assert spread([0.2, 0.4, 0.6]) == {"mean": 0.4, "spread": 0.2, "values": [0.2, 0.4, 0.6]}
    assert spread([0.5])["spread"] == 0.0


def examined(study: Study, held_out: Path, seeds: tuple[int, ...]) -> None:
    """As the examination leaves the folders: the later a variant stands in the table, the later it looks."""
    for number, variant in enumerate(VARIANTS):
        for seed in seeds:
            folder = study.folder(variant, seed) / "exam"
            folder.mkdir(parents=True)
            part = {"right": 0.9 - 0.1 * number + 0.01 * seed, "words": 10}
            names = ("live_after", "live_before", "frozen_after", "frozen_before")
            results = {"table": {"all": dict.fromkeys(names, part)}, "training_forward": 0.8}
            (folder / "results.json").write_text(json.dumps(results))
            with (folder / "answers.jsonl").open("w") as file:
                for sample in live_world_samples(held_out):
                    assert sample.question is not None
                    assert sample.world is not None
                    said = reference_answer(
                        sample.question,
                        sample.world,
                        sample.ask_s,
                        4.0,
                        20,
                        lambda t, late=float(number): t - late,
                    )
                    tokens = [(" " + word.text, word.seen_s) for word in aloud(said)]
                    row: dict[str, Any] = {
                        "tokens": tokens,
                        "asked_seen_s": sample.ask_s,
                        "ended": said.complete,
                    }
                    for context in ("live", "frozen"):
                        told = row if context == "live" else row | {"tokens": []}
                        line = {"sample": sample.name, "candidate": context, "frame_ages_ms": []} | told
                        file.write(json.dumps(line) + "\n")


def test_findings_and_report(held_out: list[Clip], tmp_path: Path) -> None:
    folder = held_out[0].path.parent
    study = Study(clips=(), vision=Path(), held_out=folder, num=2, settings=(), out=tmp_path / "runs")
    examined(study, folder, (1, 2))
    found = findings(study, (1, 2))
    assert tuple(found) == VARIANTS
    assert found["full"]["live_after"] == {"mean": 0.915, "spread": 0.0071, "values": [0.91, 0.92]}
    assert "against_full" not in found["full"]
    losses = [found[variant]["against_full"]["loss"]["share"] for variant in VARIANTS[1:]]
    assert losses[0] > 0
    assert losses == sorted(losses)
    assert all(found[v]["against_full"]["win"]["share"] == 0 for v in VARIANTS[1:])
    assert found["tanh_gate"]["against_full"]["questions"] == 24
    about = {"steps": 10, "settings": [], "seeds": [1, 2], "clips": 2}
    write_report(about, found, tmp_path / "docs")
    page = (tmp_path / "docs" / "ablations.md").read_text()
    assert "| full | 91.5 ± 0.7 % |" in page
    assert "25/45/30" in page
    assert json.loads((tmp_path / "docs" / "ablations.json").read_text())["variants"] == found
    with Image.open(tmp_path / "docs" / "ablations.png") as picture:
        assert picture.width > 1000
    assert table(found).count("\n") == 2 + len(VARIANTS)


def test_every_variant_has_a_title() -> None:
    assert set(TITLES) == set(VARIANTS)


def test_a_run_that_fails_is_told_with_its_last_words(held_out: list[Clip], tmp_path: Path) -> None:
    folder = held_out[0].path.parent
    # Held-out clips are refused by the trainer.
    study = Study(
        clips=(folder,), vision=tmp_path, held_out=folder, num=2, settings=("steps=2",), out=tmp_path
    )
    (why,) = all_runs(study, [("full", 1)], 1)
    assert why.startswith("full, seed 1: training/sft.py ended with status 2")
    assert "held out for tests" in why
