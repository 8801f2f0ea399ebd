"""Turns the messages of a request into the tokens of a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from services.messages.dialog import Message


class PromptTooLong(ValueError):
    """Not even the last question fits."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt that fits."""

    token_ids: list[int]
    text: str  # all messages through the chat template, including those that did not fit
    num_pinned_tokens: int  # first tokens, of the system message: they stay when old ones are dropped


class PromptBuilder:
    """Applies the chat template, and drops the oldest turns when a conversation is too long."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens

    def build(self, messages: Sequence[Message]) -> Prompt:
        """The prompt of a conversation. PromptTooLong when its last turn alone has too many tokens."""
        text = self._apply_template(messages)
        kept, token_ids = list(messages), self._tokenize(text)
        if len(token_ids) > self._max_tokens:
            kept, token_ids = self._drop_turns(messages, len(token_ids))
        return Prompt(token_ids, text, self._num_system_tokens(kept, token_ids))

    def _drop_turns(self, messages: Sequence[Message], num_tokens: int) -> tuple[list[Message], list[int]]:
        """The messages without as many of the oldest turns as must go, and their tokens.

        Binary search: the number of times that the text is tokenized grows with the logarithm of its turns.
        """
        questions = [number for number, message in enumerate(messages) if message.role == "user"]
        low, high = 1, max(len(questions) - 1, 0)  # turns to drop
        best: tuple[list[Message], list[int]] | None = None
        while low <= high:
            middle = (low + high) // 2
            kept = [*messages[: questions[0]], *messages[questions[middle] :]]
            token_ids = self._tokenize(self._apply_template(kept))
            if len(token_ids) <= self._max_tokens:
                best, high = (kept, token_ids), middle - 1
            else:
                low, num_tokens = middle + 1, len(token_ids)
        if best is None:
            raise PromptTooLong(f"the prompt has {num_tokens} tokens; at most {self._max_tokens} fit")
        return best

    def _apply_template(self, messages: Sequence[Message], *, generation_prompt: bool = True) -> str:
        plain = [{"role": message.role, "content": message.text} for message in messages]
        return str(
            self._tokenizer.apply_chat_template(
                plain, add_generation_prompt=generation_prompt, tokenize=False
            )
        )

    def _tokenize(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _num_system_tokens(self, messages: Sequence[Message], token_ids: list[int]) -> int:
        if messages[0].role != "system":
            return 0
        own = self._tokenize(self._apply_template(messages[:1], generation_prompt=False))
        return len(own) if token_ids[: len(own)] == own else 0
