"""Micro-batches of rows: repeatable, with every row once in an epoch, and with a record of bad rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from training.data.frames.video_frames import FrameReader
from training.data.row_micro_batches import RowMicroBatches, RowSampler, RowTable, write_row_table
from training.data.row_tokenizer import RowTokenizer
from training.data.training_row import TrainingRow, Turn
from training.live_world.clips import Clip
from training.live_world.smoke_clips import question_rows


def test_every_epoch_has_every_row_once_in_another_order() -> None:
    order = RowSampler(num_rows=10, num_samples=25, seed=1)
    batches = [order.rows(first, 4) for first in range(0, 28, 4)]
    assert [len(p) for p in batches] == [4, 4, 4, 4, 4, 4, 1]
    flat = [row for batch in batches for row in batch]
    assert sorted(flat[:10]) == sorted(flat[10:20]) == list(range(10))
    assert flat[:10] != flat[10:20]
    assert Counter(flat[20:]).most_common(1)[0][1] == 1
    assert RowSampler(num_rows=10, num_samples=25, seed=2).rows(0, 10) != flat[:10]
    assert order.rows(40, 4) == []


def maker(
    tokenizer: PreTrainedTokenizerFast, table: Path, num: int, global_batch: int = 4
) -> RowMicroBatches:
    text = RowTokenizer(tokenizer, 16, 400)
    reader = FrameReader(size=96, frames_per_second=5.0, max_frames=40)
    order = RowSampler(num_rows=num, num_samples=num, seed=1)
    return RowMicroBatches(RowTable(table), order, text, reader, global_batch, 400)


def test_a_micro_batch_is_repeatable(
    tokenizer: PreTrainedTokenizerFast, clips: list[Clip], tmp_path: Path
) -> None:
    rows = question_rows(clips[0].path.parent)
    num = write_row_table(tmp_path / "rows.arrow", rows)
    assert list(map(RowTable(tmp_path / "rows.arrow").__getitem__, range(num))) == rows
    one, other = (
        maker(tokenizer, tmp_path / "rows.arrow", num).micro_batch(5, [3, 1]).to_bytes() for _ in range(2)
    )
    assert one == other
    made = maker(tokenizer, tmp_path / "rows.arrow", num)
    parts = [part for step in range(3) for part in made.parts(step, 2)]
    assert sorted(number for part in parts for number in part) == list(range(num))
    batches = [made.micro_batch(n, part) for n, part in enumerate(parts)]
    assert sorted(i for batch in batches for i in batch.sample_ids) == sorted(row.id for row in rows)


def test_the_parts_of_a_step_cost_the_same(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    turns = (Turn(instruction="What?", answer="That."),)
    rows = [TrainingRow(video="", turns=turns, kind="text", source="t", id=str(n)) for n in range(12)]
    num = write_row_table(
        tmp_path / "rows.arrow", rows, cost=lambda row: 10.0 if int(row.id) % 4 == 0 else 1.0
    )
    made = maker(tokenizer, tmp_path / "rows.arrow", num, global_batch=12)
    parts = made.parts(0, 3)
    assert [sum(made.table.costs[part]) for part in parts] == [13.0] * 3
    assert sorted(number for part in parts for number in part) == list(range(12))
    assert made.parts(0, 24)[-1] == []  # more workers than samples


def test_bad_rows_are_skipped_and_recorded(
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
    batch = maker(tokenizer, tmp_path / "rows.arrow", num).micro_batch(0, range(num))
    assert sorted(batch.sample_ids) == sorted(row.id for row in good)
    assert sorted(reason for _, reason, _ in batch.bad_rows) == [
        "empty file", "missing file", "outside the clip", "too long",
    ]  # fmt: skip
    bad_videos = {reason: video for video, reason, _ in batch.bad_rows}
    assert bad_videos["missing file"] == str(tmp_path / "no.mp4")


def test_a_micro_batch_of_bad_rows_only_has_no_loss(
    tokenizer: PreTrainedTokenizerFast, clips: list[Clip], tmp_path: Path
) -> None:
    row = TrainingRow(
        video=str(tmp_path / "no.mp4"),
        turns=question_rows(clips[0].path.parent)[0].turns,
        kind="dense",
        source="t",
    )
    write_row_table(tmp_path / "rows.arrow", [row])
    batch = maker(tokenizer, tmp_path / "rows.arrow", 1).micro_batch(0, [0])
    assert (batch.loss_weight, batch.sample_ids, len(batch.bad_rows)) == (0.0, (), 1)
    assert batch.pictures is not None
    assert batch.pictures.dtype == np.uint8


def test_no_rows_make_an_empty_table(tmp_path: Path) -> None:
    assert write_row_table(tmp_path / "rows.arrow", []) == 0
    assert len(RowTable(tmp_path / "rows.arrow")) == 0
    with pytest.raises(IndexError):
        RowTable(tmp_path / "rows.arrow")[0]
