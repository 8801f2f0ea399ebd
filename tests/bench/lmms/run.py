"""Run lmms-eval with streamchat-tiny on three small tasks made of live-world clips.

    python tests/bench/lmms/run.py --python lmms/bin/python

`--python` is the interpreter of a virtual environment with lmms-eval and this repository (docs/evaluation.md). The last
line of the output is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from string import Template
from typing import Any

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from model.config import PROJECT_ROOT, SHIPPED_FOLDER
from training.live_world.answers import sentence_at
from training.live_world.clips import Clip, find_clips
from training.live_world.questions import Question
from training.live_world.world import TEST_SEEDS
from training.live_world.write_clips import write_clips

TASK_FOLDER = Path(__file__).resolve().parent
BEFORE_END_S = 0.3  # questions are about this time before the end of a clip
KINDS = ("where", "colour", "count", "what")
TASKS = ("live_world_video", "live_world_picture", "live_world_rounds")


def make_questions(clip: Clip, number: int) -> list[dict[str, Any]]:
    """One question of each kind about the end of the clip, with its right answer."""
    rng = np.random.default_rng([clip.world.seed, number])
    end_s = clip.world.duration_s - BEFORE_END_S
    things = clip.world.state(end_s).things
    count = _right_answer(Question(kind="count", keeps_on=False), clip, end_s)
    rows: list[dict[str, Any]] = []
    for kind in KINDS if things else ():
        thing = things[int(rng.integers(len(things)))]
        question = Question(kind=kind, keeps_on=False, thing=thing.name, place=thing.place)  # type: ignore[arg-type]
        row = {"video": str(clip.path), "instruction": question.instruction, "kind": kind, "count": count}
        rows.append(row | {"answer": _right_answer(question, clip, end_s)})
    return rows


def _right_answer(question: Question, clip: Clip, time_s: float) -> str:
    return " ".join(word.text for word in sentence_at(question, clip.world, time_s))


def save_picture(clip: Clip, path: Path) -> None:
    """Save the picture at that time as a file."""
    with av.open(str(clip.path)) as container:
        for frame in container.decode(video=0):
            if frame.time >= clip.world.duration_s - BEFORE_END_S:
                frame.to_image().save(path)
                return


def write_tasks(folder: Path, num_clips: int) -> None:
    """Write clips, pictures, questions and task files."""
    write_clips(TEST_SEEDS.start + 50, num_clips, folder / "clips")
    questions: list[dict[str, Any]] = []
    pictures: list[dict[str, Any]] = []
    for number, clip in enumerate(find_clips(folder / "clips")):
        rows = make_questions(clip, number)
        questions += rows
        path = folder / f"{number}.png"
        save_picture(clip, path)
        pictures += [{**row, "picture": str(path)} for row in rows if row["kind"] == "colour"]
    files = {"questions": folder / "questions.jsonl", "pictures": folder / "pictures.jsonl"}
    for file, rows in zip(files.values(), (questions, pictures), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "live_world_task.py").write_text((TASK_FOLDER / "live_world_task.py").read_text())
    for task in TASKS:
        template = Template((TASK_FOLDER / f"{task}.yaml").read_text())
        (folder / f"{task}.yaml").write_text(template.substitute({k: str(v) for k, v in files.items()}))


def run(python: Path, model: Path, folder: Path, batch_size: int) -> dict[str, Any]:
    """Run lmms-eval and return its results."""
    command = [str(python), "-m", "lmms_eval", "--model", "streamchat", "--tasks", ",".join(TASKS)]
    command += ["--model_args", f"pretrained={model},num_frames=16", "--include_path", str(folder)]
    command += ["--batch_size", str(batch_size), "--output_path", str(folder / "results"), "--device", "cpu"]
    environment = os.environ | {"HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=PROJECT_ROOT, env=environment, check=True)
    (results,) = (folder / "results").rglob("*results.json")
    return json.loads(results.read_text())["results"]


def main() -> None:
    """Read the command line, write the tasks, run lmms-eval."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--python", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=SHIPPED_FOLDER)
    parser.add_argument("--num-clips", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="streamchat-lmms-") as name:
        folder = Path(name)
        write_tasks(folder, options.num_clips)
        print(json.dumps(run(options.python.absolute(), options.model.resolve(), folder, options.batch_size)))


if __name__ == "__main__":
    main()
