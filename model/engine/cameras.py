"""The cameras of an engine: a ring of frames for each, and the snapshots that frozen dialogs see."""

from __future__ import annotations

from collections.abc import Callable, Collection

from model.engine.admission import EngineFull
from model.engine.dialog import Dialog
from model.engine.frame_ring import FrameRing
from model.engine.pages import PagePool
from model.engine.retention import Retention


class Cameras:
    """Rings by camera; the camera that was asked about least recently comes first."""

    def __init__(self, pages: PagePool, retention: Retention, copy_ring: Callable[[int, int], None]) -> None:
        """`pages`: one for each ring; `copy_ring` copies the keys and values of a page to another one."""
        self._pages, self.retention, self._copy_ring = pages, retention, copy_ring
        self.rings: dict[str, FrameRing] = {}

    def ring(self, camera: str) -> FrameRing:
        """A camera's ring; raises ValueError if the camera was not added."""
        if camera not in self.rings:
            raise ValueError(f"camera: got {camera!r}, which was not added")
        return self.rings[camera]

    def touch(self, camera: str) -> None:
        """Mark a camera as the most recently asked about: other cameras are evicted before it."""
        self.rings[camera] = self.rings.pop(camera)

    def camera_to_evict(self, watched: Collection[str]) -> str | None:
        """The camera that one more camera would evict; None if a ring is free. Raises EngineFull."""
        if self._pages.num_unreserved:
            return None
        unwatched = next((camera for camera in self.rings if camera not in watched), None)
        if unwatched is None:
            raise EngineFull(f"all {self._pages.num_pages} cameras are watched")
        return unwatched

    def add(self, camera: str) -> None:
        """Add a camera with an empty ring. A ring must be free."""
        reserved = self._pages.reserve(camera, 1)
        assert reserved, "no ring is free"
        self.rings[camera] = FrameRing(self._pages.allocate(camera), self.retention)

    def drop(self, camera: str) -> None:
        """Free a camera's ring and its snapshot. No dialog may see them."""
        if (snapshot := self.rings.pop(camera).snapshot) is not None:
            self._pages.release(snapshot)
        self._pages.release(camera)

    def add_frame(self, camera: str, frame_id: str, captured_s: float) -> tuple[int, int] | None:
        """Add a camera's newest frame; returns its page and slot. None: the camera was dropped meanwhile."""
        ring = self.rings.get(camera)
        if ring is None:
            return None
        if ring.snapshot is not None and not ring.snapshot.num_dialogs:
            self._pages.release(ring.snapshot)
        return ring.page, ring.add(frame_id, captured_s)

    def select_ring(self, dialog: Dialog) -> None:
        """Let a dialog see its camera's ring, or, if it is frozen, a snapshot of it. Raises EngineFull."""
        self.leave_snapshot(dialog)
        if dialog.options.visual_context == "frozen":
            dialog.ring = self._acquire_snapshot(dialog.camera_ring)

    def leave_snapshot(self, dialog: Dialog) -> None:
        """Let a dialog see its camera's ring. The snapshot of the present frames stays for the next dialog."""
        snapshot, ring = dialog.ring, dialog.camera_ring
        dialog.see_camera()
        if snapshot is not ring:
            snapshot.num_dialogs -= 1
            if not snapshot.num_dialogs and ring.snapshot is not snapshot:
                self._pages.release(snapshot)

    def _acquire_snapshot(self, ring: FrameRing) -> FrameRing:
        """A copy of a ring's present frames; dialogs that ask at the same frame share it. Raises EngineFull."""
        if ring.snapshot is None:
            snapshot = ring.copy_to(-1)
            if not self._pages.reserve(snapshot, 1):
                num_rings = self._pages.num_pages
                raise EngineFull(f"all {num_rings} rings are taken: none is left for a frozen dialog")
            snapshot.page = self._pages.allocate(snapshot)
            self._copy_ring(ring.page, snapshot.page)
            ring.snapshot = snapshot
        ring.snapshot.num_dialogs += 1
        return ring.snapshot
