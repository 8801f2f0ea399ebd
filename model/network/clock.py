"""The temporal index of parallel 3D-RoPE (paper, section 2.1): one clock for training and inference.

Letters: T text tokens, N frames. Times are seconds on any one clock. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Times = Sequence[float] | npt.NDArray[np.floating]


@dataclass(slots=True)
class Clock:
    """A dialog's clock: tells each frame and each text token its temporal index, as they come.

    Only differences of indices matter to the model, so a clock may start anywhere and run for days.
    """

    value: int = 0
    last_text: int | None = None  # index of the newest text token
    speaking: bool = False  # a turn is in progress
    fresh: bool = False  # the turn in progress has no token yet

    def frame_arrived(self) -> int:
        """Index of a frame that arrives now: its own moment, or during a turn the moment of the newest token."""
        if not self.speaking:
            self.value += 1
        return self.value

    def turn_started(self) -> None:
        """The next token is the first one of a turn (the question's)."""
        self.speaking, self.fresh = True, True

    def token_made(self) -> int:
        """Index of the next text token: contiguous within a turn, whatever the frame rate."""
        if not self.speaking:
            raise ValueError("token_made: got a token outside a turn, wanted turn_started before it")
        if not self.fresh:
            self.value += 1
        elif self.last_text is not None:
            self.value = max(self.value, self.last_text + 1)
        self.fresh = False
        self.last_text = self.value
        return self.value

    def turn_ended(self) -> None:
        """Nobody speaks from now on: frames advance the clock again."""
        self.speaking, self.fresh = False, False


def indices(
    text_times: Times, frame_times: Times, turns: Sequence[int] = (0,)
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Temporal indices of a whole sample: the clock above, fed with all events in the order of their times.

    A frame captured exactly at a token's time arrives before it. A turn ends with its last token.

    Args:
        text_times: [T] seconds, never falling. All tokens of a question have the time at which it is asked.
        frame_times: [N] capture seconds, never falling.
        turns: positions in `text_times` at which turns start; the first is 0.

    Returns:
        text index [T] and frame index [N].

    Raises:
        ValueError: times that fall, or turns that do not start at 0 and rise.
    """
    spoken, captured = _rising("text_times", text_times), _rising("frame_times", frame_times)
    starts = list(turns)
    if len(spoken) and (
        not starts or starts[0] != 0 or sorted(set(starts)) != starts or starts[-1] >= len(spoken)
    ):
        raise ValueError(f"turns: got {starts}, wanted rising positions from 0 to below {len(spoken)}")
    text_index, frame_index = np.empty(len(spoken), np.int64), np.empty(len(captured), np.int64)
    clock, arrived, boundaries = Clock(), 0, set(starts)
    for position, time_s in enumerate(spoken):
        if position in boundaries:
            clock.turn_ended()
        while arrived < len(captured) and captured[arrived] <= time_s:
            frame_index[arrived] = clock.frame_arrived()
            arrived += 1
        if position in boundaries:
            clock.turn_started()
        text_index[position] = clock.token_made()
    clock.turn_ended()
    for rest in range(arrived, len(captured)):
        frame_index[rest] = clock.frame_arrived()
    return text_index, frame_index


def visibility(query_times: Times, frame_times: Times, capacity: int) -> npt.NDArray[np.bool_]:
    """Which frames a position sees: the newest `capacity` captured at or before its time, never a later one.

    A position predicts the next token, so give the NEXT tokens' times as `query_times`.

    Args:
        query_times: [T] seconds, in any order.
        frame_times: [N] capture seconds, never falling.
        capacity: F, frames in the FIFO.

    Returns:
        bool [T, N].
    """
    captured = _rising("frame_times", frame_times)
    count = np.searchsorted(captured, np.asarray(query_times, np.float64), side="right")[:, None]
    number = np.arange(len(captured))[None]
    return (number < count) & (number >= count - capacity)


def _rising(name: str, times: Times) -> npt.NDArray[np.float64]:
    values = np.asarray(times, np.float64)
    if values.ndim != 1 or np.any(np.diff(values) < 0) or not np.all(np.isfinite(values)):
        raise ValueError(
            f"{name}: got times that fall, are not finite or not one row, wanted seconds in order"
        )
    return values
