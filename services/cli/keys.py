"""`streamchat keys`: make, list, rotate and revoke the API keys of a file. A key is shown once, when it is made."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.access.api_keys import ApiKey, edit_keys, make_key, read_keys, rotate_key
from services.cli.table import text_table

DAY_S = 86_400.0


def make(path: Path, name: str, **rights: Any) -> int:
    """Add a key to the file, made when missing, and print it. ValueError for wrong rights."""
    text, key = make_key(name, **rights)
    with edit_keys(path) as keys:
        keys[key.id] = key
    return print_key(text, key, path)


def rotate(path: Path, wanted: str, *, old_lasts_s: float) -> int:
    """Make a new key with the same rights; the old one ends `old_lasts_s` from now."""
    with edit_keys(path) as keys:
        text, new, old = rotate_key(find_key(keys, wanted), old_lasts_s=old_lasts_s)
        keys.update({old.id: old, new.id: new})
    print(f"key {old.id} is valid until {date(old.ends_s)}", file=sys.stderr)
    return print_key(text, new, path)


def revoke(path: Path, wanted: str) -> int:
    """Remove a key from the file. Within a second, gateways refuse it and end its open connections."""
    with edit_keys(path) as keys:
        key = find_key(keys, wanted)
        del keys[key.id]
    print(f"revoked {key.id} ({key.name})", file=sys.stderr)
    return 0


def list_keys(path: Path) -> int:
    """Print the keys as a table: their owners and their rights."""
    rows = [("id", "name", "role", "cameras", "made", "ends")]
    for key in read_keys(path).values():
        cameras = " ".join(key.cameras) or "none"
        rows.append((key.id, key.name, key.role, cameras, date(key.made_s), date(key.ends_s)))
    print(text_table(rows))
    return 0


def find_key(keys: Mapping[str, ApiKey], wanted: str) -> ApiKey:
    """The key with that id, or the only one with that name. ValueError when there is none, or several."""
    matching = [key for key in keys.values() if wanted in (key.id, key.name)]
    if len(matching) != 1:
        raise ValueError(f"got {wanted!r}, which matches {len(matching)} keys; wanted an id from `keys list`")
    return matching[0]


def print_key(text: str, key: ApiKey, path: Path) -> int:
    """Print the key on standard output, so that it can be piped, and its rights on standard error."""
    cameras = " ".join(key.cameras) or "none"
    rights = f"{key.role}, cameras: {cameras}, ends: {date(key.ends_s)}"
    print(f"key {key.id} for {key.name} ({rights}); only its hash is kept in {path}:", file=sys.stderr)
    print(text)
    return 0


def date(at_s: float | None) -> str:
    """A time in words."""
    return "never" if at_s is None else datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


def ends_after(days: float | None) -> float | None:
    """The end of a key that is valid for this many days from now (None: for ever). ValueError for 0 or less."""
    if days is not None and days <= 0:
        raise ValueError(f"--days: got {days:g}, wanted more than 0")
    return None if days is None else time.time() + days * DAY_S
