"""Micro-batches of rows: chooses the rows of each micro-batch and makes packed samples of them.

The checked rows of a run are in one Arrow file, which every process maps into memory. A step always has the same rows.
So no row is skipped or seen twice, with any number of workers and after any restart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from training.data.bad_row import BadRow
from training.data.balance import balanced_parts
from training.data.frames.video_frames import FrameReader
from training.data.micro_batch import MicroBatch, packed_micro_batch
from training.data.packing import Sample
from training.data.row_tokenizer import RowTokenizer
from training.data.token_row import Ints
from training.data.training_row import SCHEMA, TrainingRow

TABLE = SCHEMA.append(pa.field("cost", pa.float64()))


def write_row_table(
    path: Path, rows: Iterable[TrainingRow], cost: Callable[[TrainingRow], float] = lambda row: 1.0
) -> int:
    """Write checked rows for `RowTable`, each with its cost. Returns their number."""
    num, chunk = 0, list[dict[str, Any]]()
    unfinished = path.with_suffix(".part")
    with pa.OSFile(str(unfinished), "wb") as file, pa.ipc.new_file(file, TABLE) as writer:
        for row in rows:
            chunk.append(row.as_dict() | {"cost": cost(row)})
            num += 1
            if len(chunk) == 1000:
                writer.write_table(pa.Table.from_pylist(chunk, TABLE))
                chunk = []
        writer.write_table(pa.Table.from_pylist(chunk, TABLE))
    unfinished.rename(path)
    return num


class RowTable:
    """Rows by number, read from a memory-mapped file."""

    def __init__(self, path: Path) -> None:
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        self.costs: npt.NDArray[np.float64] = self._table.column("cost").to_numpy()

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, number: int) -> TrainingRow:
        return TrainingRow.from_dict(self._table.slice(number, 1).to_pylist()[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSampler:
    """The order of the rows. Each epoch has its own shuffle, which depends only on the seed."""

    num_rows: int
    num_samples: int  # of the whole run
    seed: int

    def rows(self, first: int, num: int) -> list[int]:
        """Row numbers of the samples from `first` to `first + num` of the run, or fewer at its end."""
        samples = range(first, min(first + num, self.num_samples))
        return [
            int(_shuffled(self.num_rows, self.seed, s // self.num_rows)[s % self.num_rows]) for s in samples
        ]


@lru_cache(maxsize=2)
def _shuffled(num: int, seed: int, epoch: int) -> Ints:
    return np.random.default_rng([seed, 11, epoch]).permutation(num)


class RowMicroBatches:
    """Makes micro-batches of rows."""

    def __init__(
        self,
        table: RowTable,
        sampler: RowSampler,
        tokenizer: RowTokenizer,
        frame_reader: FrameReader,
        global_batch: int,
        max_tokens: int,
    ) -> None:
        self.table, self.sampler, self.tokenizer, self.frame_reader = table, sampler, tokenizer, frame_reader
        self.global_batch, self.max_tokens = global_batch, max_tokens
        pad = tokenizer.tokenizer.pad_token_id
        self.pad_id = tokenizer.end_id if pad is None else int(pad)  # type: ignore[arg-type]

    def parts(self, step: int, num_parts: int) -> list[list[int]]:
        """The row numbers of a step, in parts of nearly equal cost."""
        rows = self.sampler.rows(step * self.global_batch, self.global_batch)
        parts = balanced_parts(self.table.costs[rows].tolist(), num_parts)
        return [[rows[i] for i in part] for part in parts]

    def micro_batch(self, index: int, rows: Sequence[int]) -> MicroBatch:
        """A micro-batch of the rows with these numbers. `index`: its place in the run."""
        samples: list[Sample] = []
        sample_ids: list[str] = []
        bad_rows: list[tuple[str, str, str]] = []
        for number in rows:
            row = self.table[number]
            try:
                samples.append(self.sample(row))
                sample_ids.append(row.id)
            except BadRow as error:
                bad_rows.append((row.video or row.id, error.reason, error.detail))
        return self._packed(index, samples, sample_ids, bad_rows)

    def sample(self, row: TrainingRow) -> Sample:
        """The tokens and pictures of a row. Raises BadRow if it cannot be used."""
        frames = self.frame_reader.read(row)
        return Sample(self.tokenizer.tokens(row, frames.times), frames.pictures)

    def empty(self, index: int) -> MicroBatch:
        """A micro-batch without samples."""
        return self._packed(index, [], [], [])

    def _packed(
        self,
        index: int,
        samples: list[Sample],
        sample_ids: list[str],
        bad_rows: list[tuple[str, str, str]],
    ) -> MicroBatch:
        size = self.frame_reader.size
        return packed_micro_batch(index, samples, self.max_tokens, self.pad_id, size, sample_ids, bad_rows)
