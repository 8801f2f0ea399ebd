"""Parts made of the live world's own language: random questions about random clips, from the part's number alone.

Letters: C clips, N frames of a clip, S pixels along a side, P visual tokens, Dv the encoder's width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedTokenizerFast

from model.config import StreamChatConfig
from training.data.micro_batch import MicroBatch
from training.data.token_row import Floats, TokenRow, collate
from training.live_world.clips import Clip, clip_labels, frame_times
from training.live_world.curriculum.dialog_tokenizer import DialogTokenizer
from training.live_world.curriculum.tasks import caption_rows, flip_book_row, random_rows
from training.live_world.world import World
from training.run.recipe import Recipe

if TYPE_CHECKING:  # what only makes parts need not load the encoder's code
    pass

SPAN_S = 8.0  # a window of frames: this long from the first question on, and one FIFO before it
# Of flip books: frames of a scene, and how many scenes follow each other; at the second, something begins or ends.
SCENES, SCENE_SHARES = ((1, 1), (3, 1), (3, 2)), (0.3, 0.2, 0.5)
CHANGED = 0.5  # share of the captions' FIFOs whose newest frame, or the one before it, is the first to show a change
Numbers = np.ndarray[Any, Any]


class LiveWorldMicroBatches:
    """Makes parts of clips; `seen` [clips, N, ...] are their pictures, or the encoder's output for them."""

    def __init__(
        self,
        clips: list[Clip],
        tokenizer: PreTrainedTokenizerFast,
        config: StreamChatConfig,
        recipe: Recipe,
        seen: Numbers,
    ) -> None:
        self.clips, self.config, self.recipe, self.seen = clips, config, recipe, seen
        self.num_frames = int(seen.shape[1])
        self.truth = lru_cache(maxsize=None)(self._truth)  # of all clips at once would take seconds
        self.pad_id = int(tokenizer.convert_tokens_to_ids("<|endoftext|>"))  # type: ignore[arg-type]
        self.maker = DialogTokenizer(tokenizer, config.fifo_frames)

    @property
    def window(self) -> int:
        """Frames of a window."""
        return min(int(SPAN_S * self.config.frames_per_second) + self.config.fifo_frames, self.num_frames)

    def part(self, number: int) -> MicroBatch:
        """The part of that number: the same for the same seed.

        The curriculum: first one picture, then finding the newest of several, then dialogs at the world's own pace.
        Without dense instructions there are only short answers at once.
        """
        rng, recipe = np.random.default_rng([self.recipe.seed, 7, number]), self.recipe
        num = min(recipe.micro_batch, len(self.clips))
        clips = [int(c) for c in rng.choice(len(self.clips), size=num, replace=False)]
        step = number // recipe.micro_batches_per_step
        pictures = step < recipe.picture_steps
        capacity = 1 if step < recipe.one_picture_steps else int(rng.choice((1, 2, 4, 8, 16, 16)))
        kind = float(rng.random())
        if "dense" not in recipe.kinds:
            return self.captions(rng, clips, capacity, number)
        if not pictures and kind > recipe.flip_books:
            return self.dialogs(rng, clips, number)
        if kind < recipe.flip_books * (1.0 if pictures else 0.5):
            return self.flip_books(rng, clips, capacity, number)
        return self.captions(rng, clips, capacity, number)

    def empty(self, number: int) -> MicroBatch:
        """A part in which nothing counts."""
        part = self.part(0)
        part.batch.counts[:] = False
        return replace(part, number=number, num_clips=0, samples=())

    def dialogs(self, rng: np.random.Generator, clips: list[int], number: int = 0) -> MicroBatch:
        """Dialogs at the clips' own pace."""
        starts = rng.integers(0, self.num_frames - self.window + 1, size=len(clips))
        longest = int(rng.choice((8, 14, 20, 36), p=(0.2, 0.35, 0.3, 0.15)))
        frames = starts[:, None] + np.arange(self.window)
        rows = [
            random_rows(rng, self.maker, world, times, self.recipe.rows_per_clip, SPAN_S, longest)
            for world, times in self._seen(clips, frames)
        ]
        return self._made(number, clips, frames, rows)

    def captions(
        self, rng: np.random.Generator, clips: list[int], capacity: int, number: int = 0
    ) -> MicroBatch:
        """One FIFO of frames of each clip, and short answers at once; in half of them something has just changed."""
        window = min(self.config.fifo_frames, capacity) + 1
        # Time is left to answer in.
        last = self.num_frames - window - int(0.5 * self.config.frames_per_second)
        starts = rng.integers(0, last + 1, size=len(clips))
        for place in np.flatnonzero(rng.random(len(clips)) < CHANGED):
            newest = self.changes(clips[place]) + rng.integers(0, 2)
            fitting = np.intersect1d(newest - window + 1, np.arange(last + 1))
            starts[place] = rng.choice(fitting) if len(fitting) else starts[place]
        frames = starts[:, None] + np.arange(window)
        rows = [
            caption_rows(rng, self.maker, world, times, self.recipe.rows_per_clip, capacity)
            for world, times in self._seen(clips, frames)
        ]
        return self._made(number, clips, frames, rows)

    def flip_books(
        self, rng: np.random.Generator, clips: list[int], capacity: int, number: int = 0
    ) -> MicroBatch:
        """Scenes of each clip in any order, and answers that go on while they are shown."""
        length, in_turn = SCENES[int(rng.choice(len(SCENES), p=SCENE_SHARES))]
        longest = int(rng.choice((12, 20, 28)))
        num = self.recipe.flip_book_frames // (length * in_turn)
        frames = np.stack([self._scenes(rng, clip, num, length, in_turn) for clip in clips])  # [C, S, L]
        rows = [
            [
                flip_book_row(rng, self.maker, world, times, longest, capacity, in_turn)
                for _ in range(self.recipe.flip_book_rows)
            ]
            for world, times in self._seen(clips, frames)
        ]
        return self._made(number, clips, frames.reshape(len(clips), -1), rows)

    def _scenes(self, rng: np.random.Generator, clip: int, num: int, length: int, in_turn: int) -> Numbers:
        """Frames [S, L] of `num` times `in_turn` scenes; where two follow each other, at a change if there is one."""
        starts = np.arange(self.num_frames - length * in_turn + 1)
        first = rng.permutation(starts)[:num]
        if in_turn > 1:
            changes = rng.permutation(np.intersect1d(self.changes(clip) - length, starts))[:num]
            first[: len(changes)] = changes
        return (first[:, None] + np.arange(length * in_turn)).reshape(-1, length)

    def changes(self, clip: int) -> Numbers:
        """The frames of a clip that are the first to show that something has begun or ended."""
        times = frame_times(clip, self.num_frames, self.config.frames_per_second)
        events = self.clips[clip].world.events
        return np.searchsorted(times, [t for event in events for t in (event.start_s, event.end_s)])

    def _truth(self, clip: int) -> Numbers:
        times = frame_times(clip, self.num_frames, self.config.frames_per_second)
        return clip_labels(self.clips[clip], times)

    def _seen(self, clips: list[int], frames: Numbers) -> Iterator[tuple[World, Floats]]:
        for clip, numbers in zip(clips, frames, strict=True):
            times = frame_times(clip, self.num_frames, self.config.frames_per_second)
            yield self.clips[clip].world, times[numbers]

    def _made(self, number: int, clips: list[int], frames: Numbers, rows: list[list[TokenRow]]) -> MicroBatch:
        clip_of_row = [place for place, made in enumerate(rows) for _ in made]
        which = np.array(clips)[:, None], frames  # [C, F]
        seen = np.asarray(self.seen[which])
        pictures = seen.dtype == np.uint8
        return MicroBatch(
            number=number,
            batch=collate([row for made in rows for row in made], clip_of_row, self.pad_id),
            num_clips=len(clips),
            features=None if pictures else seen,
            pictures=seen.reshape(-1, *seen.shape[2:]) if pictures else None,
            slots=np.arange(frames.size) if pictures else None,
            truth=np.stack([self.truth(clip)[numbers] for clip, numbers in zip(clips, frames, strict=True)]),
            samples=tuple(f"world-{number}-{i}" for i in range(len(clip_of_row))),
        )
