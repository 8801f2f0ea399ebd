"""The Realtime API of the whole stack, used with the unmodified openai client."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import openai
import pytest
from openai.resources.realtime.realtime import AsyncRealtimeConnection

from tests.live.clients.live_stack import MODEL, PATIENCE_S, QUESTION, LiveStack, in_order, tokens_of

pytestmark = pytest.mark.timeout(400)


@pytest.fixture
async def talk(live: LiveStack) -> AsyncIterator[AsyncRealtimeConnection]:
    """A conversation about the door."""
    async with (
        openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", timeout=PATIENCE_S) as client,
        client.realtime.connect(model=MODEL) as connection,
    ):
        options = {"camera": "door", "tokens_per_second": 10}
        session: Any = {"type": "realtime", "max_output_tokens": 20, "streamchat": options}
        await connection.session.update(session=session)
        yield connection


async def ask(talk: AsyncRealtimeConnection) -> None:
    content: Any = [{"type": "input_text", "text": QUESTION}]
    await talk.conversation.item.create(item={"type": "message", "role": "user", "content": content})
    await talk.response.create()


async def test_a_question_is_answered_word_by_word(talk: AsyncRealtimeConnection) -> None:
    await ask(talk)
    deltas: list[str] = []
    frame_ids: list[str] = []
    async for event in talk:
        assert event.type != "error", event
        if event.type == "response.output_text.delta":
            deltas.append(event.delta)
            frame_ids += [token["frame_id"] for token in tokens_of(event)]
        if event.type == "response.output_text.done":
            assert event.text == "".join(deltas)
        if event.type == "response.done":
            assert event.response.status == "incomplete"  # twenty tokens were allowed
            assert event.response.usage is not None
            assert event.response.usage.output_tokens == 20
            break
    assert len(deltas) >= 10
    assert in_order(frame_ids)
    assert len(set(frame_ids)) >= 4


async def test_an_answer_is_cancelled_and_the_next_one_comes(talk: AsyncRealtimeConnection) -> None:
    await ask(talk)
    statuses: list[str | None] = []
    num_deltas = 0
    async for event in talk:
        assert event.type != "error", event
        if event.type == "response.output_text.delta":
            num_deltas += 1
            if num_deltas == 3:
                await talk.response.cancel()
        if event.type == "response.done":
            statuses.append(event.response.status)
            if len(statuses) == 2:
                break
            assert num_deltas < 20
            num_deltas = 100  # do not cancel the next one
            await ask(talk)
    assert statuses == ["cancelled", "incomplete"]


async def test_after_an_error_the_conversation_goes_on(talk: AsyncRealtimeConnection) -> None:
    nowhere: Any = {"type": "realtime", "streamchat": {"camera": "nowhere"}}
    await talk.session.update(session=nowhere)
    await ask(talk)
    door: Any = {"type": "realtime", "streamchat": {"camera": "door"}}
    async for event in talk:
        if event.type == "error":
            assert event.error.code == "unknown_camera"
            await talk.session.update(session=door)
            await talk.response.create()
        if event.type == "response.done":
            assert event.response.status == "incomplete"
            break
