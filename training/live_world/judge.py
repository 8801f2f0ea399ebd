"""Judging spoken answers by the world's truth.

The rule: a sentence is judged by the truth at the capture time of the newest frame that its FIRST token could see. (The
first word of a sentence is thereby judged by what it could see itself; a word that finishes a sentence, by the truth
when that sentence began.) Judged are the state-bearing words: things, colours, places, happenings, numbers, and
Now / Not / Nothing / Nowhere / Gone. A word is right if the right sentence says the same in that slot; a slot that the
right sentence fills and the spoken one leaves out is a wrong word. A word is AFTER the question if what it should tell
has become so only after the newest frame that the question could see.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from training.live_world.answers import Word, is_final_sentence, listed_place, sentence_at
from training.live_world.questions import Question
from training.live_world.world import World

END = ".!?"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """A word as it was spoken and the capture time of the newest frame that its first token could see."""

    text: str
    seen_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One judged word. `lag_s`: from the question to the sentence, on the frames' clock."""

    kind: str
    slot: str
    said: str | None
    wanted: str | None
    after: bool
    lag_s: float

    @property
    def right(self) -> bool:
        """Whether the word says what is so."""
        return self.said == self.wanted


def spoken_words(tokens: Iterable[tuple[str, float]]) -> list[Spoken]:
    """Join tokens (text, seen_s) to words; a word's time is its first token's."""
    words: list[Spoken] = []
    text, seen_s = "", 0.0
    for piece, piece_s in tokens:
        if piece[:1].isspace() and text:
            words.append(Spoken(text=text, seen_s=seen_s))
            text = ""
        if not text:
            seen_s = piece_s
        text += piece.strip()
    return [*words, Spoken(text=text, seen_s=seen_s)] if text else words


def judge(
    question: Question, world: World, asked_seen_s: float, words: Sequence[Spoken], ended: bool
) -> list[Verdict]:
    """Judge an answer. `ended`: it ended by itself; one that was cut off is not blamed for what it left out."""
    verdicts: list[Verdict] = []
    last_place = -1
    complete = False
    for said in _sentences(words):
        seen_s = said[0].seen_s
        wanted = [] if complete else sentence_at(question, world, seen_s, last_place)
        cut = not ended and said[-1].text[-1] not in END
        verdicts += _compare(question, wanted, said, asked_seen_s, cut)
        texts = [w.text for w in said]
        last_place = listed_place(texts, last_place)
        complete = complete or is_final_sentence(question, texts)
    if ended and not complete:
        seen_s = words[-1].seen_s if words else asked_seen_s
        verdicts += _compare(
            question, sentence_at(question, world, seen_s, last_place), [], asked_seen_s, False, seen_s
        )
    return verdicts


def _sentences(words: Sequence[Spoken]) -> Iterator[list[Spoken]]:
    said: list[Spoken] = []
    for word in words:
        said.append(word)
        if word.text[-1] in END:
            yield said
            said = []
    if said:
        yield said


def _compare(
    question: Question,
    wanted: Sequence[Word],
    said: Sequence[Spoken],
    asked_seen_s: float,
    cut: bool,
    seen_s: float | None = None,
) -> list[Verdict]:
    """Compare slot by slot; a second word in a slot is one too many."""
    want = {slot: w for w in wanted if (slot := w.slot)}
    have = [(slot, w.text.rstrip(END)) for w in said if (slot := Word(text=w.text).slot)]
    began_s = said[0].seen_s if said else (seen_s or 0.0)
    newest_s = max((w.since_s or 0.0 for w in want.values()), default=0.0)
    pairs: list[tuple[str, str | None, Word | None]] = [
        (slot, text, want.pop(slot, None)) for slot, text in have
    ]
    if not cut:
        pairs += [(slot, None, word) for slot, word in want.items()]
    verdicts: list[Verdict] = []
    for slot, text, word in pairs:
        since_s = (word.since_s or 0.0) if word else newest_s
        verdicts.append(
            Verdict(
                kind=question.kind,
                slot=slot,
                said=text,
                wanted=word.text.rstrip(END) if word else None,
                after=since_s > asked_seen_s,
                lag_s=began_s - asked_seen_s,
            )
        )
    return verdicts


def share_right(verdicts: Sequence[Verdict]) -> float:
    """Share of right words; NaN when there are none."""
    return sum(v.right for v in verdicts) / len(verdicts) if verdicts else float("nan")
