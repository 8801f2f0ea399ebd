"""How a dialog sees its camera and generates tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from model.engine.sampling import SamplingParameters


@dataclass(frozen=True, slots=True, kw_only=True)
class DialogOptions(SamplingParameters):
    """What a dialog sees and when it stops; raises ValueError for a value out of range."""

    visual_context: Literal["live", "frozen"] = "live"  # frozen: only what was visible at the question
    num_frames: int | None = None  # newest frames to see; None: all that the ring holds
    max_tokens: int = 256  # of one turn
    stop_ids: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        SamplingParameters.__post_init__(self)
        if self.visual_context not in ("live", "frozen"):
            raise ValueError(f"visual_context: got {self.visual_context!r}, wanted 'live' or 'frozen'")
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"num_frames: got {self.num_frames}, wanted at least 1")
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens: got {self.max_tokens}, wanted at least 1")
