"""Tasks of the live world's curriculum: captions, flip books, and dialogs at the clip's own pace."""

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
# Share of the dialogs that get no frame after the question: their answers describe the last frame.
FROZEN_SHARE = 0.25
PARTIAL_FIFO_SHARE = 0.2  # share of the dialogs whose FIFO is not full yet when they begin
# Share of the dialogs in which each token takes a step, as in a decoder with a pace; in the others each word does.
TOKEN_STEP_SHARE = 0.7


def dialog_rows(
    rng: np.random.Generator,
    tokenizer: DialogTokenizer,
    world: World,
    frame_times: Floats,
    num: int,
    span_s: float,
    max_steps: int,
) -> list[TokenRow]:
    """Questions in the first half of a window of frames, answered at a human or a machine's pace.

    Some come after an earlier question and answer. span_s: the window's length from the earliest question on.
    max_steps: of an answer; it is the same in a whole batch, to avoid padding.
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
        newest_s = ask_s if rng.random() < FROZEN_SHARE else end_s
        question = sample_question(rng, world, ask_s, QUESTION_SHARES)
        pace = float(rng.choice((5.0, rng.uniform(2.8, 6.0), rng.uniform(15.0, 100.0)), p=(0.7, 0.15, 0.15)))
        limit = min(int((end_s - ask_s) * pace), max_steps)
        steps_of = tokenizer.num_pieces if rng.random() < TOKEN_STEP_SHARE else one_step
        answer = reference_answer(question, world, ask_s, pace, limit, seen_s, steps_of)
        if not answer.words:
            continue
        history: tuple[str, ...] = ()
        if rng.random() < 0.12:
            before_s = max(ask_s - float(rng.uniform(2.0, 6.0)), 0.0)
            earlier = sample_question(rng, world, before_s)
            earlier_answer = reference_answer(earlier, world, before_s, 4.0, int(rng.integers(1, 14)))
            history = (earlier.instruction, " ".join(w.text for w in earlier_answer.words))
        row = tokenizer.row(question.instruction, answer, frame_times, history, rng)
        if newest_s == ask_s:
            row.visible[:] = row.visible[0]
        if rng.random() < PARTIAL_FIFO_SHARE:
            asked_at = int(np.searchsorted(frame_times, ask_s, side="right"))
            row.visible[:, : int(rng.integers(0, asked_at))] = False
        rows.append(row)
    return rows


def caption_rows(
    rng: np.random.Generator,
    tokenizer: DialogTokenizer,
    world: World,
    frame_times: Floats,
    num: int,
    capacity: int | None = None,
) -> list[TokenRow]:
    """Questions about the newest of a few frames, answered at once with a sentence, like captions of a picture."""
    rows: list[TokenRow] = []
    newest_s = float(frame_times[-1])
    while len(rows) < num:
        question = sample_question(rng, world, newest_s, QUESTION_SHARES)
        answer = reference_answer(
            question, world, newest_s + 0.05, 50.0, 20 if question.kind == "list" else 4, lambda _: newest_s
        )
        if answer.words:
            rows.append(tokenizer.row(question.instruction, answer, frame_times, rng=rng, capacity=capacity))
    return rows


def flip_book_row(
    rng: np.random.Generator,
    tokenizer: DialogTokenizer,
    world: World,
    scenes: Floats,
    max_steps: int,
    capacity: int | None = None,
    num_successive: int = 1,
) -> TokenRow:
    """One question with a long answer; a new scene, from any time of the clip, arrives before each sentence.

    Earlier frames and words say nothing about the next scene, so the model must use the newest frame, and one question
    trains as many examples as the answer has sentences. The first frame of a scene arrives just before its sentence, as
    when something happens while the model speaks. The arrival times are made up: five words a second.

    scenes [S, L]: capture times of the scenes' frames; a scene has L successive frames. The row sees each scene at most
    once, in random order, but groups of `num_successive` scenes stay in order. max_steps: of the answer.
    """
    asked_s, pace, length = 100.0, 5.0, scenes.shape[1]
    groups = rng.permutation(len(scenes) // num_successive)[:, None]
    order = (groups * num_successive + np.arange(num_successive)).reshape(-1)
    # Some scenes are shown before the question. Those that are never shown arrive long after the answer.
    num_shown = int(rng.integers(1, max(6 // length, 3))) if capacity != 1 else 1
    arrivals = asked_s + 1000.0 + np.arange(scenes.size, dtype=np.float64).reshape(scenes.shape)
    before = np.arange(num_shown * length)[::-1].reshape(num_shown, length)
    arrivals[order[:num_shown]] = asked_s - 0.1 - 0.2 * before
    scene_s = float(scenes[order[num_shown - 1], -1])
    question = sample_question(rng, world, scene_s, QUESTION_SHARES)
    question = replace(question, keeps_on=question.kind != "list")
    steps_of = tokenizer.num_pieces if rng.random() < TOKEN_STEP_SHARE else one_step
    words: list[Word] = []
    steps: list[int] = []
    last_place, complete = -1, False
    while not complete and sum(steps) < max_steps and num_shown < len(scenes):
        first_step = sum(steps)
        is_new = bool(words) and question.kind != "list"  # a list describes one picture
        if is_new:
            scene_s = float(scenes[order[num_shown], 0])
        spoken = sentence_at(question, world, scene_s, last_place)
        words += spoken
        steps += [steps_of(word) for word in spoken]
        last_place = listed_place([w.text for w in spoken], last_place)
        complete = not spoken or is_final_sentence(question, [w.text for w in spoken])
        if is_new:
            frame = np.arange(min(length, len(spoken)))  # at most one frame between two words
            arrivals[order[num_shown], frame] = asked_s + (first_step + frame) / pace - 0.01
            num_shown += 1
    answer = ReferenceAnswer(
        question=question,
        start_s=asked_s,
        words=tuple(words),
        word_steps=tuple(steps),
        steps_per_second=pace,
        complete=complete,
    )
    frames = np.argsort(arrivals, axis=None)
    row = tokenizer.row(question.instruction, answer, arrivals.flat[frames], rng=rng, capacity=capacity)
    frame_index, visible = np.empty_like(row.frame_index), np.empty_like(row.visible)
    frame_index[frames], visible[:, frames] = row.frame_index, row.visible
    return replace(row, frame_index=frame_index, visible=visible)
