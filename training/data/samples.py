"""From a clip's truth to training rows: words with times, their indices, what each may see, and what counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerFast

from model.network.clock import indices, visibility
from training.data.word_times import word_times
from training.live_world.answers import (
    SLOTS,
    ReferenceAnswer,
    Word,
    is_final_sentence,
    listed_place,
    one_step,
    reference_answer,
    sentence_at,
)
from training.live_world.questions import Question, sample_question
from training.live_world.world import PLACES, World

REPEAT_WEIGHT = 0.2  # of a sentence that says what the one before it said: copying it teaches little
FIRST_WEIGHT = 3.0  # of the first word of any sentence: it decides what the sentence tells
SLIPS = 0.5  # share of the answers in whose past some words are wrong, so that copying the past does not pay
SLIP_WORDS = 0.3  # share of such an answer's state-bearing words
# Shares of the kinds of question: what is hard, more often.
LESSONS = (0.25, 0.18, 0.11, 0.09, 0.13, 0.09, 0.15)
# Share of the dialogs to which no frame comes after the question: they tell of what was last seen.
FROZEN = 0.25
YOUNG = 0.2  # share of the dialogs whose FIFO is not full yet when they begin
# Share of the dialogs in which each token takes a step, as in a decoder with a pace; in the others each word does.
TOKEN_STEPS = 0.7

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One dialog on one clip: T text tokens, N frames of the clip."""

    token_ids: Ints  # [T]
    text_index: Ints  # [T]
    frame_index: Ints  # [N]
    visible: Bools  # [T, N]: what the query at i may see, that is, what the token i + 1 could see
    counts: Bools  # [T]: whether predicting token i + 1 is part of the loss
    weights: Floats  # [T]: how much, where it counts
    heard: Ints  # [T]: what the model reads, `token_ids` with slips of the tongue in the answer
    topic: int = -1  # token of the thing or the place that is asked for, if any


