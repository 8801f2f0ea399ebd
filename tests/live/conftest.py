"""The whole stack, started once for all tests of this folder, and two cameras that film all the time."""

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
    """A real `streamchat up` whose model says anything, and never ends by itself.

    LIVE_STACK="http://127.0.0.1:P 127.0.0.1:K" names one that runs already, with its broker.
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
    with ExitStack() as ending:
        for camera in ("door", "yard"):
            options = (str(clip), "--camera", camera, "--loop", "--kafka", up.kafka)
            ending.callback(BackgroundCommand("publish", *options).end)
        up.wait_for_frames("door", "yard")
        yield up


@pytest.fixture(scope="session")
def talker(live: LiveStack) -> Iterator[ContinuousClient]:
    """Somebody who talks with the yard all the while, beside others who do not listen."""
    with stalled_pictures(live), stalled_pictures(live):
        talker = ContinuousClient(live, "yard")
        yield talker
        talker.close()


@pytest.fixture
def undisturbed(talker: ContinuousClient) -> Iterator[None]:
    """Whatever the test does, the one at the yard hears no break and sees ever newer frames."""
    with talker.undisturbed():
        yield


@pytest.fixture(scope="session")
def dead_letters(up: LiveStack) -> Iterator[DeadLetters]:
    """What could not be used of all that the cameras sent."""
    letters = DeadLetters(up.kafka)
    yield letters
    letters.close()
