"""Find instructions that say nearly the same: embed them, cluster them, keep a few of each cluster (paper 2.2)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from openai import OpenAI
from sklearn.cluster import DBSCAN
from sklearn.feature_extraction.text import TfidfVectorizer

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


def first_of_each(labels: Sequence[int], num: int) -> list[bool]:
    """Whether to keep each text: the first `num` of each cluster are kept."""
    seen: dict[int, int] = {}
    kept: list[bool] = []
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
        kept.append(seen[label] <= num)
    return kept
