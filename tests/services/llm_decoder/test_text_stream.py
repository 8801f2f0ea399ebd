"""Text as it grows: whole characters, spaces kept, stop strings never shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from model.checkpoint.tokenizer import load_tokenizer
from services.llm_decoder.text_stream import TextStream


@pytest.fixture(scope="module")
def tokenizer(random_folder: Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(random_folder)


def pieces(
    tokenizer: PreTrainedTokenizerBase, text: str, stop: tuple[str, ...] = ()
) -> tuple[list[str], TextStream]:
    """What is shown token by token, up to the stop."""
    stream = TextStream(tokenizer, stop)
    shown: list[str] = []
    for token_id in tokenizer(text, add_special_tokens=False)["input_ids"]:
        shown.append(stream.push(int(token_id)))
        if stream.stopped:
            break
    return [*shown, stream.finish()], stream


@pytest.mark.parametrize(
    "text", ["A red dog appears at top-left.", "Größe 😀, naïve – 漢字", "  two  spaces", "a"]
)
def test_the_pieces_are_the_text(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    shown, _ = pieces(tokenizer, text)
    assert "".join(shown) == text
    assert not any("\ufffd" in piece for piece in shown)


def test_a_word_comes_with_its_space(tokenizer: PreTrainedTokenizerBase) -> None:
    shown, _ = pieces(tokenizer, "A red dog.")
    assert shown == ["A", " red", " dog", ".", ""]


@pytest.mark.parametrize(
    ("stop", "shown"),
    [
        ((" dog",), "A red"),
        (("d do",), "A re"),
        (("nothing like it",), "A red dog appears."),
        (("appears. And",), "A red dog appears."),
        (("A",), ""),
    ],
)
def test_a_stop_string_is_not_shown(
    tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...], shown: str
) -> None:
    got, stream = pieces(tokenizer, "A red dog appears.", stop)
    assert "".join(got) == shown
    assert stream.stopped == (shown != "A red dog appears.")
