"""Pretrain: stage 1 teaches the adapter, stage 2 the vision encoder and the V-FFNs as well (paper, section 3.1).

    python training/pretrain.py --recipe pretrain_stage1 --model streamchat-7b --rows rows.parquet --out stage1

Killed, it goes on from its last checkpoint when started again. docs/training.md has the whole way.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from training.run.launch import main
from training.run.recipe import PRETRAINING_RECIPES

if __name__ == "__main__":
    main(PRETRAINING_RECIPES, __doc__)
