"""Finds instructions that say nearly the same, by clustering their embeddings (paper 2.2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from openai import OpenAI
from sklearn.cluster import DBSCAN
from sklearn.feature_extraction.text import TfidfVectorizer

from training.data.training_row import Turn

BATCH_SIZE = 256


class Embedder(Protocol):
    """Turns N texts into N vectors, an array or a sparse matrix."""

    def __call__(self, texts: Sequence[str]) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointEmbedder:
    """An embedding model behind an OpenAI-compatible endpoint."""

    client: OpenAI
    model: str

    def __call__(self, texts: Sequence[str]) -> Any:
        """Vectors [N, D]; raises OpenAIError."""
        vectors: list[list[float]] = []
        for first in range(0, len(texts), BATCH_SIZE):
            batch = list(texts[first : first + BATCH_SIZE])
            reply = self.client.embeddings.create(model=self.model, input=batch)
            vectors += [one.embedding for one in sorted(reply.data, key=lambda one: one.index)]
        return np.array(vectors)


def word_vectors(texts: Sequence[str]) -> Any:
    """TF-IDF vectors of words and word pairs: the default, without an embedding model."""
    return TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+", sublinear_tf=True).fit_transform(texts)


def cluster_texts(texts: Sequence[str], embed: Embedder, similarity: float) -> list[int]:
    """The cluster of each text. Texts of at least that cosine similarity share a cluster, also through other texts.

    Raises ValueError when the similarity is not above 0 and below 1.
    """
    if not 0 < similarity < 1:
        raise ValueError(f"similarity: got {similarity}, wanted between 0 and 1")
    plain = [" ".join(re.findall(r"\w+", text.casefold())) or text for text in texts]
    unique = sorted(set(plain))  # a thousand equal texts would be a million pairs
    if not unique:
        return []
    labels = DBSCAN(eps=1 - similarity, min_samples=1, metric="cosine").fit_predict(embed(unique))
    cluster = dict(zip(unique, (int(label) for label in labels), strict=True))
    return [cluster[text] for text in plain]


def without_duplicates(turns: Sequence[Turn], embed: Embedder, similarity: float) -> list[bool]:
    """Whether to keep each turn of a video. Of similar instructions whose answers overlap in time the first is kept.

    The same instruction at another moment has another answer, so it is no duplicate.
    """
    overlapping = [
        i for i, turn in enumerate(turns) if any(_overlap(turn, o) for o in turns if o is not turn)
    ]
    clusters = cluster_texts([turns[i].instruction for i in overlapping], embed, similarity)
    kept = [True] * len(turns)
    of_cluster: dict[int, list[Turn]] = {}
    for i, cluster in zip(overlapping, clusters, strict=True):
        others = of_cluster.setdefault(cluster, [])
        if any(_overlap(turns[i], other) for other in others):
            kept[i] = False
        else:
            others.append(turns[i])
    return kept


def _overlap(one: Turn, other: Turn) -> bool:
    """Whether both are spoken at some moment; an answer of one word is spoken at a moment."""
    return one.start_s == other.start_s or max(one.start_s, other.start_s) < min(one.end_s, other.end_s)
