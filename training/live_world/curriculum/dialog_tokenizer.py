"""Make token rows of live-world questions and answers: tokens, times, visible frames, and loss weights."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerFast

from model.network.clock import indices, visibility
from training.data.token_row import Floats, Ints, TokenRow
from training.data.word_times import word_times
from training.live_world.answers import SLOTS, ReferenceAnswer, Word
from training.live_world.questions import Question
from training.live_world.world import PLACES

REPEAT_WEIGHT = 0.2  # loss weight of a sentence that repeats the one before it
FIRST_WEIGHT = 3.0  # loss weight of the first word of a sentence: it decides what the sentence states
# Some answers are read with wrong words in them, so that copying earlier words gives no lower loss.
CORRUPTED_ANSWERS = 0.5  # share of the answers
CORRUPTED_WORDS = 0.3  # share of such an answer's state-bearing words


class DialogTokenizer:
    """Makes token rows of questions and reference answers; words get their times as in section 2.3 of the paper."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, capacity: int) -> None:
        self.tokenizer = tokenizer
        self.capacity = capacity
        end = tokenizer.eos_token_id
        assert isinstance(end, int)
        self.end_id = end
        self._word_ids: dict[str, list[int]] = {}
        self._prompt_ids: dict[tuple[str, ...], list[int]] = {}
        # By token of a state-bearing word: the tokens of all words of its slot, with or without a leading space.
        self._same_slot: dict[int, list[int]] = {}
        for space in ("", " "):
            for slot in set(SLOTS.values()):
                tokens = [self.pieces(space + word) for word, of in SLOTS.items() if of == slot]
                single = [ids[0] for ids in tokens if len(ids) == 1]
                self._same_slot |= dict.fromkeys(single, single)

    def row(
        self,
        question: str,
        answer: ReferenceAnswer,
        frame_times: Floats,
        history: Sequence[str] = (),
        rng: np.random.Generator | None = None,
        capacity: int | None = None,
    ) -> TokenRow:
        """The row of a question that is asked at `answer.start_s`, and its answer.

        history: earlier user and assistant texts in alternation. rng: if given, some answers are read with wrong words
        (`corrupt`); the words to predict stay right. capacity: visible frames, if fewer than the FIFO holds.
        """
        prompt = self.prompt((*history, question))
        words = [w.text for w in answer.words]
        times = word_times(answer.start_s, answer.end_s, sum(answer.word_steps))
        ids, token_times = list(prompt), [answer.start_s] * len(prompt)
        weights = [1.0] * len(prompt)
        step = 0
        for number, (word, steps, weight) in enumerate(
            zip(words, answer.word_steps, word_weights(words), strict=True)
        ):
            pieces = self.pieces(word if number == 0 else " " + word)
            ids += pieces
            token_times += [times[step + min(piece, steps - 1)] for piece in range(len(pieces))]
            weights += [weight] * len(pieces)
            step += steps
        if answer.complete:
            ids.append(self.end_id)
            token_times.append(times[-1])
            weights.append(1.0)
        times_s = np.array(token_times)
        text_index, frame_index = indices(token_times, frame_times)
        next_times = np.append(times_s[1:], times_s[-1])
        loss_mask = np.arange(len(ids)) >= len(prompt) - 1
        loss_mask[-1] = False  # nothing comes after the last token
        input_ids = np.array(ids)
        # Lists stay right: the next sentence of a list depends on the one before.
        if rng is not None and answer.question.kind != "list":
            input_ids = self.corrupt(input_ids, len(prompt), rng)
        return TokenRow(
            token_ids=np.array(ids),
            loss_weights=np.array([*weights[1:], 0.0]),  # of the next token
            input_ids=input_ids,
            text_index=np.array(text_index),
            frame_index=np.array(frame_index),
            visible=np.asarray(visibility(next_times, frame_times, capacity or self.capacity)),
            loss_mask=loss_mask,
            topic=self.topic(answer.question),
        )

    def topic(self, question: Question) -> int:
        """First token of the thing or place that a question is about; -1 for questions about everything."""
        if question.kind in ("tell", "list", "count"):
            return -1
        return self.pieces(" " + (PLACES[question.place] if question.kind == "what" else question.thing))[0]

    def corrupt(self, ids: Ints, num_prompt: int, rng: np.random.Generator) -> Ints:
        """Replace some state-bearing words of the answer by other words of the same slot."""
        if rng.random() >= CORRUPTED_ANSWERS:
            return ids
        input_ids = ids.copy()
        for index in range(num_prompt, len(ids)):
            others = self._same_slot.get(int(ids[index]))
            if others and rng.random() < CORRUPTED_WORDS:
                input_ids[index] = others[int(rng.integers(len(others)))]
        return input_ids

    def prompt(self, texts: tuple[str, ...]) -> list[int]:
        """Token ids of the chat so far, up to the start of the assistant's turn."""
        if texts not in self._prompt_ids:
            roles = ("user", "assistant")
            messages = [{"role": roles[i % 2], "content": t} for i, t in enumerate(texts)]
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
            if len(self._prompt_ids) > 50_000:
                self._prompt_ids.clear()
            self._prompt_ids[texts] = self.tokenizer(str(text), add_special_tokens=False)["input_ids"]  # type: ignore[assignment]
        return self._prompt_ids[texts]

    def num_pieces(self, word: Word) -> int:
        """Number of tokens of a word."""
        return len(self.pieces(" " + word.text))

    def pieces(self, word: str) -> list[int]:
        """Token ids of a word, which may begin with a space."""
        if word not in self._word_ids:
            self._word_ids[word] = self.tokenizer(word, add_special_tokens=False)["input_ids"]  # type: ignore[assignment]
        return self._word_ids[word]


def word_weights(words: Sequence[str]) -> list[float]:
    """Loss weight of each word: `FIRST_WEIGHT` for first words, `REPEAT_WEIGHT` for the rest of a repeated sentence."""
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
