"""The Prometheus metrics of a training run, sent through Ray's metrics.

Ray exports them on every node as `ray_streamchat_train_...`. The scrape configuration removes `ray_` (docs/metrics.md).
The dashboard `helm/streamchat/dashboards/training.json` shows them.
"""

from __future__ import annotations

import threading
import time

from ray.util.metrics import Counter, Gauge, Histogram

LABELS = ("recipe", "rank")  # the recipe's name ("sft", "pretrain", ...); the worker's rank
REPEAT_S = 1.0  # Ray drops gauges that are not set for a while, and a step may take long
STEP_BUCKETS_S = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0]


class TrainMetrics:
    """The metrics of one worker. Create it in a process that Ray has started, or after `ray.init`."""

    def __init__(self, recipe: str, rank: int = 0) -> None:
        self._gauge_values: dict[Gauge, float] = {}
        self._validation_values: dict[Gauge, float] = {}
        self._labels = {"recipe": recipe, "rank": str(rank)}
        self._loss = self._gauge("streamchat_train_loss", "Loss of the last step")
        self._rate = self._gauge("streamchat_train_learning_rate", "Learning rate of the last step")
        self._norm = self._gauge("streamchat_train_gradient_norm", "Length of the gradient before it was cut")
        self._done = self._gauge("streamchat_train_done_ratio", "The share of the run that is done, 0 to 1")
        self._memory = self._gauge("streamchat_train_memory_bytes", "Memory of the device that is in use")
        self._right = self._gauge(
            "streamchat_train_right_ratio", "Share of the last step's tokens that were the likeliest, 0 to 1"
        )
        self._validation_loss = self._gauge("streamchat_train_validation_loss", "Loss of the validation rows")
        self._validation_right = self._gauge(
            "streamchat_train_validation_right_ratio",
            "Share of the validation rows' tokens that were the likeliest, 0 to 1",
        )
        self._step_s = Histogram(
            "streamchat_train_step_seconds", "One optimiser step", STEP_BUCKETS_S, tag_keys=LABELS
        ).set_default_tags(self._labels)
        self._wait_s = self._counter(
            "streamchat_train_data_wait_seconds_total", "Time spent waiting for data"
        )
        self._tokens = self._counter("streamchat_train_tokens_total", "Text tokens trained on")
        self._frames = self._counter("streamchat_train_frames_total", "Video frames trained on")
        self._skipped_rows = self._counter("streamchat_train_rows_skipped_total", "Bad rows of data left out")
        self._skipped_steps = self._counter(
            "streamchat_train_steps_skipped_total",
            "Steps left out because the loss or the gradient was not finite",
        )
        self._saved = self._counter("streamchat_train_checkpoints_total", "Checkpoints written")
        threading.Thread(target=self._repeat_gauges, name="gauges", daemon=True).start()

    def step(
        self,
        *,
        loss: float,
        learning_rate: float,
        gradient_norm: float,
        step_s: float,
        num_tokens: int,
        num_frames: int = 0,
        data_wait_s: float = 0.0,
        done: float | None = None,
        memory_bytes: int | None = None,
        right: float | None = None,
    ) -> None:
        """Record one optimiser step."""
        values = {
            self._loss: loss,
            self._rate: learning_rate,
            self._norm: gradient_norm,
            self._done: done,
            self._memory: memory_bytes,
            self._right: right,
        }
        self._gauge_values = {gauge: value for gauge, value in values.items() if value is not None}
        self._set_gauges()
        self._step_s.observe(step_s)
        for counter, value in (
            (self._tokens, num_tokens),
            (self._frames, num_frames),
            (self._wait_s, data_wait_s),
        ):
            add(counter, value)

    def skipped_rows(self, num: int) -> None:
        """Count bad rows that were skipped."""
        add(self._skipped_rows, num)

    def skipped_steps(self, num: int) -> None:
        """Count steps that were skipped, because their loss or gradient was not finite."""
        add(self._skipped_steps, num)

    def validated(self, loss: float, right: float) -> None:
        """Record the loss of the validation rows and the share of their tokens that were the likeliest."""
        self._validation_values = {self._validation_loss: loss, self._validation_right: right}
        self._set_gauges()

    def saved(self) -> None:
        """Count a written checkpoint."""
        add(self._saved, 1)

    def _set_gauges(self) -> None:
        for gauge, value in (self._gauge_values | self._validation_values).items():
            gauge.set(value)

    def _repeat_gauges(self) -> None:
        while True:
            time.sleep(REPEAT_S)
            self._set_gauges()

    def _gauge(self, name: str, about: str) -> Gauge:
        gauge = Gauge(name, about, LABELS)
        gauge.set_default_tags(self._labels)
        return gauge

    def _counter(self, name: str, about: str) -> Counter:
        counter = Counter(name, about, LABELS)
        counter.set_default_tags(self._labels)
        add(counter, 0.0)
        return counter


def add(counter: Counter, value: float) -> None:
    """Add to a counter. Unlike `inc` it allows 0: Prometheus misses the first rise of a counter without a 0."""
    counter._record(value)  # pyright: ignore[reportPrivateUsage]
