"""Turns the dialog of a row into tokens, with times, visible frames and a loss mask (paper, section 2.3).

All tokens of an instruction have the time at which it is asked. The words of an answer are spread over its interval.
All tokens of a word have its time. In kinds other than "dense" the whole video comes before the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
from transformers import PreTrainedTokenizerBase

from model.network.clock import indices, visibility
from training.data.bad_row import BadRow
from training.data.token_row import Floats, TokenRow
from training.data.training_row import TrainingRow, Turn
from training.data.word_times import word_times

WORD = re.compile(r"\s*\S+")


@dataclass(slots=True)
class _TimedTokens:
    """Token ids in order, each with its time."""

    ids: list[int] = field(default_factory=list[int])
    times: list[float] = field(default_factory=list[float])
    loss_mask: list[bool] = field(default_factory=list[bool])  # whether this token is to be predicted
    turns: list[int] = field(default_factory=list[int])  # index of the first token of each turn

    def extend(self, ids: list[int], time_s: float, *, loss_mask: bool) -> None:
        self.ids += ids
        self.times += [time_s] * len(ids)
        self.loss_mask += [loss_mask] * len(ids)


class RowTokenizer:
    """Makes token rows of training rows."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, capacity: int, max_tokens: int, *, frozen_view: bool = False
    ) -> None:
        """`capacity`: frames in the FIFO. `max_tokens`: a longer row loses its last turns.

        `frozen_view`: all words of an answer have the time of its question, so that no later frame is seen.
        """
        self.tokenizer, self.capacity, self.max_tokens = tokenizer, capacity, max_tokens
        self.frozen_view = frozen_view
        end = tokenizer.eos_token_id
        assert isinstance(end, int)
        self.end_id, self.end = end, str(tokenizer.convert_ids_to_tokens(end))

    def tokens(self, row: TrainingRow, frame_times: Floats) -> TokenRow:
        """The T tokens of a row over its N frames. Raises BadRow if its first turn is too long."""
        dense = row.kind in ("dense", "interleaved")  # the others have all frames before the text
        timed = self._timed_tokens(row.turns, dense, float(frame_times[-1]) if len(frame_times) else 0.0)
        times = np.array(timed.times)
        text_index, frame_index = indices(times, frame_times, timed.turns)
        next_times = np.append(times[1:], times[-1])
        capacity = self.capacity if dense else max(len(frame_times), 1)
        loss_mask = np.append(np.array(timed.loss_mask[1:], np.bool_), False)  # of the next token
        ids = np.array(timed.ids)
        return TokenRow(
            token_ids=ids,
            input_ids=ids,
            text_index=np.array(text_index),
            frame_index=np.array(frame_index),
            visible=np.asarray(visibility(next_times, frame_times, capacity)),
            loss_mask=loss_mask,
            loss_weights=loss_mask.astype(np.float64),
        )

    def _timed_tokens(self, turns: tuple[Turn, ...], dense: bool, end_s: float) -> _TimedTokens:
        """`end_s`: time of all tokens if the row is not dense."""
        timed = _TimedTokens()
        now_s = 0.0 if dense else end_s
        for number, turn in enumerate(turns):
            start_s = max(turn.start_s, now_s) if dense else end_s
            stop_s = max(turn.end_s, start_s) if dense and not self.frozen_view else start_s
            prompt = self._pieces(self._prompt(turns[: number + 1]))
            answer = self._answer(turn.answer, start_s, stop_s, dense)
            num_tokens = len(timed.ids) + len(prompt) + sum(len(ids) for ids, _ in answer) + 1
            if num_tokens > self.max_tokens:
                if not number:
                    raise BadRow("too long", f"got {num_tokens} tokens in one turn, wanted {self.max_tokens}")
                break
            timed.turns.append(len(timed.ids))
            timed.extend(prompt, start_s, loss_mask=False)
            for ids, now_s in answer:
                timed.extend(ids, now_s, loss_mask=True)
            timed.extend([self.end_id], now_s, loss_mask=True)
        return timed

    def _answer(
        self, answer: str, start_s: float, stop_s: float, dense: bool
    ) -> list[tuple[list[int], float]]:
        text = answer.strip()
        if not dense:
            return [(self._pieces(text), stop_s)]
        words = WORD.findall(text)
        times = word_times(start_s, stop_s, len(words))
        return [(self._pieces(word), time_s) for word, time_s in zip(words, times, strict=True)]

    def _prompt(self, turns: tuple[Turn, ...]) -> str:
        """The text that the chat template puts between the end of the last answer and the start of the next one."""
        messages: list[dict[str, str]] = []
        for turn in turns:
            messages += [
                {"role": "user", "content": turn.instruction.strip()},
                {"role": "assistant", "content": turn.answer.strip()},
            ]
        text = self._template(messages[:-1])
        if len(turns) == 1:
            return text
        before = self._template(messages[:-3]) + messages[-3]["content"] + self.end
        if not text.startswith(before):
            raise ValueError(
                f"chat template: got {text[:80]!r}..., wanted unchanged answers, each followed by {self.end}"
            )
        return text[len(before) :]

    def _template(self, messages: list[dict[str, str]]) -> str:
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert isinstance(text, str)
        return text

    def _pieces(self, text: str) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert isinstance(ids, list)
        return ids  # type: ignore[return-value]
