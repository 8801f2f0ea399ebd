"""Which replies are proposed as in-context examples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training.data.training_row import TrainingRow, Turn
from training.dense.dense_reply import read_examples
from training.dense.in_context_examples import choose_examples, write_examples
from training.dense.near_duplicates import word_vectors

WINDOW = TrainingRow(
    video="a.mp4",
    turns=(Turn(start_s=1.0, end_s=4.0, instruction="Tell me.", answer="A dog jumps."),),
    kind="dense",
    source="vript",
)


def outcome(number: int, instruction: str) -> dict[str, Any]:
    turn = {"start_s": 1.0, "end_s": 4.0, "instruction": instruction, "answer": "It jumps."}
    return {"request": f"w#{number}", "turn": turn}


def test_one_of_each_cluster_and_the_largest_first(tmp_path: Path) -> None:
    asked = ["Where is the cat?", "What does the dog do now?", "what does the dog do now", "Count the birds."]
    outcomes = [outcome(number, instruction) for number, instruction in enumerate(asked)]
    windows = {one["request"]: WINDOW for one in outcomes}
    chosen = choose_examples(outcomes, windows, word_vectors, 0.9, 10)
    assert [example.instruction for example in chosen] == [asked[1], asked[0], asked[3]]
    assert [example.captions for example in chosen] == [((1.0, 4.0, "A dog jumps."),)] * 3
    assert choose_examples(outcomes, windows, word_vectors, 0.9, 2) == chosen[:2]
    write_examples(tmp_path / "examples.jsonl", chosen)
    assert read_examples(tmp_path / "examples.jsonl") == tuple(chosen)
    assert choose_examples([], {}, word_vectors, 0.9, 2) == []
