"""From a clip's truth to training rows: words with times, their indices, what each may see, and what counts."""

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

REPEAT_WEIGHT = 0.2  # of a sentence that says what the one before it said: copying it teaches little
FIRST_WEIGHT = 3.0  # of the first word of any sentence: it decides what the sentence tells
SLIPS = 0.5  # share of the answers in whose past some words are wrong, so that copying the past does not pay
SLIP_WORDS = 0.3  # share of such an answer's state-bearing words


class DialogTokenizer:
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
    ) -> TokenRow:
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
        return TokenRow(
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
