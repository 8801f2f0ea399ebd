"""Rows: times, indices, what each token may see, what counts; and that training and serving see the very same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from model.engine.engine import Engine
from model.engine.options import DialogOptions
from model.network.clock import indices
from model.network.streamchat import StreamChat
from tests.training.sample_worlds import STORY, question
from training.data.micro_batch import MicroBatch
from training.data.token_row import TokenBatch, TokenRow, collate
from training.data.word_times import word_times
from training.live_world.answers import (
    NUMBERS,
    SLOTS,
    ReferenceAnswer,
    one_step,
    reference_answer,
    sentence_at,
)
from training.live_world.clips import Clip, frame_times
from training.live_world.curriculum.dialog_tokenizer import (
    FIRST_WEIGHT,
    REPEAT_WEIGHT,
    DialogTokenizer,
    word_weights,
)
from training.live_world.curriculum.micro_batches import LiveWorldMicroBatches
from training.live_world.curriculum.tasks import dialog_rows, flip_book_row
from training.live_world.questions import Question
from training.live_world.world import make_world
from training.run.recipe import SFT_RECIPES

CAPACITY = 16
OPTIONS = DialogOptions(max_tokens=300)
Floats = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def maker(tokenizer: PreTrainedTokenizerFast) -> DialogTokenizer:
    return DialogTokenizer(tokenizer, CAPACITY)


def token_times(maker: DialogTokenizer, prompt: Sequence[int], said: ReferenceAnswer) -> list[float]:
    """When each token of a row is heard or said, by the paper's words and nothing of `DialogTokenizer.row`."""
    times = [said.start_s] * len(prompt)
    if sum(said.word_steps) > len(said.words):  # each token takes a step
        num = len(
            maker.tokenizer(" ".join(w.text for w in said.words), add_special_tokens=False)["input_ids"]
        )
        times += [said.start_s + step / said.steps_per_second for step in range(num)]
        return [*times, times[-1]] if said.complete else times
    spoken = word_times(said.start_s, said.end_s, len(said.words))
    for number, (word, time_s) in enumerate(zip(said.words, spoken, strict=True)):
        text = word.text if number == 0 else " " + word.text
        times += [time_s] * len(maker.tokenizer(text, add_special_tokens=False)["input_ids"])
    return [*times, spoken[-1]] if said.complete else times


def test_a_row_is_the_chat_and_each_token_has_its_words_time(maker: DialogTokenizer) -> None:
    said = reference_answer(question("tell"), STORY, 1.5, 4.0, 14)
    times = frame_times(0, 70, 5.0)
    row = maker.row("What is happening?", said, times)
    heard = token_times(maker, maker.prompt(("What is happening?",)), said)
    spoken = " ".join(word.text for word in said.words)
    assert maker.tokenizer.decode(row.token_ids.tolist()) == (
        f"<|im_start|>user\nWhat is happening?<|im_end|>\n<|im_start|>assistant\n{spoken}"
    )
    text_index, frame_index = indices(heard, times)
    np.testing.assert_array_equal(row.text_index, text_index)
    np.testing.assert_array_equal(row.frame_index, frame_index)
    assert all(later == before + 1 for before, later in pairwise(row.text_index.tolist()))


def test_a_sentence_begins_as_much_later_as_the_tokens_before_it(maker: DialogTokenizer) -> None:
    told = question("tell")
    said = reference_answer(told, STORY, 1.5, 4.0, 14, steps_of=maker.num_pieces)
    steps = np.cumsum([0, *said.word_steps])
    firsts = [
        0,
        *(n for n, word in enumerate(said.words, 1) if word.text.endswith(".") and n < len(said.words)),
    ]
    assert len(firsts) > 2
    for first, end in pairwise([*firsts, len(said.words)]):
        wanted = sentence_at(told, STORY, 1.5 + steps[first] / 4.0)
        assert list(said.words[first:end]) == wanted
        assert steps[end] - steps[first] == end - first + 1  # the full stop is a token


