"""The row format: what is read back, what is refused and with which words."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from training.data.bad_row import BadRow, BadRowCounter
from training.data.row_files import read_rows, write_rows
from training.data.training_row import MAX_TURNS, Caption, TrainingRow, Turn, cut_windows


def good(**changes: Any) -> dict[str, Any]:
    turn = {"start_s": 5.0, "end_s": 10.0, "instruction": "What is he doing?", "answer": "He is cooking."}
    row = {"video": "a.mp4", "time_range": [0.0, 40.0], "turns": [turn], "kind": "dense", "source": "ego4d"}
    return row | changes


def with_turn(**changes: Any) -> dict[str, Any]:
    return good(turns=[good()["turns"][0] | changes])


BAD: list[tuple[Any, str, str]] = [
    (with_turn(start_s=10.0, end_s=5.0), "reversed interval", r"turns\[0\]: got 10 to 5 s"),
    (good(time_range=[40.0, 0.0]), "reversed interval", "time_range: got 40 to 0 s"),
    (with_turn(end_s=43.0), "outside the clip", "got 5 to 43 s, wanted within 0 to 40 s"),
    (with_turn(start_s=-3.0), "impossible time", "got -3 to 10 s"),
    (with_turn(end_s=float("nan")), "impossible time", "nan"),
    (with_turn(answer=" \n"), "empty answer", r"turns\[0\].answer"),
    (with_turn(instruction=""), "empty instruction", r"turns\[0\].instruction"),
    (with_turn(start_s="5"), "wrong type", r"turns\[0\].start_s: got '5', wanted a number"),
    (with_turn(start_s=None), "wrong type", r"turns\[0\].start_s: got None, wanted a number"),
    (with_turn(start_s=True), "wrong type", "got True, wanted a number"),
    (with_turn(answer=["He", "cooks"]), "wrong type", "wanted a text"),
    (good(turns="none"), "wrong type", "turns: got 'none', wanted a list"),
    (good(turns=[3]), "wrong type", r"turns\[0\]: got 3, wanted an object"),
    (good(time_range=[1.0]), "wrong type", "wanted a start and an end"),
    (good(video=7), "wrong type", "video: got 7, wanted a text"),
    (good(video=""), "no video", "kind 'dense'"),
    (good(kind="movie"), "unknown kind", "wanted one of dense, offline, image, interleaved, text"),
    (good(turns=[]), "no turns", "wanted 1 to"),
    (good(turns=good()["turns"] * 10_000), "too many turns", f"got 10000, wanted 1 to {MAX_TURNS}"),
    ([1, 2], "wrong type", "row: got"),
]


@pytest.mark.parametrize(("values", "reason", "words"), BAD, ids=[f"{b[1]}-{b[2]}" for b in BAD])
def test_bad_rows_raise_their_reason(values: Any, reason: str, words: str) -> None:
    with pytest.raises(BadRow, match=words) as caught:
        TrainingRow.from_dict(values)
    assert caught.value.reason == reason


def test_a_caption_may_end_a_little_after_its_clip() -> None:
    assert TrainingRow.from_dict(with_turn(end_s=40.6)).turns[0].end_s == 40.6


def test_only_dense_rows_need_times() -> None:
    turn = {"instruction": "What is this?", "answer": "A dog."}
    row = TrainingRow.from_dict({"video": "dog.jpg", "turns": [turn], "kind": "image"})
    assert row.turns == (Turn(instruction="What is this?", answer="A dog."),)


def test_dense_turns_come_in_the_order_of_their_times() -> None:
    late, early = {"start_s": 9.0, "end_s": 10.0}, {"start_s": 2.0, "end_s": 3.0}
    row = TrainingRow.from_dict(good(turns=[good()["turns"][0] | late, good()["turns"][0] | early]))
    assert [turn.start_s for turn in row.turns] == [2.0, 9.0]


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl", "rows.jsonl.gz"])
def test_rows_are_read_back(tmp_path: Path, name: str) -> None:
    rows = [TrainingRow.from_dict(good()), TrainingRow.from_dict(good(time_range=None, video="b.mp4"))]
    path = str(tmp_path / name)
    assert write_rows(path, rows) == 2
    bad = BadRowCounter()
    assert list(read_rows([path], bad)) == rows
    assert (bad.num_good, bad.num_bad) == (2, 0)


def test_bad_rows_are_counted_and_the_rest_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps(good(video=f"{i}.mp4")) for i in range(8)]
    lines[3] = "{not json"
    lines[4] = json.dumps(with_turn(answer=""))
    lines[5] = lines[2]  # the same row again
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    bad = BadRowCounter(max_share=0.4)
    rows = list(read_rows([str(tmp_path / "rows.jsonl")], bad))
    assert [row.video for row in rows] == ["0.mp4", "1.mp4", "2.mp4", "6.mp4", "7.mp4"]
    assert bad.reasons == {"wrong type": 1, "empty answer": 1, "duplicate id": 1}
    assert "rows.jsonl:5: empty answer" in capsys.readouterr().err


def test_too_large_a_share_stops_with_a_clear_message(tmp_path: Path) -> None:
    rows = [good(), with_turn(start_s=11.0)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(
        ValueError, match=r"1 of 2 rows are bad \(50.0%\), more than the limit of 5.0%"
    ) as caught:
        list(read_rows([str(tmp_path / "rows.jsonl")], BadRowCounter()))
    assert "reversed interval 1 (first:" in str(caught.value)


def test_many_bad_rows_stop_the_reader_early(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("nonsense\n" * 1000)
    bad = BadRowCounter()
    with pytest.raises(ValueError, match="200 of 200 rows are bad"):
        list(read_rows([str(tmp_path / "rows.jsonl")], bad))


def test_missing_files_and_other_formats_raise(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        list(read_rows([str(tmp_path / "none.jsonl")], BadRowCounter()))
    (tmp_path / "rows.parquet").write_text("no parquet")
    with pytest.raises(ValueError, match=r"rows\.parquet: got no Parquet file"):
        list(read_rows([str(tmp_path / "rows.parquet")], BadRowCounter()))
    (tmp_path / "rows.csv").touch()
    with pytest.raises(ValueError, match=r"wanted a name that ends with"):
        list(read_rows([str(tmp_path / "rows.csv")], BadRowCounter()))


def test_parquet_with_other_columns_has_only_bad_rows(tmp_path: Path) -> None:
    path = str(tmp_path / "other.parquet")
    pq.write_table(pa.Table.from_pylist([{"text": "hello"}]), path)
    bad = BadRowCounter(max_share=1.0)
    assert list(read_rows([path], bad)) == []
    assert bad.reasons == {"wrong type": 1}


def dense_row(*times: tuple[float, float], start_s: float = 0.0, end_s: float = 200.0) -> TrainingRow:
    turns = tuple(Turn(start_s=a, end_s=b, instruction="What?", answer="That.") for a, b in times)
    return TrainingRow(video="a.mp4", time_range=(start_s, end_s), turns=turns, kind="dense", source="ego4d")


def test_a_window_has_the_video_before_the_question_and_ends_with_the_answer() -> None:
    (window,) = cut_windows(dense_row((25.0, 29.0), end_s=40.0), 32, 1.0)
    assert window.time_range == (0.0, 29.0)
    (window,) = cut_windows(dense_row((125.0, 129.0)), 32, 1.0)
    assert window.time_range == (
        94.0,
        129.0,
    )  # the 32 frames of the FIFO when the question comes, and those after it
    (window,) = cut_windows(dense_row((125.0, 129.0), start_s=120.0), 16, 5.0)
    assert window.time_range == (122.0, 128.0)
    assert window.turns[0].end_s == 128.0  # a longer answer is spoken within 16 frames
    (window,) = cut_windows(dense_row((9.5, 12.0), start_s=10.0), 32, 1.0)
    assert window.time_range == (9.5, 12.0)


def test_turns_share_a_window_while_it_has_room() -> None:
    row = dense_row((0.0, 5.0), (5.0, 31.9), (20.0, 62.0), (30.0, 31.0), (50.0, 63.0), (100.0, 190.0))
    windows = cut_windows(row, 32, 1.0)
    assert [[turn.start_s for turn in window.turns] for window in windows] == [
        [0.0, 5.0, 20.0, 30.0], [50.0], [100.0],
    ]  # fmt: skip
    assert [window.time_range for window in windows] == [(0.0, 51.0), (19.0, 63.0), (69.0, 131.0)]
    assert len({window.id for window in windows}) == 3


def test_captions_travel_with_a_row_and_not_with_its_windows() -> None:
    told = Caption(start_s=3.0, end_s=9.0, caption="A man cooks.")
    row = TrainingRow.from_dict(dense_row((25.0, 29.0)).as_dict() | {"captions": [asdict(told)]})
    assert row.captions == (told,)
    assert TrainingRow.from_dict(row.as_dict()) == row
    assert cut_windows(row, 32, 1.0)[0].captions == ()


def test_a_share_above_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got 5, wanted 0 to 1"):
        BadRowCounter(max_share=5)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, ""),
        ({"video": "a.png"}, "no video"),
        ({"pictures": []}, "wrong number of pictures"),
        ({"pictures": ["a.png"] * 65}, "wrong number of pictures"),
        ({"pictures": ["a.png"]}, "unknown picture"),
        ({"pictures": [7]}, "wrong type"),
        ({"kind": "image", "video": "a.png"}, "wrong number of pictures"),
    ],
)
def test_rows_of_several_pictures(changes: dict[str, Any], reason: str) -> None:
    turn = {"start_s": 0, "end_s": 1, "instruction": "What?", "answer": "That."}
    value = {"video": "", "pictures": ["a.png", "b.png"], "turns": [turn], "kind": "interleaved", **changes}
    if not reason:
        row = TrainingRow.from_dict(value)
        assert TrainingRow.from_dict(row.as_dict()) == row
        return
    with pytest.raises(BadRow) as error:
        TrainingRow.from_dict(value)
    assert error.value.reason == reason
