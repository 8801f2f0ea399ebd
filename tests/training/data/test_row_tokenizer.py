"""Rows as tokens: the paper's example, several turns, and the frames that each word sees."""

from __future__ import annotations

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from training.data.bad_row import BadRow
from training.data.row_tokenizer import RowTokenizer
from training.data.token_row import TokenRow
from training.data.training_row import TrainingRow, Turn


@pytest.fixture(scope="module")
def text(tokenizer: PreTrainedTokenizerFast) -> RowTokenizer:
    return RowTokenizer(tokenizer, capacity=4, max_tokens=200)


def row(*turns: Turn, kind: str = "dense", video: str = "a.mp4") -> TrainingRow:
    return TrainingRow(video=video, turns=turns, kind=kind, source="test")  # type: ignore[arg-type]


COOKING = Turn(
    start_s=5,
    end_s=10,
    instruction="What is the person in the video doing now?",
    answer="The person is cooking right now.",
)
FRAMES = np.arange(0.0, 20.0)


def predicted_words(text: RowTokenizer, tokens: TokenRow) -> list[tuple[str, int]]:
    """Each word to predict, with its time: the second of the newest frame that it sees."""
    words: list[tuple[str, int]] = []
    for position in np.flatnonzero(tokens.loss_mask):
        piece = str(text.tokenizer.decode([int(tokens.token_ids[position + 1])]))
        time_s = int(np.flatnonzero(tokens.visible[position])[-1])
        joins = words and words[-1][1] == time_s and "<|im_end|>" not in (words[-1][0], piece)
        if joins and not piece.startswith(" "):
            words[-1] = (words[-1][0] + piece, time_s)
        else:
            words.append((piece.strip(), time_s))
    return words


def test_the_paper_s_example(text: RowTokenizer) -> None:
    tokens = text.tokens(row(COOKING), FRAMES)
    spoken = [
        ("The", 5),
        ("person", 6),
        ("is", 7),
        ("cooking", 8),
        ("right", 9),
        ("now.", 10),
        ("<|im_end|>", 10),
    ]
    assert predicted_words(text, tokens) == spoken
    prompt = int(np.argmax(tokens.loss_mask))
    assert (
        np.flatnonzero(tokens.visible[0]) == [2, 3, 4, 5]
    ).all()  # the four newest frames at the instruction
    assert (tokens.visible[:prompt] == tokens.visible[0]).all()


def test_turns_follow_the_chat_template(text: RowTokenizer) -> None:
    again = Turn(start_s=12, end_s=13, instruction="And now?", answer="Eating.")
    tokens = text.tokens(row(COOKING, again), FRAMES)
    messages = [
        {"role": role, "content": said}
        for turn in (COOKING, again)
        for role, said in (("user", turn.instruction), ("assistant", turn.answer))
    ]
    whole = str(text.tokenizer.apply_chat_template(messages, tokenize=False)).removesuffix("\n")
    assert text.tokenizer.decode(tokens.token_ids.tolist()) == whole
    learnt = text.tokenizer.decode(tokens.token_ids[1:][tokens.loss_mask[:-1]].tolist())
    assert learnt == "The person is cooking right now.<|im_end|>Eating.<|im_end|>"
    assert (np.diff(tokens.text_index) > 0).all()


def test_a_turn_starts_after_the_answer_before_it(text: RowTokenizer) -> None:
    early = Turn(start_s=6, end_s=8, instruction="And now?", answer="Eating.")
    assert predicted_words(text, text.tokens(row(COOKING, early), FRAMES))[-2:] == [
        ("Eating.", 10),
        ("<|im_end|>", 10),
    ]


@pytest.mark.parametrize("kind", ["offline", "image"])
def test_offline_text_comes_after_all_frames(text: RowTokenizer, kind: str) -> None:
    frames = FRAMES[: 1 if kind == "image" else 9]
    tokens = text.tokens(row(COOKING, kind=kind), frames)
    assert tokens.visible.all()
    assert tokens.frame_index.max() <= tokens.text_index.min()


def test_text_rows_have_no_frames(text: RowTokenizer) -> None:
    tokens = text.tokens(row(COOKING, kind="text", video=""), np.zeros(0))
    assert tokens.visible.shape[1] == 0
    assert tokens.loss_mask.sum() > 5


def test_turns_that_do_not_fit_are_dropped_and_a_too_long_turn_is_a_bad_row(text: RowTokenizer) -> None:
    small = RowTokenizer(text.tokenizer, 4, len(text.tokens(row(COOKING), FRAMES).token_ids) + 5)
    later = Turn(start_s=12, end_s=13, instruction="And now?", answer="Eating.")
    np.testing.assert_array_equal(
        small.tokens(row(COOKING, later), FRAMES).token_ids, text.tokens(row(COOKING), FRAMES).token_ids
    )
    with pytest.raises(BadRow, match="too long"):
        RowTokenizer(text.tokenizer, 4, 10).tokens(row(COOKING), FRAMES)
