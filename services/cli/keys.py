"""`streamchat keys`: make, list, rotate and revoke the API keys of a file. A key is shown once, when it is made."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.access.api_keys import Key, changing, make_key, read_keys, rotated

DAY_S = 86_400.0


def make(path: Path, name: str, **rights: Any) -> int:
    """Add a key to the file, made when missing, and print it. ValueError for rights that are none."""
    text, key = make_key(name, **rights)
    with changing(path) as keys:
        keys[key.id] = key
    return show(text, key, path)


def rotate(path: Path, wanted: str, *, old_lasts_s: float) -> int:
    """Make another key with the same rights, and let the old one end a little later."""
    with changing(path) as keys:
        text, new, old = rotated(found(keys, wanted), old_lasts_s=old_lasts_s)
        keys.update({old.id: old, new.id: new})
    print(f"key {old.id} is good until {day(old.ends_s)}", file=sys.stderr)
    return show(text, new, path)


def revoke(path: Path, wanted: str) -> int:
    """Take a key out of the file: gateways refuse it a second later, and end what it has open."""
    with changing(path) as keys:
        key = found(keys, wanted)
        del keys[key.id]
    print(f"revoked {key.id} ({key.name})", file=sys.stderr)
    return 0


def show_keys(path: Path) -> int:
    """Print the keys as a table: whose they are and what they may do."""
    rows = [("id", "name", "role", "cameras", "made", "ends")]
    for key in read_keys(path).values():
        cameras = " ".join(key.cameras) or "none"
        rows.append((key.id, key.name, key.role, cameras, day(key.made_s), day(key.ends_s)))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


def found(keys: Mapping[str, Key], wanted: str) -> Key:
    """The key of that id, or the only one of that name. ValueError when there is none, or several."""
    fitting = [key for key in keys.values() if wanted in (key.id, key.name)]
    if len(fitting) != 1:
        raise ValueError(f"got {wanted!r}, which {len(fitting)} keys are called; wanted an id of `keys list`")
    return fitting[0]


def show(text: str, key: Key, path: Path) -> int:
    """The key on standard output alone, so that it can be piped on; what it may do beside it."""
    cameras = " ".join(key.cameras) or "none"
    about = f"{key.role}, cameras: {cameras}, ends: {day(key.ends_s)}"
    print(f"key {key.id} for {key.name} ({about}); {path} keeps only its hash:", file=sys.stderr)
    print(text)
    return 0


def day(at_s: float | None) -> str:
    """A time for people."""
    return "never" if at_s is None else datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


def ends_after(days: float | None) -> float | None:
    """When a key ends that lasts so many days. ValueError for less than none."""
    if days is not None and days <= 0:
        raise ValueError(f"--days: got {days:g}, wanted more than 0")
    return None if days is None else time.time() + days * DAY_S
