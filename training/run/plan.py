"""The plan of a run, which every process has: where its files are, and how long it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
    seen: Path | None = None  # their pictures or features (`live_world/clip_frames.py`)
    frame_cache: Path | None = None
    threads: int = 1

    @property
    def run_folder(self) -> Path:
        """Log, curves, checkpoints and the record of how the model was trained."""
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
