"""A `streamchat` command beside us."""

from __future__ import annotations

import pytest

from services.local.background_command import Background, Died
from services.local.embedded_servers import free_port
from services.processes.polling import wait_until


def test_last_words_of_a_command_that_ended() -> None:
    process = Background("cameras", "--url", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(
        Died, match=r"`streamchat cameras` ended with status 1:\s+streamchat cameras: nothing answers"
    ):
        process.wait_for_line("ready")
    process.end()


def test_a_command_that_runs_is_ended() -> None:
    process = Background("publish", "/nowhere.mp4", "--camera", "x", "--kafka", "127.0.0.1:1")

    def died() -> bool:
        try:
            process.check()
        except Died as error:
            return "/nowhere.mp4" in str(error)
        return False

    assert wait_until(died, 20.0)
    process.end()
    process.end()
