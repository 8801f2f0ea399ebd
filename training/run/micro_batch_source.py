"""Makes any micro-batch of a run from its index: from rows, from live-world clips, or from both."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from transformers import PreTrainedTokenizerFast

from model.checkpoint.tokenizer import load_tokenizer
from model.config import StreamChatConfig
from training.data.micro_batch import MicroBatch
from training.data.row_micro_batches import RowMicroBatches, RowSampler, RowTable
from training.data.row_tokenizer import RowTokenizer
from training.data.video_frames import FrameReader
from training.live_world.clips import training_clips
from training.live_world.curriculum.micro_batches import LiveWorldMicroBatches
from training.run.plan import Plan


class MicroBatchSource:
    """Makes the micro-batches of a run, in any order."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.recipe = plan, plan.recipe
        self.config = StreamChatConfig.load(plan.initial_model)
        tokenizer = load_tokenizer(plan.initial_model)
        self.rows = self.world = None
        if plan.row_table is not None:
            fifo_frames = self.recipe.fifo_frames or self.config.fifo_frames
            frame_reader = FrameReader(
                size=self.config.vision.image_size,
                frames_per_second=self.recipe.frames_per_second,
                max_frames=self.recipe.max_frames,
                cache=plan.frame_cache,
            )
            self.rows = RowMicroBatches(
                RowTable(plan.row_table),
                self._row_sampler(),
                RowTokenizer(tokenizer, fifo_frames, self.recipe.max_tokens),
                frame_reader,
                self.recipe.micro_batch,
                self.recipe.max_tokens,
            )
        if plan.clip_frames is not None:
            assert isinstance(tokenizer, PreTrainedTokenizerFast)
            clip_frames = np.lib.format.open_memmap(plan.clip_frames, mode="r")
            self.world = LiveWorldMicroBatches(
                training_clips(plan.clips), tokenizer, self.config, self.recipe, clip_frames
            )

    def micro_batch(self, index: int) -> MicroBatch:
        """The micro-batch at an index of the run. It is always the same."""
        if self.rows is None:
            assert self.world is not None
            return self.world.micro_batch(index)
        if self.world is None:
            return self.rows.micro_batch(index, index)
        # The two kinds are spread evenly. Micro-batches of rows have their own count, so no row is left out.
        row_share = 1 - self.recipe.world_share
        before, after = int(index * row_share + 1e-9), int((index + 1) * row_share + 1e-9)
        return self.rows.micro_batch(index, before) if after > before else self.world.micro_batch(index)

    def empty(self) -> MicroBatch:
        """A micro-batch with no loss, for a worker that has fewer micro-batches in a step than another worker."""
        source = self.rows or self.world
        assert source is not None
        return source.empty(-1)

    def _row_sampler(self) -> RowSampler:
        recipe, num_rows = self.recipe, self.plan.num_rows
        num_samples = round(recipe.epochs * num_rows)
        if recipe.steps:
            num_samples = recipe.steps * recipe.global_batch
        return RowSampler(num_rows=num_rows, num_samples=num_samples, seed=recipe.seed)


@lru_cache(maxsize=2)
def cached_source(plan: Plan) -> MicroBatchSource:
    """The plan's source. Each process makes it once."""
    return MicroBatchSource(plan)
