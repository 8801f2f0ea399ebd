"""The tokenizer of a folder, as it was saved, or of an older kind that must be converted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.checkpoint.tokenizer import copy_tokenizer, load_tokenizer


def test_a_folder_without_tokenizer_says_so(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)


def test_one_of_an_older_kind_is_converted(tmp_path: Path):
    (tmp_path / "vocab.json").write_text(json.dumps({"<|endoftext|>": 0, "a": 1, "b": 2, "ab": 3}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\na b\n")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("abba") == [3, 2, 1]
    tokenizer.save_pretrained(str(tmp_path / "converted"))
    (tmp_path / "copied").mkdir()
    copy_tokenizer(tmp_path / "converted", tmp_path / "copied")
    assert (tmp_path / "copied" / "tokenizer.json").is_file()
    assert load_tokenizer(tmp_path / "copied").encode("abba") == [3, 2, 1]
