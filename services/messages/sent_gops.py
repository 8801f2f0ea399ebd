"""The packets that each camera has sent since its last keyframe, so that they can be sent again."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.messages.video_record import RawRecord

MAX_BYTES = 32 * 2**20  # of all cameras; beyond it, the camera that has sent nothing for longest is dropped
MAX_AGE_S = 20.0  # of a keyframe: older packets are too late for readers


@dataclass(slots=True)
class SentGop:
    """A keyframe and the packets after it."""

    began_s: float  # monotonic: when the keyframe was sent
    records: list[RawRecord] = field(default_factory=list[RawRecord])
    num_bytes: int = 0


class SentGops:
    """The newest GOP of each camera. Bounded in bytes."""

    def __init__(self, max_bytes: int = MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._gops: dict[str, SentGop] = {}  # the camera that sent last is the last
        self.num_bytes = 0

    def add(self, camera: str, record: RawRecord, *, keyframe: bool, now_s: float) -> None:
        """A packet is sent. One without a known keyframe is not kept."""
        gop = self._gops.pop(camera, None)
        if gop is not None and (keyframe or now_s - gop.began_s > MAX_AGE_S):
            self.num_bytes -= gop.num_bytes
            gop = None
        if gop is None and not keyframe:
            return
        gop = self._gops[camera] = gop or SentGop(now_s)
        size = len(record.value or b"")
        gop.records.append(record)
        gop.num_bytes += size
        self.num_bytes += size
        while self.num_bytes > self._max_bytes:
            self.num_bytes -= self._gops.pop(next(iter(self._gops))).num_bytes

    def records(self, camera: str, *, now_s: float) -> list[RawRecord]:
        """The keyframe and all packets after it, in order; none when the keyframe is too old or not known."""
        gop = self._gops.get(camera)
        return [*gop.records] if gop is not None and now_s - gop.began_s <= MAX_AGE_S else []
