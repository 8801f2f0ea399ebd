"""Averages the weights of several models. The mean of runs with one initial model can be better than each of them.

python training/optimise/mean_weights.py runs/sft-4 runs/sft-5 --out runs/mean
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from model.checkpoint.folder import load_model, save_folder
from model.config import StreamChatConfig


@torch.no_grad()
def write_mean(folders: Sequence[Path], out: Path) -> None:
    """Write a StreamChat folder with the mean of the weights and the tokenizer of the first folder.

    Raises:
        ValueError: fewer than two folders, or models of different shapes.
        FileNotFoundError: a folder does not exist.
    """
    if len(folders) < 2:
        raise ValueError(f"got {len(folders)} folder, wanted two or more")
    config = StreamChatConfig.load(folders[0])
    for folder in folders[1:]:
        if StreamChatConfig.load(folder) != config:
            raise ValueError(f"{folder}: its config.json differs from the one in {folders[0]}")
    mean = load_model(folders[0])
    for number, folder in enumerate(folders[1:], 2):
        for ours, theirs in zip(mean.parameters(), load_model(folder).parameters(), strict=True):
            ours.lerp_(theirs.to(ours.dtype), 1 / number)
    save_folder(mean, out, tokenizer=folders[0])
    (out / "mean.json").write_text(json.dumps({"of": [str(folder) for folder in folders]}, indent=1) + "\n")


def main() -> None:
    """Read the command line and write the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", type=Path, nargs="+", help="StreamChat folders of one shape")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    try:
        write_mean(options.folders, options.out)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(f"mean of {len(options.folders)} models: {options.out}")


if __name__ == "__main__":
    main()
