"""The whole stack, started once for all tests of this folder, with two cameras that send all the time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from services.local.background_command import BackgroundCommand
from services.local.embedded_servers import HOST, free_port
from tests.live.clients.continuous_client import ContinuousClient
from tests.live.clients.kafka_camera import DeadLetters
from tests.live.clients.live_stack import MAX_DIALOGS, LiveStack
from tests.live.clients.stalled_client import stalled_pictures
from tests.random_folder import make_random_folder
from tests.services.h264 import clip_file


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveStack]:
    """A real `streamchat up` with a random model whose answers never end by themselves.

    LIVE_STACK="http://127.0.0.1:P 127.0.0.1:K" uses one that is already running, with its broker.
    """
    if running := os.environ.get("LIVE_STACK"):
        yield LiveStack(*running.split())
        return
    folder = make_random_folder(tmp_path_factory.mktemp("random-tiny"), endless=True)
    port, kafka_port = free_port(), free_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("STREAMCHAT_MAX_DIALOGS", str(MAX_DIALOGS))
        options = ("--port", str(port), "--kafka-port", str(kafka_port), "--model", str(folder))
        started = BackgroundCommand("up", *options)
    try:
        started.wait_for_line(f"ready http://{HOST}:{port}")
        yield LiveStack(f"http://{HOST}:{port}", f"{HOST}:{kafka_port}")
        started.check()
    finally:
        started.end()


@pytest.fixture(scope="session")
def live(up: LiveStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveStack]:
    """The stack with the cameras `door` and `yard`, which `streamchat publish` sends as H.264."""
    clip = clip_file(tmp_path_factory.mktemp("clips"), num_frames=150, size=(320, 240))
    with ExitStack() as cleanup:
        for camera in ("door", "yard"):
            options = (str(clip), "--camera", camera, "--loop", "--kafka", up.kafka)
            cleanup.callback(BackgroundCommand("publish", *options).end)
        up.wait_for_frames("door", "yard")
        yield up


@pytest.fixture(scope="session")
def continuous_client(live: LiveStack) -> Iterator[ContinuousClient]:
    """A client that asks about the yard all the time, beside clients that have stopped reading."""
    with stalled_pictures(live), stalled_pictures(live):
        continuous_client = ContinuousClient(live, "yard")
        yield continuous_client
        continuous_client.close()


@pytest.fixture
def undisturbed(continuous_client: ContinuousClient) -> Iterator[None]:
    """The client at the yard receives tokens without a break, from newer and newer frames, whatever the test does."""
    with continuous_client.undisturbed():
        yield


@pytest.fixture(scope="session")
def dead_letters(up: LiveStack) -> Iterator[DeadLetters]:
    """The packets that could not be used."""
    letters = DeadLetters(up.kafka)
    yield letters
    letters.close()
