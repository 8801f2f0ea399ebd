"""Tasks of the live world's curriculum: short answers to pictures, flip books, dialogs at the clip's own pace."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from training.data.token_row import Floats, TokenRow
from training.live_world.answers import (
    ReferenceAnswer,
    Word,
    is_final_sentence,
    listed_place,
    one_step,
    reference_answer,
    sentence_at,
)
from training.live_world.curriculum.dialog_tokenizer import DialogTokenizer
from training.live_world.questions import sample_question
from training.live_world.world import World

# Shares of the kinds of question: the hard ones are asked more often.
QUESTION_SHARES = (0.25, 0.18, 0.11, 0.09, 0.13, 0.09, 0.15)
# Share of the dialogs that get no frame after the question: they tell what was seen last.
FROZEN = 0.25
PARTIAL_FIFO = 0.2  # share of the dialogs whose FIFO is not full yet when they begin
# Share of the dialogs in which each token takes a step, as in a decoder with a pace; in the others each word does.
TOKEN_STEPS = 0.7


def random_rows(
    rng: np.random.Generator,
    maker: DialogTokenizer,
    world: World,
    frame_times: Floats,
    num: int,
    span_s: float,
    longest: int,
) -> list[TokenRow]:
    """Questions asked in the first half of a window of frames, at human or at machine pace, some after another turn.

    `longest`: steps of an answer at most; one number for a batch, so that little of it is padding.
    """
    rows: list[TokenRow] = []
    begin_s, end_s = float(frame_times[0]), float(frame_times[-1])
    newest_s = end_s

    def seen_s(time_s: float) -> float:
        time_s = min(time_s, newest_s)
        return float(frame_times[max(np.searchsorted(frame_times, time_s + 1e-9, side="right") - 1, 0)])

    while len(rows) < num:
        earliest_s = max(begin_s, end_s - span_s)
        ask_s = float(rng.uniform(earliest_s, earliest_s + 0.5 * (end_s - earliest_s)))
        newest_s = ask_s if rng.random() < FROZEN else end_s
        question = sample_question(rng, world, ask_s, QUESTION_SHARES)
        pace = float(rng.choice((5.0, rng.uniform(2.8, 6.0), rng.uniform(15.0, 100.0)), p=(0.7, 0.15, 0.15)))
        max_steps = min(int((end_s - ask_s) * pace), longest)
        steps_of = maker.num_pieces if rng.random() < TOKEN_STEPS else one_step
        said = reference_answer(question, world, ask_s, pace, max_steps, seen_s, steps_of)
        if not said.words:
            continue
        history: tuple[str, ...] = ()
        if rng.random() < 0.12:
            before_s = max(ask_s - float(rng.uniform(2.0, 6.0)), 0.0)
            earlier = sample_question(rng, world, before_s)
            told = reference_answer(earlier, world, before_s, 4.0, int(rng.integers(1, 14)))
            history = (earlier.instruction, " ".join(w.text for w in told.words))
        row = maker.row(question.instruction, said, frame_times, history, rng)
        if newest_s == ask_s:
            row.visible[:] = row.visible[0]
        if rng.random() < PARTIAL_FIFO:
            asked_at = int(np.searchsorted(frame_times, ask_s, side="right"))
            row.visible[:, : int(rng.integers(0, asked_at))] = False
        rows.append(row)
    return rows


def caption_rows(
    rng: np.random.Generator,
    maker: DialogTokenizer,
    world: World,
    frame_times: Floats,
    num: int,
    capacity: int | None = None,
) -> list[TokenRow]:
    """Questions about the newest of a few frames, answered by a sentence at once: what captions are to a picture."""
    rows: list[TokenRow] = []
    newest_s = float(frame_times[-1])
    while len(rows) < num:
        question = sample_question(rng, world, newest_s, QUESTION_SHARES)
        said = reference_answer(
            question, world, newest_s + 0.05, 50.0, 20 if question.kind == "list" else 4, lambda _: newest_s
        )
        if said.words:
            rows.append(maker.row(question.instruction, said, frame_times, rng=rng, capacity=capacity))
    return rows


def flip_book_row(
    rng: np.random.Generator,
    maker: DialogTokenizer,
    world: World,
    scenes: Floats,
    longest: int,
    capacity: int | None = None,
    in_turn: int = 1,
) -> TokenRow:
    """One question, and an answer that goes on while each sentence meets a new scene from any moment of the clip.

    What was said and seen before tells nothing, so only looking at the newest frame pays; and one question gives as
    many lessons as the answer has sentences. `scenes` [S, L]: capture times of the clip's frames in the batch, L
    successive ones of each scene; the row sees a scene at most once, in an order of its own, in which so many keep
    together as stand `in_turn`. The first frame of a scene comes just before the sentence that tells of it, as when
    something happens while the model speaks. Times are made up: five words a second.
    """
    asked_s, pace, length = 100.0, 5.0, scenes.shape[1]
    order = (rng.permutation(len(scenes) // in_turn)[:, None] * in_turn + np.arange(in_turn)).reshape(-1)
    shown = int(rng.integers(1, max(6 // length, 3))) if capacity != 1 else 1  # scenes before the question
    arrivals = asked_s + 1000.0 + np.arange(scenes.size, dtype=np.float64).reshape(scenes.shape)  # or never
    arrivals[order[:shown]] = asked_s - 0.1 - 0.2 * np.arange(shown * length)[::-1].reshape(shown, length)
    told_s = float(scenes[order[shown - 1], -1])
    question = sample_question(rng, world, told_s, QUESTION_SHARES)
    question = replace(question, keeps_on=question.kind != "list")
    steps_of = maker.num_pieces if rng.random() < TOKEN_STEPS else one_step
    words: list[Word] = []
    steps: list[int] = []
    last_place, complete = -1, False
    while not complete and sum(steps) < longest and shown < len(scenes):
        begins, shows = sum(steps), bool(words) and question.kind != "list"  # a list is of one picture
        if shows:
            told_s = float(scenes[order[shown], 0])
        spoken = sentence_at(question, world, told_s, last_place)
        words += spoken
        steps += [steps_of(word) for word in spoken]
        last_place = listed_place([w.text for w in spoken], last_place)
        complete = not spoken or is_final_sentence(question, [w.text for w in spoken])
        if shows:
            come = np.arange(min(length, len(spoken)))  # at most one between two words
            arrivals[order[shown], come] = asked_s + (begins + come) / pace - 0.01
            shown += 1
    said = ReferenceAnswer(
        question=question,
        start_s=asked_s,
        words=tuple(words),
        word_steps=tuple(steps),
        steps_per_second=pace,
        complete=complete,
    )
    frames = np.argsort(arrivals, axis=None)
    row = maker.row(question.instruction, said, arrivals.flat[frames], rng=rng, capacity=capacity)
    frame_index, visible = np.empty_like(row.frame_index), np.empty_like(row.visible)
    frame_index[frames], visible[:, frames] = row.frame_index, row.visible
    return replace(row, frame_index=frame_index, visible=visible)
