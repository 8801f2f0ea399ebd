"""Percentiles by the nearest rank."""

from __future__ import annotations

import pytest

from services.messages.percentile import percentile


@pytest.mark.parametrize(
    ("values", "share", "wanted"),
    [
        ([7.0], 0.95, 7.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        ([float(n) for n in range(100, 0, -1)], 0.95, 95.0),
        ([float(n) for n in range(1, 101)], 0.5, 50.0),
    ],
)
def test_percentiles(values: list[float], share: float, wanted: float) -> None:
    assert percentile(values, share) == wanted
