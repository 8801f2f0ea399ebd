"""Instruction tuning (paper, section 3.2): everything learns. Also the ablations, and what trains streamchat-tiny.

    python training/sft.py --recipe sft --model stage2 --rows dense.parquet images.parquet --out streamchat
    python training/sft.py --recipe smoke --workers 2

Killed, it goes on from its last checkpoint when started again. docs/training.md has the whole way.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from training.run.launch import main
from training.run.recipe import SFT_RECIPES

if __name__ == "__main__":
    main(SFT_RECIPES, __doc__)
