"""A computation on memory that stays, run again and again: on a GPU it is captured as a CUDA graph and replayed."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch

log = logging.getLogger(__name__)

Run = Callable[[], None]

WARMUP_RUNS = 4  # capturing costs about as much as some runs: only what goes on for this long is captured


class GraphRunner:
    """Calls a computation; after the warm-up runs it calls the graph that `capture` made of it, if it could.

    It never keeps the computation: the owner's own method would keep the owner alive, with all of its memory.
    """

    def __init__(self, capture: Callable[[Run], Run] | None) -> None:
        """`capture` None: nothing is gained by capturing (on a CPU)."""
        self._capture, self._num_runs = capture, 0
        self._graph: Run | None = None

    def __call__(self, run: Run) -> None:
        """Run once more, always the same computation, with what the memory holds now."""
        if self._capture is not None and self._num_runs >= WARMUP_RUNS:
            capture, self._capture = self._capture, None
            try:
                self._graph = capture(run)
            except RuntimeError:
                log.exception(
                    "a step could not be captured as a CUDA graph; its operations are launched one by one"
                )
        self._num_runs += 1
        (self._graph or run)()


def capture_graph(run: Run) -> Run:
    """Captures `run`, which reads and writes nothing but memory that stays, and never waits for the GPU."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        run()
    return graph.replay
