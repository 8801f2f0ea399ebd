"""People who ask about a camera again and again at a human pace, and the gaps between the words that they hear."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import httpx

from services.messages.percentile import percentile
from tests.bench.measure.live_service import ask

MAX_GAP_S = 0.5
NUM_WORDS = 60  # of an answer
WORDS_S = 5.0
TICK_S = 0.05


@dataclass(slots=True)
class Heard:
    """What all bystanders heard."""

    num_answers: int = 0
    gaps_s: list[float] = field(default_factory=list[float])
    long_gaps: list[dict[str, float]] = field(default_factory=list[dict[str, float]])
    first_s: list[float] = field(default_factory=list[float])
    ages_ms: list[float] = field(default_factory=list[float])
    errors: list[str] = field(default_factory=list[str])
    stalls: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])  # when, seconds

    def summary(self) -> dict[str, Any]:
        """The numbers; a gap is the machine's where this process, which only listens, stood still as long."""
        return {
            "answers": self.num_answers,
            "words": len(self.ages_ms),
            "errors": len(self.errors),
            "gap_p50_s": round(percentile(self.gaps_s, 0.5), 3),
            "gap_p99_s": round(percentile(self.gaps_s, 0.99), 3),
            "gap_max_s": round(max(self.gaps_s), 3),
            "gaps_above_0.5_s": len(self.long_gaps),
            "first_word_p95_s": round(percentile(self.first_s, 0.95), 3),
            "first_word_max_s": round(max(self.first_s), 3),
            "frame_age_p50_ms": round(percentile(self.ages_ms, 0.5)),
            "frame_age_p95_ms": round(percentile(self.ages_ms, 0.95)),
            "frame_age_max_ms": round(max(self.ages_ms)),
            **{
                f"words_with_a_frame_older_than_{age_s}_s": sum(age > age_s * 1000 for age in self.ages_ms)
                for age_s in (1, 5)
            },
            "listener_stalled_max_s": round(max((s for _, s in self.stalls), default=0.0), 3),
        }


async def listen(url: str, cameras: Sequence[str], end_s: float, heard: Heard) -> None:
    """One dialog a camera until the wall-clock time `end_s`; adds to `heard` as it goes."""
    async with (
        httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as http,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(_watch_the_clock(end_s, heard))
        for number, camera in enumerate(cameras):
            tasks.create_task(_one_bystander(http, camera, number / len(cameras), end_s, heard))


async def _one_bystander(
    http: httpx.AsyncClient, camera: str, wait_s: float, end_s: float, heard: Heard
) -> None:
    await asyncio.sleep(wait_s)
    while time.time() < end_s:
        try:
            answer = await ask(http, camera, NUM_WORDS, tokens_per_second=WORDS_S)
        except (httpx.HTTPError, RuntimeError) as error:
            heard.errors.append(f"{time.time():.1f} {camera} {error!r}"[:500])
            await asyncio.sleep(1.0)
            continue
        if not answer.arrived_s:
            heard.errors.append(f"{time.time():.1f} {camera}: no words")
            continue
        heard.num_answers += 1
        heard.first_s.append(answer.arrived_s[0] - answer.asked_s)
        heard.ages_ms += answer.ages_ms
        for before, after in pairwise(answer.arrived_s):
            heard.gaps_s.append(after - before)
            if after - before > MAX_GAP_S:
                stalled_s = max((s for at, s in heard.stalls if before <= at <= after + TICK_S), default=0.0)
                heard.long_gaps.append(
                    {"at": after, "gap_s": after - before, "listener_stalled_s": stalled_s}
                )


async def _watch_the_clock(end_s: float, heard: Heard) -> None:
    """Note when this process itself stood still."""
    while time.time() < end_s:
        before_s = time.monotonic()
        await asyncio.sleep(TICK_S)
        stalled_s = time.monotonic() - before_s - TICK_S
        if stalled_s > TICK_S:
            heard.stalls.append((time.time(), stalled_s))
