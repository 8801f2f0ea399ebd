"""Turn captions and conversations, in the layout of the set that they come from, into rows.

    python training/data/make_rows.py ego4d narration.json --videos /data/ego4d/full_scale --out rows.parquet

Formats: ego4d, vript, activitynet, coin, youcook2, live_world (captions); llava (conversations); rows (our own).
Long videos are cut into windows. What cannot be used is named, counted and skipped.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import fsspec

sys.path.insert(0, str(Path(__file__).parents[2]))
from training.data.bad_row import BadRow, BadRowCounter
from training.data.readers import caption_sets
from training.data.readers.conversations import conversations
from training.data.row_files import read_rows, write_rows
from training.data.training_row import TrainingRow, windows

CAPTIONS: dict[str, Callable[[Path], Iterator[caption_sets.Entry]]] = {
    "ego4d": caption_sets.ego4d,
    "vript": caption_sets.vript,
    "activitynet": caption_sets.activitynet,
    "coin": caption_sets.coin,
    "youcook2": caption_sets.youcook2,
    "live_world": caption_sets.live_world,
}
FORMATS = (*CAPTIONS, "llava", "rows")
WINDOW_S = 40.0  # the paper's 40 frames at one a second (3.1)


def source_rows(form: str, path: Path, source: str, bad: BadRowCounter) -> Iterator[TrainingRow]:
    """Rows of a file in one of `FORMATS`; bad parts are counted in `bad`."""
    if form in CAPTIONS:
        return caption_sets.captioned_rows(source, CAPTIONS[form](path), bad)
    if form == "llava":
        return conversations(path, source, bad)
    return read_rows([str(path)], bad)


def placed(
    rows: Iterator[TrainingRow], videos: str, suffix: str, check: bool, bad: BadRowCounter
) -> Iterator[TrainingRow]:
    """Rows whose videos are below the folder or URL `videos`, with their files' suffix in place of .mp4.

    `check`: only those whose video is there.
    """
    for row in rows:
        there = f"{videos.rstrip('/')}/{row.video}" if videos and row.video else row.video
        if suffix and row.kind in ("dense", "offline"):
            there = there.rpartition(".")[0] + suffix
        try:
            if check and there:
                _check_file(there)
        except BadRow as error:
            bad.skip(row.video, error)
            continue
        yield replace(row, video=there, id="")


def _check_file(video: str) -> None:
    filesystem, path = fsspec.url_to_fs(video)
    try:
        size = filesystem.size(path)
    except FileNotFoundError as error:
        raise BadRow("missing file", f"{video} is not there") from error
    if size == 0:
        raise BadRow("empty file", f"{video} has no bytes")


def cut(rows: Iterator[TrainingRow], window_s: float) -> Iterator[TrainingRow]:
    """Dense rows as windows, others as they are."""
    for row in rows:
        yield from windows(row, window_s) if row.kind == "dense" else [row]


def finished(rows: Iterator[TrainingRow], bad: BadRowCounter) -> Iterator[TrainingRow]:
    """All rows, and then ValueError if too many were bad."""
    yield from rows
    bad.finish()


def main() -> None:
    """Read the command line, read, write, and end with a line of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("format", choices=FORMATS)
    parser.add_argument(
        "input", type=Path, help="the set's file; for vript the folder in which it was unpacked"
    )
    parser.add_argument("--out", required=True, help="rows.parquet or rows.jsonl, local or a URL")
    parser.add_argument("--videos", default="", help="folder or URL below which the videos are")
    parser.add_argument("--suffix", default="", help="what the videos' names end with, if not .mp4")
    parser.add_argument("--check", action="store_true", help="skip rows whose video is missing or empty")
    parser.add_argument("--window-s", type=float, default=WINDOW_S, help="longest dense row in seconds")
    parser.add_argument("--source", default="", help="name of the source (default: the format)")
    parser.add_argument(
        "--max-bad-share", type=float, default=0.05, help="more bad data than this stops the run"
    )
    options = parser.parse_args()
    try:
        what = "captions" if options.format in CAPTIONS else "rows"
        bad = BadRowCounter(max_share=options.max_bad_share, what=what)
        rows = source_rows(options.format, options.input, options.source or options.format, bad)
        rows = placed(rows, options.videos, options.suffix, options.check, bad)
        num = write_rows(options.out, finished(cut(rows, options.window_s), bad))
    except (ValueError, OSError) as error:
        parser.exit(1, f"make_rows: {error}\n")
    print(json.dumps({"rows": num, "good": bad.num_good, "bad": dict(bad.reasons)}))


if __name__ == "__main__":
    main()
