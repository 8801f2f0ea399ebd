"""The capture times of one camera, which go on when its clock is set back or forward.

The times of frames must not go back: the store would refuse the frames until the clock has caught up.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from services.messages.video import VideoPacket

BACK_S = 0.5  # a step back by more is a jump
REORDERED_S = 5.0  # but by less it may be a picture that is encoded out of order
FORWARD_S = 5.0  # a step forward by so much more than the pictures' own times and our clock is a jump
RELAX = 0.5  # of the time that passes: how fast a shift goes away that is not needed any more
TOLD_S = 1.0  # a smaller shift is no problem


@dataclass(slots=True)
class CaptureClock:
    """Shifts a camera's capture times after a jump, until the camera's clock is nearer to ours than they are."""

    shift_s: float = 0.0
    num_jumps: int = 0
    _last: VideoPacket | None = None
    _began_s: float | None = None  # capture time of the publisher's first packet
    _read_at: float = 0.0  # monotonic

    def captured_s(self, packet: VideoPacket) -> float:
        """When the packet was captured. To be called once for each packet, in order."""
        last, passed_s = self._last, time.monotonic() - self._read_at
        self._last, self._read_at = packet, time.monotonic()
        # A packet that is read again has its time from before.
        begins = packet.seq == 0 and packet.captured_s != self._began_s
        if begins:
            self._began_s = packet.captured_s
        if last is None or (packet.seq != last.seq + 1 and not begins):
            return packet.captured_s + self.shift_s
        step_s = packet.captured_s - last.captured_s
        pts_step_s = (packet.pts - last.pts) * packet.time_base[0] / packet.time_base[1]
        if begins:  # its own times begin again, too
            pts_step_s = min(passed_s, 1.0)
        jump_s = step_s - min(max(pts_step_s, 0.001), 1.0)
        is_back = step_s < -(BACK_S if pts_step_s > 0 else REORDERED_S)
        is_forward = step_s - max(0.0, pts_step_s, passed_s) > FORWARD_S
        if is_back or (is_forward and not self._is_nearer(packet.captured_s, self.shift_s - jump_s)):
            self.num_jumps += 1
            self.shift_s -= jump_s
        else:
            self._relax(packet.captured_s, step_s)
        return packet.captured_s + self.shift_s

    @property
    def problem(self) -> str:
        """For people, while times are shifted."""
        if abs(self.shift_s) < TOLD_S:
            return ""
        side = "back" if self.shift_s > 0 else "forward"
        return f"its clock was set {side} by {abs(self.shift_s):.0f} s: its frames keep the time from before"

    def _is_nearer(self, captured_s: float, shift_s: float) -> bool:
        """Whether the time without the shift is nearer to our clock: the camera's was set right, or all have slept."""
        now = time.time()
        return abs(captured_s - now) < abs(captured_s + shift_s - now)

    def _relax(self, captured_s: float, step_s: float) -> None:
        if self._is_nearer(captured_s, self.shift_s):
            less_s = min(abs(self.shift_s), RELAX * max(0.0, step_s))
            self.shift_s -= less_s if self.shift_s > 0 else -less_s
