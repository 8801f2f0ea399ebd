"""The plan of a run: its recipe, its files and its length. Every process of the run has the same plan."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from training.run.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What every process needs to know. All paths are on storage that every machine of the run can reach."""

    recipe: Recipe
    initial_model: Path  # StreamChat folder that training starts from
    out: Path  # StreamChat folder to write
    row_table: Path | None = None  # checked rows (`row_micro_batches.write_row_table`)
    num_rows: int = 0
    validation_table: Path | None = None  # rows of the same kind on which the model never learns
    clips: tuple[Path, ...] = ()  # folders of live-world clips
    clip_frames: Path | None = None  # pictures or features of the clips (`live_world/clip_frames.py`)
    frame_cache: Path | None = None  # folder for decoded frames
    num_threads: int = 1  # CPU threads of each worker
    fingerprint: str = ""  # of the rows and clips: a run goes on only with the same data

    @property
    def run_folder(self) -> Path:
        """Folder of the log, the curves, the checkpoints and `recipe.json`."""
        return self.out / "run"

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        if self.recipe.steps:
            return self.recipe.steps
        return -(-round(self.recipe.epochs * self.num_rows) // self.recipe.global_batch)

    def micro_batches_per_step(self, num_workers: int) -> int:
        """Micro-batches of a step over all workers, as many for each.

        Live-world micro-batches are those of the recipe, because their questions depend on them.
        """
        num = self.recipe.micro_batches_per_step
        return num if self.clips else -(-num // num_workers) * num_workers

    @property
    def stopped_file(self) -> Path:
        """File that says why the run ended early."""
        return self.run_folder / "stopped.json"

    @property
    def _smaller_micro_batch(self) -> Path:
        return self.run_folder / "micro_batch.json"

    def after_out_of_memory(self) -> Self:
        """The plan with the micro-batch that `halve_micro_batch` wrote last, if it did."""
        if not self._smaller_micro_batch.is_file():
            return self
        size = min(json.loads(self._smaller_micro_batch.read_text()), self.recipe.micro_batch)
        return replace(self, recipe=replace(self.recipe, micro_batch=size))

    def halve_micro_batch(self) -> int:
        """Let the next start of the workers use half of the micro-batch. Returns its new size.

        Raises ValueError if it cannot be halved. All workers may call it at the same time.
        """
        size = self.recipe.micro_batch
        if self.clips:
            raise ValueError(f"out of memory with micro_batch {size}, on which live-world questions depend")
        if size % 2:
            raise ValueError(f"out of memory with micro_batch {size}, which cannot be halved")
        unfinished = self._smaller_micro_batch.with_suffix(f".{os.getpid()}")
        unfinished.write_text(json.dumps(size // 2) + "\n")
        unfinished.rename(self._smaller_micro_batch)
        return size // 2
