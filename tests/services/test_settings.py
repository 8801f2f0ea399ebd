"""Settings: read strictly, handed on whole, and told in the README as they are."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from services.settings import PREFIX, Settings

README = Path(__file__).parent.parent.parent / "README.md"


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
    ],
)
def test_mistakes_are_named(name: str, text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Settings.from_environment({name: text})


def test_the_readme_has_every_setting_with_its_default() -> None:
    told = README.read_text()
    for field in fields(Settings):
        default = f"`{field.default}`".replace("|", "&#124;") if field.default != "" else "–"
        assert f"| `{PREFIX}{field.name.upper()}` | {default} | {field.metadata['about']} |" in told
