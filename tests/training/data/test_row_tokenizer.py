"""Rows as tokens: the paper's example, several turns, and the frames that each word sees."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from model.network.streamchat import StreamChat
from tests.training.served_logits import SimulatedCamera, logits_of, some_features
from training.data.bad_row import BadRow
from training.data.frames.video_frames import FrameReader
from training.data.row_tokenizer import RowTokenizer
from training.data.token_row import TokenRow, collate
from training.data.training_row import TrainingRow, Turn, cut_windows
from training.data.word_times import word_times
from training.live_world.clips import Clip


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


def test_a_frozen_view_is_that_of_the_question(tokenizer: PreTrainedTokenizerFast) -> None:
    moving = RowTokenizer(tokenizer, 4, 200).tokens(row(COOKING), FRAMES)
    frozen = RowTokenizer(tokenizer, 4, 200, frozen_view=True).tokens(row(COOKING), FRAMES)
    np.testing.assert_array_equal(frozen.token_ids, moving.token_ids)
    np.testing.assert_array_equal(frozen.loss_mask, moving.loss_mask)
    assert [np.flatnonzero(seen).tolist() for seen in frozen.visible[frozen.loss_mask]] == [
        [2, 3, 4, 5]
    ] * int(frozen.loss_mask.sum())


def test_a_turn_of_an_interleaved_row_sees_the_pictures_before_it(text: RowTokenizer) -> None:
    turns = tuple(Turn(start_s=n, end_s=n, instruction="Go on.", answer="A dog moves.") for n in (0, 2))
    pictures = TrainingRow(video="", pictures=("a", "b", "c"), turns=turns, kind="interleaved", source="t")
    tokens = text.tokens(pictures, np.arange(3.0))
    seen = [np.flatnonzero(frames).tolist() for frames in tokens.visible[tokens.loss_mask]]
    assert seen == sorted(seen, key=len)
    assert {tuple(frames) for frames in seen} == {(0,), (0, 1, 2)}


INSTRUCTION, ANSWER = "What is the dog doing?", "The red dog moves to top-left now."
CAPACITY = 16  # of the fixture `random_model`


def window_at(start_s: float, end_s: float) -> TrainingRow:
    """The only window of a row of two minutes with one turn."""
    turn = Turn(start_s=start_s, end_s=end_s, instruction=INSTRUCTION, answer=ANSWER)
    row = TrainingRow(video="a.mp4", time_range=(0.0, 120.0), turns=(turn,), kind="dense", source="t")
    (window,) = cut_windows(row, CAPACITY, 1.0)
    return window


@pytest.mark.parametrize(
    ("start_s", "end_s"),
    [
        (25.0, 29.0),  # a full FIFO
        (5.0, 9.5),  # a FIFO that is not full
        (40.3, 53.9),  # most of the frames come during the answer
        (40.0, 40.0),  # all words at one moment
    ],
)
def test_the_engine_makes_the_logits_of_a_window(
    random_model: StreamChat, tokenizer: PreTrainedTokenizerFast, start_s: float, end_s: float
) -> None:
    assert random_model.config.fifo_frames == CAPACITY
    window = window_at(start_s, end_s)
    times = np.arange(120.0)
    assert window.time_range is not None
    shown = (times >= np.floor(window.time_range[0])) & (times <= window.time_range[1])
    rows = RowTokenizer(tokenizer, CAPACITY, 400)
    row = rows.tokens(window, times[shown])
    features = some_features(120)
    trained = logits_of(random_model, collate([row], [0], 0), features[shown][None])[0]
    num_prompt = int(np.argmax(row.loss_mask)) + 1
    words = [" " + word if number else word for number, word in enumerate(ANSWER.split())]
    token_s = [start_s] * num_prompt
    for word, time_s in zip(words, word_times(start_s, end_s, len(words)), strict=True):
        token_s += [time_s] * len(rows.tokenizer(word, add_special_tokens=False)["input_ids"])  # type: ignore[arg-type]
    token_s.append(token_s[-1])  # the end of the turn
    camera = SimulatedCamera(random_model, features, times)
    served = camera.served_logits(row.token_ids.tolist(), token_s, num_prompt)
    wanted = trained[num_prompt - 1 : len(row.token_ids) - 1]
    assert float(wanted.std()) > 0.1, "equal logits of a constant model would prove nothing"
    torch.testing.assert_close(served, wanted, atol=2e-4, rtol=1e-3)


def test_a_row_of_a_real_video_has_the_frames_of_the_ring(clips: list[Clip]) -> None:
    """The question comes at 10 s, when a ring of six frames at one a second holds those of 5 to 10 s."""
    turn = Turn(start_s=10.0, end_s=12.0, instruction=INSTRUCTION, answer=ANSWER)
    row = TrainingRow(video=str(clips[0].path), turns=(turn,), kind="dense", source="t")
    (window,) = cut_windows(row, 6, 1.0)
    frames = FrameReader(size=32, frames_per_second=1.0, max_frames=6).read(window)
    assert set(range(5, 13)) <= set(frames.times.round().astype(int).tolist())
