"""Chooses in-context examples among the first replies of a run, for a person to review (paper 2.2).

One instruction is taken of each cluster of similar ones, so that the examples differ. A person deletes and edits lines
of the file, and the rest of the run shows what is left to the language model.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.data.training_row import TrainingRow
from training.dense.dense_reply import Example, caption_triples
from training.dense.near_duplicates import Embedder, cluster_texts


def choose_examples(
    outcomes: Sequence[Mapping[str, Any]],
    windows: Mapping[str, TrainingRow],
    embed: Embedder,
    similarity: float,
    num: int,
) -> list[Example]:
    """The first of each cluster of usable replies, at most `num` of them, those of the largest clusters first.

    outcomes: replies with a turn. windows: the captions that each request showed.
    """
    labels = cluster_texts([outcome["turn"]["instruction"] for outcome in outcomes], embed, similarity)
    first_of: dict[int, Mapping[str, Any]] = {}
    for label, outcome in zip(labels, outcomes, strict=True):
        first_of.setdefault(label, outcome)
    chosen = [first_of[label] for label, _ in Counter(labels).most_common(num)]
    return [_example(outcome, windows[outcome["request"]]) for outcome in chosen]


def _example(outcome: Mapping[str, Any], window: TrainingRow) -> Example:
    turn = outcome["turn"]
    return Example(
        captions=caption_triples(window),
        start_s=turn["start_s"],
        instruction=turn["instruction"],
        answer=turn["answer"],
    )


def write_examples(path: Path, examples: Sequence[Example]) -> None:
    """Write a file that `dense_reply.read_examples` reads: a line of JSON for each example."""
    path.write_text("".join(json.dumps(asdict(example), ensure_ascii=False) + "\n" for example in examples))
