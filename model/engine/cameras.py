"""The cameras of an engine: each one's ring, and the moments of it that frozen dialogs still look at."""

from __future__ import annotations

from collections.abc import Collection

import torch

from model.engine.frame_ring import FrameRing
from model.engine.retention import Retention
from model.runtime.frame_ingest import FrameChain, NewFrame
from model.runtime.kv_cache import FrameKVCache


class EngineFull(RuntimeError):
    """No place for one more dialog or camera."""


class Cameras:
    """Rings by camera, those least recently asked about first."""

    def __init__(self, store: FrameKVCache, retention: Retention) -> None:
        """A ring is a page of `store`."""
        self.store, self.retention = store, retention
        self.rings: dict[str, FrameRing] = {}

    def ring(self, camera: str) -> FrameRing:
        """A camera's; raises ValueError if it was not added."""
        if camera not in self.rings:
            raise ValueError(f"camera: got {camera!r}, which was not added")
        return self.rings[camera]

    def touch(self, camera: str) -> None:
        """Somebody asks: the other cameras make way before this one."""
        self.rings[camera] = self.rings.pop(camera)

    def camera_to_evict(self, watched: Collection[str]) -> str | None:
        """The camera to drop if one more is to come, unless there is a free ring."""
        if self.store.pages.num_unreserved:
            return None
        spare = next((camera for camera in self.rings if camera not in watched), None)
        if spare is None:
            raise EngineFull(f"all {self.store.pages.num_pages} cameras are watched")
        return spare

    def add(self, camera: str) -> None:
        """An empty ring for a new camera; there is a free one."""
        taken = self.store.pages.reserve(camera, 1)
        assert taken, "no ring is free"
        self.rings[camera] = FrameRing(self.store.pages.allocate(camera), self.retention)

    def drop(self, camera: str) -> None:
        """Nobody looks at it any more."""
        if (snapshot := self.rings.pop(camera).snapshot) is not None:
            self.store.pages.release(snapshot)
        self.store.pages.release(camera)

    def add_frame(self, frame: NewFrame, chain: FrameChain) -> int | None:
        """A frame takes its place, by slot; None: its camera was dropped meanwhile."""
        ring = self.rings.get(frame.camera)
        if ring is None:
            return None
        if ring.snapshot is not None and not ring.snapshot.num_dialogs:
            self.store.pages.release(ring.snapshot)
        slot = ring.add(frame.frame_id, frame.captured_s)
        self.store.write(ring.page, slot, chain)
        return slot

    @torch.inference_mode()
    def acquire_snapshot(self, live: FrameRing) -> FrameRing:
        """A copy of a ring for one more who looks at it, one for all who ask at the same frame."""
        if live.snapshot is None:
            snapshot, pages = live.copy_to(-1), self.store.pages
            if not pages.reserve(snapshot, 1):
                raise EngineFull(f"all {pages.num_pages} rings are taken: none is left for a frozen moment")
            snapshot.page = pages.allocate(snapshot)
            self.store.copy(live.page, snapshot.page)
            live.snapshot = snapshot
        live.snapshot.num_dialogs += 1
        return live.snapshot

    def release_snapshot(self, frozen: FrameRing, live: FrameRing) -> None:
        """One fewer looks at a copy. The newest one stays, for who asks before the next frame."""
        frozen.num_dialogs -= 1
        if not frozen.num_dialogs and live.snapshot is not frozen:
            self.store.pages.release(frozen)
