"""How right answers are through the whole served path: Kafka, Redis, Ray Serve and HTTP, at the video's own pace.

    streamchat up --port 8000                                            (in another terminal)
    python training/live_world/write_clips.py --seed 1000001 --num 20 --out served
    python training/live_world/served_exam.py --url http://127.0.0.1:8000 --kafka HOST:PORT --clips served --out results

Each clip is published as a camera; its questions are asked when their time has come, at a human pace. Every
state-bearing word is judged by the world's truth at the capture time of the newest frame that its token could see, as
the token itself says (the rule stands in `training/live_world/judge.py`). Beside it, on the same clips and questions:
what
the model says without any service, in simulated time, and how much of the right answers the training forward predicts
word by word, which hears no mistake of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[2]))
from model.checkpoint.folder import load_model
from model.checkpoint.tokenizer import load_tokenizer
from training.evaluation.answer_judge import truth_of
from training.evaluation.camera_publisher import Broadcast
from training.evaluation.candidate import Candidate, ask_camera, first_model
from training.evaluation.streaming_samples import Sample, live_world_samples
from training.live_world.clips import find_clips
from training.live_world.exam import MAX_TOKENS, TICK_S, Examiner, summary, table, verdicts_of
from training.live_world.judge import Verdict, share_right

TOGETHER = 4  # clips at a time


class ServedExam:
    """Publishes clips to a running StreamChat and asks about them."""

    def __init__(self, url: str, kafka: str, pace: float) -> None:
        self.candidate = Candidate(
            name="served", url=url, kafka=kafka, tokens_per_second=pace, max_tokens=MAX_TOKENS
        )
        self.ages_ms: list[float] = []

    async def clip(self, samples: Sequence[Sample], camera: str) -> list[Verdict]:
        """Publish one clip as a camera and judge all answers about it."""
        one = self.candidate
        async with (
            one.client() as client,
            Broadcast(one.url, one.kafka, samples[0].video, camera) as published,
        ):
            model = await first_model(client)
            asked = (ask_camera(client, model, one, published, sample) for sample in samples)
            answers = await asyncio.gather(*asked)
        self.ages_ms += [age for answer in answers for age in answer.frame_ages_ms]
        return [v for s, answer in zip(samples, answers, strict=True) for v in truth_of(s, answer)]


async def examine(exam: ServedExam, samples: Sequence[Sample]) -> list[Verdict]:
    """All clips, a few at a time."""
    verdicts: list[Verdict] = []
    run = int(time.time())
    clips = [list(group) for _, group in groupby(samples, key=lambda sample: sample.video)]
    for first in range(0, len(clips), TOGETHER):
        some = clips[first : first + TOGETHER]
        exams = [exam.clip(asked, f"exam-{run}-{first + i}") for i, asked in enumerate(some)]
        for judged in await asyncio.gather(*exams):
            verdicts += judged
        line = f"\rclip {first + len(some)}/{len(clips)}  right {share_right(verdicts):.3f}"
        print(line, end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return verdicts


def main() -> None:
    """Read the command line, ask, judge, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--kafka", required=True, help="host:port of the broker that it reads")
    parser.add_argument("--clips", type=Path, required=True, help="held-out clips: seeds from 1000000 on")
    parser.add_argument("--model", type=Path, default=Path("model/streamchat-tiny"))
    parser.add_argument("--num", type=int, default=20)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        samples = live_world_samples(options.clips, options.num)
        model, tokenizer = load_model(options.model), load_tokenizer(options.model)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    torch.set_num_threads(1)
    examiner = Examiner(model, tokenizer)
    exam = ServedExam(options.url, options.kafka, 1 / TICK_S)
    verdicts = asyncio.run(examine(exam, samples))
    clips = find_clips(options.clips)[: options.num]
    asked = json.loads((options.clips / "questions.json").read_text())
    forward = [examiner.forward_right(c, asked[c.path.name]) for c in clips]
    right, num = (sum(part) for part in zip(*forward, strict=True))
    alone: list[Verdict] = []
    for clip in clips:
        alone += verdicts_of(clip, examiner.ask(clip, asked[clip.path.name], ("live",)))["live"]
    options.out.mkdir(parents=True, exist_ok=True)
    ages = sorted(exam.ages_ms)
    results = {
        "clips": len(clips),
        "words": len(verdicts),
        "served": round(share_right(verdicts), 4),
        "without_services": round(share_right(alone), 4),
        "training_forward": round(right / num, 4),
        "frame_age_p50_ms": round(ages[len(ages) // 2]),
        "frame_age_p95_ms": round(ages[int(len(ages) * 0.95)]),
    }
    by_context = {"live": verdicts, "frozen": list[Verdict]()}
    (options.out / "served.json").write_text(
        json.dumps(results | {"table": summary(by_context)}, indent=1) + "\n"
    )
    print(table(summary(by_context)))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
