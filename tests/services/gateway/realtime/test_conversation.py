"""A realtime session's memory: in order, bounded."""

from __future__ import annotations

import pytest

from services.gateway.realtime.conversation import MAX_CHARACTERS, MAX_ITEMS, Conversation, Item
from services.messages.api_error import ApiError


def said(number: int, text: str = "words") -> Item:
    return Item(id=f"item-{number}", role="user", text=text)


def test_the_oldest_items_are_forgotten() -> None:
    conversation = Conversation()
    for number in range(MAX_ITEMS):
        assert conversation.add(said(number)) == (f"item-{number - 1}" if number else None, [])
    assert conversation.add(said(MAX_ITEMS)) == (f"item-{MAX_ITEMS - 1}", ["item-0"])
    with pytest.raises(ApiError, match="unknown_item"):
        conversation.item("item-0")


def test_characters_are_bounded_too() -> None:
    conversation = Conversation()
    conversation.add(said(0))
    _, forgotten = conversation.add(said(1, "x" * MAX_CHARACTERS))
    assert forgotten == ["item-0"]
    with pytest.raises(ApiError, match="item_too_long"):
        conversation.add(said(2, "x" * (MAX_CHARACTERS + 1)))


def test_the_prompt_keeps_the_newest_that_fits_and_always_the_question() -> None:
    conversation = Conversation()
    for number in range(5):
        conversation.add(said(number, f"{number}" * 10))
    texts = [message.text for message in conversation.messages("be briefer", max_prompt_tokens=20)]
    assert texts == [
        "be briefer",  # 40 characters in all
        "2" * 10,
        "3" * 10,
        "4" * 10,
    ]
    assert [message.text for message in conversation.messages("", max_prompt_tokens=1)] == ["4" * 10]


def test_an_item_that_was_deleted_while_it_was_spoken_stays_deleted() -> None:
    conversation = Conversation()
    conversation.add(Item(id="a", role="assistant", text="", status="in_progress"))
    conversation.delete("a")
    assert conversation.finish("a", "words", "completed") is None
    assert conversation.messages("", 100) == []
