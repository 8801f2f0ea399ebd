"""Writes how a model was trained to `recipe.json`, and prints which parts learn."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from training.run.plan import Plan


def git_revision(folder: Path) -> str:
    """The commit of the code, with a + if files differ from it; "unknown" outside a checkout."""
    try:
        commit, changes = [
            subprocess.run(
                ["git", *words], cwd=folder, capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        ]
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changes else "")


def write_provenance(plan: Plan, command: list[str], trainable: list[str], workers: int) -> None:
    """Write `recipe.json`: the command, the commit, the recipe, the data's fingerprint and the parts that learn."""
    values = {
        "command": " ".join(["python", *command]),
        "revision": git_revision(Path(__file__).parent),
        "start": str(plan.initial_model),
        "workers": workers,
        "data": plan.fingerprint,
        "trainable": trainable,
        "recipe": asdict(plan.recipe),
    }
    plan.run_folder.mkdir(parents=True, exist_ok=True)
    (plan.run_folder / "recipe.json").write_text(json.dumps(values, indent=1) + "\n")
    print("\n".join(trainable), file=sys.stderr, flush=True)
