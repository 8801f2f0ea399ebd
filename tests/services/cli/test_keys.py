"""`streamchat keys`: a key is shown once, its hash is kept, and what it may do can be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.access.api_keys import ApiKeys, read_keys
from services.cli import main as cli


def run(*words: str) -> int:
    return cli.main(["keys", *words])


def test_a_key_lives_from_make_to_revoke(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = ("--file", str(tmp_path / "keys.json"))
    assert run(*file, "make", "guard", "--camera", "door-*", "--camera", "yard", "--days", "30") == 0
    text = capsys.readouterr().out.strip()
    key = ApiKeys(Path(file[1])).find(text)
    assert key is not None
    assert (key.name, key.role, key.cameras, key.has_expired) == ("guard", "ask", ("door-*", "yard"), False)

    assert run(*file, "make", "prometheus", "--role", "admin", "--no-camera") == 0
    capsys.readouterr()
    assert run(*file, "list") == 0
    listed = capsys.readouterr().out
    assert "door-* yard" in listed
    assert "none" in listed
    assert text not in listed

    assert run(*file, "rotate", "guard", "--grace-days", "0") == 0
    newer = capsys.readouterr().out.strip()
    api_keys = ApiKeys(Path(file[1]))
    old = api_keys.find(text)
    assert old is not None
    assert old.has_expired
    assert api_keys.find(newer) is not None

    assert run(*file, "revoke", newer.split("_")[1]) == 0
    assert ApiKeys(Path(file[1])).find(newer) is None
    assert {key.name for key in read_keys(Path(file[1])).values()} == {"guard", "prometheus"}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("revoke", "nobody"), "got 'nobody', which matches 0 keys"),
        (("make", "me", "--days", "-1"), "--days: got -1, wanted more than 0"),
        (("make", "me", "--requests-at-once", "-1"), "wanted 0"),
    ],
)
def test_mistakes_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], complaint: str
) -> None:
    assert run("--file", str(tmp_path / "keys.json"), *words) == 2
    assert complaint in capsys.readouterr().err


def test_a_file_must_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("list") == 2
    assert "STREAMCHAT_KEYS_FILE" in capsys.readouterr().err
