"""The unmodified openai client against the whole stack: Kafka, Redis, Ray Serve, HTTP."""

from __future__ import annotations

import time
from typing import Any

import openai
import pytest

from services.ports.frame_store import parse_frame_id
from tests.live.clients.live_stack import MODEL, LiveStack, camera_part, in_order, question_about, tokens_of

pytestmark = pytest.mark.timeout(400)  # the first test here starts everything


def stream_tokens(live: LiveStack, camera: str, num_tokens: int, **options: Any) -> list[dict[str, Any]]:
    """The tokens of a streamed answer."""
    with live.client() as client:
        stream = client.chat.completions.create(
            model=MODEL,
            messages=question_about(camera_part(camera)),
            max_tokens=num_tokens,
            stream=True,
            extra_body={"streamchat": options},
        )
        return [token for chunk in stream for token in tokens_of(chunk)]


def test_a_whole_answer(live: LiveStack) -> None:
    asked_s = time.time()
    with live.client() as client:
        assert [model.id for model in client.models.list()] == [MODEL]
        answer = client.chat.completions.create(
            model=MODEL, messages=question_about(camera_part("door")), max_tokens=20, seed=1
        )
    tokens = tokens_of(answer)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content == "".join(token["text"] for token in tokens)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(tokens) == 20
    assert in_order([token["frame_id"] for token in tokens])
    for token in tokens:
        assert parse_frame_id(token["frame_id"])[0] == pytest.approx(token["captured_s"] * 1000, abs=1)
        made_s = token["captured_s"] + token["frame_age_ms"] / 1000
        assert asked_s <= made_s <= time.time()
        assert not token["stale"]


def test_a_streamed_answer_comes_word_by_word(live: LiveStack) -> None:
    with live.client() as client:
        stream = client.chat.completions.create(
            model=MODEL,
            messages=question_about(camera_part("door")),
            max_tokens=20,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"streamchat": {"tokens_per_second": 20}},
        )
        chunks, arrived = [], list[float]()
        for chunk in stream:
            chunks.append(chunk)
            arrived.append(time.monotonic())
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 20
    assert len(chunks) >= 10  # not all at once
    assert arrived[-1] - arrived[0] > 0.5
    for chunk in chunks[1:-2]:
        assert chunk.choices[0].delta.content == "".join(token["text"] for token in tokens_of(chunk))


def test_new_frames_are_used_during_an_answer(live: LiveStack) -> None:
    began_s = time.time()
    tokens = stream_tokens(live, "door", 30, tokens_per_second=10)
    assert len(tokens) == 30
    ids = [token["frame_id"] for token in tokens]
    assert in_order(ids)
    assert len(set(ids)) >= 5  # three seconds, five frames a second
    assert tokens[-1]["captured_s"] > began_s  # a frame after the question
    assert tokens[-1]["time_s"] == pytest.approx(2.9, abs=1.5)


def test_a_frozen_answer_uses_only_the_frames_before_it(live: LiveStack) -> None:
    asked_s = time.time()
    tokens = stream_tokens(live, "door", 15, tokens_per_second=10, visual_context="frozen")
    assert len({token["frame_id"] for token in tokens}) == 1
    assert tokens[0]["captured_s"] <= asked_s + 1
    ages = [token["frame_age_ms"] for token in tokens]
    assert ages == sorted(ages)


def test_a_frame_that_is_too_old_is_marked(live: LiveStack) -> None:
    tokens = stream_tokens(live, "door", 3, max_frame_age_ms=0.001)
    assert [token["stale"] for token in tokens] == [True] * 3


def test_the_picture_behind_a_word_can_be_fetched(live: LiveStack) -> None:
    frame_id = stream_tokens(live, "door", 1)[0]["frame_id"]
    with live.client() as client:
        picture = client.with_options(max_retries=0).get(
            f"/cameras/door/frame.jpg?frame={frame_id}", cast_to=bytes
        )
    assert picture.startswith(b"\xff\xd8")


def test_a_question_without_a_picture_is_answered_from_its_text(live: LiveStack) -> None:
    with live.client() as client:
        answer = client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Name this conversation."}], max_tokens=5
        )
    assert [token["frame_id"] for token in tokens_of(answer)] == [None] * 5


def test_refusals_are_openais_exceptions(live: LiveStack) -> None:
    with live.client() as client:
        ask = client.chat.completions.create
        with pytest.raises(openai.NotFoundError) as caught:
            ask(model=MODEL, messages=question_about(camera_part("nowhere")))
        assert caught.value.code == "unknown_camera"
        assert caught.value.param == "messages[0].content[0].video_url.url"
        with pytest.raises(openai.NotFoundError) as caught:
            ask(model="gpt-4o", messages=question_about(camera_part("door")))
        assert caught.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError) as malformed:
            ask(model=MODEL, messages=question_about(camera_part("door")), temperature=9)
        assert malformed.value.param == "temperature"
