"""Keys in a file: only hashes, read again when it changes, and held to their shape."""

from __future__ import annotations

import hmac
import json
import stat
import time
from pathlib import Path

import pytest

from services.access.api_keys import ApiKeys, edit_keys, make_key, parse_keys, rotate_key

RIGHTS = {"role": "ask", "cameras": ("*",)}


@pytest.fixture(autouse=True)
def looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.access.api_keys.CHECK_INTERVAL_S", 0.0)


def test_a_file_holds_no_key(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    text, key = make_key("me", **RIGHTS)
    with edit_keys(path) as keys:
        keys[key.id] = key
    assert text not in path.read_text()
    assert text.split("_")[2] not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert ApiKeys(path).find(text) == key


def test_changes_are_seen(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    api_keys = ApiKeys(path)
    text, key = make_key("me", **RIGHTS)
    assert api_keys.find(text) is None
    with edit_keys(path) as keys:
        keys[key.id] = key
    assert api_keys.find(text) == key
    assert api_keys.is_valid(key)
    with edit_keys(path) as keys:
        del keys[key.id]
    assert api_keys.find(text) is None
    assert not api_keys.is_valid(key)


def test_a_file_that_goes_away_takes_its_keys_along_and_a_broken_one_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "keys.json"
    text, key = make_key("me", **RIGHTS)
    with edit_keys(path) as keys:
        keys[key.id] = key
    api_keys = ApiKeys(path)
    path.write_text("{half")
    assert api_keys.find(text) == key
    assert "the previous keys stay in use" in caplog.text
    path.unlink()
    assert api_keys.find(text) is None


def test_a_rotated_key_and_its_heir_are_both_good_for_a_while(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    text, key = make_key("me", role="admin", cameras=("door-*",), requests_at_once=3)
    new_text, new, old = rotate_key(key, old_lasts_s=0.5)
    with edit_keys(path) as keys:
        keys.update({old.id: old, new.id: new})
    api_keys = ApiKeys(path)
    assert api_keys.find(new_text) == new
    assert (new.role, new.cameras, new.requests_at_once) == ("admin", ("door-*",), 3)
    assert text != new_text
    while not old.has_expired:
        assert api_keys.is_valid(old) or old.has_expired
        time.sleep(0.01)
    found = api_keys.find(text)
    assert found is not None
    assert found.has_expired
    assert not api_keys.is_valid(old)


def test_secrets_are_compared_in_constant_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.json"
    text, key = make_key("me", **RIGHTS)
    with edit_keys(path) as keys:
        keys[key.id] = key
    compared: list[tuple[str, str]] = []
    real = hmac.compare_digest

    def noted(one: str, other: str) -> bool:
        compared.append((one, other))
        return real(one, other)

    monkeypatch.setattr(hmac, "compare_digest", noted)
    api_keys = ApiKeys(path)
    for attempt in (text, text[:-1] + "x", "sc_00000000_" + "0" * 64, "", "none"):
        api_keys.find(attempt)
    assert len(compared) == 5  # known or not, well formed or not
    assert all(len(one) == len(other) == 64 for one, other in compared)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "wanted what `streamchat keys` writes"),
        ("[]", "wanted what"),
        ('{"keys": [{"id": "a"}]}', "wanted what"),
        ('{"keys": [{"secret": "a"}]}', "got the fields \\['secret'\\]"),
    ],
)
def test_what_is_no_keys_file_is_told(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_keys(text)
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"keys\.json"):
        ApiKeys(path)


@pytest.mark.parametrize("change", [{"role": "root"}, {"sha256": "00"}, {"requests_at_once": -1}])
def test_a_key_of_the_wrong_shape_is_told(change: dict[str, object]) -> None:
    row = {
        "id": "0",
        "name": "me",
        "sha256": "0" * 64,
        "role": "ask",
        "cameras": ["*"],
        "made_s": 1.0,
    } | change
    with pytest.raises(ValueError, match="key 0: "):
        parse_keys(json.dumps({"keys": [row]}))
