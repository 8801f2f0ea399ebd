"""The log of JSON lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.data.json_lines_log import JsonLinesLog


def test_rows_are_read_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.jsonl"
    log = JsonLinesLog(path)
    log.add({"a": 1, "text": "ä\n"})
    log.add({"a": 2})
    assert list(JsonLinesLog(path)) == list(log) == [{"a": 1, "text": "ä\n"}, {"a": 2}]


@pytest.mark.parametrize("cut", ['{"a"', '{"a": 3}', "\x00\x00"])
def test_an_incomplete_last_line_is_dropped(tmp_path: Path, cut: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n' + cut)
    log = JsonLinesLog(path)
    log.add({"a": 2})
    assert path.read_text() == '{"a": 1}\n{"a": 2}\n'


@pytest.mark.parametrize("line", ["[1]", "no", ""])
def test_a_damaged_line_raises_its_number(tmp_path: Path, line: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"a": 1}}\n{line}\n{{"a": 2}}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: got .*, wanted a JSON object"):
        JsonLinesLog(path)
