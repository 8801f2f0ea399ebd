"""A `streamchat` command in the background."""

from __future__ import annotations

import pytest

from services.local.background_command import BackgroundCommand, CommandEnded
from services.local.embedded_servers import free_port
from services.processes.polling import wait_until


def test_the_last_lines_of_a_command_that_ended() -> None:
    process = BackgroundCommand("cameras", "--url", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(
        CommandEnded, match=r"`streamchat cameras` ended with status 1:\s+streamchat cameras: nothing answers"
    ):
        process.wait_for_line("ready")
    process.end()


def test_a_command_that_runs_is_ended() -> None:
    process = BackgroundCommand("publish", "/nowhere.mp4", "--camera", "x", "--kafka", "127.0.0.1:1")

    def has_ended() -> bool:
        try:
            process.check()
        except CommandEnded as error:
            return "/nowhere.mp4" in str(error)
        return False

    assert wait_until(has_ended, 20.0)
    process.end()
    process.end()
