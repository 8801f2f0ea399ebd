"""The events of one answer over `WS /v1/realtime`: OpenAI's, with our own fields under `streamchat`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from services.gateway.chat.reply import facts_of, frame_age_percentiles
from services.gateway.realtime.conversation import Conversation, Item, new_id
from services.messages.api_error import ApiError
from services.messages.dialog import TokenEvent

Event = dict[str, Any]


class RealtimeReply:
    """Makes the events of a response. Each method returns those of one moment, in order."""

    def __init__(
        self, conversation_id: str | None, max_output_tokens: int, metadata: dict[str, str] | None
    ) -> None:
        self.id = new_id("resp")
        self.item_id = new_id("item")
        self.tokens: list[TokenEvent] = []
        self.num_prompt_tokens = 0
        self.limit: Literal["tokens", "time"] | None = None  # which ended the answer
        self._conversation_id = conversation_id
        self._max_output_tokens = max_output_tokens
        self._metadata = metadata
        self._text_started = False

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(token.text for token in self.tokens)

    def created(self) -> list[Event]:
        """The events before the decoder is asked."""
        return [{"type": "response.created", "response": self._response("in_progress", None, [])}]

    def started(self, num_prompt_tokens: int, conversation: Conversation | None) -> list[Event]:
        """The events when the decoder has admitted the dialog."""
        self.num_prompt_tokens = num_prompt_tokens
        self._text_started = True
        item = Item(id=self.item_id, role="assistant", text="", status="in_progress")
        events = [self._response_event("response.output_item.added", item=item.event)]
        if conversation is not None:
            before, _ = conversation.add(item)
            events.append({"type": "conversation.item.added", "previous_item_id": before, "item": item.event})
        part = {"type": "text", "text": ""}
        return [*events, self._item_event("response.content_part.added", part=part)]

    def delta(self, tokens: Sequence[TokenEvent]) -> Event:
        """The event with the next tokens."""
        self.tokens += tokens
        facts = {"tokens": [facts_of(token, None).model_dump() for token in tokens]}
        text = "".join(token.text for token in tokens)
        return self._item_event("response.output_text.delta", delta=text, streamchat=facts)

    def ended(
        self,
        status: Literal["completed", "incomplete", "cancelled", "failed"],
        conversation: Conversation | None,
        error: ApiError | None = None,
    ) -> list[Event]:
        """The events that close the response, in every case."""
        events: list[Event] = []
        output: list[Event] = []
        if self._text_started:
            item_status = "completed" if status == "completed" else "incomplete"
            item = Item(id=self.item_id, role="assistant", text=self.text, status=item_status)
            kept = conversation.finish(self.item_id, self.text, item_status) if conversation else None
            output = [item.event]
            events.append(self._item_event("response.output_text.done", text=self.text))
            events.append(
                self._item_event("response.content_part.done", part={"type": "text", "text": self.text})
            )
            events.append(self._response_event("response.output_item.done", item=item.event))
            if kept is not None:
                events.append({"type": "conversation.item.done", "item": item.event})
        details: Event | None = None
        if status != "completed":
            incomplete = "time_limit" if self.limit == "time" else "max_output_tokens"
            reasons = {"incomplete": incomplete, "cancelled": "client_cancelled"}
            details = {"type": status, "reason": reasons.get(status)}
        if details is not None and error is not None:
            details["error"] = error.body.error.model_dump()
        return [*events, {"type": "response.done", "response": self._response(status, details, output)}]

    def camera_lost(self, camera: str, token: TokenEvent) -> Event:
        """The event when no new frames arrive: further tokens are based on this frame."""
        return {
            "type": "streamchat.camera.lost",
            "response_id": self.id,
            "camera": camera,
            "frame_id": token.frame_id,
            "captured_s": token.captured_s,
            "frame_age_ms": round(token.frame_age_ms or 0.0, 2),
        }

    def _response_event(self, kind: str, **fields: Any) -> Event:
        return {"type": kind, "response_id": self.id, "output_index": 0, **fields}

    def _item_event(self, kind: str, **fields: Any) -> Event:
        return self._response_event(kind, item_id=self.item_id, content_index=0, **fields)

    def _response(self, status: str, details: Event | None, output: list[Event]) -> Event:
        ages_ms = [token.frame_age_ms for token in self.tokens]
        ended = status != "in_progress"
        num_tokens = len(self.tokens)
        usage = {
            "total_tokens": self.num_prompt_tokens + num_tokens,
            "input_tokens": self.num_prompt_tokens,
            "output_tokens": num_tokens,
            "input_token_details": {
                "text_tokens": self.num_prompt_tokens,
                "audio_tokens": 0,
                "cached_tokens": 0,
            },
            "output_token_details": {"text_tokens": num_tokens, "audio_tokens": 0},
        }
        return {
            "id": self.id,
            "object": "realtime.response",
            "status": status,
            "status_details": details,
            "output": output,
            "conversation_id": self._conversation_id,
            "output_modalities": ["text"],
            "max_output_tokens": self._max_output_tokens,
            "metadata": self._metadata,
            "usage": usage if ended else None,
            "streamchat": {**frame_age_percentiles(ages_ms), "limit": self.limit} if ended else None,
        }
