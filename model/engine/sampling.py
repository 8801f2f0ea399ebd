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

MAX_TOP_LOGPROBS = 20  # likeliest tokens told beside the one that was drawn (OpenAI's limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParameters:
    """How the next token is chosen; raises ValueError for a value that makes no sense."""

    temperature: float = 0.0  # 0: the likeliest token
    top_p: float = 1.0  # only the likeliest tokens that together have this chance
    min_p: float = 0.0  # only tokens at least this likely, as a share of the likeliest one's chance
    repetition_penalty: float = 1.0  # tokens of prompt and answer: logits divided, or multiplied below 0
    frequency_penalty: float = 0.0  # OpenAI's: taken off a token's logit for each time it was said
    presence_penalty: float = 0.0  # OpenAI's: taken off once
    logit_bias: tuple[tuple[int, float], ...] = ()  # OpenAI's: (token, what is added to its logit)
    num_top_logprobs: int | None = None  # log chances: None: none; n: of the token, and the n likeliest
    seed: int | None = None  # None: a new one for each turn

    def __post_init__(self) -> None:
        for name, low, high in (
            ("temperature", 0.0, 100.0),
            ("min_p", 0.0, 1.0),
            ("frequency_penalty", -2.0, 2.0),
            ("presence_penalty", -2.0, 2.0),
        ):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}: got {getattr(self, name)}, wanted {low:g} to {high:g}")
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p: got {self.top_p}, wanted more than 0 and at most 1")
        if not 0.01 <= self.repetition_penalty <= 100.0:
            raise ValueError(f"repetition_penalty: got {self.repetition_penalty}, wanted 0.01 to 100")
        if self.num_top_logprobs is not None and not 0 <= self.num_top_logprobs <= MAX_TOP_LOGPROBS:
            raise ValueError(f"num_top_logprobs: got {self.num_top_logprobs}, wanted 0 to {MAX_TOP_LOGPROBS}")

    @property
    def uses_token_counts(self) -> bool:
        """Whether what was said before changes what is said next."""
        return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1.0, 0.0, 0.0)

    @property
    def is_argmax(self) -> bool:
        """Whether the token is the one with the highest logit, and nobody asks how likely it was."""
        return (
            self.temperature == 0.0
            and not self.uses_token_counts
            and not self.logit_bias
            and self.num_top_logprobs is None
        )


class TokenLogprobs(NamedTuple):
    """Natural logarithms of chances, as the model gave them: before temperature, penalties and cuts."""

    token: float
    top: tuple[tuple[int, float], ...]  # the likeliest tokens and theirs


class SampledToken(NamedTuple):
    """A chosen token."""

    token_id: int
    logprobs: TokenLogprobs | None = None


class SamplerState:
    """How one dialog chooses its tokens: always the same ones from the same seed, alone or among others."""

    def __init__(
        self, parameters: SamplingParameters, seed: int, vocab_size: int, device: torch.device
    ) -> None:
        self.parameters, self.seed = parameters, seed
        self.num_sampled = 0
        self.seen_tokens: Tensor | None = None  # bool [V]: in the prompt or the answer
        self.output_counts: Tensor | None = None  # [V]: how often in the answer
        if parameters.uses_token_counts:
            self.seen_tokens = torch.zeros(vocab_size, dtype=torch.bool, device=device)
            self.output_counts = torch.zeros(vocab_size, device=device)

    def add_prompt(self, token_ids: Sequence[int]) -> None:
        """A prompt."""
        if self.seen_tokens is not None:
            self.seen_tokens[list(token_ids)] = True

    def add_token(self, token_id: int) -> None:
        """A token was made."""
        self.num_sampled += 1
        if self.seen_tokens is not None and self.output_counts is not None:
            self.seen_tokens[token_id] = True
            self.output_counts[token_id] += 1

    def next_uniform(self) -> float:
        """Where in the chances, laid end to end, the next token is drawn: 0 to below 1."""
        return random.Random(f"{self.seed}/{self.num_sampled}").random()


def sample(logits: Tensor, voices: Sequence[SamplerState]) -> list[SampledToken]:
    """One token for each row of logits [B, V]."""
    if all(voice.parameters.is_argmax for voice in voices):
        return [SampledToken(token_id) for token_id in logits.argmax(-1).tolist()]
    raw = logits.float()
    logits = _apply_penalties(raw, voices)
    tokens = logits.argmax(-1)
    drawn = [row for row, voice in enumerate(voices) if voice.parameters.temperature > 0.0]
    if drawn:
        rows = torch.tensor(drawn, device=logits.device)
        tokens[rows] = _sample_rows(logits[rows], [voices[row] for row in drawn])
    chances = _logprobs(raw, tokens, voices)
    return [SampledToken(token, chance) for token, chance in zip(tokens.tolist(), chances, strict=True)]


def _apply_penalties(logits: Tensor, voices: Sequence[SamplerState]) -> Tensor:
    changed = [
        row
        for row, voice in enumerate(voices)
        if voice.parameters.uses_token_counts or voice.parameters.logit_bias
    ]
    if not changed:
        return logits
    logits = logits.clone()
    for row in changed:
        voice, own = voices[row], logits[row]
        sampling = voice.parameters
        if voice.seen_tokens is not None and voice.output_counts is not None:
            penalty = sampling.repetition_penalty
            own = torch.where(voice.seen_tokens, torch.where(own > 0, own / penalty, own * penalty), own)
            own -= sampling.frequency_penalty * voice.output_counts + sampling.presence_penalty * (
                voice.output_counts > 0
            )
        for token_id, bias in sampling.logit_bias:
            own[token_id] += bias
        logits[row] = own
    return logits


def _sample_rows(logits: Tensor, voices: Sequence[SamplerState]) -> Tensor:
    """Tokens [B], all rows at once: sorted, cut, and drawn at each voice's place."""

    def column(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32, device=logits.device)[:, None]

    heat = column([voice.parameters.temperature for voice in voices])
    chances, order = (logits / heat).softmax(-1).sort(descending=True, stable=True)
    before = chances.cumsum(-1) - chances
    kept = before < column([voice.parameters.top_p for voice in voices])
    kept &= chances >= column([voice.parameters.min_p for voice in voices]) * chances[:, :1]
    sums = chances.where(kept, 0.0).cumsum(-1)
    place = column([voice.next_uniform() for voice in voices]) * sums[:, -1:]
    last = kept.sum(-1, keepdim=True) - 1
    return order.gather(-1, torch.searchsorted(sums, place, right=True).minimum(last))[:, 0]


def _logprobs(logits: Tensor, tokens: Tensor, voices: Sequence[SamplerState]) -> list[TokenLogprobs | None]:
    asked = [voice.parameters.num_top_logprobs for voice in voices]
    found: list[TokenLogprobs | None] = [None] * len(asked)
    most = max((num for num in asked if num is not None), default=None)
    if most is None:
        return found
    logs = logits.log_softmax(-1)
    own: list[float] = logs.gather(-1, tokens[:, None])[:, 0].tolist()
    values, ids = (part.tolist() for part in logs.topk(min(most, logs.shape[-1]), -1))
    for row, num in enumerate(asked):
        if num is not None:
            top = tuple(zip(ids[row][:num], values[row][:num], strict=True))
            found[row] = TokenLogprobs(own[row], top)
    return found
