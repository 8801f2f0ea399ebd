"""No label grows without bound."""

from __future__ import annotations

from services.adapters.label_limits import OTHER, LabelLimits
from services.ports.metric_catalogue import FRAMES_DROPPED, FRAMES_INGESTED


def test_limits_are_per_label() -> None:
    limits = LabelLimits()
    for number in range(200):
        limits.apply(FRAMES_DROPPED, (f"camera-{number}", "encode", f"reason-{number}"))
    assert limits.apply(FRAMES_DROPPED, ("camera-199", "encode", "reason-199")) == (
        "camera-199",
        "encode",
        OTHER,
    )
    assert limits.apply(FRAMES_INGESTED, ("camera-0",)) == ("camera-0",)
