"""Micro-batches of random questions about random live-world clips. A micro-batch depends on seed and index.

Letters: C clips, N frames of a clip, S pixels along a side, P visual tokens, Dv the encoder's width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from model.config import StreamChatConfig
from training.data.micro_batch import MicroBatch
from training.data.token_row import Floats, TokenRow, collate
from training.live_world.clips import Clip, clip_labels, frame_times
from training.live_world.curriculum.dialog_tokenizer import DialogTokenizer
from training.live_world.curriculum.tasks import caption_rows, dialog_rows, flip_book_row
from training.live_world.world import World
from training.run.recipe import Recipe

SPAN_S = 8.0  # length of a window of frames from its first question on; one FIFO comes before it
# Flip books: (frames of a scene, scenes in succession). An event begins or ends between two successive scenes.
SCENES, SCENE_SHARES = ((1, 1), (3, 1), (3, 2)), (0.3, 0.2, 0.5)
# Share of the captions whose newest frame, or the one before it, is the first with a change.
CHANGE_SHARE = 0.5
Numbers = np.ndarray[Any, Any]


class LiveWorldMicroBatches:
    """Makes micro-batches of clips. `clip_frames` [clips, N, ...]: their pictures or features."""

    def __init__(
        self,
        clips: list[Clip],
        tokenizer: PreTrainedTokenizerFast,
        config: StreamChatConfig,
        recipe: Recipe,
        clip_frames: Numbers,
    ) -> None:
        self.clips, self.config, self.recipe, self.clip_frames = clips, config, recipe, clip_frames
        self.num_frames = int(clip_frames.shape[1])
        self.labels = lru_cache(maxsize=None)(self._labels)  # labels of all clips at once would take seconds
        self.pad_id = int(tokenizer.convert_tokens_to_ids("<|endoftext|>"))  # type: ignore[arg-type]
        self.tokenizer = DialogTokenizer(tokenizer, config.fifo_frames)

    @property
    def window(self) -> int:
        """Number of frames in a window."""
        return min(int(SPAN_S * self.config.frames_per_second) + self.config.fifo_frames, self.num_frames)

    def micro_batch(self, index: int) -> MicroBatch:
        """The micro-batch at an index of the run. The same seed gives the same micro-batch.

        The curriculum: first one picture, then the newest of several pictures, then dialogs at the clips' own pace.
        Without dense instructions there are only captions.
        """
        rng, recipe = np.random.default_rng([self.recipe.seed, 7, index]), self.recipe
        num = min(recipe.micro_batch, len(self.clips))
        clips = [int(c) for c in rng.choice(len(self.clips), size=num, replace=False)]
        step = index // recipe.micro_batches_per_step
        pictures = step < recipe.picture_steps
        capacity = 1 if step < recipe.one_picture_steps else int(rng.choice((1, 2, 4, 8, 16, 16)))
        kind = float(rng.random())
        if "dense" not in recipe.kinds:
            return self.captions(rng, clips, capacity, index)
        if not pictures and kind > recipe.flip_books:
            return self.dialogs(rng, clips, index)
        if kind < recipe.flip_books * (1.0 if pictures else 0.5):
            return self.flip_books(rng, clips, capacity, index)
        return self.captions(rng, clips, capacity, index)

    def empty(self, index: int) -> MicroBatch:
        """A micro-batch without any loss."""
        micro_batch = self.micro_batch(0)
        micro_batch.tokens.loss_mask[:] = False
        return replace(micro_batch, index=index, num_clips=0, sample_ids=())

    def dialogs(self, rng: np.random.Generator, clips: list[int], index: int = 0) -> MicroBatch:
        """Dialogs at the clips' own pace."""
        starts = rng.integers(0, self.num_frames - self.window + 1, size=len(clips))
        max_steps = int(rng.choice((8, 14, 20, 36), p=(0.2, 0.35, 0.3, 0.15)))
        frames = starts[:, None] + np.arange(self.window)
        rows = [
            dialog_rows(rng, self.tokenizer, world, times, self.recipe.rows_per_clip, SPAN_S, max_steps)
            for world, times in self._worlds(clips, frames)
        ]
        return self._micro_batch(index, clips, frames, rows)

    def captions(
        self, rng: np.random.Generator, clips: list[int], capacity: int, index: int = 0
    ) -> MicroBatch:
        """One FIFO of frames of each clip, and short answers at once; some show a change (`CHANGE_SHARE`)."""
        window = min(self.config.fifo_frames, capacity) + 1
        # Half a second at the end is left for the answer.
        last = self.num_frames - window - int(0.5 * self.config.frames_per_second)
        starts = rng.integers(0, last + 1, size=len(clips))
        for c in np.flatnonzero(rng.random(len(clips)) < CHANGE_SHARE):
            newest = self.changes(clips[c]) + rng.integers(0, 2)
            fitting = np.intersect1d(newest - window + 1, np.arange(last + 1))
            starts[c] = rng.choice(fitting) if len(fitting) else starts[c]
        frames = starts[:, None] + np.arange(window)
        rows = [
            caption_rows(rng, self.tokenizer, world, times, self.recipe.rows_per_clip, capacity)
            for world, times in self._worlds(clips, frames)
        ]
        return self._micro_batch(index, clips, frames, rows)

    def flip_books(
        self, rng: np.random.Generator, clips: list[int], capacity: int, index: int = 0
    ) -> MicroBatch:
        """Scenes of each clip in random order, and long answers about them."""
        length, num_successive = SCENES[int(rng.choice(len(SCENES), p=SCENE_SHARES))]
        max_steps = int(rng.choice((12, 20, 28)))
        num = self.recipe.flip_book_frames // (length * num_successive)
        scenes = [self._scenes(rng, clip, num, length, num_successive) for clip in clips]
        frames = np.stack(scenes)  # [C, S, L]
        rows = [
            [
                flip_book_row(rng, self.tokenizer, world, times, max_steps, capacity, num_successive)
                for _ in range(self.recipe.flip_book_rows)
            ]
            for world, times in self._worlds(clips, frames)
        ]
        return self._micro_batch(index, clips, frames.reshape(len(clips), -1), rows)

    def _scenes(
        self, rng: np.random.Generator, clip: int, num: int, length: int, num_successive: int
    ) -> Numbers:
        """Frames [S, L] of `num` groups of `num_successive` scenes; two successive scenes meet at a change, if any."""
        starts = np.arange(self.num_frames - length * num_successive + 1)
        first = rng.permutation(starts)[:num]
        if num_successive > 1:
            changes = rng.permutation(np.intersect1d(self.changes(clip) - length, starts))[:num]
            first[: len(changes)] = changes
        return (first[:, None] + np.arange(length * num_successive)).reshape(-1, length)

    def changes(self, clip: int) -> Numbers:
        """Numbers of the frames of a clip that are the first after an event begins or ends."""
        times = frame_times(clip, self.num_frames, self.config.frames_per_second)
        events = self.clips[clip].world.events
        return np.searchsorted(times, [t for event in events for t in (event.start_s, event.end_s)])

    def _labels(self, clip: int) -> Numbers:
        times = frame_times(clip, self.num_frames, self.config.frames_per_second)
        return clip_labels(self.clips[clip], times)

    def _worlds(self, clips: list[int], frames: Numbers) -> Iterator[tuple[World, Floats]]:
        for clip, numbers in zip(clips, frames, strict=True):
            times = frame_times(clip, self.num_frames, self.config.frames_per_second)
            yield self.clips[clip].world, times[numbers]

    def _micro_batch(
        self, index: int, clips: list[int], frames: Numbers, rows: list[list[TokenRow]]
    ) -> MicroBatch:
        clip_of_row = [c for c, of_clip in enumerate(rows) for _ in of_clip]
        which = np.array(clips)[:, None], frames  # [C, F]
        clip_frames = np.asarray(self.clip_frames[which])
        pictures = clip_frames.dtype == np.uint8
        return MicroBatch(
            index=index,
            tokens=collate([row for of_clip in rows for row in of_clip], clip_of_row, self.pad_id),
            num_clips=len(clips),
            features=None if pictures else clip_frames,
            pictures=clip_frames.reshape(-1, *clip_frames.shape[2:]) if pictures else None,
            place_labels=np.stack(
                [self.labels(clip)[numbers] for clip, numbers in zip(clips, frames, strict=True)]
            ),
            sample_ids=tuple(f"world-{index}-{i}" for i in range(len(clip_of_row))),
        )
