"""More people than there is room for, and people who do not listen."""

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

NUM_DEAF = 5
CROWD = 200
MAX_GAP_S = 8.0  # of the one who speaks, when all of them come at once and this process is all of them


@pytest.fixture(scope="module", autouse=True)
def deaf(live: LiveStack, talker: ContinuousClient) -> Iterator[None]:
    """Some ask for answers and do not listen; their connections stay open. The one at the yard talks on."""
    talker.ask_again()
    with talker.undisturbed(MAX_GAP_S), ExitStack() as ending:
        for _ in range(NUM_DEAF):
            ending.enter_context(stalled_answer(live, "door", num_tokens=200))
        yield


async def test_of_a_crowd_those_who_fit_are_answered_and_the_others_know_when_to_come_again(
    live: LiveStack,
) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
    ) as client:

        async def ask(num_tokens: int) -> int | openai.RateLimitError:
            """The number of tokens heard, or the refusal."""
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

        answers = await asyncio.gather(*(ask(20) for _ in range(CROWD)))
        heard = [answer for answer in answers if isinstance(answer, int)]
        refused = [answer for answer in answers if not isinstance(answer, int)]
        assert set(heard) == {20}
        assert len(heard) >= MAX_DIALOGS - NUM_DEAF - 1  # one place is the talker's
        assert len(refused) >= CROWD // 4
        assert {refusal.code for refusal in refused} == {"decoder_full"}
        assert all(1 <= int(refusal.response.headers["retry-after"]) <= 10 for refusal in refused)
        assert await ask(2) == 2  # the places are free again


def test_those_who_do_not_listen_keep_no_place(live: LiveStack) -> None:
    running = "streamchat_requests_running"
    eventually(lambda: live.metric(running) <= 1, "their dialogs go on")  # the talker's own may


def test_those_who_do_not_take_their_pictures_are_cut_off(live: LiveStack) -> None:
    eventually(lambda: live.metric("streamchat_picture_viewers") == 0, "they are still served")
