"""Write live-world clips: H.264 video, exact captions, and questions whose right answers change during the clip.

    python training/live_world/write_clips.py --seed 7 --num 20 --out clips

writes `clips/0000.mp4` and so on, `captions.json` (by clip: captions with intervals, and the whole truth about it) and
`questions.json` (by clip: time, instruction, and answer words with times). The same seed gives the same files.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from training.data.word_times import word_times
from training.live_world.answers import ReferenceAnswer, event_sentence, reference_answer
from training.live_world.picture import write_video
from training.live_world.questions import sample_question
from training.live_world.world import PLACES, World, make_world

WORDS_PER_SECOND = 4.0
NUM_QUESTIONS = 6


def captions(world: World) -> list[dict[str, Any]]:
    """Dense captions: the things of the start, and each event, with their intervals."""
    rows: list[dict[str, Any]] = [
        {
            "start_s": 0.0,
            "end_s": min(
                [e.start_s for e in world.events if e.thing.name == t.name], default=world.duration_s
            ),
            "caption": f"{'An' if t.colour[0] in 'aeiou' else 'A'} {t.colour} {t.name} is at {PLACES[t.place]}.",
        }
        for t in world.start
    ]
    for event in world.events:
        text = " ".join(w.text for w in event_sentence(event))
        rows.append({"start_s": event.start_s, "end_s": min(event.end_s, world.duration_s), "caption": text})
    return rows


def questions(world: World, num: int = NUM_QUESTIONS) -> list[dict[str, Any]]:
    """Questions at random times, with their right answers."""
    rng = np.random.default_rng([world.seed, world.index, 2])
    rows: list[dict[str, Any]] = []
    while len(rows) < num:
        ask_s = round(float(rng.uniform(1.0, world.duration_s * 0.6)), 2)
        question = sample_question(rng, world, ask_s)
        right = reference_answer(
            question, world, ask_s, WORDS_PER_SECOND, max_steps=int(rng.integers(12, 40))
        )
        if right.words:
            rows.append(_question_row(right))
    return rows


def _question_row(right: ReferenceAnswer) -> dict[str, Any]:
    question = right.question
    words = [w.text for w in right.words]
    times = word_times(right.start_s, right.end_s, len(words))
    about = {"keeps_on": question.keeps_on, "thing": question.thing, "place": question.place}
    return {
        "kind": question.kind,
        "about": about | {"happening": question.happening, "wording": question.wording},
        "ask_s": right.start_s,
        "end_s": round(right.end_s, 3),
        "instruction": question.instruction,
        "answer": " ".join(words),
        "words": [{"word": w, "time_s": round(t, 3)} for w, t in zip(words, times, strict=True)],
    }


def write_clips(seed: int, num: int, out: Path) -> None:
    """Write `num` clips of a seed with their captions and questions. Shows progress on stderr."""
    out.mkdir(parents=True, exist_ok=True)
    all_captions: dict[str, Any] = {}
    all_questions: dict[str, Any] = {}
    for index in range(num):
        world = make_world(seed, index)
        name = f"{index:04d}.mp4"
        write_video(world, out / name)
        all_captions[name] = {"captions": captions(world), "world": world.as_json()}
        all_questions[name] = questions(world)
        print(f"\rclips {index + 1}/{num}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    (out / "captions.json").write_text(json.dumps(all_captions, indent=1) + "\n")
    (out / "questions.json").write_text(json.dumps(all_questions, indent=1) + "\n")


def main() -> None:
    """Read the command line and write the clips."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, required=True, help="1000000 and above are held out for tests")
    parser.add_argument("--num", type=int, required=True, help="number of clips")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    options = parser.parse_args()
    if options.seed < 0 or options.num < 1:
        parser.error(f"--seed must be 0 or more and --num 1 or more; got {options.seed} and {options.num}")
    write_clips(options.seed, options.num, options.out)


if __name__ == "__main__":
    main()
