"""The paper's Table 3 in miniature: train variants of streamchat-tiny alike, and measure them with exact truth.

    python training/live_world/write_clips.py --seed 1 --num 1200 --out data/s1
    python training/live_world/write_clips.py --seed 1000000 --num 50 --out held
    python training/evaluation/ablations.py --clips data/s1 --vision runs/vision/vision.safetensors --held-out held \\
        --steps 1500 --seeds 1 2 3 --out runs/ablations --docs docs

Each variant switches one thing of the `live_world` recipe (`training/run/recipe.py`). `training/sft.py` trains it from
new weights, with the same steps, batches and seeds; `training/live_world/accuracy.py` measures it. Win, tie and loss
are against the full model of the same seed, question by question, by the live world's truth. A stopped command goes on
when it is started again. The variant "no dense instructions" is trained only on answers about a clip's newest frame, as
offline data have them.
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
from training.data.json_lines_log import JsonLinesLog
from training.evaluation.answer_judge import compare_scores, score_answer
from training.evaluation.eval_questions import EvalQuestion, live_world_questions
from training.evaluation.reports import write_ablation_report
from training.evaluation.timed_answer import TimedAnswer
from training.evaluation.win_rates import JudgedQuestion, Outcome, win_rates
from training.run.recipe import ABLATIONS

RECIPE = "live_world"
VARIANTS = ("full", *ABLATIONS)
OUTCOME: dict[str, Outcome] = {"1": "win", "2": "loss", "tie": "tie"}


@dataclass(frozen=True, slots=True, kw_only=True)
class AblationStudy:
    """The settings that all variants share."""

    clips: tuple[Path, ...]
    vision: Path
    held_out: Path
    num: int  # held-out clips
    settings: tuple[str, ...]  # fields of the recipe, for all variants
    out: Path

    def folder(self, variant: str, seed: int) -> Path:
        """The folder of a variant's model."""
        return self.out / f"{variant}-{seed}"

    def train(self, variant: str, seed: int) -> None:
        """Train a variant, or resume its training."""
        recipe = RECIPE if variant == "full" else f"{RECIPE}_{variant}"
        command = ["training/sft.py", "--recipe", recipe, "--model", "new-tiny", "--vision", str(self.vision)]
        command += ["--clips", *map(str, self.clips), "--out", str(self.folder(variant, seed))]
        command += ["--cache", str(self.out / "cache"), "--set", f"seed={seed}", *self.settings]
        self._run(command, self.folder(variant, seed), "train.log")

    def measure(self, variant: str, seed: int) -> None:
        """Measure a trained variant on all held-out questions, unless that was done before."""
        folder = self.folder(variant, seed)
        if (folder / "accuracy" / "results.json").is_file():
            return
        command = ["training/live_world/accuracy.py", "--model", str(folder), "--clips", str(self.held_out)]
        command += ["--num", str(self.num), "--out", str(folder / "accuracy")]
        self._run(command, folder, "accuracy.log")

    def _run(self, command: Sequence[str], folder: Path, log: str) -> None:
        """Run a script of this repository; RuntimeError with the end of its output when it fails."""
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

    def results(self, variant: str, seed: int) -> dict[str, Any]:
        """What `training/live_world/accuracy.py` found about a variant."""
        return json.loads((self.folder(variant, seed) / "accuracy" / "results.json").read_text())

    def answers(self, variant: str, seed: int) -> dict[str, TimedAnswer]:
        """A variant's answers with new frames, by question."""
        rows = JsonLinesLog(self.folder(variant, seed) / "accuracy" / "answers.jsonl")
        return {row["sample"]: TimedAnswer.from_dict(row) for row in rows if row["candidate"] == "live"}


def compare_variants(
    questions: Sequence[EvalQuestion], variant: Mapping[str, TimedAnswer], full: Mapping[str, TimedAnswer]
) -> list[JudgedQuestion]:
    """Compare a variant's answers with the full model's, question by question."""
    return [
        JudgedQuestion(
            group=str(question.video),
            outcome=OUTCOME[
                compare_scores(
                    score_answer(question, variant[question.name]),
                    score_answer(question, full[question.name]),
                ).better
            ],
        )
        for question in questions
    ]


def over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, and the values."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.fmean(values), 4), "spread": round(deviation, 4), "values": list(values)}


def collect_results(study: AblationStudy, seeds: Sequence[int]) -> dict[str, Any]:
    """By variant: accuracies over seeds, and win rates against the full model of the same seed."""
    questions = live_world_questions(study.held_out, study.num)
    variants: dict[str, Any] = {}
    for variant in VARIANTS:
        results = [study.results(variant, seed) for seed in seeds]
        variants[variant] = {
            name: over_seeds([result["table"]["all"][name]["right"] for result in results])
            for name in ("live_after", "live_before", "frozen_after", "frozen_before")
        }
        variants[variant]["training_forward"] = over_seeds([result["training_forward"] for result in results])
        if variant != "full":
            judged: list[JudgedQuestion] = []
            for seed in seeds:
                judged += compare_variants(
                    questions, study.answers(variant, seed), study.answers("full", seed)
                )
            variants[variant]["against_full"] = win_rates(judged)
    return variants


def run_all(study: AblationStudy, runs: Sequence[tuple[str, int]], concurrency: int) -> list[str]:
    """Train and measure all variants; returns why runs failed. A failed run does not stop the others."""

    def work(run: tuple[str, int]) -> str:
        try:
            study.train(*run)
            study.measure(*run)
        except RuntimeError as error:
            return f"{run[0]}, seed {run[1]}: {error}"
        print(f"{run[0]}, seed {run[1]}: done", file=sys.stderr, flush=True)
        return ""

    first, *others = runs  # alone: it makes the cache that the others read
    with ThreadPoolExecutor(concurrency) as pool:
        return [why for why in [work(first), *pool.map(work, others)] if why]


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--clips", type=Path, nargs="+", required=True, help="folders of training clips")
    add("--vision", type=Path, required=True, help="the weights that pretrain_vision.py wrote")
    add("--held-out", type=Path, required=True, help="folder of held-out clips: seeds from 1000000 on")
    add("--num", type=int, default=50, help="number of held-out clips")
    add("--steps", type=int, required=True, help="training steps of each variant and seed")
    set_help = "other fields of the recipe, for all variants"
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help=set_help)
    add("--seeds", type=int, nargs="+", default=[1, 2, 3])
    add("--together", type=int, default=1, help="runs at a time")
    add("--out", type=Path, required=True)
    add("--docs", type=Path, required=True, help="folder for ablations.md, .png and .json")
    return parser


def main() -> None:
    """Read the command line, train and measure all variants, write the report."""
    parser = make_parser()
    options = parser.parse_args()
    study = AblationStudy(
        clips=tuple(folder.resolve() for folder in options.clips),
        vision=options.vision.resolve(),
        held_out=options.held_out.resolve(),
        num=options.num,
        settings=(f"steps={options.steps}", *options.set),
        out=options.out.resolve(),
    )
    runs = [(variant, seed) for seed, variant in product(options.seeds, VARIANTS)]
    try:
        live_world_questions(study.held_out, study.num)  # fails before hours of training, not after
        failed = run_all(study, runs, options.together)
    except (ValueError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    if failed:
        parser.exit(
            1, "\n".join([*failed, f"{len(failed)} of {len(runs)} runs failed; start again to go on\n"])
        )
    about = {"steps": options.steps, "settings": options.set, "seeds": options.seeds, "clips": options.num}
    write_ablation_report(about, collect_results(study, options.seeds), options.docs)


if __name__ == "__main__":
    main()
