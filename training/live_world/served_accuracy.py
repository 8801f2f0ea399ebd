"""Measure how many words are right through all services (Kafka, Redis, Ray Serve, HTTP), at the video's own pace.

    streamchat up --port 8000                                            (in another terminal)
    python training/live_world/write_clips.py --seed 1000001 --num 20 --out served
    python training/live_world/served_accuracy.py --url http://127.0.0.1:8000 --kafka HOST:PORT --clips served \\
        --out results

Each clip is published as a camera. Its questions are asked at their times and answered at a human pace. Every
state-bearing word is compared with the truth at the capture time of the newest frame that its token could see; the
token carries this time (`training/live_world/word_scores.py` has the rules). Two more numbers on the same clips and
questions: the model's accuracy without services, in simulated time, and the share of the right answers' words that the
training forward predicts.
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

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parents[2]))
from model.checkpoint.folder import load_model
from model.checkpoint.tokenizer import load_tokenizer
from model.config import SHIPPED_FOLDER
from training.evaluation.answer_judge import score_answer
from training.evaluation.camera_publisher import CameraPublisher
from training.evaluation.eval_questions import EvalQuestion, live_world_questions
from training.evaluation.evaluated_server import EvaluatedServer, ask_camera
from training.evaluation.openai_endpoint import first_model
from training.live_world.accuracy import (
    MAX_TOKENS,
    STEP_S,
    AccuracyEvaluator,
    accuracy_table,
    measure,
    summarise,
)
from training.live_world.clips import find_clips
from training.live_world.word_scores import WordScore, word_accuracy

CONCURRENCY = 4  # clips at a time


class ServedEvaluator:
    """Publishes clips to a running StreamChat and asks about them."""

    def __init__(self, url: str, kafka: str, tokens_per_second: float) -> None:
        self.server = EvaluatedServer(
            name="served", url=url, kafka=kafka, tokens_per_second=tokens_per_second, max_tokens=MAX_TOKENS
        )
        self.frame_ages_ms: list[float] = []

    async def ask(self, questions: Sequence[EvalQuestion], camera: str) -> list[WordScore]:
        """Publish one clip as a camera, ask all questions about it, and score the answers."""
        server = self.server
        publisher = CameraPublisher(server.url, server.kafka, questions[0].video, camera)
        async with server.client() as client, publisher as published:
            model = await first_model(client)
            asked = (ask_camera(client, model, server, published, question) for question in questions)
            answers = await asyncio.gather(*asked)
        self.frame_ages_ms += [age for answer in answers for age in answer.frame_ages_ms]
        return [s for q, answer in zip(questions, answers, strict=True) for s in score_answer(q, answer)]

    async def ask_all(self, questions: Sequence[EvalQuestion]) -> list[WordScore]:
        """Ask about all clips, a few at a time, with progress on stderr."""
        scores: list[WordScore] = []
        run = int(time.time())
        clips = [list(group) for _, group in groupby(questions, key=lambda question: question.video)]
        for first in range(0, len(clips), CONCURRENCY):
            some = clips[first : first + CONCURRENCY]
            asked = (self.ask(of_clip, f"eval-{run}-{first + i}") for i, of_clip in enumerate(some))
            for scored in await asyncio.gather(*asked):
                scores += scored
            line = f"\rclip {first + len(some)}/{len(clips)}  right {word_accuracy(scores):.3f}"
            print(line, end="", file=sys.stderr, flush=True)
        print(file=sys.stderr)
        return scores


def main() -> None:
    """Read the command line, ask, score, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--kafka", required=True, help="host:port of the server's Kafka broker")
    parser.add_argument("--clips", type=Path, required=True, help="held-out clips: seeds from 1000000 on")
    parser.add_argument("--model", type=Path, default=SHIPPED_FOLDER)
    parser.add_argument("--num", type=int, default=20, help="number of clips, the first ones")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        questions = live_world_questions(options.clips, options.num)
        model, tokenizer = load_model(options.model), load_tokenizer(options.model)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    torch.set_num_threads(1)
    served = ServedEvaluator(options.url, options.kafka, 1 / STEP_S)
    scores = asyncio.run(served.ask_all(questions))

    clips = find_clips(options.clips)[: options.num]
    rows = json.loads((options.clips / "questions.json").read_text())
    without_services, training_forward, _ = measure(
        AccuracyEvaluator(model, tokenizer), clips, rows, ("live",)
    )
    age_p50_ms, age_p95_ms = np.percentile(served.frame_ages_ms, (50, 95))
    results = {
        "clips": len(clips),
        "words": len(scores),
        "served": round(word_accuracy(scores), 4),
        "without_services": round(word_accuracy(without_services["live"]), 4),
        "training_forward": round(training_forward, 4),
        "frame_age_p50_ms": round(age_p50_ms),
        "frame_age_p95_ms": round(age_p95_ms),
    }
    summary = summarise({"live": scores, "frozen": []})
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "served.json").write_text(json.dumps(results | {"table": summary}, indent=1) + "\n")
    print(accuracy_table(summary))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
