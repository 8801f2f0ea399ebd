"""Names that stand twice in a JSON file are not lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.data.readers.json_file import RepeatedNames, read_json


def test_what_comes_again_is_kept_beside(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": 1, "y": {"x": 2, "z": 3}, "x": 4}')
    value = read_json(tmp_path / "a.json")
    assert value == {"x": 1, "y": {"x": 2, "z": 3}}
    assert isinstance(value, RepeatedNames)
    assert value.repeated == [("x", 4)]
    assert type(value["y"]) is dict


@pytest.mark.parametrize("text", ["", "{", "\xff", '{"a": }', "[" * 100_000])
def test_what_is_no_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=r"a\.json: got no JSON"):
        read_json(tmp_path / "a.json")
