"""An answer with the times of its tokens."""

from __future__ import annotations

import json

from training.evaluation.timed_answer import TimedAnswer

TOKENS = (
    ("The", 1.0),
    (" dog", 1.2),
    (" leaves", 1.4),
    (".", 1.6),
    (" All", 1.8),
    (" is qui", 2.0),
    ("et", 2.2),
)


def timed(tokens: tuple[tuple[str, float], ...] = TOKENS) -> TimedAnswer:
    return TimedAnswer(tokens=tokens, asked_seen_s=0.9, ended=True, frame_ages_ms=(1.0,))


def test_sentences_have_the_time_when_they_were_begun() -> None:
    assert timed().timed_sentences() == [(1.0, "The dog leaves."), (1.8, "All is quiet")]
    assert timed((("Yes. No", 3.0), ("pe!\nGood", 4.0))).timed_sentences() == [
        (3.0, "Yes."),
        (3.0, "Nope!"),
        (4.0, "Good"),
    ]
    assert timed(()).timed_sentences() == []


def test_text_and_files() -> None:
    assert timed().text == "The dog leaves. All is quiet"
    assert TimedAnswer.from_dict(json.loads(json.dumps(timed().as_dict()))) == timed()
