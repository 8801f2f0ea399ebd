"""Names that stand twice in a JSON file are not lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.data.readers.json_file import RepeatedNames, list_entries, read_json


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


def test_a_list_is_read_entry_by_entry(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(' \n[{"x": [1, 2.5]}, "ü", null, [], {"y": {}}] ')
    assert list(list_entries(path)) == [{"x": [1, 2.5]}, "ü", None, [], {"y": {}}]
    path.write_text("[]")
    assert list(list_entries(path)) == []
    path.write_text('[{"x": 1}, {"x": 2}, {"x"')
    entries = list_entries(path)
    assert [next(entries), next(entries)] == [{"x": 1}, {"x": 2}]  # before the rest is read
    with pytest.raises(ValueError, match=r"a\.json: got no JSON"):
        next(entries)


@pytest.mark.parametrize("text", ["", "   ", '{"x": 1}', "7"])
def test_what_is_no_list(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match=r"a\.json: wanted a JSON list"):
        list(list_entries(tmp_path / "a.json"))
