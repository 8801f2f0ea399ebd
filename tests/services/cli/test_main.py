"""The command line: instant help, errors in one line with the right exit status."""

from __future__ import annotations

import subprocess
import sys

import pytest

from services.cli import main as cli
from services.local.embedded_servers import free_port

COMMANDS = ("up", "publish", "chat", "cameras", "keys", "assemble", "demo")


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys; from services.cli.main import parser; parser().format_help(); print(len(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150  # numpy alone would bring as many


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: streamchat {command}" in capsys.readouterr().out


def test_no_command_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    assert caught.value.code == 2
    assert "COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["cameras", "--url", "localhost:8000"], 2, "is not a URL"),
        (["cameras", "--url", f"http://127.0.0.1:{free_port()}"], 1, "is `streamchat up` running"),
        (
            ["chat", "--camera", "x", "hi", "--url", f"http://127.0.0.1:{free_port()}"],
            1,
            "nothing answers at",
        ),
        (["publish", "x.mp4"], 2, "camera: got none, wanted --camera ID or --name NAME"),
        (
            ["publish", "x.mp4", "--camera", "Entrée garage"],
            2,
            "wanted 1 to 128 of A-Z a-z 0-9 . _ -; or --name for any name: its id would be entree-garage",
        ),
        (["publish", "x.mp4", "--camera", "clip-7"], 2, "camera: got 'clip-7', wanted another id"),
        (["publish", "x.mp4", "--camera", "all"], 2, "camera: got 'all', wanted another id"),
        (["publish", "x.mp4", "--name", "x" * 201], 2, "camera name: got 201 characters"),
        (["publish", "x.mp4", "--camera", "x", "--fps", "0"], 1, "fps: got 0, wanted 0.01 to 1000"),
        (["up", "--port", "70000"], 2, "--port: got 70000"),
        (["assemble", "--vision", "/nowhere", "--language", "/nowhere", "--out", "/nowhere"], 2, "/nowhere"),
    ],
)
def test_errors_are_one_line(
    arguments: list[str], status: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"streamchat {arguments[0]}: ")
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1


def test_an_unknown_setting_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("STREAMCHAT_FIFO_FRAME", "3")
    assert cli.main(["up"]) == 2
    assert "STREAMCHAT_FIFO_FRAME: no such setting" in capsys.readouterr().err


def test_a_new_key_has_the_limits_of_the_settings() -> None:
    options = cli.parser().parse_args(["keys", "make", "phone"])
    assert (options.requests_per_minute, options.requests_at_once) == (0, 0)
