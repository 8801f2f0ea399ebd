"""Sampling: each rule by its definition, all dialogs of a step together as each alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from model.engine.sampling import NonFiniteLogits, SampledToken, SamplerState, SamplingParameters, sample

CPU = torch.device("cpu")
CHANCES = torch.tensor([0.1, 0.5, 0.05, 0.35])


def voice(seed: int = 5, **options: Any) -> SamplerState:
    return SamplerState(SamplingParameters(**options), seed, 4, CPU)


def frequencies(logits: Tensor, **options: Any) -> Tensor:
    """Of 2000 draws."""
    counts, speaker = torch.zeros(4), voice(**options)
    for number in range(2000):
        speaker.num_sampled = number
        counts[sample(logits[None], [speaker])[0].token_id] += 1
    return counts / 2000


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, [0.1, 0.5, 0.05, 0.35]),
        ({"top_p": 0.8}, [0.0, 0.5 / 0.85, 0.0, 0.35 / 0.85]),
        ({"top_p": 1e-9}, [0.0, 1.0, 0.0, 0.0]),
        ({"top_p": 0.0}, [0.0, 1.0, 0.0, 0.0]),
        ({"min_p": 0.15}, [0.1 / 0.95, 0.5 / 0.95, 0.0, 0.35 / 0.95]),
        ({"min_p": 1.0}, [0.0, 1.0, 0.0, 0.0]),
        ({"top_p": 0.96, "min_p": 0.3}, [0.0, 0.5 / 0.85, 0.0, 0.35 / 0.85]),
    ],
)
def test_draws_have_the_right_frequencies(options: dict[str, Any], wanted: list[float]):
    got = frequencies(2.0 * CHANCES.log(), temperature=2.0, **options)
    torch.testing.assert_close(got, torch.tensor(wanted), atol=0.03, rtol=0)
    assert (got[torch.tensor(wanted) == 0] == 0).all()


def test_penalties_are_those_of_openai_and_hugging_face():
    speaker = voice(
        repetition_penalty=2.0,
        frequency_penalty=0.5,
        presence_penalty=0.25,
        logit_bias=((3, -1.5),),
        num_top_logprobs=0,
    )
    speaker.add_prompt([0, 2])
    for token_id in (1, 1):
        speaker.add_token(token_id)
    # 0: 3 / 2; 1: 4 / 2 - 2 * 0.5 - 0.25; 2: -1 * 2; 3: 3 - 1.5
    logits = torch.tensor([[3.0, 4.0, -1.0, 3.0]])
    winners: list[int] = []
    for _ in range(4):
        token_id = sample(logits, [speaker])[0].token_id
        winners.append(token_id)
        logits[0, token_id] = -100.0
    assert winners == [0, 3, 1, 2]


def test_log_chances_are_the_models_own():
    logits = torch.tensor([[1.0, 3.0, 2.0, 0.0]]).expand(3, 4)
    voices = [
        voice(num_top_logprobs=2, temperature=0.01),
        voice(),
        voice(num_top_logprobs=0, logit_bias=((0, 9.0),)),
    ]
    first, second, third = sample(logits, voices)
    logs = logits[0].log_softmax(-1)
    assert first.logprobs is not None
    assert first.logprobs.token == pytest.approx(logs[1].item())
    assert [token_id for token_id, _ in first.logprobs.top] == [1, 2]
    assert [chance for _, chance in first.logprobs.top] == pytest.approx([logs[1].item(), logs[2].item()])
    assert second == SampledToken(1)
    assert third.token_id == 0
    assert third.logprobs is not None
    assert third.logprobs.token == pytest.approx(logs[0].item())
    assert third.logprobs.top == ()


def test_together_each_gets_what_it_gets_alone():
    torch.manual_seed(0)
    logits = torch.randn(5, 4)
    variants: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0},
        {"temperature": 2.0, "top_p": 0.7},
        {"temperature": 0.5, "min_p": 0.2, "num_top_logprobs": 3},
        {"presence_penalty": 2.0},
    ]

    def voices() -> list[SamplerState]:
        made = [voice(seed, **options) for seed, options in enumerate(variants)]
        made[4].add_token(int(logits[4].argmax()))
        return made

    alone = [sample(logits[row : row + 1], [each])[0] for row, each in enumerate(voices())]
    assert sample(logits, voices()) == alone
    assert alone[4].token_id != logits[4].argmax()


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "top_p": 0.9}, {"presence_penalty": 1.0}])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_named_and_nothing_has_changed(value: float, options: dict[str, Any]):
    logits = torch.randn(4, 4)
    logits[1, 2] = value
    logits[3] = -float("inf")
    voices = [voice(**options) for _ in range(4)]
    with pytest.raises(NonFiniteLogits) as raised:
        sample(logits, voices)
    assert raised.value.rows == [1, 3]
    assert [each.num_sampled for each in voices] == [0] * 4


def test_the_outermost_values_give_tokens():
    """Whatever is allowed, together and in the extreme: no NaN, and no token that is not there."""
    logits = torch.tensor([[1e4, -1e4, 3e4, 0.0]]).expand(8, 4)
    voices: list[SamplerState] = []
    for number in range(8):
        extremes: dict[str, Any] = {
            "temperature": (0.01, 100.0)[number % 2],
            "top_p": (0.0, 1.0)[number // 2 % 2],
            "min_p": (0.0, 1.0)[number // 4],
            "repetition_penalty": (0.01, 100.0)[number % 2],
            "logit_bias": ((0, 100.0), (1, -100.0)),
            "num_top_logprobs": 20,
        }
        voices.append(voice(**extremes))
        voices[-1].add_prompt([0, 1, 2, 3])
    assert {token.token_id for token in sample(logits, voices)} <= {0, 1, 2, 3}


WRONG: list[dict[str, Any]] = [
    {"temperature": float("nan")},
    {"temperature": 101.0},
    {"temperature": 1e-39},
    {"temperature": 0.009},
    {"top_p": -0.1},
    {"top_p": 1.1},
    {"top_p": float("nan")},
    {"logit_bias": ((0, 1e39),)},
    {"logit_bias": ((0, float("nan")),)},
    {"min_p": -0.1},
    {"repetition_penalty": 0.0},
    {"frequency_penalty": 2.1},
    {"presence_penalty": -2.1},
    {"num_top_logprobs": 21},
]


@pytest.mark.parametrize("options", WRONG)
def test_wrong_values_are_refused(options: dict[str, Any]):
    with pytest.raises(ValueError, match=f"{next(iter(options))}: got .*, wanted"):
        SamplingParameters(**options)
