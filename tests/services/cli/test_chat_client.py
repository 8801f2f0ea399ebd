"""The terminal's client against a gateway that really listens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from services.cli.chat_client import ChatClient, ChatLost, ChatRefused
from services.local.embedded_servers import free_port
from services.messages.dialog import DialogFailed
from tests.services.served_gateway import MODEL, WORDS, Gateway, gateway


@pytest.fixture(scope="module")
def served() -> Iterator[Gateway]:
    with gateway() as listening:
        yield listening


@pytest.fixture
def client(served: Gateway) -> Iterator[ChatClient]:
    served.decoder.start_over()
    with ChatClient(served.url + "/") as connection:
        yield connection


def test_an_answer_comes_token_by_token(served: Gateway, client: ChatClient) -> None:
    answer = client.ask(
        "front-door", "What happens?", visual_context="frozen", tokens_per_second=50.0, max_tokens=5
    )
    tokens = list(answer)
    assert [token.text for token in tokens] == list(WORDS[:5])
    newest = served.store.newest_picture("front-door")
    assert newest is not None
    assert {token.frame_id for token in tokens} == {newest.frame_id}
    request = served.decoder.requests[-1]
    assert request.messages[-1].text == "What happens?"
    assert (request.visual_context, request.tokens_per_second, request.max_tokens) == ("frozen", 50.0, 5)


def test_cameras_and_model(client: ChatClient) -> None:
    (camera,) = client.cameras()
    assert (camera.id, camera.state, camera.num_frames, camera.capacity) == ("front-door", "live", 3, 4)
    assert client.model() == MODEL


def test_a_refusal_has_the_message_of_the_service(client: ChatClient) -> None:
    with pytest.raises(ChatRefused, match="back-door"):
        list(client.ask("back-door", "What happens?"))
    with pytest.raises(ChatRefused):
        list(client.ask("front-door", ""))
    with pytest.raises(ChatRefused, match="is not a URL"):
        ChatClient("localhost:8000")


def test_a_failure_of_the_service_is_not_a_refusal(served: Gateway, client: ChatClient) -> None:
    served.decoder.refusal = DialogFailed(
        status=429, code="decoder_full", message="all places are taken", retry_after_s=1
    )
    with pytest.raises(ChatLost, match="all places are taken"):
        list(client.ask("front-door", "What happens?"))
    served.decoder.start_over()
    served.decoder.fails_after = 3
    received: list[str] = []
    with pytest.raises(ChatLost, match=r"the answer stopped early: .*the engine failed"):
        received.extend(token.text for token in client.ask("front-door", "What happens?"))
    assert len(received) <= 3
    with pytest.raises(ChatLost, match="is `streamchat up` running"):
        ChatClient(f"http://127.0.0.1:{free_port()}").cameras()
