"""What was said in a realtime session so far: items in order, bounded."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from services.messages.api_error import ApiError
from services.messages.dialog import Message

MAX_ITEMS = 256
MAX_CHARACTERS = 2**20
HISTORY_CHARACTERS_PER_TOKEN = 2  # what of the past is sent along must surely fit beside the question

Status = Literal["completed", "incomplete", "in_progress"]


def new_id(prefix: str) -> str:
    """An id in OpenAI's manner."""
    return f"{prefix}_{uuid.uuid4().hex[:24]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One message of the conversation."""

    id: str
    role: Literal["system", "user", "assistant"]
    text: str
    status: Status = "completed"

    @property
    def event(self) -> dict[str, Any]:
        """As OpenAI's Realtime shows it."""
        kind = "output_text" if self.role == "assistant" else "input_text"
        content = [{"type": kind, "text": self.text}] if self.text or self.role != "assistant" else []
        return {
            "id": self.id,
            "object": "realtime.item",
            "type": "message",
            "status": self.status,
            "role": self.role,
            "content": content,
        }


class Conversation:
    """The items of a session. The oldest are forgotten when there are too many."""

    def __init__(self) -> None:
        self.id = new_id("conv")
        self._items: list[Item] = []

    def add(self, item: Item, after: str | None = None) -> tuple[str | None, list[str]]:
        """Insert an item, by default at the end (`after`: an item's id, or "root" for the start).

        Returns the id of the item before it and the ids of forgotten items; ApiError when `after` is unknown,
        the id is taken, or the item is too long.
        """
        if any(item.id == other.id for other in self._items):
            raise ApiError(400, "item_exists", f"item {item.id!r} exists already", param="item.id")
        if len(item.text) > MAX_CHARACTERS:
            raise ApiError(
                400, "item_too_long", f"got {len(item.text)} characters, wanted at most {MAX_CHARACTERS}"
            )
        place = len(self._items) if after is None else 0 if after == "root" else self._place(after) + 1
        self._items.insert(place, item)
        before = self._items[place - 1].id if place else None
        forgotten: list[str] = []
        while len(self._items) > MAX_ITEMS or sum(len(each.text) for each in self._items) > MAX_CHARACTERS:
            forgotten.append(self._items.pop(0).id)
        return before, forgotten

    def finish(self, item_id: str, text: str, status: Status) -> Item | None:
        """The words and the state of an item that was in progress; None when it was deleted meanwhile."""
        for place, item in enumerate(self._items):
            if item.id == item_id:
                self._items[place] = replace(item, text=text, status=status)
                return self._items[place]
        return None

    def item(self, item_id: str) -> Item:
        """The item; ApiError 404 when there is none."""
        return self._items[self._place(item_id)]

    def delete(self, item_id: str) -> None:
        """Forget it; ApiError 404 when there is none."""
        del self._items[self._place(item_id)]

    def messages(self, instructions: str, max_prompt_tokens: int) -> Sequence[Message]:
        """The prompt: instructions, then as much of the newest conversation as surely fits."""
        left = max_prompt_tokens * HISTORY_CHARACTERS_PER_TOKEN - len(instructions)
        newest: list[Message] = []
        for item in reversed(self._items):
            left -= len(item.text)
            if newest and left < 0:
                break
            if item.text:
                newest.append(Message(role=item.role, text=item.text))
        system = [Message(role="system", text=instructions)] if instructions else []
        return [*system, *reversed(newest)]

    def _place(self, item_id: str) -> int:
        for place, item in enumerate(self._items):
            if item.id == item_id:
                return place
        raise ApiError(404, "unknown_item", f"the conversation has no item {item_id[:80]!r}")
