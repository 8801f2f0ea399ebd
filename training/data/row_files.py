"""Reads and writes files of training rows: Parquet or JSON lines, local or in any storage that fsspec supports."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from itertools import islice
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from training.data.bad_row import BadRow, BadRowCounter
from training.data.training_row import SCHEMA, TrainingRow


def records(path: str) -> Iterator[tuple[str, object]]:
    """The values of a Parquet or JSON lines file, each with its location `file:number` (from 1).

    A line that is not JSON is yielded as bytes, and the caller refuses it. Raises FileNotFoundError if the file is
    missing, and ValueError if it has another format.
    """
    with fsspec.open(path, "rb", compression="infer") as file:
        if path.endswith(".parquet"):
            try:
                batches = pq.ParquetFile(file).iter_batches(batch_size=256)
                values: Iterable[object] = (value for batch in batches for value in batch.to_pylist())
            except pa.ArrowInvalid as error:
                raise ValueError(f"{path}: got no Parquet file: {error}") from error
        elif path.endswith((".jsonl", ".jsonl.gz", ".ndjson")):
            values = (_json(line) for line in file if line.strip())
        else:
            raise ValueError(f"{path}: wanted a name that ends with .parquet or .jsonl")
        for number, value in enumerate(values, 1):
            yield f"{path}:{number}", value


def _json(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return line


def read_rows(paths: Iterable[str], bad: BadRowCounter) -> Iterator[TrainingRow]:
    """All good rows of the files. Bad rows and repeated ids are counted in `bad`. Raises ValueError for too many."""
    yield from good_rows((record for path in paths for record in records(path)), TrainingRow.from_dict, bad)
    bad.check_share()


def good_rows(
    values: Iterable[tuple[str, object]], row_of: Callable[[object], TrainingRow], bad: BadRowCounter
) -> Iterator[TrainingRow]:
    """Rows that `row_of` makes of located values. It counts values that raise BadRow, and repeated ids, in `bad`."""
    seen: set[str] = set()
    for where, value in values:
        try:
            row = row_of(value)
            if row.id in seen:
                raise BadRow("duplicate id", f"{row.id} was there before")
        except BadRow as error:
            bad.skip(where, error)
            continue
        seen.add(row.id)
        bad.add_good()
        yield row


def write_rows(path: str, rows: Iterable[TrainingRow]) -> int:
    """Write rows as Parquet or JSON lines, by the ending of the name. Returns their number.

    Rows are written while they are read. If the iterable raises, the file is removed.
    """
    opened: Any = fsspec.open(path, "wb", compression="infer", auto_mkdir=True)
    try:
        with opened as file:
            return _write(file, path.endswith(".parquet"), iter(rows))
    except BaseException:
        opened.fs.rm(opened.path)
        raise


def _write(file: Any, parquet: bool, rows: Iterator[TrainingRow]) -> int:
    num = 0
    with pq.ParquetWriter(file, SCHEMA) if parquet else nullcontext() as table:
        while values := [row.as_dict() for row in islice(rows, 1000)]:
            num += len(values)
            if table is not None:
                table.write_table(pa.Table.from_pylist(values, SCHEMA))
            else:
                file.writelines(json.dumps(value, ensure_ascii=False).encode() + b"\n" for value in values)
    return num
