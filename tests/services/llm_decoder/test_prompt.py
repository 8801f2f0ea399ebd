"""Prompts of long conversations: the oldest turns are dropped, in a few looks at the text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.tokenizer import load_tokenizer
from services.llm_decoder.prompt import PromptBuilder, PromptTooLong
from services.messages.dialog import Message


class Counting:
    """A tokenizer that counts how much it is given."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.num_calls = 0

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.num_calls += 1
        return self._tokenizer(*args, **options)

    def apply_chat_template(self, *args: Any, **options: Any) -> Any:
        return self._tokenizer.apply_chat_template(*args, **options)


def chat(num_messages: int, *first: Message) -> list[Message]:
    roles = ("user", "assistant")
    talk = [Message(role=roles[n % 2], text=f"word {n} " * (n % 7 + 1)) for n in range(num_messages)]
    return [*first, *talk]


def dropped_one_by_one(builder: PromptBuilder, messages: list[Message]) -> list[int]:
    while True:
        try:
            unlimited = PromptBuilder(builder._tokenizer, 10**9)  # pyright: ignore[reportPrivateUsage]
            token_ids = unlimited.build(messages).token_ids
        finally:
            questions = [number for number, message in enumerate(messages) if message.role == "user"]
        if len(token_ids) <= builder._max_tokens:  # pyright: ignore[reportPrivateUsage]
            return token_ids
        messages = [*messages[: questions[0]], *messages[questions[1] :]]


@pytest.mark.parametrize("max_tokens", [70, 100, 200, 5000])
@pytest.mark.parametrize("system", [(), (Message(role="system", text="Be short."),)])
def test_as_few_turns_as_possible_are_dropped(
    random_folder: Path, max_tokens: int, system: tuple[Message, ...]
) -> None:
    builder = PromptBuilder(load_tokenizer(random_folder), max_tokens)
    messages = chat(41, *system)
    prompt = builder.build(messages)
    assert prompt.token_ids == dropped_one_by_one(builder, messages)
    assert bool(prompt.num_pinned_tokens) == bool(system)


def test_a_long_chat_is_tokenized_a_few_times(random_folder: Path) -> None:
    tokenizer: Any = Counting(load_tokenizer(random_folder))
    prompt = PromptBuilder(tokenizer, 64).build(chat(999))
    assert len(prompt.token_ids) <= 64
    assert tokenizer.num_calls <= 12


@pytest.mark.parametrize("num_messages", [1, 3])
def test_a_last_turn_that_does_not_fit_is_refused(random_folder: Path, num_messages: int) -> None:
    messages = [*chat(num_messages - 1), Message(role="user", text="word " * 500)]
    with pytest.raises(PromptTooLong, match=r"the prompt has \d{3,} tokens; at most 64 fit"):
        PromptBuilder(load_tokenizer(random_folder), 64).build(messages)
