"""The paper's Table 3 in miniature: variants of streamchat-tiny, trained alike and examined with exact truth.

    python training/live_world/write_clips.py --seed 1 --num 1200 --out data/s1
    python training/live_world/write_clips.py --seed 1000000 --num 50 --out held
    python training/evaluation/ablations.py --clips data/s1 --vision runs/vision/vision.safetensors --held-out held \\
        --steps 1500 --seeds 1 2 3 --out runs/ablations --docs docs

Each variant switches one thing of the `live_world` recipe (`training/run/recipe.py`) and is trained by
`training/sft.py` from new weights, with the same steps, batches and seeds; `training/live_world/exam.py` examines it.
Win, tie and loss are against the full model of the same seed, question by question, by the live world's truth.
Stopped, it goes on where it was. "No dense instructions" answers at once about a clip's newest frame, as offline data
do, and in no other way.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))
from model.config import PROJECT_ROOT
from training.data.ledger import Ledger
from training.evaluation.ablation_report import write_report
from training.evaluation.answer_judge import by_truth, truth_of
from training.evaluation.spoken_answer import SpokenAnswer
from training.evaluation.streaming_samples import Sample, live_world_samples
from training.evaluation.win_rates import Judged, Outcome, win_rates
from training.run.recipe import ABLATIONS

RECIPE = "live_world"
VARIANTS = ("full", *ABLATIONS)
OUTCOME: dict[str, Outcome] = {"1": "win", "2": "loss", "tie": "tie"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """What all variants have in common."""

    clips: tuple[Path, ...]
    vision: Path
    held_out: Path
    num: int  # held-out clips
    settings: tuple[str, ...]  # of the recipe, for all variants
    out: Path

    def folder(self, variant: str, seed: int) -> Path:
        """Where a variant's model of a seed is."""
        return self.out / f"{variant}-{seed}"

    def train(self, variant: str, seed: int) -> None:
        """Train a variant, or go on with it."""
        recipe = RECIPE if variant == "full" else f"{RECIPE}_{variant}"
        command = ["training/sft.py", "--recipe", recipe, "--model", "new-tiny", "--vision", str(self.vision)]
        command += ["--clips", *map(str, self.clips), "--out", str(self.folder(variant, seed))]
        command += ["--cache", str(self.out / "cache"), "--set", f"seed={seed}", *self.settings]
        self._run(command, self.folder(variant, seed), "train.log")

    def examine(self, variant: str, seed: int) -> None:
        """Ask a trained variant all held-out questions, unless it has been asked."""
        folder = self.folder(variant, seed)
        if (folder / "exam" / "results.json").is_file():
            return
        command = ["training/live_world/exam.py", "--model", str(folder), "--clips", str(self.held_out)]
        command += ["--num", str(self.num), "--out", str(folder / "exam")]
        self._run(command, folder, "exam.log")

    def _run(self, command: Sequence[str], folder: Path, log: str) -> None:
        """Run a script of ours; RuntimeError with its last words when it fails."""
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / log).open("w") as file:
            done = subprocess.run(
                [sys.executable, *command], cwd=PROJECT_ROOT, stdout=file, stderr=subprocess.STDOUT
            )
        if done.returncode:
            last = (folder / log).read_text()[-1500:]
            raise RuntimeError(
                f"{command[0]} ended with status {done.returncode}, see {folder / log}:\n{last}"
            )

    def answers(self, variant: str, seed: int) -> dict[str, SpokenAnswer]:
        """What a variant said while looking on, by question."""
        rows = Ledger(self.folder(variant, seed) / "exam" / "answers.jsonl")
        return {row["sample"]: SpokenAnswer.from_dict(row) for row in rows if row["candidate"] == "live"}


def against(
    samples: Sequence[Sample], mine: Mapping[str, SpokenAnswer], full: Mapping[str, SpokenAnswer]
) -> list[Judged]:
    """Whether a variant's answers are better than the full model's, question by question."""
    return [
        Judged(
            group=str(sample.video),
            outcome=OUTCOME[by_truth(*(truth_of(sample, said[sample.name]) for said in (mine, full))).better],
        )
        for sample in samples
    ]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation over seeds, and the values."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.fmean(values), 4), "spread": round(deviation, 4), "values": list(values)}


def findings(study: Study, seeds: Sequence[int]) -> dict[str, Any]:
    """By variant: accuracies over seeds, and win, tie and loss against the full model of the same seed."""
    samples = live_world_samples(study.held_out, study.num)
    found: dict[str, Any] = {}
    for variant in VARIANTS:
        exams = [json.loads((study.folder(variant, s) / "exam" / "results.json").read_text()) for s in seeds]
        everything = [exam["table"]["all"] for exam in exams]
        found[variant] = {
            name: spread([row[name]["right"] for row in everything])
            for name in ("live_after", "live_before", "frozen_after", "frozen_before")
        }
        found[variant]["training_forward"] = spread([exam["training_forward"] for exam in exams])
        if variant != "full":
            judged = [
                one
                for s in seeds
                for one in against(samples, study.answers(variant, s), study.answers("full", s))
            ]
            found[variant]["against_full"] = win_rates(judged)
    return found


def all_runs(study: Study, runs: Sequence[tuple[str, int]], together: int) -> list[str]:
    """Train and examine; returns why runs failed. One that does keeps no other from being made."""

    def work(run: tuple[str, int]) -> str:
        try:
            study.train(*run)
            study.examine(*run)
        except RuntimeError as error:
            return f"{run[0]}, seed {run[1]}: {error}"
        print(f"{run[0]}, seed {run[1]}: done", file=sys.stderr, flush=True)
        return ""

    first, *others = runs  # alone at first: it makes the cache that the others read
    with ThreadPoolExecutor(together) as pool:
        return [why for why in [work(first), *pool.map(work, others)] if why]


def main() -> None:
    """Read the command line, train and examine all variants, write the report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--clips", type=Path, nargs="+", required=True, help="folders of training clips")
    add("--vision", type=Path, required=True, help="what pretrain_vision.py wrote")
    add("--held-out", type=Path, required=True, help="folder of held-out clips: seeds from 1000000 on")
    add("--num", type=int, default=50, help="of the held-out clips")
    add("--steps", type=int, required=True, help="of each variant and seed")
    add(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="other fields of the recipe, for all variants",
    )
    add("--seeds", type=int, nargs="+", default=[1, 2, 3])
    add("--together", type=int, default=1, help="runs at a time")
    add("--out", type=Path, required=True)
    add("--docs", type=Path, required=True, help="folder for ablations.md, .png and .json")
    options = parser.parse_args()
    settings = (f"steps={options.steps}", *options.set)
    study = Study(
        clips=tuple(folder.resolve() for folder in options.clips), vision=options.vision.resolve(),
        held_out=options.held_out.resolve(), num=options.num, settings=settings, out=options.out.resolve(),
    )  # fmt: skip
    runs = [(variant, seed) for seed, variant in product(options.seeds, VARIANTS)]

    try:
        live_world_samples(study.held_out, study.num)  # refused before hours of training, not after
        failed = all_runs(study, runs, options.together)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    if failed:
        parser.exit(
            1, "\n".join([*failed, f"{len(failed)} of {len(runs)} runs failed; start again to go on\n"])
        )
    about = {"steps": options.steps, "settings": options.set, "seeds": options.seeds, "clips": options.num}
    write_report(about, findings(study, options.seeds), options.docs)


if __name__ == "__main__":
    main()
