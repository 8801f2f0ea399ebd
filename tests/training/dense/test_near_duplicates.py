"""Which instructions are near-duplicates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from openai import OpenAI

from tests.services.served_gateway import listening
from training.data.training_row import Turn
from training.dense.near_duplicates import EndpointEmbedder, cluster_texts, without_duplicates, word_vectors

TEXTS = [
    "What is the man in the red jacket doing on the pier now?",
    "what is the man in the red jacket doing on the pier now",
    "What is the man in the red jacket doing on the pier right now?",
    "Tell me when the light turns green.",
    "Which colour has the car?",
]


def test_nearly_the_same_words_are_one() -> None:
    labels = cluster_texts(TEXTS, word_vectors, 0.8)
    assert labels[0] == labels[1] == labels[2]
    assert len(set(labels)) == 3


def turn(start_s: float, end_s: float, instruction: str) -> Turn:
    return Turn(start_s=start_s, end_s=end_s, instruction=instruction, answer="He fishes.")


def test_only_answers_at_the_same_moment_are_duplicates() -> None:
    asked = TEXTS[0]
    turns = [
        turn(0.0, 4.0, asked),
        turn(3.0, 6.0, TEXTS[1]),  # while the first answer is spoken
        turn(5.0, 8.0, TEXTS[2]),  # the turn before is left out, so this is the first of its moment
        turn(3.0, 6.0, TEXTS[3]),
        turn(90.0, 94.0, asked),
        turn(90.0, 90.0, asked),
        turn(94.0, 96.0, asked),
    ]
    kept = without_duplicates(turns, word_vectors, 0.8)
    assert kept == [True, False, True, True, True, False, True]
    assert without_duplicates([], word_vectors, 0.8) == []


def test_a_stricter_similarity_keeps_more() -> None:
    assert len(set(cluster_texts(TEXTS, word_vectors, 0.999))) == 4


def test_the_embedder_decides() -> None:
    asked: list[str] = []

    def by_length(texts: Sequence[str]) -> Any:
        asked.extend(texts)
        return np.array([[1.0, 0.0] if len(text) > 30 else [0.0, 1.0] for text in texts])

    assert len(set(cluster_texts(TEXTS, by_length, 0.9))) == 2
    assert len(asked) == 4, "the same words are embedded once"


def test_the_same_ten_thousand_times_and_nothing_at_all() -> None:
    assert len(set(cluster_texts(["What is this?"] * 10_000 + ["?!"], word_vectors, 0.9))) == 2
    assert cluster_texts([], word_vectors, 0.9) == []


@pytest.mark.parametrize("similarity", [0.0, 1.0, 90])
def test_a_similarity_that_is_none(similarity: float) -> None:
    with pytest.raises(ValueError, match="wanted between 0 and 1"):
        cluster_texts(TEXTS, word_vectors, similarity)


def test_embeddings_of_an_endpoint() -> None:
    app, sizes = FastAPI(), list[int]()

    @app.post("/v1/embeddings")
    def embed(body: dict[str, Any]) -> dict[str, Any]:  # pyright: ignore[reportUnusedFunction]
        texts = body["input"]
        sizes.append(len(texts))
        data = [
            {"object": "embedding", "index": n, "embedding": [float(len(text)), 1.0]}
            for n, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return {"object": "list", "data": data[::-1], "model": body["model"], "usage": usage}

    texts = ["x" * (1 + number % 7) for number in range(300)]
    with listening(app) as url, OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        vectors = EndpointEmbedder(client=client, model="m")(texts)
    assert sizes == [256, 44]
    assert vectors.shape == (300, 2)
    assert vectors[:, 0].tolist() == [float(len(text)) for text in texts]
