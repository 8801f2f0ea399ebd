"""Makes training rows of a data set's captions or conversations.

    python training/data/make_rows.py ego4d narration.json --videos /data/ego4d/full_scale --out rows.parquet

Formats: ego4d, vript, activitynet, coin, youcook2, live_world (captions); llava (conversations); mmc4 (documents with
pictures); rows (our own).
Each has a reader in `training/data/readers/`. Bad data is reported, counted and skipped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import fsspec

sys.path.insert(0, str(Path(__file__).parents[2]))
from training.data.bad_row import BadRow, BadRowCounter
from training.data.readers.registry import CAPTION_READERS, READERS
from training.data.row_files import write_rows
from training.data.training_row import TrainingRow


def with_video_paths(
    rows: Iterator[TrainingRow], videos: str, suffix: str, check: bool, bad: BadRowCounter
) -> Iterator[TrainingRow]:
    """Rows with the full path of their video: below the folder or URL `videos`, with `suffix` in place of .mp4.

    `check`: skip rows whose video is missing or empty.
    """
    for row in rows:
        base = f"{videos.rstrip('/')}/" if videos else ""
        path = base + row.video if row.video else ""
        pictures = tuple(base + picture for picture in row.pictures)
        if suffix and row.kind in ("dense", "offline"):
            path = path.rpartition(".")[0] + suffix
        try:
            for file in (path, *pictures) if check else ():
                if file:
                    _check_file(file)
        except BadRow as error:
            bad.skip(row.video, error)
            continue
        yield replace(row, video=path, pictures=pictures, id="")


def _check_file(video: str) -> None:
    filesystem, path = fsspec.url_to_fs(video)
    try:
        size = filesystem.size(path)
    except FileNotFoundError as error:
        raise BadRow("missing file", f"{video} is not there") from error
    if size == 0:
        raise BadRow("empty file", f"{video} has no bytes")


def limit_bad(rows: Iterator[TrainingRow], bad: BadRowCounter) -> Iterator[TrainingRow]:
    """All rows. Raises ValueError at the end if too many were bad."""
    yield from rows
    bad.check_share()


def main() -> None:
    """Read a data set, write its rows, and print the counts as one line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("format", choices=READERS)
    parser.add_argument(
        "input", type=Path, help="the data set's file; for vript, the folder in which it was unpacked"
    )
    parser.add_argument("--out", required=True, help="rows.parquet or rows.jsonl, local or a URL")
    parser.add_argument("--videos", default="", help="folder or URL below which the videos are")
    parser.add_argument("--suffix", default="", help="ending of the videos' names, if not .mp4")
    parser.add_argument("--check", action="store_true", help="skip rows whose video is missing or empty")
    parser.add_argument("--source", default="", help="name of the source (default: the format)")
    parser.add_argument(
        "--max-bad-share", type=float, default=0.05, help="a larger share of bad data stops the run"
    )
    options = parser.parse_args()
    try:
        unit = "captions" if options.format in CAPTION_READERS else "rows"
        bad = BadRowCounter(max_share=options.max_bad_share, unit=unit)
        rows = READERS[options.format](options.input, options.source or options.format, bad)
        rows = with_video_paths(rows, options.videos, options.suffix, options.check, bad)
        num = write_rows(options.out, limit_bad(rows, bad))
    except (ValueError, OSError) as error:
        parser.exit(1, f"make_rows: {error}\n")
    print(json.dumps({"rows": num, "good": bad.num_good, "bad": dict(bad.reasons)}))


if __name__ == "__main__":
    main()
