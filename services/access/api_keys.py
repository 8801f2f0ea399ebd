"""API keys: who may use the API, and which cameras they may see. The keys file holds only hashes.

A key is `sc_<id>_<secret>`. Its secret is 256 random bits, so a plain SHA-256 cannot be reversed by guessing. To
rotate a key, make another one with the same rights and let the old one expire later. Both are valid in between.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import logging
import re
import secrets
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal, get_args

KEY_PATTERN = re.compile(r"sc_([0-9a-f]{8})_([0-9a-f]{64})", re.ASCII)
CHECK_INTERVAL_S = 1.0  # how often the file is checked: a revoked key is refused after at most this time

Role = Literal["ask", "admin"]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One entry of the keys file. Raises ValueError for values that are not allowed."""

    id: str
    name: str  # who uses it
    sha256: str  # of the whole key, as hexadecimal digits
    role: Role  # ask: cameras, questions, the page; admin: also /metrics
    cameras: tuple[str, ...]  # shell patterns for camera ids; empty: no camera
    made_s: float  # wall clock at which it was made
    ends_s: float | None = None  # wall clock at which it expires; None: never
    requests_per_minute: int = 0  # 0: as in the settings
    requests_at_once: int = 0  # 0: as in the settings

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise ValueError(f"key {self.id}: got role {self.role!r}, wanted ask or admin")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"key {self.id}: got an invalid sha256, wanted 64 hexadecimal digits")
        if not all(isinstance(pattern, str) for pattern in self.cameras):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"key {self.id}: got cameras {self.cameras!r}, wanted texts")
        if min(self.requests_per_minute, self.requests_at_once) < 0:
            raise ValueError(f"key {self.id}: got a limit below 0, wanted 0 (as in the settings) or more")

    @property
    def has_expired(self) -> bool:
        return self.ends_s is not None and time.time() >= self.ends_s

    def can_see(self, camera: str) -> bool:
        """Whether the key gives access to the camera."""
        return any(fnmatchcase(camera, pattern) for pattern in self.cameras)


def make_key(name: str, **rights: Any) -> tuple[str, ApiKey]:
    """Make a key. Returns its text, which is stored nowhere, and its entry. `rights` are fields of ApiKey."""
    key_id = secrets.token_hex(4)
    text = f"sc_{key_id}_{secrets.token_hex(32)}"
    return text, ApiKey(id=key_id, name=name, sha256=hash_key(text), made_s=time.time(), **rights)


def hash_key(text: str) -> str:
    """The hash that is stored instead of the key."""
    return hashlib.sha256(text.encode()).hexdigest()


def parse_keys(text: str) -> dict[str, ApiKey]:
    """The keys of a file, by id. Raises ValueError if the file is not valid."""
    known = {f.name for f in fields(ApiKey)}
    try:
        rows = json.loads(text)["keys"]
        if unknown := {name for row in rows for name in row} - known:
            raise ValueError(f"got the fields {sorted(unknown)}, wanted only {sorted(known)}")
        values: list[dict[str, Any]] = [{**row, "cameras": tuple(row["cameras"])} for row in rows]
        keys = [ApiKey(**value) for value in values]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"wanted what `streamchat keys` writes, got something else ({type(error).__name__})"
        ) from error
    return {key.id: key for key in keys}


class ApiKeys:
    """The keys of a file. The file is read again when it changes.

    Without a file there are no keys, so every request is refused. Raises ValueError if the file is not valid at
    the start. If it becomes invalid later, an error is logged and the previous keys stay in use.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._keys: dict[str, ApiKey] = {}
        self._file_version: tuple[int, ...] | None = None
        self._checked_s = float("-inf")
        if path is None or not path.exists():
            log.warning("no API key is known, so every request is refused: there is no keys file (%s)", path)
        else:
            self._keys = read_keys(path)

    def find(self, text: str) -> ApiKey | None:
        """The entry of the key, expired or not; None if the key is unknown. Takes equally long for any wrong secret."""
        self._reload_if_changed()
        found = KEY_PATTERN.fullmatch(text)
        key = self._keys.get(found[1]) if found else None
        matches = hmac.compare_digest(hash_key(text), key.sha256 if key else "0" * 64)
        return key if matches else None

    def is_valid(self, key: ApiKey) -> bool:
        """Whether a key that was found before has neither been revoked nor expired."""
        self._reload_if_changed()
        return key.id in self._keys and not self._keys[key.id].has_expired

    def _reload_if_changed(self) -> None:
        now = time.monotonic()
        if self._path is None or now - self._checked_s < CHECK_INTERVAL_S:
            return
        self._checked_s = now
        try:
            status = self._path.stat()
            version = (status.st_mtime_ns, status.st_ino, status.st_size)
            if version != self._file_version:
                self._keys, self._file_version = read_keys(self._path), version
        except FileNotFoundError:
            self._keys, self._file_version = {}, None
        except (ValueError, OSError) as error:
            log.error("the previous keys stay in use: %s", error)


def read_keys(path: Path) -> dict[str, ApiKey]:
    """The keys of a file, by id. Raises ValueError with the file's name if it is not valid."""
    try:
        return parse_keys(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@contextmanager
def edit_keys(path: Path) -> Generator[dict[str, ApiKey]]:
    """Edit the keys of a file: it is replaced when the block ends without an error. One process edits at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{path}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        keys = read_keys(path) if path.exists() else {}
        yield keys
        new = Path(f"{path}.new")
        new.unlink(missing_ok=True)
        new.touch(mode=0o600)
        new.write_text(json.dumps({"keys": [asdict(key) for key in keys.values()]}, indent=1) + "\n")
        new.replace(path)


def rotate_key(key: ApiKey, *, old_lasts_s: float) -> tuple[str, ApiKey, ApiKey]:
    """Make a key with the same rights. Returns its text, its entry, and the old entry, which expires after a time."""
    rights = {
        f.name: getattr(key, f.name)
        for f in fields(ApiKey)
        if f.name not in ("id", "name", "sha256", "made_s")
    }
    text, new = make_key(key.name, **rights)
    ends_s = time.time() + old_lasts_s
    return text, new, replace(key, ends_s=min(ends_s, key.ends_s or ends_s))
