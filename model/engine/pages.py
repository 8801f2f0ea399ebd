"""Who may hold memory: numbered pages, asked for, taken and given back. Plain Python; the tensors are elsewhere."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from math import prod

from model.config import StreamChatConfig


class PagePool:
    """Pages 0 to n - 1. An owner asks for as many as it may ever hold, and takes one when it needs one.

    What was asked for is kept for its owner, so nobody who was let in is stopped half way. The lowest free page is
    taken first: what is in use lies together, and memory that was never needed is never touched.
    """

    def __init__(self, num_pages: int) -> None:
        if num_pages < 1:
            raise ValueError(f"num_pages: got {num_pages}, wanted at least 1")
        self.num_pages = num_pages
        self._free = list(range(num_pages))  # a heap
        self._asked: dict[Hashable, int] = {}
        self._taken: dict[Hashable, set[int]] = {}

    @property
    def num_allocated(self) -> int:
        """Pages that hold something."""
        return self.num_pages - len(self._free)

    @property
    def num_unreserved(self) -> int:
        """Pages that nobody holds or was promised."""
        return self.num_pages - sum(map(self.num_reserved, self._asked))

    def num_held(self, owner: Hashable) -> int:
        """How many pages an owner holds."""
        return len(self._taken.get(owner, ()))

    def num_reserved(self, owner: Hashable) -> int:
        """How many pages an owner may hold."""
        return max(self._asked.get(owner, 0), self.num_held(owner))

    def reserve(self, owner: Hashable, most: int) -> bool:
        """Whether this owner may hold up to `most` pages from now on; if not, nothing has changed."""
        if max(most, self.num_held(owner)) - self.num_reserved(owner) > self.num_unreserved:
            return False
        self._asked[owner] = most
        self._taken.setdefault(owner, set())
        return True

    def allocate(self, owner: Hashable) -> int:
        """The lowest free page, for an owner who asked for it."""
        assert self.num_held(owner) < self._asked.get(owner, 0), f"{owner!r} takes more than it asked for"
        page = heapq.heappop(self._free)
        self._taken[owner].add(page)
        return page

    def free(self, owner: Hashable, page: int) -> None:
        """One page; the owner may take another one instead."""
        self._taken[owner].remove(page)
        heapq.heappush(self._free, page)

    def release(self, owner: Hashable) -> None:
        """All that an owner holds and was promised."""
        del self._asked[owner]
        for page in self._taken.pop(owner):
            heapq.heappush(self._free, page)


def ring_shape(config: StreamChatConfig) -> tuple[int, int, int, int]:
    """Of the keys (or the values) of a camera's frames in one cross layer: [G, F, P, d]."""
    return (
        config.num_key_value_heads,
        config.fifo_frames,
        config.vision.num_visual_tokens,
        config.head_dim,
    )


def camera_bytes(config: StreamChatConfig, width: int) -> int:
    """Of a camera's ring; `width` is bytes a number."""
    return len(config.cross_layers) * 2 * prod(ring_shape(config)) * width


def token_bytes(config: StreamChatConfig, width: int) -> int:
    """Of one text token of a dialog."""
    return config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim * width


def num_text_pages(
    config: StreamChatConfig, width: int, *, cache_bytes: int, max_cameras: int, page_tokens: int
) -> int:
    """Pages of text that fit in `cache_bytes` beside the rings of `max_cameras`; raises ValueError if none does."""
    rings = max_cameras * camera_bytes(config, width)
    page = page_tokens * token_bytes(config, width)
    if cache_bytes < rings + page:
        raise ValueError(
            f"cache_bytes: got {cache_bytes}, wanted at least {rings + page}: "
            f"{rings} for {max_cameras} cameras and {page} for one page of text"
        )
    return (cache_bytes - rings) // page
