"""The plan of a run: its recipe, its files and its length. Every process of the run has the same plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.run.recipe import Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What every process needs to know. All paths are on storage that every machine of the run can reach."""

    recipe: Recipe
    initial_model: Path  # StreamChat folder that training starts from
    out: Path  # StreamChat folder to write
    row_table: Path | None = None  # checked rows (`row_micro_batches.write_row_table`)
    num_rows: int = 0
    clips: tuple[Path, ...] = ()  # folders of live-world clips
    clip_frames: Path | None = None  # pictures or features of the clips (`live_world/clip_frames.py`)
    frame_cache: Path | None = None  # folder for decoded frames
    num_threads: int = 1  # CPU threads of each worker

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

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of the whole run."""
        return self.total_steps * self.recipe.micro_batches_per_step