def test_a_token_sees_the_newest_frames_of_its_own_time_and_never_a_later_one(maker: DialogTokenizer) -> None:
    said = reference_answer(question("where"), STORY, 1.37, 3.0, 20)
    times = frame_times(1, 70, 5.0)
    row = maker.row("Follow the dog.", said, times)
    heard = token_times(maker, maker.prompt(("Follow the dog.",)), said)
    for position, next_s in enumerate(heard[1:]):
        seen = times[row.visible[position]]
        wanted = times[times <= next_s][-CAPACITY:]
        np.testing.assert_array_equal(seen, wanted)


@pytest.mark.parametrize("keeps_on", [True, False])
def test_only_the_answer_counts_and_its_end_if_it_ends_by_itself(
    maker: DialogTokenizer, keeps_on: bool
) -> None:
    said = reference_answer(question("where", keeps_on=keeps_on), STORY, 3.0, 4.0, 9)
    row = maker.row("Where is the dog now?", said, frame_times(0, 70, 5.0))
    predicted = row.token_ids[1:][row.loss_mask[:-1]].tolist()
    spoken = " ".join(word.text for word in said.words)
    end = "" if keeps_on else "<|im_end|>"
    assert said.complete is not keeps_on
    assert maker.tokenizer.decode(predicted) == spoken + end
    assert not row.loss_mask[-1]


def test_padding_sees_nothing_and_counts_nothing(maker: DialogTokenizer) -> None:
    times = frame_times(0, 70, 5.0)
    rows = [
        maker.row(
            "Count the things.",
            reference_answer(question("count", keeps_on=False), STORY, 3.0, 4.0, 9),
            times,
        ),
        maker.row("What is happening?", reference_answer(question("tell"), STORY, 3.0, 4.0, 20), times),
    ]
    batch = collate(rows, [0, 1], pad_id=0)
    assert batch.token_ids.shape == batch.loss_mask.shape == batch.visible.shape[:2]
    for number, row in enumerate(rows):
        length = len(row.token_ids)
        np.testing.assert_array_equal(batch.token_ids[number, :length], row.token_ids)
        np.testing.assert_array_equal(batch.visible[number, :length], row.visible)
        assert batch.loss_mask[number].sum() == row.loss_mask.sum()
        assert not batch.visible[number, length:].any()
    np.testing.assert_array_equal(batch.clip_of_row, [0, 1])


def test_padding_changes_no_logit(maker: DialogTokenizer, random_model: StreamChat) -> None:
    times = frame_times(0, 70, 5.0)
    short = maker.row(
        "Find the dog.", reference_answer(question("where", keeps_on=False), STORY, 3.0, 4.0, 9), times
    )
    long = maker.row("What is happening?", reference_answer(question("tell"), STORY, 3.0, 4.0, 30), times)
    features = some_features(70)[None]
    alone = logits_of(random_model, collate([short], [0], 0), features)[0]
    together = logits_of(random_model, collate([short, long], [0, 0], 0), features)[0]
    length = len(short.token_ids)
    torch.testing.assert_close(alone[:length], together[:length], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "texts", [("Follow the dog.",), ("Count the things.", "Two things.", "What is at top-left now?")]
)
def test_the_prompt_is_what_the_chat_template_gives(maker: DialogTokenizer, texts: tuple[str, ...]) -> None:
    messages = [
        {"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)
    ]
    served = maker.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert maker.prompt(texts) == served


def test_words_alone_are_the_tokens_of_the_whole_text(maker: DialogTokenizer) -> None:
    said = reference_answer(question("tell"), STORY, 0.5, 4.0, 60)
    words = [word.text for word in said.words]
    pieces = [piece for n, word in enumerate(words) for piece in maker.pieces(word if n == 0 else " " + word)]
    assert pieces == maker.tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]


def test_a_sentence_begins_heavily_and_one_that_is_said_again_goes_on_lightly() -> None:
    words = ["Red.", "Red.", "Blue.", "A", "red", "dog.", "A", "red", "dog.", "A"]
    low, first = REPEAT_WEIGHT, FIRST_WEIGHT
    assert word_weights(words) == [first, first, first, first, 1.0, 1.0, first, low, low, first]


