"""Ids of cameras, and the names that people give.

An id is what Kafka keys, Redis keys, metrics and access rules hold. A name may be any text. Its id is made from it,
and is always the same, so a camera is found by either.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

CAMERA_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
WANTED_ID = "1 to 128 of A-Z a-z 0-9 . _ -"
PRIVATE_PREFIX = "clip-"  # cameras of clips that came with a question: never listed
MAX_NAME_CHARACTERS = 200
MAX_ID_FROM_NAME = 64
HASH_CHARACTERS = 8
PREVIEW_CHARACTERS = 40  # of foreign text in our own messages


def check_camera_id(text: str) -> str:
    """The id of a camera to be published. ValueError for what is no id, or is reserved."""
    if not CAMERA_ID.fullmatch(text):
        raise ValueError(f"camera: got {preview(text)}, wanted {WANTED_ID}")
    if is_reserved(text):
        raise ValueError(
            f"camera: got {preview(text)}, wanted another id: {PRIVATE_PREFIX}... and all are reserved"
        )
    return text


def check_camera_name(text: str) -> str:
    """A name for people, without outer spaces. ValueError when it is empty, too long, or holds control characters."""
    name = unicodedata.normalize("NFC", text).strip()
    wanted = f"1 to {MAX_NAME_CHARACTERS} characters of text on one line"
    if not 0 < len(name) <= MAX_NAME_CHARACTERS:
        raise ValueError(f"camera name: got {len(name)} characters, wanted {wanted}")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in name):
        raise ValueError(f"camera name: got {preview(name)}, wanted {wanted}")
    return name


def camera_id(name: str) -> str:
    """The id of the camera that people call so. An id stands for itself.

    Letters lose their accents and capitals, and other characters become hyphens: "Entrée garage" is `entree-garage`. A
    name that loses more than that, such as one in Chinese, or that is long, gets a hash of itself at the end.
    """
    if CAMERA_ID.fullmatch(name):
        return name
    parts = unicodedata.normalize("NFKD", name.casefold())
    letters = "".join(part for part in parts if part.isascii())
    slug = re.sub(r"[^a-z0-9._]+", "-", letters).strip("-.")
    lost = any(not part.isascii() and unicodedata.category(part)[0] in "LNS" for part in parts)
    if lost or not slug or len(slug) > MAX_ID_FROM_NAME:
        digest = hashlib.sha256(unicodedata.normalize("NFC", name).encode(errors="replace")).hexdigest()
        slug = f"{slug[:MAX_ID_FROM_NAME].strip('-.') or 'camera'}-{digest[:HASH_CHARACTERS]}"
    return f"camera-{slug}" if is_reserved(slug) else slug


def is_reserved(identifier: str) -> bool:
    """Whether no camera may have this id: those of clips are never listed, and `all` means all cameras."""
    return identifier.startswith(PRIVATE_PREFIX) or identifier.lower() == "all"


def preview(text: str) -> str:
    """Foreign text, escaped and shortened for a message."""
    short = text if len(text) <= PREVIEW_CHARACTERS else text[:PREVIEW_CHARACTERS] + "…"
    return ascii(short)
