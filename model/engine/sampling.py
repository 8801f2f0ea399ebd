"""From logits to tokens, for all dialogs of a step together.

Letters: B rows (dialogs), V vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

MAX_TOP_LOGPROBS = 20  # OpenAI's limit
MIN_TEMPERATURE = 0.01  # below it, logits divided by it overflow


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParameters:
    """How the next token is chosen; raises ValueError for a value out of range."""

    temperature: float = 0.0  # 0: the token with the highest logit
    top_p: float = 1.0  # keep the most likely tokens that together reach this probability; 0: only the first
    min_p: float = 0.0  # keep tokens that have at least this share of the highest probability
    repetition_penalty: float = 1.0  # Hugging Face's: for tokens of prompt and answer
    frequency_penalty: float = 0.0  # OpenAI's: subtracted for each time a token was generated
    presence_penalty: float = 0.0  # OpenAI's: subtracted once
    logit_bias: tuple[tuple[int, float], ...] = ()  # OpenAI's: (token id, value added to its logit)
    num_top_logprobs: int | None = None  # None: no logprobs; n: the token's own and the n highest
    seed: int | None = None  # None: a new one for each turn

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, 100.0),
            ("top_p", 0.0, 1.0),
            ("min_p", 0.0, 1.0),
            ("repetition_penalty", 0.01, 100.0),
            ("frequency_penalty", -2.0, 2.0),
            ("presence_penalty", -2.0, 2.0),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted {low:g} to {high:g}")
        if 0.0 < self.temperature < MIN_TEMPERATURE:
            raise ValueError(f"temperature: got {self.temperature}, wanted 0, or {MIN_TEMPERATURE} to 100")
        if wrong := [bias for _, bias in self.logit_bias if not -100.0 <= bias <= 100.0]:
            raise ValueError(f"logit_bias: got {wrong[0]}, wanted -100 to 100")
        num_top = self.num_top_logprobs
        if num_top is not None and not 0 <= num_top <= MAX_TOP_LOGPROBS:
            raise ValueError(f"num_top_logprobs: got {num_top}, wanted 0 to {MAX_TOP_LOGPROBS}")

    @property
    def has_penalties(self) -> bool:
        """Whether earlier tokens change the logits."""
        return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1.0, 0.0, 0.0)

    @property
    def is_argmax(self) -> bool:
        """Whether the token is the argmax of the raw logits, and no logprobs are wanted."""
        greedy = self.temperature == 0.0 and not self.has_penalties and not self.logit_bias
        return greedy and self.num_top_logprobs is None


class NonFiniteLogits(RuntimeError):
    """Some rows of logits have NaN or infinity where their highest value should be."""

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__(f"logits: got NaN or infinity in rows {rows}, wanted finite values")
        self.rows = rows


class TokenLogprobs(NamedTuple):
    """Natural logarithms of the model's own probabilities: before temperature, penalties and cuts."""

    token: float  # of the sampled token
    top: tuple[tuple[int, float], ...]  # (token id, logprob) of the most likely tokens


class SampledToken(NamedTuple):
    """A token and, if they were asked for, its logprobs."""

    token_id: int
    logprobs: TokenLogprobs | None = None


class SamplerState:
    """Sampling parameters and token counts of one turn. The same seed gives the same tokens in any batch."""

    def __init__(
        self, parameters: SamplingParameters, seed: int, vocab_size: int, device: torch.device
    ) -> None:
        self.parameters, self.seed = parameters, seed
        self.num_sampled = 0
        self.seen_tokens: Tensor | None = None  # bool [V]: in the prompt or the answer
        self.output_counts: Tensor | None = None  # [V]: how often in the answer
        if parameters.has_penalties:
            self.seen_tokens = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self.output_counts = torch.zeros(vocab_size, device=device)

    def add_prompt(self, token_ids: Sequence[int]) -> None:
        """Count the tokens of a prompt."""
        if self.seen_tokens is not None:
            self.seen_tokens[list(token_ids)] = True

    def add_token(self, token_id: int) -> None:
        """Count a generated token."""
        self.num_sampled += 1
        if self.seen_tokens is not None and self.output_counts is not None:
            self.seen_tokens[token_id] = True
            self.output_counts[token_id] += 1

    def next_uniform(self) -> float:
        """The random number for the next token, 0 to below 1: it depends on the seed and the token's number."""
        return random.Random(f"{self.seed}/{self.num_sampled}").random()


