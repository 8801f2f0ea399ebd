"""Frames on their way into the rings: their keys and values are computed beside decoding, in pieces that stop nobody.

On a CPU a piece is some visual tokens' way through one layer, done between two steps. On a GPU all of a batch runs on
a stream of its own, beside the steps, and is taken in when it is done.

Letters: N frames of a batch, P visual tokens a frame, Dv the vision encoder's width.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.engine.work_budget import WorkBudget
from model.network.attention import KeysValues
from model.network.layer import run_frame_layers
from model.network.streamchat import StreamChat
from model.runtime.packed_model import PackedModel

log = logging.getLogger(__name__)

MAX_BATCH_TOKENS = 2048  # visual tokens that are computed together


@dataclass(frozen=True, slots=True, eq=False)
class NewFrame:
    """A frame that waits: `features` [P, Dv], the vision encoder's output."""

    camera: str
    frame_id: str
    captured_s: float
    features: Tensor


FrameKeysValues = list[KeysValues]  # of one frame: [P, G, d] per cross layer
Batch = tuple[list[FrameKeysValues], Tensor]  # of its frames, and which of them are finite, bool [N]


class FrameIngest:
    """The frames of all cameras that wait, oldest first."""

    def __init__(self, model: StreamChat, packed: PackedModel) -> None:
        self._config, self._adapter = model.config, model.adapter
        self._layers = [packed.layers[index] for index in model.config.cross_layers]
        self._waiting: deque[NewFrame] = deque()
        self._batch: list[NewFrame | None] = []  # None: its camera was dropped meanwhile
        self.num_skipped = 0  # frames that are not finite, or failed alone
        self._num_alone = 0  # frames that waited in a batch that failed: each gets a batch of its own
        self._work: Iterator[Batch | None] = iter(())
        self.budget = WorkBudget(8, MAX_BATCH_TOKENS)
        self._max_tokens = self._num_tokens = 1  # allowed in the piece in progress, and in it
        weight = model.language.embed_tokens.weight
        self._dtype, device = weight.dtype, weight.device
        self._rotation = model.rope.grid_rotation(device).unsqueeze(2)  # [2, P, 1, d]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._in_flight: tuple[torch.cuda.Event, Batch] | None = None

    @property
    def busy(self) -> bool:
        """Whether a frame waits or is being worked on."""
        return bool(self._batch or self._waiting)

    def add(self, frames: Sequence[NewFrame], capacity: int) -> None:
        """Add frames of one camera, oldest first; only the newest `capacity` of them are kept."""
        self._waiting.extend(frames)
        surplus = sum(frame.camera == frames[0].camera for frame in self._waiting) - capacity
        for frame in [each for each in self._waiting if each.camera == frames[0].camera][: max(surplus, 0)]:
            self._waiting.remove(frame)

    def drop_camera(self, camera: str) -> None:
        """Drop a camera's frames, those in the batch in progress included."""
        self._waiting = deque(frame for frame in self._waiting if frame.camera != camera)
        self._batch = [frame if frame and frame.camera != camera else None for frame in self._batch]

    @torch.inference_mode()
    def run_piece(self, allowed_s: float) -> list[tuple[NewFrame, FrameKeysValues]]:
        """Do one piece of the work, meant to take less than half of `allowed_s`; returns the frames that are ready.

        Frames with NaN or infinity are skipped: whoever looked at them would fail. If a batch fails, its frames are
        tried one by one. Raises for a frame that fails alone; it is skipped.
        """
        if not self._batch:
            self._begin()
        began, self._max_tokens = time.perf_counter(), self.budget.num_tokens(allowed_s)
        try:
            done = self._poll() if self._stream is not None else next(self._work)
        except Exception:
            failed, self._batch, self._work, self._in_flight = self._batch, [], iter(()), None
            if len(failed) == 1:
                self.num_skipped += 1
                raise
            again = [frame for frame in failed if frame]
            self._waiting.extendleft(reversed(again))
            self._num_alone = len(again)
            return []
        self.budget.record(self._num_tokens, time.perf_counter() - began)
        if done is None:
            return []
        batch, self._batch, self._work = self._batch, [], iter(())
        ready = list[tuple[NewFrame, FrameKeysValues]]()
        for frame, keys_values, is_finite in zip(batch, done[0], done[1].tolist(), strict=True):
            if frame and is_finite:
                ready.append((frame, keys_values))
            elif frame:
                self.num_skipped += 1
                log.warning(
                    "camera %s: frame %s has NaN or infinity, and is skipped", frame.camera, frame.frame_id
                )
        return ready

    def _begin(self) -> None:
        size = 1 if self._num_alone else max(MAX_BATCH_TOKENS // self._config.vision.num_visual_tokens, 1)
        self._num_alone = max(self._num_alone - 1, 0)
        frames = [self._waiting.popleft() for _ in range(min(size, len(self._waiting)))]
        self._batch = list(frames)
        self._work = self._compute([frame.features for frame in frames])

    def _poll(self) -> Batch | None:
        """On a GPU the whole batch is started at once, on its own stream; None until it is done."""
        assert self._stream is not None
        if self._in_flight is None:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                while (batch := next(self._work)) is None:
                    pass
                done = torch.cuda.Event()
                done.record()
            self._in_flight = done, batch
        done, batch = self._in_flight
        if not done.query():
            return None
        for keys, values in (pair for frame in batch[0] for pair in frame):
            keys.record_stream(torch.cuda.current_stream())
            values.record_stream(torch.cuda.current_stream())
        self._in_flight = None
        return batch

    def _compute(self, features: Sequence[Tensor]) -> Iterator[Batch | None]:
        """The same as `StreamChat.frame_keys_values`, some tokens and one layer at a time; the batch comes last."""
        rotation = self._rotation.repeat(1, len(features), 1, 1)  # [2, N * P, 1, d]
        rows = torch.stack(list(features)).to(rotation.device, self._dtype).flatten(0, 1)
        pieces: list[list[KeysValues]] = []
        while len(rows):
            size = len(rows) if self._stream is not None else min(self._max_tokens, len(rows))
            self._num_tokens = size
            visual, piece_rotation = self._adapter(rows[:size]), rotation[:, :size]
            rows, rotation = rows[size:], rotation[:, size:]
            pieces.append([])
            yield None
            for keys_values in run_frame_layers(self._layers, visual, piece_rotation):
                pieces[-1].append(keys_values)
                yield None
        by_layer = [
            tuple(torch.cat(side).unflatten(0, (len(features), -1)) for side in zip(*layer, strict=True))
            for layer in zip(*pieces, strict=True)
        ]
        # What is not finite stays so in all later visual states, and makes NaN of a whole row of the last keys.
        is_finite = by_layer[-1][0].sum((1, 2, 3), dtype=torch.float32).isfinite()
        frames = [[(keys[n], values[n]) for keys, values in by_layer] for n in range(len(features))]
        yield frames, is_finite
