"""Replicas follow the dialogs, and the age of the frames behind their words."""

from __future__ import annotations

from typing import Any

import pytest
from ray.serve._private.common import DeploymentID
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from services.llm_decoder.replica_policy import FRAME_AGE, SPAN_S, FrameAges, ReplicaPolicy
from services.messages.dialog import DialogEnded, TokenEvent


def context(*, dialogs: float, replicas: int, ages: dict[Any, float] | None = None) -> AutoscalingContext:
    """What Serve tells a policy: Serve's own class."""
    return AutoscalingContext(
        deployment_id=DeploymentID(name="LLMDecoder", app_name="streamchat"),
        deployment_name="LLMDecoder",
        app_name="streamchat",
        current_num_replicas=replicas,
        target_num_replicas=replicas,
        running_replicas=[],
        total_num_requests=dialogs,
        total_queued_requests=0.0,
        aggregated_metrics={FRAME_AGE: ages} if ages is not None else {},
        raw_metrics=None,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=8,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=0.0,
        config=AutoscalingConfig(min_replicas=1, max_replicas=8, target_ongoing_requests=32),
    )


def token(*, age_ms: float, stale: bool = False) -> TokenEvent:
    return TokenEvent(
        token_id=1,
        text="a",
        generated_s=0.0,
        time_s=0.0,
        frame_id="1-0",
        captured_s=0.0,
        frame_age_ms=age_ms,
        stale=stale,
    )


@pytest.mark.parametrize(
    ("dialogs", "replicas", "ages", "wanted"),
    [
        (0, 1, None, 0),
        (96, 1, {"a": 0.2}, 3),
        (16, 2, {"a": 0.2, "b": 1.5}, 3),  # one replica shows old frames
        (16, 2, {"a": 0.2, "b": 0.9}, 0.5),
        (320, 2, {"a": 9.0, "b": 9.0}, 10),  # the dialogs alone want more than that
    ],
)
def test_what_is_wanted(dialogs: float, replicas: int, ages: dict[Any, float] | None, wanted: float) -> None:
    policy = ReplicaPolicy(frame_age_s=1.0)
    assert policy(context(dialogs=dialogs, replicas=replicas, ages=ages)) == (wanted, {})


def test_a_limit_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="wanted more than 0"):
        ReplicaPolicy(frame_age_s=0)


def test_ages_are_those_of_the_last_seconds() -> None:
    now = [0.0]
    ages = FrameAges(clock=lambda: now[0])
    assert ages.mean_s() == 0.0
    ages.record(
        [token(age_ms=4000), DialogEnded(finish_reason="stop", num_prompt_tokens=1, num_completion_tokens=1)]
    )
    now[0] = SPAN_S - 1
    ages.record([token(age_ms=200), token(age_ms=60_000, stale=True)])
    assert ages.mean_s() == pytest.approx(2.1)
    now[0] = SPAN_S + 1
    assert ages.mean_s() == pytest.approx(0.2)
