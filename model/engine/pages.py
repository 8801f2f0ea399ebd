"""Who holds which page of a cache, and how many pages fit in memory. Plain Python; the tensors are elsewhere."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from math import prod

from model.config import StreamChatConfig

DEFAULT_DIALOG_TOKENS = 2048  # a dialog, if the size of the caches is not given


class PagePool:
    """Pages 0 to n - 1. An owner reserves the most that it may ever hold, and allocates a page when it needs one.

    A reservation is kept, so an owner that was admitted never runs out of pages. The lowest free page is allocated
    first: used pages stay close together, and memory that was never needed is never touched.
    """

    def __init__(self, num_pages: int, page_bytes: int) -> None:
        if num_pages < 1:
            raise ValueError(f"num_pages: got {num_pages}, wanted at least 1")
        self.num_pages, self.page_bytes, self.size_bytes = num_pages, page_bytes, num_pages * page_bytes
        self._free = list(range(num_pages))  # a heap
        self._reserved: dict[Hashable, int] = {}
        self._allocated: dict[Hashable, set[int]] = {}

    @property
    def num_allocated(self) -> int:
        """Pages in use."""
        return self.num_pages - len(self._free)

    @property
    def allocated_bytes(self) -> int:
        """Size of the pages in use."""
        return self.num_allocated * self.page_bytes

    @property
    def num_unreserved(self) -> int:
        """Pages that are neither allocated nor reserved."""
        return self.num_pages - sum(map(self.num_reserved, self._reserved))

    def num_held(self, owner: Hashable) -> int:
        """How many pages an owner has allocated."""
        return len(self._allocated.get(owner, ()))

    def held_bytes(self, owner: Hashable) -> int:
        """Size of the pages that an owner has allocated."""
        return self.num_held(owner) * self.page_bytes

    def num_reserved(self, owner: Hashable) -> int:
        """How many pages an owner may hold."""
        return max(self._reserved.get(owner, 0), self.num_held(owner))

    def reserve(self, owner: Hashable, num_pages: int) -> bool:
        """Let an owner hold up to `num_pages` from now on. False, and no change, if they are not available."""
        if max(num_pages, self.num_held(owner)) - self.num_reserved(owner) > self.num_unreserved:
            return False
        self._reserved[owner] = num_pages
        self._allocated.setdefault(owner, set())
        return True

    def allocate(self, owner: Hashable) -> int:
        """The lowest free page, for an owner that has reserved it."""
        assert self.num_held(owner) < self._reserved.get(owner, 0), f"{owner!r} exceeds its reservation"
        page = heapq.heappop(self._free)
        self._allocated[owner].add(page)
        return page

    def free(self, owner: Hashable, page: int) -> None:
        """Give one page back; the owner may allocate another one instead."""
        self._allocated[owner].remove(page)
        heapq.heappush(self._free, page)

    def release(self, owner: Hashable) -> None:
        """Give back all that an owner holds and has reserved."""
        del self._reserved[owner]
        for page in self._allocated.pop(owner):
            heapq.heappush(self._free, page)


def ring_shape(config: StreamChatConfig) -> tuple[int, int, int, int]:
    """Shape of the keys (or the values) of one camera's frames in one cross layer: [G, F, P, d]."""
    return (
        config.num_key_value_heads,
        config.fifo_frames,
        config.vision.num_visual_tokens,
        config.head_dim,
    )


def camera_bytes(config: StreamChatConfig, element_bytes: int) -> int:
    """Size of one camera's ring."""
    return len(config.cross_layers) * 2 * prod(ring_shape(config)) * element_bytes


def token_bytes(config: StreamChatConfig, element_bytes: int) -> int:
    """Size of one text token of a dialog, in all layers."""
    return config.num_hidden_layers * 2 * config.num_key_value_heads * config.head_dim * element_bytes


def num_default_text_pages(config: StreamChatConfig, *, max_dialogs: int, page_tokens: int) -> int:
    """Text pages for `max_dialogs` dialogs of `DEFAULT_DIALOG_TOKENS` tokens."""
    tokens = min(config.max_position_embeddings, DEFAULT_DIALOG_TOKENS)
    return max_dialogs * (-(-tokens // page_tokens) + 2)


def num_text_pages(
    config: StreamChatConfig, element_bytes: int, *, cache_bytes: int, max_cameras: int, page_tokens: int
) -> int:
    """Text pages that fit in `cache_bytes` beside the rings of `max_cameras`; raises ValueError if none fits."""
    rings = max_cameras * camera_bytes(config, element_bytes)
    page = page_tokens * token_bytes(config, element_bytes)
    if cache_bytes < rings + page:
        raise ValueError(
            f"cache_bytes: got {cache_bytes}, wanted at least {rings + page}: "
            f"{rings} for {max_cameras} cameras and {page} for one page of text"
        )
    return (cache_bytes - rings) // page
