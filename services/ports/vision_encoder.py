"""The port of the vision encoder: what encodes pictures, wherever it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from services.messages.video import VisualTokens

ENCODE_TIMEOUT_S = 10.0

Encode = Callable[[list[bytes]], Awaitable[list[VisualTokens]]]  # raw RGB pictures to their visual tokens


async def encode_checked(encode: Encode, pictures: list[bytes]) -> list[VisualTokens]:
    """Encode pictures. TimeoutError after ENCODE_TIMEOUT_S; ValueError unless each picture has a result."""
    tokens = await asyncio.wait_for(encode(pictures), ENCODE_TIMEOUT_S)
    if len(tokens) != len(pictures):
        raise ValueError(f"vision encoder: got {len(tokens)} results, wanted {len(pictures)}")
    return tokens