class RowMaker:
    """Makes rows: speaks as the perfect observer, puts times to tokens (paper section 2.3), and indices to both."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, capacity: int) -> None:
        self.tokenizer = tokenizer
        self.capacity = capacity
        end = tokenizer.eos_token_id
        assert isinstance(end, int)
        self.end_id = end
        self._word_ids: dict[str, list[int]] = {}
        self._prompt_ids: dict[tuple[str, ...], list[int]] = {}
        self._slips: dict[
            int, list[int]
        ] = {}  # by token of a state-bearing word: all of its slot, as spelt there
        for space in ("", " "):
            for slot in set(SLOTS.values()):
                tokens = [self.pieces(space + word) for word, of in SLOTS.items() if of == slot]
                single = [ids[0] for ids in tokens if len(ids) == 1]
                self._slips |= dict.fromkeys(single, single)

    def row(
        self,
        question: str,
        said: ReferenceAnswer,
        frame_times: Floats,
        history: Sequence[str] = (),
        rng: np.random.Generator | None = None,
        capacity: int | None = None,
    ) -> Row:
        """A question asked at `said.start_s` after `history` (user and assistant texts in turn), and its answer.

        With `rng`, some answers are heard with slips (`with_slips`); what is to be said stays right. `capacity`:
        frames that can be seen at once, if fewer than the FIFO holds.
        """
        prompt = self.prompt((*history, question))
        words = [w.text for w in said.words]
        times = word_times(said.start_s, said.end_s, sum(said.word_steps))
        ids, token_times = list(prompt), [said.start_s] * len(prompt)
        weights = [1.0] * len(prompt)
        step = 0
        for number, (word, steps, weight) in enumerate(
            zip(words, said.word_steps, word_weights(words), strict=True)
        ):
            pieces = self.pieces(word if number == 0 else " " + word)
            ids += pieces
            token_times += [times[step + min(piece, steps - 1)] for piece in range(len(pieces))]
            weights += [weight] * len(pieces)
            step += steps
        if said.complete:
            ids.append(self.end_id)
            token_times.append(times[-1])
            weights.append(1.0)
        at = np.array(token_times)
        text_index, frame_index = indices(token_times, frame_times)
        next_times = np.append(at[1:], at[-1])
        counts = np.arange(len(ids)) >= len(prompt) - 1
        counts[-1] = False  # nothing comes after the last token
        heard = np.array(ids)
        if rng is not None and said.question.kind != "list":  # a list goes on from what it named last
            heard = self.with_slips(heard, len(prompt), rng)
        return Row(
            token_ids=np.array(ids),
            weights=np.array([*weights[1:], 0.0]),  # of the token that comes next
            heard=heard,
            text_index=np.array(text_index),
            frame_index=np.array(frame_index),
            visible=np.asarray(visibility(next_times, frame_times, capacity or self.capacity)),
            counts=counts,
            topic=self.topic(said.question),
        )

    def topic(self, question: Question) -> int:
        """The token of what a question is about; -1 when it is about all there is."""
        if question.kind in ("tell", "list", "count"):
            return -1
        return self.pieces(" " + (PLACES[question.place] if question.kind == "what" else question.thing))[0]

    def with_slips(self, ids: Ints, num_prompt: int, rng: np.random.Generator) -> Ints:
        """Replace some state-bearing words of the answer by others of the same slot."""
        if rng.random() >= SLIPS:
            return ids
        heard = ids.copy()
        for place in range(num_prompt, len(ids)):
            others = self._slips.get(int(ids[place]))
            if others and rng.random() < SLIP_WORDS:
                heard[place] = others[int(rng.integers(len(others)))]
        return heard

    def prompt(self, texts: tuple[str, ...]) -> list[int]:
        """Token ids of the chat so far, up to where the assistant speaks."""
        if texts not in self._prompt_ids:
            roles = ("user", "assistant")
            messages = [{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)]
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            if len(self._prompt_ids) > 50_000:
                self._prompt_ids.clear()
            self._prompt_ids[texts] = self.tokenizer(str(text), add_special_tokens=False)["input_ids"]  # type: ignore[assignment]
        return self._prompt_ids[texts]

    def num_pieces(self, word: Word) -> int:
        """Tokens of a word."""
        return len(self.pieces(" " + word.text))

    def pieces(self, word: str) -> list[int]:
        """Token ids of a word with its leading space, if it has one."""
        if word not in self._word_ids:
            self._word_ids[word] = self.tokenizer(word, add_special_tokens=False)["input_ids"]  # type: ignore[assignment]
        return self._word_ids[word]


def word_weights(words: Sequence[str]) -> list[float]:
    """A weight for each word: `FIRST_WEIGHT` begins a sentence; the rest of one that repeats the last weighs little."""
    weights: list[float] = []
    before: list[str] = []
    rest = list(words)
    while rest:
        ends = [number for number, word in enumerate(rest, 1) if word[-1] in ".!?"]
        length = ends[0] if ends else len(rest)
        sentence, rest = rest[:length], rest[length:]
        weights += [FIRST_WEIGHT] + [REPEAT_WEIGHT if sentence == before else 1.0] * (length - 1)
        before = sentence
    return weights


def random_rows(
    rng: np.random.Generator,
    maker: RowMaker,
    world: World,
    frame_times: Floats,
    num: int,
    span_s: float,
    longest: int,
) -> list[Row]:
    """Questions asked in the first half of a window of frames, at human or at machine pace, some after another turn.

    `longest`: steps of an answer at most; one number for a batch, so that little of it is padding.
    """
    rows: list[Row] = []
    begin_s, end_s = float(frame_times[0]), float(frame_times[-1])
    newest_s = end_s

    def seen_s(time_s: float) -> float:
        time_s = min(time_s, newest_s)
        return float(frame_times[max(np.searchsorted(frame_times, time_s + 1e-9, side="right") - 1, 0)])

    while len(rows) < num:
        earliest_s = max(begin_s, end_s - span_s)
        ask_s = float(rng.uniform(earliest_s, earliest_s + 0.5 * (end_s - earliest_s)))
        newest_s = ask_s if rng.random() < FROZEN else end_s
        question = sample_question(rng, world, ask_s, LESSONS)
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
        if rng.random() < YOUNG:
            asked_at = int(np.searchsorted(frame_times, ask_s, side="right"))
            row.visible[:, : int(rng.integers(0, asked_at))] = False
        rows.append(row)
    return rows


def caption_rows(
    rng: np.random.Generator,
    maker: RowMaker,
    world: World,
    frame_times: Floats,
    num: int,
    capacity: int | None = None,
) -> list[Row]:
    """Questions about the newest of a few frames, answered by a sentence at once: what captions are to a picture."""
    rows: list[Row] = []
    newest_s = float(frame_times[-1])
    while len(rows) < num:
        question = sample_question(rng, world, newest_s, LESSONS)
        said = reference_answer(
            question, world, newest_s + 0.05, 50.0, 20 if question.kind == "list" else 4, lambda _: newest_s
        )
        if said.words:
            rows.append(maker.row(question.instruction, said, frame_times, rng=rng, capacity=capacity))
    return rows


def flip_book_row(
    rng: np.random.Generator,
    maker: RowMaker,
    world: World,
    scenes: Floats,
    longest: int,
    capacity: int | None = None,
    in_turn: int = 1,
) -> Row:
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
    question = sample_question(rng, world, told_s, LESSONS)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows of several clips, padded on the right: B rows, T text tokens, C clips, F frames of each."""

    token_ids: Ints  # [B, T]
    text_index: Ints  # [B, T]
    clip_of_row: Ints  # [B]
    frame_index: Ints  # [B, F]
    visible: Bools  # [B, T, F]
    counts: Bools  # [B, T]
    weights: Floats  # [B, T]
    heard: Ints  # [B, T]
    topics: Ints  # [B]


def collate(rows: Sequence[Row], clip_of_row: Sequence[int], pad_id: int) -> Batch:
    """Pad rows to the longest; padding sees nothing and counts nothing."""
    longest = max(len(r.token_ids) for r in rows)
    longest = (longest + 7) // 8 * 8
    num_frames = len(rows[0].frame_index)
    shape = (len(rows), longest)
    ids, index = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    visible, counts = np.zeros((*shape, num_frames), dtype=np.bool_), np.zeros(shape, dtype=np.bool_)
    heard, weights = ids.copy(), np.zeros(shape)
    for i, row in enumerate(rows):
        length = len(row.token_ids)
        ids[i, :length], index[i, :length] = row.token_ids, row.text_index
        visible[i, :length], counts[i, :length] = row.visible, row.counts
        heard[i, :length], weights[i, :length] = row.heard, row.weights
    return Batch(
        token_ids=ids,
        text_index=index,
        clip_of_row=np.array(clip_of_row),
        frame_index=np.stack([r.frame_index for r in rows]),
        visible=visible,
        counts=counts,
        weights=weights,
        heard=heard,
        topics=np.array([r.topic for r in rows]),
    )
