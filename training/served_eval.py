"""How right answers are through the whole served path: Kafka, Redis, Ray Serve and HTTP, at the video's own pace.

    streamchat up --port 8000                                            (in another terminal)
    python training/live_world.py --seed 1000001 --num 20 --out served
    python training/served_eval.py --url http://127.0.0.1:8000 --kafka HOST:PORT --clips served --out results

Each clip is published as a camera; its questions are asked when their time has come, at a human pace. Every
state-bearing word is judged by the world's truth at the capture time of the newest frame that its token could see, as
the token itself says (the rule stands in `training/world_judge.py`). The training forward's accuracy on the same clips
and questions is measured beside it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import torch
from transformers import PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).parent.parent))
from model.folder import load_model, load_tokenizer
from training.clips import Clip, find_clips
from training.live_world_eval import MAX_TOKENS, TICK_S, Examiner, question_of, summary, table
from training.world import TEST_SEEDS
from training.world_judge import Verdict, judge, share_right, spoken_words
from training.world_picture import FPS

TOGETHER = 4  # clips at a time
JOIN_S = 30.0  # a camera that is not live by then is an error


def clip_time_s(frame_id: str) -> float:
    """When a frame is shown in its clip: its id ends with the packet's number, and a clip has FPS packets a second."""
    return int(frame_id.partition("-")[2]) / FPS


class ServedExam:
    """Publishes clips to a running StreamChat and asks about them."""

    def __init__(self, url: str, kafka: str, pace: float) -> None:
        self.kafka, self.pace = kafka, pace
        self.http = httpx.AsyncClient(base_url=url, timeout=60)
        self.ages_ms: list[float] = []

    async def clip(self, clip: Clip, rows: Sequence[dict[str, Any]], camera: str) -> list[Verdict]:
        """Publish one clip as a camera and judge all answers about it."""
        command = ["streamchat", "publish", str(clip.path), "--camera", camera, "--kafka", self.kafka]
        publisher = await asyncio.create_subprocess_exec(*command, stderr=subprocess.DEVNULL)
        try:
            judged = await asyncio.gather(*(self._ask(camera, clip, row) for row in rows))
        finally:
            if publisher.returncode is None:
                publisher.terminate()
            await publisher.wait()
        return [verdict for verdicts in judged for verdict in verdicts]

    async def _ask(self, camera: str, clip: Clip, row: dict[str, Any]) -> list[Verdict]:
        await self._wait_for(camera, row["ask_s"])
        video = {"type": "video_url", "video_url": {"url": f"camera://{camera}"}}
        body = {
            "model": "streamchat-tiny",
            "stream": True,
            "max_tokens": MAX_TOKENS,
            "messages": [{"role": "user", "content": [video, {"type": "text", "text": row["instruction"]}]}],
            "streamchat": {"tokens_per_second": self.pace},
        }
        tokens: list[tuple[str, float]] = []
        finish = ""
        async with self.http.stream("POST", "/v1/chat/completions", json=body) as reply:
            if reply.status_code != 200:
                raise RuntimeError(f"{reply.status_code}: {(await reply.aread()).decode()}")
            async for line in reply.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line.removeprefix("data: "))
                if "error" in chunk:
                    raise RuntimeError(str(chunk["error"]))
                for token in chunk.get("streamchat", {}).get("tokens", []):
                    tokens.append((token["text"], clip_time_s(token["frame_id"])))
                    self.ages_ms.append(token["frame_age_ms"])
                finish = next(
                    (c["finish_reason"] for c in chunk["choices"] if c.get("finish_reason")), finish
                )
        asked_seen_s = tokens[0][1] if tokens else row["ask_s"]
        spoken = spoken_words((text, seen_s) for text, seen_s in tokens if text)
        return judge(question_of(row), clip.world, asked_seen_s, spoken, ended=finish == "stop")

    async def _wait_for(self, camera: str, ask_s: float) -> None:
        """Until the camera's newest frame is of that time in the clip."""
        end_s = time.monotonic() + JOIN_S
        while time.monotonic() < end_s:
            reply = await self.http.get(f"/v1/cameras/{camera}")
            if reply.status_code == 200 and clip_time_s(reply.json()["newest_frame_id"]) >= ask_s - 0.1:
                return
            await asyncio.sleep(0.05)
        raise TimeoutError(f"camera {camera} showed nothing of second {ask_s} within {JOIN_S} s")


async def examine(exam: ServedExam, clips: Sequence[Clip], asked: dict[str, Any]) -> list[Verdict]:
    """All clips, a few at a time."""
    verdicts: list[Verdict] = []
    run = int(time.time())
    for first in range(0, len(clips), TOGETHER):
        some = clips[first : first + TOGETHER]
        names = [f"exam-{run}-{first + i}" for i in range(len(some))]
        exams = [exam.clip(c, asked[c.path.name], n) for c, n in zip(some, names, strict=True)]
        for judged in await asyncio.gather(*exams):
            verdicts += judged
        done = first + len(some)
        print(
            f"\rclip {done}/{len(clips)}  right {share_right(verdicts):.3f}",
            end="",
            file=sys.stderr,
            flush=True,
        )
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
    clips = find_clips(options.clips)[: options.num]
    if any(c.world.seed not in TEST_SEEDS for c in clips):
        parser.error(f"--clips: wanted held-out seeds, from {TEST_SEEDS.start} on")
    asked = json.loads((options.clips / "questions.json").read_text())
    exam = ServedExam(options.url, options.kafka, 1 / TICK_S)
    verdicts = asyncio.run(examine(exam, clips, asked))
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(options.model)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    examiner = Examiner(load_model(options.model), tokenizer)
    forward = [examiner.forward_right(c, asked[c.path.name]) for c in clips]
    right, num = (sum(part) for part in zip(*forward, strict=True))
    options.out.mkdir(parents=True, exist_ok=True)
    ages = sorted(exam.ages_ms)
    results = {
        "clips": len(clips),
        "words": len(verdicts),
        "served": round(share_right(verdicts), 4),
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
