"""Token rows of dialogs: times, indices, visible frames and loss weights. Training and the engine agree on them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch

from model.network.clock import indices
from model.network.streamchat import StreamChat
from tests.training.sample_worlds import STORY, question
from tests.training.served_logits import SimulatedCamera, logits_of, some_features
from training.data.token_row import collate
from training.data.word_times import word_times
from training.live_world.answers import SLOTS, ReferenceAnswer, one_step, reference_answer, sentence_at
from training.live_world.clips import frame_times
from training.live_world.curriculum.dialog_tokenizer import (
    FIRST_WEIGHT,
    REPEAT_WEIGHT,
    DialogTokenizer,
    word_weights,
)
from training.live_world.questions import Question
from training.live_world.world import make_world

CAPACITY = 16  # of the fixture `dialog_tokenizer`


def token_times(
    dialog_tokenizer: DialogTokenizer, prompt: Sequence[int], answer: ReferenceAnswer
) -> list[float]:
    """The time of each token of a row, computed from the paper and without `DialogTokenizer.row`."""
    times = [answer.start_s] * len(prompt)
    if sum(answer.word_steps) > len(answer.words):  # each token takes a step
        num = len(
            dialog_tokenizer.tokenizer(" ".join(w.text for w in answer.words), add_special_tokens=False)[
                "input_ids"
            ]
        )
        times += [answer.start_s + step / answer.steps_per_second for step in range(num)]
        return [*times, times[-1]] if answer.complete else times
    spoken = word_times(answer.start_s, answer.end_s, len(answer.words))
    for number, (word, time_s) in enumerate(zip(answer.words, spoken, strict=True)):
        text = word.text if number == 0 else " " + word.text
        times += [time_s] * len(dialog_tokenizer.tokenizer(text, add_special_tokens=False)["input_ids"])
    return [*times, spoken[-1]] if answer.complete else times


def test_a_row_is_the_chat_and_each_token_has_the_time_of_its_word(dialog_tokenizer: DialogTokenizer) -> None:
    answer = reference_answer(question("tell"), STORY, 1.5, 4.0, 14)
    times = frame_times(0, 70, 5.0)
    row = dialog_tokenizer.row("What is happening?", answer, times)
    token_s = token_times(dialog_tokenizer, dialog_tokenizer.prompt(("What is happening?",)), answer)
    spoken = " ".join(word.text for word in answer.words)
    assert dialog_tokenizer.tokenizer.decode(row.token_ids.tolist()) == (
        f"<|im_start|>user\nWhat is happening?<|im_end|>\n<|im_start|>assistant\n{spoken}"
    )
    text_index, frame_index = indices(token_s, times)
    np.testing.assert_array_equal(row.text_index, text_index)
    np.testing.assert_array_equal(row.frame_index, frame_index)
    assert all(later == before + 1 for before, later in pairwise(row.text_index.tolist()))


def test_a_sentence_starts_after_the_tokens_before_it(dialog_tokenizer: DialogTokenizer) -> None:
    asked = question("tell")
    answer = reference_answer(asked, STORY, 1.5, 4.0, 14, steps_of=dialog_tokenizer.num_pieces)
    steps = np.cumsum([0, *answer.word_steps])
    firsts = [
        0,
        *(n for n, word in enumerate(answer.words, 1) if word.text.endswith(".") and n < len(answer.words)),
    ]
    assert len(firsts) > 2
    for first, end in pairwise([*firsts, len(answer.words)]):
        wanted = sentence_at(asked, STORY, 1.5 + steps[first] / 4.0)
        assert list(answer.words[first:end]) == wanted
        assert steps[end] - steps[first] == end - first + 1  # the full stop is a token


def test_a_token_sees_the_newest_frames_of_its_time_and_no_later_one(
    dialog_tokenizer: DialogTokenizer,
) -> None:
    answer = reference_answer(question("where"), STORY, 1.37, 3.0, 20)
    times = frame_times(1, 70, 5.0)
    row = dialog_tokenizer.row("Follow the dog.", answer, times)
    token_s = token_times(dialog_tokenizer, dialog_tokenizer.prompt(("Follow the dog.",)), answer)
    for position, next_s in enumerate(token_s[1:]):
        seen = times[row.visible[position]]
        wanted = times[times <= next_s][-CAPACITY:]
        np.testing.assert_array_equal(seen, wanted)


@pytest.mark.parametrize("keeps_on", [True, False])
def test_the_loss_covers_the_answer_and_the_end_of_a_complete_answer(
    dialog_tokenizer: DialogTokenizer, keeps_on: bool
) -> None:
    answer = reference_answer(question("where", keeps_on=keeps_on), STORY, 3.0, 4.0, 9)
    row = dialog_tokenizer.row("Where is the dog now?", answer, frame_times(0, 70, 5.0))
    predicted = row.token_ids[1:][row.loss_mask[:-1]].tolist()
    spoken = " ".join(word.text for word in answer.words)
    end = "" if keeps_on else "<|im_end|>"
    assert answer.complete is not keeps_on
    assert dialog_tokenizer.tokenizer.decode(predicted) == spoken + end
    assert not row.loss_mask[-1]


@pytest.mark.parametrize(
    "texts", [("Follow the dog.",), ("Count the things.", "Two things.", "What is at top-left now?")]
)
def test_the_prompt_is_what_the_chat_template_gives(
    dialog_tokenizer: DialogTokenizer, texts: tuple[str, ...]
) -> None:
    messages = [
        {"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)
    ]
    served = dialog_tokenizer.tokenizer.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert dialog_tokenizer.prompt(texts) == served


def test_tokens_of_single_words_are_the_tokens_of_the_text(dialog_tokenizer: DialogTokenizer) -> None:
    answer = reference_answer(question("tell"), STORY, 0.5, 4.0, 60)
    words = [word.text for word in answer.words]
    pieces = [
        piece
        for n, word in enumerate(words)
        for piece in dialog_tokenizer.pieces(word if n == 0 else " " + word)
    ]
    assert pieces == dialog_tokenizer.tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]


def test_first_words_weigh_more_and_repeated_sentences_weigh_less() -> None:
    words = ["Red.", "Red.", "Blue.", "A", "red", "dog.", "A", "red", "dog.", "A"]
    low, first = REPEAT_WEIGHT, FIRST_WEIGHT
    assert word_weights(words) == [first, first, first, first, 1.0, 1.0, first, low, low, first]


def test_corrupted_words_are_inputs_and_never_targets(dialog_tokenizer: DialogTokenizer) -> None:
    world, times = make_world(3, 1), np.arange(0, 20, 0.2)
    answer = reference_answer(
        Question(kind="where", keeps_on=True, thing=world.start[0].name), world, 4.0, 4.0, 30
    )
    plain = dialog_tokenizer.row("Follow it.", answer, times)
    rows = [
        dialog_tokenizer.row("Follow it.", answer, times, rng=np.random.default_rng(seed))
        for seed in range(20)
    ]
    num_prompt = int(np.argmax(plain.loss_mask)) + 1
    assert all(np.array_equal(row.token_ids, plain.token_ids) for row in rows)
    assert all(np.array_equal(row.input_ids[:num_prompt], plain.token_ids[:num_prompt]) for row in rows)
    changed = [int((row.input_ids != row.token_ids).sum()) for row in rows]
    assert 0 < sum(num > 0 for num in changed) < len(rows)
    for row in rows:
        for target, read in zip(row.token_ids, row.input_ids, strict=True):
            words = [str(dialog_tokenizer.tokenizer.decode([int(token)])).strip() for token in (target, read)]
            assert words[0] == words[1] or SLOTS[words[0]] == SLOTS[words[1]]


@pytest.mark.parametrize(
    ("kind", "ask_s", "steps_per_second", "by_token", "history"),
    [
        ("tell", 6.03, 3.7, False, ()),
        ("tell", 6.03, 5.0, True, ()),
        ("where", 1.0, 5.0, False, ()),  # exactly when a frame comes, into a FIFO that is not full
        ("list", 7.31, 60.0, True, ()),  # at a machine's pace: many tokens to a frame
        ("count", 4.47, 2.8, False, ("Follow the dog.", "At top-left. At top-left.")),
    ],
)
def test_the_engine_makes_the_logits_of_the_training_forward(
    dialog_tokenizer: DialogTokenizer,
    random_model: StreamChat,
    kind: str,
    ask_s: float,
    steps_per_second: float,
    by_token: bool,
    history: tuple[str, ...],
) -> None:
    asked = question(kind, keeps_on=kind != "list")
    steps_of = dialog_tokenizer.num_pieces if by_token else one_step
    answer = reference_answer(asked, STORY, ask_s, steps_per_second, 24, steps_of=steps_of)
    times, features = frame_times(0, 70, 5.0), some_features(70)
    row = dialog_tokenizer.row(asked.instruction, answer, times, history)
    trained = logits_of(random_model, collate([row], [0], 0), features[None])[0]
    prompt = dialog_tokenizer.prompt((*history, asked.instruction))
    token_s = token_times(dialog_tokenizer, prompt, answer)
    served = SimulatedCamera(random_model, features, times).served_logits(
        row.token_ids.tolist(), token_s, len(prompt)
    )
    wanted = trained[len(prompt) - 1 : len(row.token_ids) - 1]
    assert float(wanted.std()) > 0.1, "equal logits of a constant model would prove nothing"
    torch.testing.assert_close(served, wanted, atol=2e-4, rtol=1e-3)
