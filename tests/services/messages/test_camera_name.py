"""Any name that people give has an id, always the same one, and what cannot be a camera is refused clearly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.messages.camera_name import (
    CAMERA_ID,
    camera_id,
    check_camera_id,
    check_camera_name,
    is_reserved,
)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("front-door", "front-door"),
        ("Front.Door_2", "Front.Door_2"),  # an id stands for itself
        ("Entrée garage", "entree-garage"),
        ("yard/gate", "yard-gate"),
        ("Tür  (Süd)", "tur-sud"),
        ("Straße 5", "strasse-5"),
        ("  Cam #1 ", "cam-1"),
        ("clip 7", "camera-clip-7"),
        ("all!", "camera-all"),
        ("../../etc", "etc"),
    ],
)
def test_the_id_of_a_name_reads_like_it(name: str, wanted: str) -> None:
    assert camera_id(name) == wanted


@pytest.mark.parametrize("name", ["前門", "🚪", "Łódź", "камера 1", "камера 2", "x y" * 70, "!!!", "前門 🚪"])
def test_a_name_that_latin_letters_cannot_hold_has_an_id_of_its_own(name: str) -> None:
    others = {
        camera_id(other) for other in ("前", "🚗", "камера 3", "x y" * 71, "!!", "???") if other != name
    }
    assert camera_id(name) not in others
    assert check_camera_id(camera_id(name)) == camera_id(name)


def test_the_same_name_in_other_bytes_is_the_same_camera() -> None:
    assert camera_id("Entre\u0301e \U0001f6aa") == camera_id("Entr\u00e9e \U0001f6aa")


@given(st.text(max_size=300))
def test_the_id_of_any_text_is_an_id_and_stays_itself(name: str) -> None:
    found = camera_id(name)
    assert CAMERA_ID.fullmatch(found)
    assert camera_id(found) == found
    assert CAMERA_ID.fullmatch(name) or not is_reserved(found)


@pytest.mark.parametrize("identifier", ["", "*", "a b", "a/b", "x" * 129, "clip-1", "all", "ALL", "door\n"])
def test_what_is_no_id_or_is_reserved_is_refused(identifier: str) -> None:
    with pytest.raises(ValueError, match=r"camera: got .*, wanted (1 to 128 of A-Z|another id: clip-)"):
        check_camera_id(identifier)


@pytest.mark.parametrize("name", ["", "  ", "x" * 201, "a\nb", "a\x00b", "a\u2028b", "\ud800"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"camera name: got .*, wanted 1 to 200 characters of text on one line"
    ):
        check_camera_name(name)


def test_a_name_of_200_emoji_is_kept() -> None:
    assert check_camera_name(" " + "🚪" * 200) == "🚪" * 200
