"""A run, as every process of it knows it: where things lie, how long it is, and how its parts are made."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from model.checkpoint.tokenizer import load_tokenizer
from model.config import StreamChatConfig
from training.data.part import Part
from training.data.row_parts import Order, RowParts, RowTable
from training.data.timed_text import TimedText
from training.data.video_frames import FrameReader
from training.live_world.world_parts import WorldParts, training_clips
from training.run.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Crosses processes; all paths are on storage that every machine of the run reaches."""

    recipe: Recipe
    start: Path  # the StreamChat folder that training starts from
    out: Path  # the folder that comes out
    table: Path | None = None  # checked rows (`row_parts.write_table`)
    num_rows: int = 0
    clips: tuple[Path, ...] = ()  # folders of live-world clips
    seen: Path | None = None  # their pictures or features (`world_parts.seen_file`)
    frame_cache: Path | None = None
    threads: int = 1

    @property
    def run(self) -> Path:
        """Log, curves, checkpoints and all else that tells how the folder was made."""
        return self.out / "run"

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        if self.recipe.steps:
            return self.recipe.steps
        return -(-round(self.recipe.epochs * self.num_rows) // self.recipe.global_batch)

    @property
    def total_parts(self) -> int:
        """Parts of the whole run."""
        return self.total_steps * self.recipe.parts_per_step


class Source:
    """Makes any part of a run by its number."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.recipe = plan, plan.recipe
        self.config = StreamChatConfig.load(plan.start)
        tokenizer = load_tokenizer(plan.start)
        self.rows = self.world = None
        if plan.table is not None:
            text = TimedText(tokenizer, self._capacity(), self.recipe.max_tokens)
            reader = FrameReader(
                size=self.config.vision.image_size,
                frames_per_second=self.recipe.frames_per_second,
                max_frames=self.recipe.max_frames,
                cache=plan.frame_cache,
            )
            self.rows = RowParts(
                RowTable(plan.table), self._order(), text, reader, self.recipe.micro_batch,
                self.recipe.max_tokens,
            )  # fmt: skip
        if plan.seen is not None:
            assert isinstance(tokenizer, PreTrainedTokenizerFast)
            self.world = WorldParts(
                training_clips(plan.clips), tokenizer, self.config, self.recipe,
                np.lib.format.open_memmap(plan.seen, mode="r"),
            )  # fmt: skip

    def part(self, number: int) -> Part:
        """Part `number` of the run: always the same."""
        if self.rows is None:
            assert self.world is not None
            return self.world.part(number)
        if self.world is None:
            return self.rows.part(number, number)
        # Parts of either kind are spread evenly, and rows are counted on their own: none is left out.
        share = 1 - self.recipe.world_share
        before, after = int(number * share + 1e-9), int((number + 1) * share + 1e-9)
        return self.rows.part(number, before) if after > before else self.world.part(number)

    def empty(self) -> Part:
        """A part in which nothing counts: for a worker that has none left in a step that others still work on."""
        source = self.rows or self.world
        assert source is not None
        return source.empty(-1)

    def _capacity(self) -> int:
        return self.recipe.fifo_frames or self.config.fifo_frames

    def _order(self) -> Order:
        recipe, num_rows = self.recipe, self.plan.num_rows
        num = round(recipe.epochs * num_rows)
        if recipe.steps:
            num = recipe.steps * recipe.global_batch
        return Order(num_rows=num_rows, num_samples=num, seed=recipe.seed)


@lru_cache(maxsize=2)
def source_of(plan: Plan) -> Source:
    """The plan's source, made once in a process."""
    return Source(plan)
