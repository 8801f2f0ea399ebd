"""A computation on memory that stays, run again and again: on a GPU it is recorded, and launched as one thing."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

log = logging.getLogger(__name__)

Run = Callable[[], None]

ENOUGH = 4  # runs after which it seems to go on: recording costs about as much as some runs


class Replay:
    """Calls `run`; from the fifth call on what `record` made of it, if it could."""

    def __init__(self, run: Run, record: Callable[[Run], Run] | None) -> None:
        """`record` None: there is nothing to be won by recording."""
        self._run, self._record, self._num_runs = run, record, 0

    def __call__(self) -> None:
        """Once more, with what the memory holds now."""
        if self._record is not None and self._num_runs >= ENOUGH:
            record, self._record = self._record, None
            try:
                self._run = record(self._run)
            except RuntimeError:
                log.exception("a step could not be recorded; it is launched piece by piece")
        self._num_runs += 1
        self._run()


def cuda_graph(run: Run) -> Run:
    """Records `run`, which reads and writes nothing but memory that stays, and never waits for the GPU."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    return graph.replay
