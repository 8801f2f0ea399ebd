"""A micro-batch as bytes."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from training.data.micro_batch import ARRAYS, MicroBatch, packed_micro_batch


def test_bytes_give_the_same_micro_batch() -> None:
    batch = packed_micro_batch(
        7, [], 64, 3, 32, sample_ids=["a", "ü"], bad_rows=[("v.mp4", "missing file", "v.mp4 is not there")]
    )
    back = MicroBatch.from_bytes(batch.to_bytes())
    for field in fields(batch.tokens):
        np.testing.assert_array_equal(getattr(back.tokens, field.name), getattr(batch.tokens, field.name))
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(back, name), getattr(batch, name))
    rest = [f.name for f in fields(MicroBatch) if f.name not in (*ARRAYS, "tokens")]
    assert [getattr(back, name) for name in rest] == [getattr(batch, name) for name in rest]
    assert back.pictures is not None
    assert back.pictures.dtype == np.uint8
