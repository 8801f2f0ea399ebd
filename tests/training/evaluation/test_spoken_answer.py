"""An answer as it was heard."""

from __future__ import annotations

import json

from training.evaluation.spoken_answer import SpokenAnswer

TOKENS = (
    ("The", 1.0),
    (" dog", 1.2),
    (" leaves", 1.4),
    (".", 1.6),
    (" All", 1.8),
    (" is qui", 2.0),
    ("et", 2.2),
)


def spoken(tokens: tuple[tuple[str, float], ...] = TOKENS) -> SpokenAnswer:
    return SpokenAnswer(tokens=tokens, asked_seen_s=0.9, ended=True, frame_ages_ms=(1.0,))


def test_sentences_have_the_time_when_they_were_begun() -> None:
    assert spoken().timed_sentences() == [(1.0, "The dog leaves."), (1.8, "All is quiet")]
    assert spoken((("Yes. No", 3.0), ("pe!\nGood", 4.0))).timed_sentences() == [
        (3.0, "Yes."),
        (3.0, "Nope!"),
        (4.0, "Good"),
    ]
    assert spoken(()).timed_sentences() == []


def test_text_and_files() -> None:
    assert spoken().text == "The dog leaves. All is quiet"
    assert SpokenAnswer.from_dict(json.loads(json.dumps(spoken().as_dict()))) == spoken()
