"""The percentile with which the gateway and the command line report frame ages."""

from __future__ import annotations

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 to 1) of the values do not exceed: the nearest rank.

    Raises IndexError if there are no values.
    """
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
