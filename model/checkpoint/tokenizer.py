"""The tokenizer of a StreamChat folder. Imports no torch: preparing training data needs a tokenizer but no model."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "generation_config.json",
)


def tokenizer_files(folder: Path) -> list[str]:
    """Names of the tokenizer's files and chat template; raises FileNotFoundError if there is no tokenizer."""
    if not (folder / "tokenizer_config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no tokenizer: it has no tokenizer_config.json")
    return [name for name in TOKENIZER_FILES if (folder / name).is_file()]


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copy tokenizer files and chat template."""
    if source.resolve() != folder.resolve():
        for name in tokenizer_files(source):
            shutil.copyfile(source / name, folder / name)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The folder's tokenizer, with its chat template; raises FileNotFoundError if there is none."""
    if "tokenizer.json" in tokenizer_files(folder):
        return PreTrainedTokenizerFast.from_pretrained(str(folder))
    # An older format. The class that converts it imports torch, so it is imported only here.
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder))