def sample(logits: Tensor, samplers: Sequence[SamplerState]) -> list[SampledToken]:
    """One token for each row of logits [B, V]. Raises NonFiniteLogits, before any row has changed."""
    if all(sampler.parameters.is_argmax for sampler in samplers):
        return [SampledToken(token_id) for token_id in _argmax(logits).tolist()]
    raw = logits.float()
    logits = _apply_penalties(raw, samplers)
    token_ids = _argmax(logits)
    random_rows = [row for row, sampler in enumerate(samplers) if sampler.parameters.temperature > 0.0]
    if random_rows:
        rows = torch.tensor(random_rows, device=logits.device)
        token_ids[rows] = _sample_rows(logits[rows], [samplers[row] for row in random_rows])
    logprobs = _logprobs(raw, token_ids, samplers)
    return [SampledToken(*pair) for pair in zip(token_ids.tolist(), logprobs, strict=True)]


def _argmax(logits: Tensor) -> Tensor:
    """Token ids [B] of the highest logits. NaN counts as the highest. Raises NonFiniteLogits."""
    token_ids = logits.argmax(-1)
    finite: list[bool] = logits.gather(-1, token_ids[:, None])[:, 0].isfinite().tolist()
    if not all(finite):
        raise NonFiniteLogits([row for row, is_finite in enumerate(finite) if not is_finite])
    return token_ids


def _apply_penalties(logits: Tensor, samplers: Sequence[SamplerState]) -> Tensor:
    """Logits [B, V] with penalties and biases."""
    changed = [
        row
        for row, each in enumerate(samplers)
        if each.parameters.has_penalties or each.parameters.logit_bias
    ]
    if not changed:
        return logits
    logits = logits.clone()
    for row in changed:
        sampler, own = samplers[row], logits[row]
        parameters = sampler.parameters
        if (seen := sampler.seen_tokens) is not None and (counts := sampler.output_counts) is not None:
            penalty = parameters.repetition_penalty
            own = torch.where(seen, torch.where(own > 0, own / penalty, own * penalty), own)
            own -= parameters.frequency_penalty * counts + parameters.presence_penalty * (counts > 0)
        for token_id, bias in parameters.logit_bias:
            own[token_id] += bias
        logits[row] = own
    return logits


def _sample_rows(logits: Tensor, samplers: Sequence[SamplerState]) -> Tensor:
    """Token ids [B] by inverse transform sampling, after the top-p and min-p cuts, all rows at once."""

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=logits.device)[:, None]

    parameters = [sampler.parameters for sampler in samplers]
    temperature = column([each.temperature for each in parameters])
    probabilities, order = (logits / temperature).softmax(-1).sort(descending=True, stable=True)
    before = probabilities.cumsum(-1) - probabilities
    kept = before < column([each.top_p for each in parameters])
    kept &= probabilities >= column([each.min_p for each in parameters]) * probabilities[:, :1]
    kept[:, 0] = True  # also where top_p is 0
    sums = probabilities.where(kept, 0.0).cumsum(-1)
    drawn = column([sampler.next_uniform() for sampler in samplers]) * sums[:, -1:]
    last = kept.sum(-1, keepdim=True) - 1
    return order.gather(-1, torch.searchsorted(sums, drawn, right=True).minimum(last))[:, 0]


def _logprobs(
    logits: Tensor, token_ids: Tensor, samplers: Sequence[SamplerState]
) -> list[TokenLogprobs | None]:
    """Of the rows that ask for them."""
    wanted = [sampler.parameters.num_top_logprobs for sampler in samplers]
    logprobs: list[TokenLogprobs | None] = [None] * len(wanted)
    most = max((num for num in wanted if num is not None), default=None)
    if most is None:
        return logprobs
    all_logprobs = logits.log_softmax(-1)
    own: list[float] = all_logprobs.gather(-1, token_ids[:, None])[:, 0].tolist()
    values, ids = (part.tolist() for part in all_logprobs.topk(min(most, all_logprobs.shape[-1]), -1))
    for row, num in enumerate(wanted):
        if num is not None:
            top = tuple(zip(ids[row][:num], values[row][:num], strict=True))
            logprobs[row] = TokenLogprobs(own[row], top)
    return logprobs
