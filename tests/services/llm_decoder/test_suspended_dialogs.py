"""Suspended dialogs are found by their history, and by nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from model.checkpoint.tokenizer import load_tokenizer
from services.llm_decoder.suspended_dialogs import SuspendedDialogs
from services.messages.dialog import Message

FIRST = [Message(role="user", text="What is there?")]


@pytest.fixture(scope="module")
def tokenizer(random_folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(random_folder)


def prompt(tokenizer: PreTrainedTokenizerBase, messages: list[Message]) -> str:
    plain = [{"role": message.role, "content": message.text} for message in messages]
    return str(tokenizer.apply_chat_template(plain, add_generation_prompt=True, tokenize=False))


def asked_on(answer: str, question: str = "And now?") -> list[Message]:
    return [*FIRST, Message(role="assistant", text=answer), Message(role="user", text=question)]


@pytest.fixture
def suspended(tokenizer: PreTrainedTokenizerBase) -> SuspendedDialogs:
    suspended = SuspendedDialogs(tokenizer)
    suspended.put("d", "camera", FIRST, prompt(tokenizer, FIRST), " A red apple.")
    return suspended


@pytest.mark.parametrize("answer", [" A red apple.", "A red apple.", "A red apple. "])
def test_what_goes_on_is_found_and_only_its_new_words_are_tokens(
    tokenizer: PreTrainedTokenizerBase, suspended: SuspendedDialogs, answer: str
):
    messages = asked_on(answer)
    whole = prompt(tokenizer, messages)
    found = suspended.take("camera", messages, whole, {"d"})
    if answer != " A red apple.":  # the words are the same, but the text through the template is not
        assert found is None
        return
    assert found is not None
    name, new = found
    assert name == "d"
    assert whole.endswith(str(tokenizer.decode(new)))
    assert prompt(tokenizer, FIRST) + answer + str(tokenizer.decode(new)) == whole
    assert suspended.take("camera", messages, whole, {"d"}) is None  # once


def test_other_words_cameras_and_dialogs_that_are_gone_are_not_found(
    tokenizer: PreTrainedTokenizerBase, suspended: SuspendedDialogs
):
    other, same = asked_on(" A blue apple."), asked_on(" A red apple.")
    system = [Message(role="system", text="Be short."), *same]
    assert suspended.take("camera", other, prompt(tokenizer, other), {"d"}) is None
    assert suspended.take("camera", system, prompt(tokenizer, system), {"d"}) is None
    assert suspended.take("camera", FIRST, prompt(tokenizer, FIRST), {"d"}) is None
    assert suspended.take("other", same, prompt(tokenizer, same), {"d"}) is None
    assert suspended.take("camera", same, prompt(tokenizer, same), set()) is None
