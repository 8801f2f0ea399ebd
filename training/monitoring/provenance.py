"""How a model was made: kept beside it, and what of it is to be seen in the terminal before training starts."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from training.run.plan import Plan


def git_revision(folder: Path) -> str:
    """The code's commit, with a + when files differ from it; "unknown" outside a checkout."""
    try:
        parts = [
            subprocess.run(
                ["git", *words], cwd=folder, capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return parts[0] + ("+" if parts[1] else "")


def write_provenance(plan: Plan, command: list[str], trainable: list[str], workers: int) -> None:
    """Write `recipe.json` beside the model: what made it, by which code."""
    row = {
        "command": " ".join(["python", *command]),
        "revision": git_revision(Path(__file__).parent),
        "start": str(plan.start),
        "workers": workers,
        "trainable": trainable,
        "recipe": asdict(plan.recipe),
    }
    plan.run_folder.mkdir(parents=True, exist_ok=True)
    (plan.run_folder / "recipe.json").write_text(json.dumps(row, indent=1) + "\n")
    print("\n".join(trainable), file=sys.stderr, flush=True)
