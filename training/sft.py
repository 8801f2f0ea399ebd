"""Instruction tuning (paper, section 3.2): all weights learn. Also trains the ablations and streamchat-tiny.

    python training/sft.py --recipe sft --model stage2 --rows dense.parquet images.parquet --out streamchat
    python training/sft.py --recipe smoke --workers 2

A killed run continues from its last checkpoint when the same command is started again. See docs/training.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from training.run.launch import parse_options, prepare_run, run_training
from training.run.recipe import SFT_RECIPES


def main() -> None:
    """Train, and print the folder of the trained model."""
    # 1. Choose the recipe and change its fields as the command line says.
    recipe, options = parse_options(SFT_RECIPES, __doc__)
    # 2. Prepare the initial model, check the rows, and write run/recipe.json.
    plan = prepare_run(recipe, options)
    # 3. Train with Ray Train. Each worker runs training/run/train_loop.py. Rank 0 writes the model to plan.out.
    run_training(plan, options)
    print(f"trained: {plan.out}")


if __name__ == "__main__":
    main()
