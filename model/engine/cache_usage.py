"""How much of the caches is in use, in bytes."""

from __future__ import annotations

from collections.abc import Hashable

from model.config import StreamChatConfig
from model.engine.pages import PagePool, camera_bytes, token_bytes


class CacheUsage:
    """Reads the page pools of an engine."""

    def __init__(
        self,
        config: StreamChatConfig,
        element_bytes: int,
        *,
        frame_pages: PagePool,
        text_pages: PagePool,
        page_tokens: int,
    ) -> None:
        self._frame_pages, self._text_pages = frame_pages, text_pages
        self.camera_bytes = camera_bytes(config, element_bytes)  # of one camera's ring
        self._page_bytes = page_tokens * token_bytes(config, element_bytes)

    @property
    def frame_bytes(self) -> int:
        """Rings of cameras and snapshots in use."""
        return self._frame_pages.num_allocated * self.camera_bytes

    @property
    def text_bytes(self) -> int:
        """Pages of text in use."""
        return self._text_pages.num_allocated * self._page_bytes

    @property
    def limit_bytes(self) -> int:
        """Size of both caches."""
        return self._frame_pages.num_pages * self.camera_bytes + self._text_pages.num_pages * self._page_bytes

    def dialog_bytes(self, dialog: Hashable) -> int:
        """Pages of text that one dialog has in use."""
        return self._text_pages.num_held(dialog) * self._page_bytes
