"""API keys: who may ask, and about which cameras. A file that people can read holds only their hashes.

A key is `sc_<id>_<secret>`; its secret is 256 random bits, so a plain SHA-256 cannot be guessed back. To rotate a
key, make another with the same rights and let the old one end: both are good meanwhile.
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

KEY = re.compile(r"sc_([0-9a-f]{8})_([0-9a-f]{64})", re.ASCII)
LOOK_EVERY_S = 1.0  # at the file: so soon a revoked key is refused

Role = Literal["ask", "admin"]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What is kept of a key. Checked when made; a ValueError says what was got and what is wanted."""

    id: str
    name: str  # whose it is
    sha256: str  # of the whole key, in hex
    role: Role  # ask: cameras, questions, the page; admin: /metrics too
    cameras: tuple[str, ...]  # shell patterns over camera ids; empty: none
    made_s: float  # since 1970, as the next
    ends_s: float | None = None
    requests_per_minute: int = 0  # 0: the setting's
    requests_at_once: int = 0

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise ValueError(f"key {self.id}: got role {self.role!r}, wanted ask or admin")
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256):
            raise ValueError(f"key {self.id}: its sha256 is none: wanted 64 hexadecimal digits")
        if not all(isinstance(pattern, str) for pattern in self.cameras):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(f"key {self.id}: got cameras {self.cameras!r}, wanted texts")
        if min(self.requests_per_minute, self.requests_at_once) < 0:
            raise ValueError(f"key {self.id}: got a limit below 0, wanted 0 (the setting's) or more")

    @property
    def has_ended(self) -> bool:
        return self.ends_s is not None and time.time() >= self.ends_s

    def sees(self, camera: str) -> bool:
        """Whether it may see that camera."""
        return any(fnmatchcase(camera, pattern) for pattern in self.cameras)


def make_key(name: str, **rights: Any) -> tuple[str, Key]:
    """A new key and what is kept of it; the text is in no other place. `rights` are fields of Key."""
    key_id = secrets.token_hex(4)
    text = f"sc_{key_id}_{secrets.token_hex(32)}"
    return text, Key(id=key_id, name=name, sha256=digest(text), made_s=time.time(), **rights)


def digest(text: str) -> str:
    """What is kept in place of a key."""
    return hashlib.sha256(text.encode()).hexdigest()


def parsed_keys(text: str) -> dict[str, Key]:
    """The keys of a file, by id. ValueError says what is wrong with it."""
    known = {f.name for f in fields(Key)}
    try:
        rows = json.loads(text)["keys"]
        if strange := {name for row in rows for name in row} - known:
            raise ValueError(f"got the fields {sorted(strange)}, wanted only {sorted(known)}")
        values: list[dict[str, Any]] = [{**row, "cameras": tuple(row["cameras"])} for row in rows]
        keys = [Key(**value) for value in values]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"wanted what `streamchat keys` writes, got something else ({type(error).__name__})"
        ) from error
    return {key.id: key for key in keys}


class Keyring:
    """The keys of a file, as they are now: it is read again when it has changed.

    Without a file there is no key, and so nobody is let in. ValueError when the file is no keys file at the start;
    one that is broken later is told in the log, and the keys before it hold.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._keys: dict[str, Key] = {}
        self._stamp: tuple[int, ...] | None = None
        self._looked_at = float("-inf")
        if path is None or not path.exists():
            log.warning("no API key is known, nobody is let in: got no keys file (%s)", path)
        elif path.exists():
            self._keys = read_keys(path)

    def find(self, text: str) -> Key | None:
        """The key that this is, ended or not; None when there is none such. Takes as long for any wrong secret."""
        self._look()
        found = KEY.fullmatch(text)
        key = self._keys.get(found[1]) if found else None
        same = hmac.compare_digest(digest(text), key.sha256 if key else "0" * 64)
        return key if same else None

    def holds(self, key: Key) -> bool:
        """Whether a key that was found before is still good."""
        self._look()
        return key.id in self._keys and not self._keys[key.id].has_ended

    def _look(self) -> None:
        now = time.monotonic()
        if self._path is None or now - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = now
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
            if stamp != self._stamp:
                self._keys, self._stamp = read_keys(self._path), stamp
        except FileNotFoundError:
            self._keys, self._stamp = {}, None
        except (ValueError, OSError) as error:
            log.error("the keys stay as they were: %s", error)


def read_keys(path: Path) -> dict[str, Key]:
    """The keys of a file. ValueError names the file and says what is wrong with it."""
    try:
        return parsed_keys(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


@contextmanager
def changing(path: Path) -> Generator[dict[str, Key]]:
    """The keys of a file, to be changed: written back whole when the block ends well. One changes it at a time."""
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


def rotated(key: Key, *, old_lasts_s: float) -> tuple[str, Key, Key]:
    """A new key with the same rights, what is kept of it, and the old one, which ends."""
    rights = {
        f.name: getattr(key, f.name) for f in fields(Key) if f.name not in ("id", "name", "sha256", "made_s")
    }
    text, new = make_key(key.name, **rights)
    ends_s = time.time() + old_lasts_s
    return text, new, replace(key, ends_s=min(ends_s, key.ends_s or ends_s))
