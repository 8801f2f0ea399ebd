"""Dialogs at rest in a decoder, found again when their client asks on: it resends all that was said so far."""

from __future__ import annotations

from collections.abc import Container, Sequence

from transformers import PreTrainedTokenizerBase

from services.messages.dialog import Message

Said = tuple[str, tuple[tuple[str, str], ...]]  # camera, and role and words of each message


def said(camera: str, messages: Sequence[Message]) -> Said:
    """What tells conversations apart; white space around a message does not."""
    return camera, tuple((message.role, message.text.strip()) for message in messages)


class RestingDialogs:
    """By what was said, the name of the engine's dialog and its text so far. Each is taken up again once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._dialogs: dict[Said, tuple[str, str]] = {}

    def put(self, name: str, camera: str, messages: Sequence[Message], prompt: str, answer: str) -> None:
        """A turn is over: `prompt` is all of `messages` through the chat template, `answer` came after it."""
        spoken = Message(role="assistant", text=answer)
        self._dialogs[said(camera, [*messages, spoken])] = name, prompt + answer

    def take(
        self, camera: str, messages: Sequence[Message], prompt: str, alive: Container[str]
    ) -> tuple[str, list[int]] | None:
        """The dialog that a new prompt goes on with, and the tokens that are new in it; None when there is none.

        `alive`: dialogs that the engine still has.
        """
        self._dialogs = {key: entry for key, entry in self._dialogs.items() if entry[0] in alive}
        found = self._dialogs.get(said(camera, messages[:-1]))
        if found is None:
            return None
        name, before = found
        for known in (before, before.rstrip()):
            if prompt.startswith(known):
                del self._dialogs[said(camera, messages[:-1])]
                new = self._tokenizer(prompt[len(known) :], add_special_tokens=False)["input_ids"]
                return name, list(new)
        return None