def test_slips_are_heard_and_never_said(maker: DialogTokenizer) -> None:
    world, times = make_world(3, 1), np.arange(0, 20, 0.2)
    said = reference_answer(
        Question(kind="where", keeps_on=True, thing=world.start[0].name), world, 4.0, 4.0, 30
    )
    plain = maker.row("Follow it.", said, times)
    rows = [maker.row("Follow it.", said, times, rng=np.random.default_rng(seed)) for seed in range(20)]
    num_prompt = int(np.argmax(plain.loss_mask)) + 1
    assert all(np.array_equal(row.token_ids, plain.token_ids) for row in rows)
    assert all(np.array_equal(row.input_ids[:num_prompt], plain.token_ids[:num_prompt]) for row in rows)
    changed = [int((row.input_ids != row.token_ids).sum()) for row in rows]
    assert 0 < sum(num > 0 for num in changed) < len(rows)
    for row in rows:
        for was, heard in zip(row.token_ids, row.input_ids, strict=True):
            words = [str(maker.tokenizer.decode([int(token)])).strip() for token in (was, heard)]
            assert words[0] == words[1] or SLOTS[words[0]] == SLOTS[words[1]]


def test_random_rows_ask_in_the_window_and_hold_whole_answers(maker: DialogTokenizer) -> None:
    times = frame_times(0, 100, 5.0)[20:76]
    rows = dialog_rows(np.random.default_rng(0), maker, make_world(3, 1), times, 60, 8.0, 20)
    assert len(rows) == 60
    for row in rows:
        first = int(np.argmax(row.loss_mask))
        seen = np.flatnonzero(row.visible[first])
        assert 1 <= len(seen) <= CAPACITY
        assert row.visible[:, seen[0] :].any(-1).all()
        assert row.loss_mask.sum() > 0


# Training and serving see the same


