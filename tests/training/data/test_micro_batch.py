"""Parts cross processes whole."""

from __future__ import annotations

from dataclasses import fields

import numpy as np

from training.data.micro_batch import ARRAYS, MicroBatch, packed_micro_batch


def test_a_part_comes_back_as_it_was() -> None:
    part = packed_micro_batch(
        7, [], 64, 3, 32, ids=["a", "ü"], bad=[("v.mp4", "missing file", "v.mp4 is not there")]
    )
    back = MicroBatch.from_bytes(part.to_bytes())
    for field in fields(part.batch):
        np.testing.assert_array_equal(getattr(back.batch, field.name), getattr(part.batch, field.name))
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(back, name), getattr(part, name))
    rest = [f.name for f in fields(MicroBatch) if f.name not in (*ARRAYS, "batch")]
    assert [getattr(back, name) for name in rest] == [getattr(part, name) for name in rest]
    assert back.pictures is not None
    assert back.pictures.dtype == np.uint8
