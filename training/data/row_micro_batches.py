"""Parts made of Parquet rows: which rows a part has, and how they become packed samples.

The rows of a run lie checked in one Arrow file, which every process maps. Micro-batch k always has the same rows,
whoever makes it and when. So nothing is skipped or seen twice, with any number of workers and after any kill.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from training.data.bad_row import BadRow
from training.data.micro_batch import MicroBatch, packed_micro_batch
from training.data.packing import Sample
from training.data.row_tokenizer import RowTokenizer
from training.data.token_row import Ints
from training.data.training_row import SCHEMA, TrainingRow
from training.data.video_frames import FrameReader


def write_row_table(path: Path, rows: Iterable[TrainingRow]) -> int:
    """Keep checked rows for `RowTable`; returns their number."""
    num, chunk = 0, list[dict[str, Any]]()
    part = path.with_suffix(".part")
    with pa.OSFile(str(part), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for row in rows:
            chunk.append(row.as_dict())
            num += 1
            if len(chunk) == 1000:
                writer.write_table(pa.Table.from_pylist(chunk, SCHEMA))
                chunk = []
        writer.write_table(pa.Table.from_pylist(chunk, SCHEMA))
    part.rename(path)
    return num


class RowTable:
    """Rows by number, mapped and not held."""

    def __init__(self, path: Path) -> None:
        self._table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, number: int) -> TrainingRow:
        return TrainingRow.from_dict(self._table.slice(number, 1).to_pylist()[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class RowSampler:
    """Which rows come when: shuffled anew for every epoch, from the seed alone."""

    num_rows: int
    num_samples: int  # of the whole run
    seed: int

    def rows(self, first: int, num: int) -> list[int]:
        """Numbers of the rows at places `first` to `first + num` of the run; fewer where it ends."""
        places = range(first, min(first + num, self.num_samples))
        return [
            int(_shuffled(self.num_rows, self.seed, p // self.num_rows)[p % self.num_rows]) for p in places
        ]


@lru_cache(maxsize=2)
def _shuffled(num: int, seed: int, epoch: int) -> Ints:
    return np.random.default_rng([seed, 11, epoch]).permutation(num)


class RowMicroBatches:
    """Makes parts of rows."""

    def __init__(
        self,
        table: RowTable,
        order: RowSampler,
        text: RowTokenizer,
        frames: FrameReader,
        per_part: int,
        longest: int,
    ) -> None:
        self.table, self.order, self.text, self.frames = table, order, text, frames
        self.per_part, self.longest = per_part, longest
        pad = text.tokenizer.pad_token_id
        self.pad_id = text.end_id if pad is None else int(pad)  # type: ignore[arg-type]

    def micro_batch(self, number: int, ordinal: int) -> MicroBatch:
        """MicroBatch `number` of the run, the `ordinal`-th that is made of rows."""
        samples: list[Sample] = []
        ids: list[str] = []
        bad: list[tuple[str, str, str]] = []
        for place in self.order.rows(ordinal * self.per_part, self.per_part):
            row = self.table[place]
            try:
                samples.append(self.sample(row))
                ids.append(row.id)
            except BadRow as error:
                bad.append((row.video or row.id, error.reason, error.detail))
        return packed_micro_batch(number, samples, self.longest, self.pad_id, self.frames.size, ids, bad)

    def sample(self, row: TrainingRow) -> Sample:
        """One row with its pictures; BadRow when it cannot be used."""
        frames = self.frames.read(row)
        return Sample(self.text.tokens(row, frames.times), frames.pictures)

    def empty(self, number: int) -> MicroBatch:
        """A part without samples."""
        return packed_micro_batch(number, [], self.longest, self.pad_id, self.frames.size)
