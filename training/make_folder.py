"""Makes a StreamChat folder, which can be served or trained, of a checkpoint of a run.

python training/make_folder.py runs/sft --out folder            # of the newest checkpoint
python training/make_folder.py runs/sft --out folder --step 500
streamchat up --model folder
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from model.checkpoint.folder import load_model, save_folder
from training.run.sharding import load_trained_weights


def checkpoint_of(run: Path, step: int | None) -> Path:
    """The folder of a run's checkpoint after a step, or of the newest one. Raises ValueError if there is none."""
    written = (run / "run" / "checkpoints").glob("step-*/.metadata")  # the last file of a checkpoint
    folders = {int(file.parent.name.removeprefix("step-")): file.parent for file in written}
    if not folders:
        raise ValueError(f"{run} has no checkpoint")
    if step is None:
        step = max(folders)
    if step not in folders:
        steps = ", ".join(map(str, sorted(folders)))
        raise ValueError(f"--step: got {step}, wanted one of {steps}, of which {run} has checkpoints")
    return folders[step]


def make_folder(run: Path, step: int | None, out: Path) -> str:
    """Write the folder. Returns a line about it. Raises ValueError or OSError if it cannot be made."""
    checkpoint = checkpoint_of(run, step)
    start = Path(json.loads((run / "run" / "recipe.json").read_text())["start"])
    if (out / "config.json").exists():
        raise ValueError(f"{out} has a model already: give another --out")
    model = load_model(start)
    num = load_trained_weights(checkpoint, model)
    save_folder(model, out, tokenizer=start)
    return f"{out}: {num} tensors of {checkpoint.name}, the others of {start}"


def main() -> None:
    """Read the command line, write the folder, and say what it holds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="the run's folder (its --out)")
    parser.add_argument("--out", type=Path, required=True, help="StreamChat folder to write")
    parser.add_argument("--step", type=int, help="take the checkpoint after this step (default: the newest)")
    options = parser.parse_args()
    try:
        print(make_folder(options.run, options.step, options.out))
    except (ValueError, OSError) as error:
        parser.exit(1, f"make_folder: {error}\n")


if __name__ == "__main__":
    main()
