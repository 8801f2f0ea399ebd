"""A StreamChat folder with random weights in the tiny size, made in a second."""

from __future__ import annotations

from pathlib import Path

import torch

from model.checkpoint.folder import save_folder
from model.config import preset
from model.network.streamchat import StreamChat
from training.live_world.tiny_tokenizer import make_tokenizer

SPACE = "Ġ"  # a space in byte-level tokenizers


def make_random_folder(folder: Path, *, endless: bool = False) -> Path:
    """Write the folder, always with the same weights. `endless`: its answers have only words and never end."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tokenizer = make_tokenizer(folder)
    model = StreamChat(preset("tiny", vocab_size=len(tokenizer)))
    if endless:
        tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        others = [i for i, token in enumerate(tokens) if not token.startswith(SPACE)]
        with torch.no_grad():  # their logits are exactly 0, which is never the largest of hundreds
            model.language.embed_tokens.weight[others] = 0.0
    save_folder(model, folder)
    return folder
