"""Parts of rows: every row once an epoch, bad ones named and left out, the same part whoever makes it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from training.data.row_micro_batches import RowMicroBatches, RowSampler, RowTable, write_row_table
from training.data.row_tokenizer import RowTokenizer
from training.data.training_row import TrainingRow, Turn
from training.data.video_frames import FrameReader
from training.live_world.clips import Clip
from training.live_world.smoke_clips import question_rows


def test_every_row_comes_once_an_epoch_in_another_order() -> None:
    order = RowSampler(num_rows=10, num_samples=25, seed=1)
    places = [order.rows(first, 4) for first in range(0, 28, 4)]
    assert [len(p) for p in places] == [4, 4, 4, 4, 4, 4, 1]
    flat = [row for part in places for row in part]
    assert sorted(flat[:10]) == sorted(flat[10:20]) == list(range(10))
    assert flat[:10] != flat[10:20]
    assert Counter(flat[20:]).most_common(1)[0][1] == 1
    assert RowSampler(num_rows=10, num_samples=25, seed=2).rows(0, 10) != flat[:10]
    assert order.rows(40, 4) == []


def maker(tokenizer: PreTrainedTokenizerFast, table: Path, num: int, per_part: int = 4) -> RowMicroBatches:
    text = RowTokenizer(tokenizer, 16, 400)
    reader = FrameReader(size=96, frames_per_second=5.0, max_frames=40)
    order = RowSampler(num_rows=num, num_samples=num, seed=1)
    return RowMicroBatches(RowTable(table), order, text, reader, per_part, 400)


def test_the_same_part_is_made_again(
    tokenizer: PreTrainedTokenizerFast, clips: list[Clip], tmp_path: Path
) -> None:
    rows = question_rows(clips[0].path.parent)
    num = write_row_table(tmp_path / "rows.arrow", rows)
    assert list(map(RowTable(tmp_path / "rows.arrow").__getitem__, range(num))) == rows
    one, other = (
        maker(tokenizer, tmp_path / "rows.arrow", num).micro_batch(5, 1).to_bytes() for _ in range(2)
    )
    assert one == other
    parts = [maker(tokenizer, tmp_path / "rows.arrow", num).micro_batch(n, n) for n in range(3)]
    assert sorted(i for part in parts for i in part.samples) == sorted(row.id for row in rows)


def test_bad_rows_are_left_out_and_named(
    tokenizer: PreTrainedTokenizerFast, clips: list[Clip], tmp_path: Path
) -> None:
    (tmp_path / "empty.mp4").touch()
    late = Turn(start_s=80, end_s=90, instruction="What?", answer="That.")
    long = Turn(start_s=1, end_s=2, instruction="What?", answer="That. " * 500)
    good = question_rows(clips[0].path.parent)[:3]
    rows = [
        *good,
        *(
            TrainingRow(video=str(tmp_path / name), turns=good[0].turns, kind="dense", source="t")
            for name in ("no.mp4", "empty.mp4")
        ),
        TrainingRow(video=str(clips[0].path), turns=(late,), kind="dense", source="t"),
        TrainingRow(video=str(clips[0].path), turns=(long,), kind="dense", source="t"),
    ]
    num = write_row_table(tmp_path / "rows.arrow", rows)
    part = maker(tokenizer, tmp_path / "rows.arrow", num, per_part=num).micro_batch(0, 0)
    assert sorted(part.samples) == sorted(row.id for row in good)
    assert sorted(reason for _, reason, _ in part.bad) == [
        "empty file", "missing file", "outside the clip", "too long",
    ]  # fmt: skip
    named = {reason: place for place, reason, _ in part.bad}
    assert named["missing file"] == str(tmp_path / "no.mp4")


def test_a_part_of_bad_rows_alone_counts_nothing(
    tokenizer: PreTrainedTokenizerFast, clips: list[Clip], tmp_path: Path
) -> None:
    row = TrainingRow(
        video=str(tmp_path / "no.mp4"),
        turns=question_rows(clips[0].path.parent)[0].turns,
        kind="dense",
        source="t",
    )
    write_row_table(tmp_path / "rows.arrow", [row])
    part = maker(tokenizer, tmp_path / "rows.arrow", 1).micro_batch(0, 0)
    assert (part.weight, part.samples, len(part.bad)) == (0.0, (), 1)
    assert part.pictures is not None
    assert part.pictures.dtype == np.uint8


def test_no_rows_make_an_empty_table(tmp_path: Path) -> None:
    assert write_row_table(tmp_path / "rows.arrow", []) == 0
    assert len(RowTable(tmp_path / "rows.arrow")) == 0
    with pytest.raises(IndexError):
        RowTable(tmp_path / "rows.arrow")[0]
