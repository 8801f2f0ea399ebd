"""Frames on their way into the rings: their chains are computed beside decoding, in pieces that stop nobody.

On a CPU a piece is some visual tokens' way through one layer, done between two steps. On a GPU all of a batch runs on
a stream of its own, beside the steps, and is taken in when it is done.

Letters: N frames of a batch, P visual tokens a frame, Dv the vision encoder's width.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.engine.work_budget import WorkBudget
from model.network.layer import KeysValues
from model.network.streamchat import StreamChat
from model.runtime.frame_layer import FrameLayer
from model.runtime.packed_model import Decoding

MAX_BATCH_TOKENS = 2048  # visual tokens whose chains are computed together


@dataclass(frozen=True, slots=True, eq=False)
class NewFrame:
    """A frame that waits: `features` [P, Dv], the vision encoder's output."""

    camera: str
    frame_id: str
    captured_s: float
    features: Tensor


Chain = list[KeysValues]  # of one frame: [P, G, d] per cross layer


class Intake:
    """The frames of all cameras that wait, oldest first."""

    def __init__(self, model: StreamChat, decoding: Decoding) -> None:
        self._config, self._adapter = model.config, model.adapter
        with torch.no_grad():
            self._layers = [
                FrameLayer(model.layer(number), decoding.layers[number].frames)
                for number in model.config.cross_layers
            ]
        self._waiting: deque[NewFrame] = deque()
        self._batch: list[NewFrame] = []
        self._work: Generator[None, None, list[Chain]] | None = None
        self.pace = WorkBudget(8, MAX_BATCH_TOKENS)
        self._wanted = self._num_rows = 1  # of the piece in progress
        weight = model.language.embed_tokens.weight
        self._dtype, device = weight.dtype, weight.device
        cos, sin = model.rope.place(device)
        self._place = torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None]  # [P, 1, d]
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._beside: tuple[torch.cuda.Event, list[Chain]] | None = None

    @property
    def busy(self) -> bool:
        """Whether a frame waits or is being worked on."""
        return bool(self._batch or self._waiting)

    def put(self, frames: Sequence[NewFrame], capacity: int) -> None:
        """Frames of one camera, oldest first; of more than a ring holds, the oldest are never looked at."""
        self._waiting.extend(frames)
        surplus = sum(frame.camera == frames[0].camera for frame in self._waiting) - capacity
        for frame in [each for each in self._waiting if each.camera == frames[0].camera][: max(surplus, 0)]:
            self._waiting.remove(frame)

    def forget(self, camera: str) -> None:
        """Its frames need not come any more."""
        self._waiting = deque(frame for frame in self._waiting if frame.camera != camera)

    def piece(self, allowed_s: float) -> list[tuple[NewFrame, Chain]]:
        """Do one piece of the work, meant to take less than half of `allowed_s`; the frames that are ready now."""
        if not self._batch:
            self._begin()
        began, self._wanted = time.perf_counter(), self.pace.num_tokens(allowed_s)
        try:
            done = self._poll() if self._stream is not None else self._advance()
        except BaseException:  # these frames are lost, and must not stop those that come after them
            self._batch, self._work, self._beside = [], None, None
            raise
        self.pace.record(self._num_rows, time.perf_counter() - began)
        if done is None:
            return []
        ready, self._batch, self._work = list(zip(self._batch, done, strict=True)), [], None
        return ready

    def _begin(self) -> None:
        patches = self._config.vision.num_visual_tokens
        while self._waiting and (len(self._batch) + 1) * patches <= max(MAX_BATCH_TOKENS, patches):
            self._batch.append(self._waiting.popleft())
        self._work = self._chains([frame.features for frame in self._batch])

    def _advance(self) -> list[Chain] | None:
        assert self._work is not None
        try:
            next(self._work)
        except StopIteration as end:
            return end.value
        return None

    def _poll(self) -> list[Chain] | None:
        """The GPU's way: the whole batch is started at once, and asked after."""
        assert self._stream is not None
        if self._beside is None:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                while (chains := self._advance()) is None:
                    pass
                done = torch.cuda.Event()
                done.record()
            self._beside = done, chains
        done, chains = self._beside
        if not done.query():
            return None
        for keys, values in (pair for chain in chains for pair in chain):
            keys.record_stream(torch.cuda.current_stream())
            values.record_stream(torch.cuda.current_stream())
        self._beside = None
        return chains

    @torch.inference_mode()
    def _chains(self, features: Sequence[Tensor]) -> Generator[None, None, list[Chain]]:
        """What `visual_chain` computes, some tokens and one layer at a time."""
        cos, sin = (part.repeat(len(features), 1, 1) for part in self._place)
        rows = torch.stack(list(features)).to(cos.device, self._dtype).flatten(0, 1)
        parts: list[list[KeysValues]] = []
        while len(rows):
            size = len(rows) if self._stream is not None else self._wanted
            self._num_rows = min(size, len(rows))
            visual, place = self._adapter(rows[:size]), (cos[:size], sin[:size])
            rows, cos, sin = rows[size:], cos[size:], sin[size:]
            parts.append([])
            for layer in self._layers:
                yield
                keys_values, visual = layer.see(visual, place)
                parts[-1].append(keys_values)
            yield
        by_layer = [
            tuple(torch.cat(side).unflatten(0, (len(features), -1)) for side in zip(*layer, strict=True))
            for layer in zip(*parts, strict=True)
        ]
        return [[(keys[n], values[n]) for keys, values in by_layer] for n in range(len(features))]
