"""Makes any micro-batch of a run from its index: from rows, from live-world clips, or from both."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from model.checkpoint.tokenizer import load_tokenizer
from model.config import StreamChatConfig
from training.data.balance import balanced_parts
from training.data.frames.frame_cache import FrameCache
from training.data.frames.video_frames import FrameReader
from training.data.micro_batch import MicroBatch
from training.data.row_micro_batches import RowMicroBatches, RowSampler, RowTable
from training.data.row_tokenizer import RowTokenizer
from training.live_world.clips import training_clips
from training.live_world.curriculum.micro_batches import LiveWorldMicroBatches
from training.run.plan import Plan


class MicroBatchSource:
    """Makes the micro-batches of a run, in any order."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.recipe = plan, plan.recipe
        self.config = StreamChatConfig.load(plan.initial_model)
        self.tokenizer = load_tokenizer(plan.initial_model)
        self.rows = self.world = None
        if plan.row_table is not None:
            self.rows = self._row_micro_batches(plan.row_table, self._row_sampler())
        if plan.clip_frames is not None:
            assert isinstance(self.tokenizer, PreTrainedTokenizerFast)
            clip_frames = np.lib.format.open_memmap(plan.clip_frames, mode="r")
            self.world = LiveWorldMicroBatches(
                training_clips(plan.clips), self.tokenizer, self.config, self.recipe, clip_frames
            )

    def _row_micro_batches(self, table: Path, sampler: RowSampler) -> RowMicroBatches:
        recipe = self.recipe
        frame_reader = FrameReader(
            size=self.config.vision.image_size,
            frames_per_second=recipe.frames_per_second,
            max_frames=recipe.max_frames,
            cache=FrameCache(self.plan.frame_cache) if self.plan.frame_cache else None,
            for_training=True,
        )
        fifo_frames = recipe.fifo_frames or self.config.fifo_frames
        row_tokenizer = RowTokenizer(
            self.tokenizer, fifo_frames, recipe.max_tokens, frozen_view=recipe.frozen_view
        )
        return RowMicroBatches(
            RowTable(table), sampler, row_tokenizer, frame_reader, recipe.global_batch, recipe.max_tokens
        )

    def validation(self, rank: int, num_workers: int) -> list[MicroBatch]:
        """A worker's micro-batches of the validation rows, as many as every other worker's."""
        if self.plan.validation_table is None:
            return []
        rows = self._row_micro_batches(self.plan.validation_table, self._row_sampler())
        num_rows = len(rows.table)
        per_worker = -(-num_rows // (self.recipe.micro_batch * num_workers))
        parts = balanced_parts(rows.table.costs.tolist(), per_worker * num_workers)
        return [rows.micro_batch(-1, part) for part in parts[rank::num_workers]]

    def micro_batch(self, index: int, num_workers: int = 1) -> MicroBatch:
        """The micro-batch at an index of the run. It is always the same for a number of workers."""
        if self.rows is None:
            assert self.world is not None
            return self.world.micro_batch(index)
        if self.world is None:
            step, part = divmod(index, num_parts := self.plan.micro_batches_per_step(num_workers))
            return self.rows.micro_batch(index, self.rows.parts(step, num_parts)[part])
        # The two kinds are spread evenly. Micro-batches of rows have their own count, so no row is left out.
        row_share = 1 - self.recipe.world_share
        before, after = int(index * row_share + 1e-9), int((index + 1) * row_share + 1e-9)
        if after == before:
            return self.world.micro_batch(index)
        size = self.recipe.micro_batch
        return self.rows.micro_batch(index, self.rows.sampler.rows(before * size, size))

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
