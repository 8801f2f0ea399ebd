"""Settings: read strictly, handed on whole, and told in the README as they are."""

from __future__ import annotations

from dataclasses import fields

import pytest

from model.config import PROJECT_ROOT
from services.settings import PREFIX, Settings

README = PROJECT_ROOT / "README.md"


def test_the_environment_is_read_by_type() -> None:
    environment = {"STREAMCHAT_MAX_DIALOGS": "3", "STREAMCHAT_FRAMES_PER_SECOND": "2.5", "HOME": "elsewhere"}
    settings = Settings.from_environment(environment)
    assert (settings.max_dialogs, settings.frames_per_second) == (3, 2.5)


def test_settings_survive_being_handed_to_a_child() -> None:
    settings = Settings(max_dialogs=3, redis_url="redis://127.0.0.1:1/0", silent_after_s=0.5)
    assert Settings.from_environment(settings.as_environment()) == settings


@pytest.mark.parametrize(
    ("name", "text", "complaint"),
    [
        ("STREAMCHAT_MAX_DIALOG", "3", "no such setting"),
        ("STREAMCHAT_MAX_DIALOGS", "many", "wanted int"),
        ("STREAMCHAT_MAX_DIALOGS", "0", "wanted more than 0"),
        ("STREAMCHAT_FIFO_FRAMES", "-1", "wanted 0"),
        ("STREAMCHAT_ACCESS", "everyone", "wanted one of keys, open"),
        ("STREAMCHAT_REQUESTS_AT_ONCE", "0", "wanted more than 0"),
        ("STREAMCHAT_KAFKA_SECURITY_PROTOCOL", "TLS", "wanted one of PLAINTEXT, SSL"),
        ("STREAMCHAT_KAFKA_SECURITY_PROTOCOL", "SASL_SSL", "wanted kafka_username and kafka_password"),
        ("STREAMCHAT_REDIS_URL", "redis://:hunter2@127.0.0.1:1/0", "^redis_url: got one with a password"),
    ],
)
def test_mistakes_are_named(name: str, text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Settings.from_environment({name: text})


def test_secrets_are_never_printed() -> None:
    settings = Settings(redis_password="hunter2", kafka_password="hunter2", api_key="hunter2")
    assert "hunter2" not in f"{settings} {settings!r}"


def test_the_readme_has_every_setting_with_its_default() -> None:
    told = README.read_text()
    for field in fields(Settings):
        default = f"`{field.default}`".replace("|", "&#124;") if field.default != "" else "–"
        assert f"| `{PREFIX}{field.name.upper()}` | {default} | {field.metadata['about']} |" in told
