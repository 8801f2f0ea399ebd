"""Makes any micro-batch of a run by its index: from rows, from live-world clips, or from both."""

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
    """Makes any part of a run by its number."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.recipe = plan, plan.recipe
        self.config = StreamChatConfig.load(plan.start)
        tokenizer = load_tokenizer(plan.start)
        self.rows = self.world = None
        if plan.table is not None:
            text = RowTokenizer(tokenizer, self._capacity(), self.recipe.max_tokens)
            reader = FrameReader(
                size=self.config.vision.image_size,
                frames_per_second=self.recipe.frames_per_second,
                max_frames=self.recipe.max_frames,
                cache=plan.frame_cache,
            )
            self.rows = RowMicroBatches(
                RowTable(plan.table), self._order(), text, reader, self.recipe.micro_batch,
                self.recipe.max_tokens,
            )  # fmt: skip
        if plan.seen is not None:
            assert isinstance(tokenizer, PreTrainedTokenizerFast)
            self.world = LiveWorldMicroBatches(
                training_clips(plan.clips), tokenizer, self.config, self.recipe,
                np.lib.format.open_memmap(plan.seen, mode="r"),
            )  # fmt: skip

    def micro_batch(self, number: int) -> MicroBatch:
        """MicroBatch `number` of the run: always the same."""
        if self.rows is None:
            assert self.world is not None
            return self.world.micro_batch(number)
        if self.world is None:
            return self.rows.micro_batch(number, number)
        # Parts of either kind are spread evenly, and rows are counted on their own: none is left out.
        share = 1 - self.recipe.world_share
        before, after = int(number * share + 1e-9), int((number + 1) * share + 1e-9)
        return self.rows.micro_batch(number, before) if after > before else self.world.micro_batch(number)

    def empty(self) -> MicroBatch:
        """A part in which nothing counts: for a worker that has none left in a step that others still work on."""
        source = self.rows or self.world
        assert source is not None
        return source.empty(-1)

    def _capacity(self) -> int:
        return self.recipe.fifo_frames or self.config.fifo_frames

    def _order(self) -> RowSampler:
        recipe, num_rows = self.recipe, self.plan.num_rows
        num = round(recipe.epochs * num_rows)
        if recipe.steps:
            num = recipe.steps * recipe.global_batch
        return RowSampler(num_rows=num_rows, num_samples=num, seed=recipe.seed)


@lru_cache(maxsize=2)
def cached_source(plan: Plan) -> MicroBatchSource:
    """The plan's source, made once in a process."""
    return MicroBatchSource(plan)
