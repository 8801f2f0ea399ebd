"""The metrics of a VisionEncoder."""

from __future__ import annotations

from services.ports.metric_catalogue import ENCODER_BATCH, ENCODER_BUSY, FRAME_ENCODE
from services.ports.recorder import MetricsRecorder


class VisionEncoderMetrics:
    """Reports to a recorder."""

    def __init__(self, recorder: MetricsRecorder) -> None:
        self._recorder = recorder

    def batch_encoded(self, num_pictures: int, duration_s: float) -> None:
        """One forward pass has ended."""
        self._recorder.observe(FRAME_ENCODE, duration_s)
        self._recorder.count(ENCODER_BUSY, by=duration_s)
        self._recorder.observe(ENCODER_BATCH, num_pictures)
