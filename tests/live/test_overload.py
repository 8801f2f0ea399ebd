"""More requests than the decoder can serve, and clients that do not read."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack

import openai
import pytest

from tests.live.clients.continuous_client import ContinuousClient
from tests.live.clients.live_stack import (
    MAX_DIALOGS,
    MODEL,
    PATIENCE_S,
    LiveStack,
    camera_part,
    eventually,
    question_about,
    tokens_of,
)
from tests.live.clients.stalled_client import stalled_answer

pytestmark = pytest.mark.timeout(400)

NUM_STALLED = 5
NUM_REQUESTS = 200
MAX_GAP_S = 8.0  # of the continuous client; this process also sends all the requests


@pytest.fixture(scope="module", autouse=True)
def stalled(live: LiveStack, continuous_client: ContinuousClient) -> Iterator[None]:
    """Some clients ask and do not read; their connections stay open. The continuous client goes on."""
    continuous_client.ask_again()
    with continuous_client.undisturbed(MAX_GAP_S), ExitStack() as cleanup:
        for _ in range(NUM_STALLED):
            cleanup.enter_context(stalled_answer(live, "door", num_tokens=200))
        yield


async def test_requests_that_fit_are_answered_and_the_others_are_told_when_to_retry(
    live: LiveStack,
) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
    ) as client:

        async def ask(num_tokens: int) -> int | openai.RateLimitError:
            """The number of received tokens, or the refusal."""
            try:
                stream = await client.chat.completions.create(
                    model=MODEL,
                    messages=question_about(camera_part("door")),
                    max_tokens=num_tokens,
                    stream=True,
                    extra_body={"streamchat": {"tokens_per_second": 5}},
                )
            except openai.RateLimitError as refusal:
                return refusal
            return sum([len(tokens_of(chunk)) async for chunk in stream])

        answers = await asyncio.gather(*(ask(20) for _ in range(NUM_REQUESTS)))
        answered = [answer for answer in answers if isinstance(answer, int)]
        refused = [answer for answer in answers if not isinstance(answer, int)]
        assert set(answered) == {20}
        assert len(answered) >= MAX_DIALOGS - NUM_STALLED - 1  # one is the continuous client's
        assert len(refused) >= NUM_REQUESTS // 4
        assert {refusal.code for refusal in refused} == {"decoder_full"}
        assert all(1 <= int(refusal.response.headers["retry-after"]) <= 10 for refusal in refused)
        assert await ask(2) == 2  # the decoder is free again


def test_dialogs_of_clients_that_do_not_read_are_closed(live: LiveStack) -> None:
    running = "streamchat_requests_running"
    eventually(lambda: live.metric(running) <= 1, "their dialogs go on")  # the continuous client's own may


def test_picture_streams_that_are_not_read_are_closed(live: LiveStack) -> None:
    eventually(lambda: live.metric("streamchat_picture_viewers") == 0, "they are still served")
