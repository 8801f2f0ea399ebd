"""Suspended dialogs of a decoder. A client that asks again resends the whole history, and the dialog continues."""

from __future__ import annotations

from collections.abc import Container, Sequence

from transformers import PreTrainedTokenizerBase

from services.messages.dialog import Message

History = tuple[str, tuple[tuple[str, str], ...]]  # camera; role and text of each message


def history_of(camera: str, messages: Sequence[Message]) -> History:
    """The key of a conversation. White space around a message is ignored."""
    return camera, tuple((message.role, message.text.strip()) for message in messages)


class SuspendedDialogs:
    """Engine id and text of each suspended dialog, by its history. Each is continued once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._dialogs: dict[History, tuple[str, str]] = {}

    def put(self, engine_id: str, camera: str, messages: Sequence[Message], prompt: str, answer: str) -> None:
        """Add a dialog: `prompt` is the text of all `messages` through the chat template, `answer` what followed."""
        reply = Message(role="assistant", text=answer)
        self._dialogs[history_of(camera, [*messages, reply])] = engine_id, prompt + answer

    def take(
        self, camera: str, messages: Sequence[Message], prompt: str, alive: Container[str]
    ) -> tuple[str, list[int]] | None:
        """The dialog that a new prompt continues, and the tokens that are new in it; None when there is none.

        `alive`: engine ids that still exist.
        """
        self._dialogs = {key: entry for key, entry in self._dialogs.items() if entry[0] in alive}
        found = self._dialogs.get(history_of(camera, messages[:-1]))
        if found is None:
            return None
        engine_id, before = found
        for known in (before, before.rstrip()):
            if prompt.startswith(known):
                del self._dialogs[history_of(camera, messages[:-1])]
                new = self._tokenizer(prompt[len(known) :], add_special_tokens=False)["input_ids"]
                return engine_id, list(new)
        return None
