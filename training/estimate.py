"""Estimates a run before it starts: the memory of a GPU, line by line, and the hours on GPUs of a kind.

python training/estimate.py --recipe sft --model 7b --gpus 8 --set micro_batch=8
python training/estimate.py --recipe pretrain_stage1 --model streamchat-0.5b --gpus 1 --gpu L4 --tokens 100
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from model.config import StreamChatConfig, preset
from training.monitoring.flops import PEAKS, TrainingFlops
from training.monitoring.memory import Load, memory_lines
from training.run.initial_model import meta_model
from training.run.recipe import PRETRAINING_RECIPES, SFT_RECIPES, Recipe, with_overrides

RECIPES = PRETRAINING_RECIPES | SFT_RECIPES


def estimate(recipe: Recipe, options: argparse.Namespace) -> list[str]:
    """The lines to print. Raises ValueError for wrong options."""
    folder = Path(options.model)
    model = meta_model(StreamChatConfig.load(folder) if folder.is_dir() else preset(options.model), recipe)
    size = recipe.micro_batch
    nodes = max(options.gpus // options.gpus_per_node, 1)
    shards = options.gpus // nodes if recipe.hybrid_shard else options.gpus
    load = Load(num_tokens=size * options.tokens, num_frames=size * options.frames, shards=shards)
    memory = memory_lines(model, recipe, load)
    flops = TrainingFlops.of(model)
    per_sample = options.tokens * flops.per_token + options.frames * flops.per_frame
    steps = recipe.steps or -(-options.samples // recipe.global_batch)
    work = per_sample * recipe.global_batch * steps
    hours = work / (options.gpus * PEAKS[options.gpu] * options.mfu) / 3600
    return [
        f"{recipe.name}, {options.model}, {options.gpus} x {options.gpu}, micro-batches of {size}: "
        f"{load.num_tokens:,} tokens, {load.num_frames:,} frames",
        *(f"{amount / 1e9:8.2f} GB  {name}" for name, amount in memory.items()),
        f"{sum(memory.values()) / 1e9:8.2f} GB  together, without what the allocator wastes (about a tenth)",
        f"{steps:,} steps of {recipe.global_batch} samples, {work:.2e} operations: {hours:,.1f} hours at an MFU of "
        f"{options.mfu:.0%}",
    ]


def main() -> None:
    """Read the command line and print the estimate."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--recipe", choices=RECIPES, required=True)
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help="fields of the recipe to change")
    add("--model", required=True, help="7b, 14b, tiny, or a StreamChat folder")
    add("--gpus", type=int, default=8)
    add("--gpus-per-node", type=int, default=8)
    add("--gpu", choices=PEAKS, default="H100")
    add(
        "--mfu",
        type=float,
        default=0.35,
        help="share of the GPU's peak that is reached (default: %(default)s)",
    )
    add("--tokens", type=int, default=512, help="text tokens of a sample, on average (default: %(default)s)")
    add("--frames", type=int, default=32, help="frames of a sample, on average (default: %(default)s)")
    add("--samples", type=int, default=2_900_000, help="samples of an epoch (default: the paper's)")
    options = parser.parse_args()
    try:
        lines = estimate(with_overrides(RECIPES[options.recipe], options.set), options)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"estimate: {error}\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
