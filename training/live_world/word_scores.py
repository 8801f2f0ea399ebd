"""Scoring spoken answers word by word with the live world's truth.

Only state-bearing words are scored: things, colours, places, happenings, numbers, and Now / Not / Nothing / Nowhere /
Gone. The rules:

- A sentence is compared with the right sentence at one time: the capture time of the newest frame that the sentence's
  first token could see. Its later words are compared with the same right sentence, even if the world has changed since.
- A word is right if the right sentence has the same word in that slot. A slot that the spoken sentence leaves out is a
  wrong word, and so is a word in a slot that the right sentence does not have.
- A word is AFTER the question if its fact became true only after the newest frame that the question could see.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from training.live_world.answers import Word, is_final_sentence, listed_place, sentence_at
from training.live_world.questions import Question
from training.live_world.world import World

SENTENCE_ENDS = ".!?"


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokenWord:
    """A spoken word and the capture time of the newest frame that its first token could see."""

    text: str
    seen_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class WordScore:
    """One scored word. `lag_s`: from the question to the start of the word's sentence, in capture times."""

    kind: str
    slot: str
    said: str | None
    wanted: str | None
    after: bool
    lag_s: float

    @property
    def right(self) -> bool:
        """Whether the spoken word is the wanted one."""
        return self.said == self.wanted


def join_tokens(tokens: Iterable[tuple[str, float]]) -> list[SpokenWord]:
    """Join tokens (text, seen_s) to words. A word has the time of its first token."""
    words: list[SpokenWord] = []
    text, seen_s = "", 0.0
    for piece, piece_s in tokens:
        if piece[:1].isspace() and text:
            words.append(SpokenWord(text=text, seen_s=seen_s))
            text = ""
        if not text:
            seen_s = piece_s
        text += piece.strip()
    return [*words, SpokenWord(text=text, seen_s=seen_s)] if text else words


def score_words(
    question: Question, world: World, asked_seen_s: float, words: Sequence[SpokenWord], ended: bool
) -> list[WordScore]:
    """Score the words of an answer.

    asked_seen_s: capture time of the newest frame that the question could see. ended: whether the answer ended by
    itself; words that are missing from one that was cut off do not count as wrong.
    """
    scores: list[WordScore] = []
    last_place = -1
    complete = False
    for said in _sentences(words):
        seen_s = said[0].seen_s
        wanted = [] if complete else sentence_at(question, world, seen_s, last_place)
        cut_off = not ended and said[-1].text[-1] not in SENTENCE_ENDS
        scores += _compare(question, wanted, said, asked_seen_s, seen_s, cut_off)
        texts = [w.text for w in said]
        last_place = listed_place(texts, last_place)
        complete = complete or is_final_sentence(question, texts)
    if ended and not complete:
        seen_s = words[-1].seen_s if words else asked_seen_s
        wanted = sentence_at(question, world, seen_s, last_place)
        scores += _compare(question, wanted, [], asked_seen_s, seen_s, cut_off=False)
    return scores


def _sentences(words: Sequence[SpokenWord]) -> Iterator[list[SpokenWord]]:
    sentence: list[SpokenWord] = []
    for word in words:
        sentence.append(word)
        if word.text[-1] in SENTENCE_ENDS:
            yield sentence
            sentence = []
    if sentence:
        yield sentence


def _compare(
    question: Question,
    wanted: Sequence[Word],
    said: Sequence[SpokenWord],
    asked_seen_s: float,
    seen_s: float,
    cut_off: bool,
) -> list[WordScore]:
    """Compare two sentences slot by slot. A second word in a slot is wrong."""
    wanted_by_slot = {slot: w for w in wanted if (slot := w.slot)}
    said_slots = [(slot, w.text.rstrip(SENTENCE_ENDS)) for w in said if (slot := Word(text=w.text).slot)]
    newest_s = max((w.since_s or 0.0 for w in wanted_by_slot.values()), default=0.0)
    pairs: list[tuple[str, str | None, Word | None]] = [
        (slot, text, wanted_by_slot.pop(slot, None)) for slot, text in said_slots
    ]
    if not cut_off:
        pairs += [(slot, None, word) for slot, word in wanted_by_slot.items()]
    return [
        WordScore(
            kind=question.kind,
            slot=slot,
            said=text,
            wanted=word.text.rstrip(SENTENCE_ENDS) if word else None,
            after=((word.since_s or 0.0) if word else newest_s) > asked_seen_s,
            lag_s=seen_s - asked_seen_s,
        )
        for slot, text, word in pairs
    ]


def word_accuracy(scores: Sequence[WordScore]) -> float:
    """Share of right words; NaN when there are none."""
    return sum(s.right for s in scores) / len(scores) if scores else float("nan")
