"""The conversation of a realtime session: its items in order, limited in number and size."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from services.messages.api_error import ApiError
from services.messages.dialog import Message

MAX_ITEMS = 256
MAX_CHARACTERS = 2**20
HISTORY_CHARACTERS_PER_TOKEN = (
    2  # a safe estimate: as much history is sent as surely fits beside the question
)

Status = Literal["completed", "incomplete", "in_progress"]


def new_id(prefix: str) -> str:
    """A new id in OpenAI's format."""
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
        """The item in the format of OpenAI's Realtime API."""
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
    """The items of a session. When there are too many, the oldest are deleted."""

    def __init__(self) -> None:
        self.id = new_id("conv")
        self._items: list[Item] = []

    def add(self, item: Item, after: str | None = None) -> tuple[str | None, list[str]]:
        """Insert an item, by default at the end (`after`: an item's id, or "root" for the start).

        Returns the id of the item before it, and the ids of the items that were deleted. Raises ApiError if `after`
        is unknown, the id exists already, or the item is too long.
        """
        if any(item.id == other.id for other in self._items):
            raise ApiError(400, "item_exists", f"item {item.id!r} exists already", param="item.id")
        if len(item.text) > MAX_CHARACTERS:
            raise ApiError(
                400, "item_too_long", f"got {len(item.text)} characters, wanted at most {MAX_CHARACTERS}"
            )
        index = len(self._items) if after is None else 0 if after == "root" else self._index(after) + 1
        self._items.insert(index, item)
        before = self._items[index - 1].id if index else None
        deleted: list[str] = []
        while len(self._items) > MAX_ITEMS or sum(len(each.text) for each in self._items) > MAX_CHARACTERS:
            deleted.append(self._items.pop(0).id)
        return before, deleted

    def finish(self, item_id: str, text: str, status: Status) -> Item | None:
        """Set the text and the status of an item in progress. Returns None if it was deleted meanwhile."""
        for index, item in enumerate(self._items):
            if item.id == item_id:
                self._items[index] = replace(item, text=text, status=status)
                return self._items[index]
        return None

    def item(self, item_id: str) -> Item:
        """The item. Raises ApiError 404 if it does not exist."""
        return self._items[self._index(item_id)]

    def delete(self, item_id: str) -> None:
        """Delete the item. Raises ApiError 404 if it does not exist."""
        del self._items[self._index(item_id)]

    def messages(self, instructions: str, max_prompt_tokens: int) -> Sequence[Message]:
        """The prompt: the instructions, then as many of the newest items as surely fit."""
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

    def _index(self, item_id: str) -> int:
        for index, item in enumerate(self._items):
            if item.id == item_id:
                return index
        raise ApiError(404, "unknown_item", f"the conversation has no item {item_id[:80]!r}")
