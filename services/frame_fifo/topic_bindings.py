"""Which topic each camera belongs to, so that a writer to one topic cannot speak as a camera of another.

A rule of the settings decides; without one, a camera belongs to the topic on which it was first seen. All replicas
agree, because the store keeps that topic while the camera sends.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable

from services.ports.frame_store import FrameStore, StoreLost
from services.settings import Settings

CHECK_EVERY_S = 2.0  # whether a camera of another topic has gone
RETRY_S = 1.0  # after the store was lost


class TopicBindings:
    """`owner` belongs to one thread, `renew` to another."""

    def __init__(self, settings: Settings, store: FrameStore) -> None:
        self._rules = [
            (re.compile(camera), re.compile(topic)) for camera, topic in settings.camera_topic_rules
        ]
        self._store = store
        self._keep_s = settings.forget_after_s
        self._lock = threading.Lock()
        self._owners: dict[str, tuple[str, float]] = {}  # camera -> topic, monotonic time of the answer
        self._retry_at = 0.0  # monotonic

    def owner(self, camera: str, topic: str) -> str | None:
        """The topic that a camera belongs to, for a packet from `topic`; None while the store cannot tell.

        It asks the store about a new camera, and now and then about one that belongs elsewhere.
        """
        for cameras, topics in self._rules:
            if cameras.fullmatch(camera):
                return topic if topics.fullmatch(topic) else topics.pattern
        now = time.monotonic()
        known, asked_at = self._owners.get(camera, (None, 0.0))
        if known == topic or (known is not None and now - asked_at < CHECK_EVERY_S) or now < self._retry_at:
            return known
        try:
            found = self._store.bind({camera: topic}, self._keep_s)[camera]
        except StoreLost:
            self._retry_at = now + RETRY_S
            return known
        with self._lock:
            self._owners[camera] = found, now
        return found

    def renew(self, sources: Iterable[tuple[str, str]]) -> None:
        """Keep the bindings of the cameras that send, given with their topics; forget the others. Raises StoreLost."""
        own = {
            camera: topic for camera, topic in sources if self._owners.get(camera, (None, 0.0))[0] == topic
        }
        asked_at = time.monotonic()
        found = self._store.bind(own, self._keep_s)
        with self._lock:
            oldest = asked_at - CHECK_EVERY_S
            kept = {one: known for one, known in self._owners.items() if known[1] > oldest}
            self._owners = kept | {camera: (topic, asked_at) for camera, topic in found.items()}
