"""Settings: read strictly, handed on whole, and described in docs/settings.md as they are."""

from __future__ import annotations

import pytest
from pydantic import SecretStr, ValidationError

from model.config import PROJECT_ROOT
from services.settings import PREFIX, Settings

PAGE = PROJECT_ROOT / "docs" / "settings.md"


def test_the_environment_is_read_by_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMCHAT_MAX_DIALOGS", "3")
    monkeypatch.setenv("STREAMCHAT_FRAMES_PER_SECOND", "2.5")
    settings = Settings.from_environment(frames_per_second=4.0)
    assert (settings.max_dialogs, settings.frames_per_second) == (3, 4.0)


def test_settings_survive_being_handed_to_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(
        max_dialogs=3,
        redis_url="redis://127.0.0.1:1/0",
        redis_password=SecretStr("hunter2"),
        silent_after_s=0.5,
    )
    for name, text in settings.as_environment().items():
        monkeypatch.setenv(name, text)
    assert Settings.from_environment() == settings


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("STREAMCHAT_MAX_DIALOG", "3", "no such setting; did you mean STREAMCHAT_MAX_DIALOGS"),
        ("STREAMCHAT_MAX_DIALOGS", "many", "got 'many', wanted a valid integer$"),
        ("STREAMCHAT_MAX_DIALOGS", "0", "got '0', wanted greater than 0"),
        ("STREAMCHAT_MAX_LAG_S", "nan", "wanted a finite number"),
        ("STREAMCHAT_FIFO_FRAMES", "-1", "wanted greater than or equal to 0"),
        ("STREAMCHAT_ACCESS", "everyone", "wanted 'keys' or 'open'"),
        ("STREAMCHAT_REQUESTS_AT_ONCE", "0", "wanted greater than 0"),
        ("STREAMCHAT_KAFKA_SECURITY_PROTOCOL", "TLS", "wanted 'PLAINTEXT', 'SSL', 'SASL_PLAINTEXT' or 'SASL_SSL'"),
        ("STREAMCHAT_KAFKA_SECURITY_PROTOCOL", "SASL_SSL", "got SASL_SSL, wanted STREAMCHAT_KAFKA_USERNAME and"),
        ("STREAMCHAT_CAMERA_TOPICS", "a=b door", "got 'door', wanted cameras=topics"),
        ("STREAMCHAT_CAMERA_TOPICS", "a=b (=c", "got '\\(', wanted a regular expression"),
        ("STREAMCHAT_REDIS_URL", "redis://:hunter2@127.0.0.1:1/0", "got a URL with a password in it"),
    ],
)  # fmt: skip
def test_mistakes_are_named(monkeypatch: pytest.MonkeyPatch, name: str, text: str, complaint: str) -> None:
    monkeypatch.setenv(name, text)
    with pytest.raises(ValueError, match=f"^{name}: .*{complaint}") as wrong:
        Settings.from_environment()
    assert len(str(wrong.value).splitlines()) == 1
    assert "hunter2" not in str(wrong.value)


def test_all_mistakes_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMCHAT_MAX_DIALOGS", "many")
    monkeypatch.setenv("STREAMCHAT_REDIS_PASSWORT", "hunter2")
    with pytest.raises(ValueError, match="no such setting") as wrong:
        Settings.from_environment()
    assert "STREAMCHAT_MAX_DIALOGS: got 'many'" in str(wrong.value)
    assert "hunter2" not in str(wrong.value)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        setattr(Settings(), "max_dialogs", 3)  # noqa: B010


def test_secrets_are_never_printed() -> None:
    secret = SecretStr("hunter2")
    settings = Settings(redis_password=secret, kafka_password=secret, api_key=secret)
    assert "hunter2" not in f"{settings} {settings!r}"


def test_the_page_has_every_setting_with_its_default() -> None:
    page = PAGE.read_text()
    for name, default in Settings():
        shown = "–" if default in ("", SecretStr("")) else f"`{default}`".replace("|", "&#124;")
        assert f"| `{PREFIX}{name.upper()}` | {shown} | " in page
