"""The tiny model's tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from model.checkpoint.tokenizer import load_tokenizer
from training.live_world.answers import SLOTS
from training.live_world.tiny_tokenizer import SPECIAL_TOKENS, make_tokenizer


def test_every_word_of_the_world_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    for word in SLOTS:
        for text in (word, " " + word):
            assert len(tokenizer(text, add_special_tokens=False)["input_ids"]) == 1, text


@pytest.mark.parametrize(
    "text", ["A red dog appears at top-left.", "Grüße, 世界! 12 + 7\n\ttabs", " <|im_end|>"]
)
def test_any_text_comes_back_as_it_was(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_the_chat_template_is_qwens(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello?<|im_end|>\n<|im_start|>assistant\n"
    )
    ids = tokenizer(str(text), add_special_tokens=False)["input_ids"]
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 3  # specials are single tokens


def test_an_answer_ends_with_the_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.eos_token == "<|im_end|>"
    assert [tokenizer.convert_tokens_to_ids(s) for s in SPECIAL_TOKENS] == [0, 1, 2]


def test_the_folder_is_what_the_services_load(
    tokenizer_folder: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    assert load_tokenizer(tokenizer_folder).get_vocab() == tokenizer.get_vocab()


def test_making_it_again_gives_the_same_tokens(tokenizer_folder: Path, tmp_path: Path) -> None:
    """A run that goes on from its checkpoint makes the tokenizer again."""
    make_tokenizer(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (tokenizer_folder / name).read_bytes()