def some_features(num: int, seed: int = 0) -> Tensor:
    """Visual tokens [num, P, Dv]."""
    return torch.randn(num, 9, 160, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def logits_of(model: StreamChat, batch: TokenBatch, features: Tensor) -> Tensor:
    """The training forward's logits [B, T, vocabulary]."""
    return model(
        torch.from_numpy(batch.token_ids),
        torch.from_numpy(batch.text_index),
        features,
        torch.from_numpy(batch.clip_of_row),
        torch.from_numpy(batch.frame_index),
        torch.from_numpy(batch.visible),
    )


class Camera:
    """A camera whose frames reach an engine as time goes by."""

    def __init__(self, model: StreamChat, features: Tensor, times: Floats) -> None:
        self.engine, self.features, self.times = Engine(model, max_dialogs=2), features, times
        self.engine.add_camera("camera")
        self.arrived = 0

    def until(self, time_s: float) -> None:
        """All frames captured at or before a time arrive."""
        while self.arrived < len(self.times) and self.times[self.arrived] <= time_s:
            captured_s = float(self.times[self.arrived])
            self.engine.add_frame("camera", str(self.arrived), captured_s, self.features[self.arrived])
            self.arrived += 1

    def serve(self, token_ids: list[int], heard: Sequence[float], num_prompt: int) -> Tensor:
        """Ask, then say these tokens at their times: the logits [answer tokens, vocabulary] they were made from."""
        self.until(heard[0])
        self.engine.open_dialog("dialog", "camera", token_ids[:num_prompt], OPTIONS)
        rows: list[Tensor] = []
        for position in range(num_prompt, len(token_ids)):
            self.until(heard[position])
            rows.append(self.engine.logits(["dialog"])[0])
            self.engine.append_token("dialog", token_ids[position])
        return torch.stack(rows)


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
    maker: DialogTokenizer,
    random_model: StreamChat,
    kind: str,
    ask_s: float,
    steps_per_second: float,
    by_token: bool,
    history: tuple[str, ...],
) -> None:
    asked = question(kind, keeps_on=kind != "list")
    steps_of = maker.num_pieces if by_token else one_step
    said = reference_answer(asked, STORY, ask_s, steps_per_second, 24, steps_of=steps_of)
    times, features = frame_times(0, 70, 5.0), some_features(70)
    row = maker.row(asked.instruction, said, times, history)
    trained = logits_of(random_model, collate([row], [0], 0), features[None])[0]
    prompt = maker.prompt((*history, asked.instruction))
    heard = token_times(maker, prompt, said)
    served = Camera(random_model, features, times).serve(row.token_ids.tolist(), heard, len(prompt))
    answered = trained[len(prompt) - 1 : len(row.token_ids) - 1]
    assert float(answered.std()) > 0.1, "logits that say nothing prove nothing"
    torch.testing.assert_close(served, answered, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("part", ["captions", "dialogs"])
def test_a_step_of_the_trainer_is_what_the_engine_does_on_the_clip(
    tokenizer: PreTrainedTokenizerFast, random_model: StreamChat, part: str
) -> None:
    """The trainer cuts windows out of clips; the engine has watched the camera from the first frame on that it sees."""
    worlds = [Clip(path=Path(), world=make_world(3, index)) for index in range(3)]
    features = torch.stack([some_features(100, clip) for clip in range(3)])
    numbers = np.broadcast_to(np.arange(100, dtype=np.float32)[None, :, None, None], (3, 100, 1, 1))

    def made(seen: npt.NDArray[np.float32]) -> MicroBatch:
        recipe = replace(SFT_RECIPES["live_world"], rows_per_clip=4)
        parts, rng = (
            LiveWorldMicroBatches(worlds, tokenizer, random_model.config, recipe, seen),
            np.random.default_rng(4),
        )
        return parts.captions(rng, [2, 0], 16) if part == "captions" else parts.dialogs(rng, [2, 0])

    step, told = made(features.numpy()), made(numbers).features
    assert step.features is not None
    assert told is not None
    frames = told[:, :, 0, 0].astype(int)  # which frames of each clip
    trained = logits_of(random_model, step.batch, torch.from_numpy(step.features))
    for number, clip in enumerate(step.batch.clip_of_row.tolist()):
        row = row_of(step.batch, number)
        num_prompt = int(np.argmax(row.loss_mask)) + 1
        newest = [int(frames[clip][np.flatnonzero(seen)[-1]]) for seen in row.visible]
        first = int(frames[clip][np.argmax(row.visible.any(0))])
        heard = [
            float(newest[0] - first),
            *(float(n - first) for n in newest[:-1]),
        ]  # numbers serve as the clock
        camera = Camera(random_model, features[(2, 0)[clip]][first:], np.arange(100.0 - first))
        served = camera.serve(row.token_ids.tolist(), heard, num_prompt)
        answered = trained[number, num_prompt - 1 : len(row.token_ids) - 1]
        torch.testing.assert_close(served, answered, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize(("length", "num_successive"), [(1, 1), (3, 1), (3, 2)])
def test_a_flip_book_shows_each_sentence_a_scene_of_its_own(
    maker: DialogTokenizer, length: int, num_successive: int
) -> None:
    """Told is what is so in the newest picture when the sentence begins, whatever its place in the batch."""
    world = make_world(3, 1)
    starts = np.random.default_rng(1).permutation(87)[: 24 // length]
    scenes = np.asarray(starts[:, None] + np.arange(length), np.float64) * 0.2
    rng = np.random.default_rng(2)
    changed = 0
    for _ in range(120):
        row = flip_book_row(rng, maker, world, scenes, 28, num_successive=num_successive)
        newest = [int(np.argmax(np.where(seen, row.frame_index, -1))) for seen in row.visible]
        assert np.array_equal(np.sort(row.visible[:-1].sum(1)), row.visible[:-1].sum(1)), "frames only come"
        text = str(maker.tokenizer.decode(row.token_ids[row.loss_mask.argmax() + 1 :]))
        if "thing" not in text:
            continue
        counted = [w for w in text.replace("<|im_end|>", "").split() if w in NUMBERS]
        places = [
            i
            for i, token in enumerate(row.token_ids)
            if str(maker.tokenizer.decode([token])).strip() in NUMBERS
        ]
        wanted = [NUMBERS[len(world.state(float(scenes.flat[newest[at - 1]])).things)] for at in places]
        assert counted == wanted
        changed += len(set(wanted)) > 1
    assert changed > 0


def row_of(batch: TokenBatch, number: int) -> TokenRow:
    """A row of a batch without its padding, which sees nothing."""
    length = int(batch.visible[number].any(-1).sum())
    return TokenRow(
        token_ids=batch.token_ids[number, :length],
        text_index=batch.text_index[number, :length],
        frame_index=batch.frame_index[number],
        visible=batch.visible[number, :length],
        loss_mask=batch.loss_mask[number, :length],
        loss_weights=batch.loss_weights[number, :length],
        input_ids=batch.input_ids[number, :length],
    )
