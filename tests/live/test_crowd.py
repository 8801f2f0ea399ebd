"""More people than there is room for, and people who do not listen."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import openai
import pytest

from tests.live.live_stack import (
    MAX_DIALOGS,
    MODEL,
    PATIENCE_S,
    LiveStack,
    asking,
    look_at,
    tokens_of,
    until,
)

pytestmark = [pytest.mark.timeout(400), pytest.mark.usefixtures("undisturbed")]

NUM_DEAF = 5
CROWD = 200
NUM_TOKENS = 20


@pytest.fixture(scope="module")
def deaf(live: LiveStack) -> Iterator[None]:
    """Some ask for long answers, read how they begin, and nothing more; their connections stay open."""
    body = json.dumps({"model": MODEL, "messages": asking(look_at("door")), "stream": True})
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    request = f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode()
    address = urlsplit(live.url)
    with ExitStack() as ending:
        for _ in range(NUM_DEAF):
            connection = ending.enter_context(socket.socket())
            connection.setsockopt(
                socket.SOL_SOCKET, socket.SO_RCVBUF, 2048
            )  # hardly anything fits on the way
            connection.settimeout(PATIENCE_S)
            connection.connect((address.hostname, address.port))
            connection.sendall(request)
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
        yield


@pytest.mark.usefixtures("deaf")
async def test_of_a_crowd_those_who_fit_are_answered_and_the_others_know_when_to_come_again(
    live: LiveStack,
) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
    ) as client:

        async def ask() -> int | openai.RateLimitError:
            """The number of tokens heard, or the refusal."""
            try:
                stream = await client.chat.completions.create(
                    model=MODEL,
                    messages=asking(look_at("door")),
                    max_tokens=NUM_TOKENS,
                    stream=True,
                    extra_body={"streamchat": {"tokens_per_second": 5}},
                )
            except openai.RateLimitError as refusal:
                return refusal
            return sum([len(tokens_of(chunk)) async for chunk in stream])

        answers = await asyncio.gather(*(ask() for _ in range(CROWD)))
        heard = [answer for answer in answers if isinstance(answer, int)]
        refused = [answer for answer in answers if not isinstance(answer, int)]
        assert set(heard) == {NUM_TOKENS}
        assert len(heard) >= MAX_DIALOGS - NUM_DEAF - 1
        assert len(heard) + len(refused) == CROWD
        assert len(refused) >= CROWD // 4
        assert {refusal.code for refusal in refused} == {"decoder_full"}
        assert all(1 <= int(refusal.response.headers["retry-after"]) <= 10 for refusal in refused)
        assert await ask() == NUM_TOKENS  # the places are free again


@pytest.mark.usefixtures("deaf")
def test_those_who_do_not_listen_keep_no_place(live: LiveStack) -> None:
    running = "streamchat_requests_running"
    until(
        lambda: live.metric(running) <= 1, f"{live.metric(running):.0f} dialogs go on"
    )  # the one at the yard
