"""An hour of stream in simulated time, with dialogs that ask again and again: are memory and step time constant?

    python tests/bench/bench_long.py [--minutes 60] [--cameras 2] [--dialogs 4] [--window 1024] [--quick]

The clock of the stream jumps from frame to frame, so an hour takes minutes. Each dialog asks, is answered at five
tokens a second, waits for a while, and asks again in the same dialog, until the end. The last ten minutes (of a
shorter run: the last sixth) are compared with the first. Prints a table, keeps result and plot in
tests/bench/results/, and ends with one JSON line.
"""

from __future__ import annotations

import gc
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).parent.parent.parent))
from model.engine.options import DialogOptions
from model.network.streamchat import StreamChat
from tests.bench.measure.loaded_engine import FPS, LoadedEngine
from tests.bench.measure.machine import seconds
from tests.bench.measure.report import Plot, make_parser, print_table, result_name, save_result, setup
from tests.bench.measure.shapes import SHAPES, make_config, make_model, make_text

QUESTION, ANSWER = 12, 40  # tokens
PAUSE = 20  # frames between an answer and the next question


@dataclass(slots=True)
class Minute:
    """The costs of one minute of stream."""

    steps_s: list[float] = field(default_factory=list[float])
    frames_s: list[float] = field(default_factory=list[float])
    asks_s: list[float] = field(default_factory=list[float])
    cpu_s: list[float] = field(default_factory=list[float])  # of a step, without other load
    rss_mb: float = 0.0
    cache_mb: float = 0.0


class DialogLoad:
    """Dialogs that ask, get an answer, wait, and ask again; `tick` is one frame interval."""

    def __init__(self, model: StreamChat, cameras: int, dialogs: int) -> None:
        window = model.config.max_position_embeddings
        self.loaded = LoadedEngine(model, cameras=cameras, dialogs=dialogs, prompt=window, answer=0)
        self.engine, self.names = self.loaded.engine, self.loaded.names
        self.questions = [make_text(model, QUESTION, seed=number) for number in range(7)]
        self.num_asked = 0
        self.frames_to_wait = {
            name: 1 + number * 7 for number, name in enumerate(self.names)
        }  # before the next question

    def tick(self, minute: Minute) -> None:
        """A frame at every camera, questions that are due, one token for each dialog that is being answered."""
        device = self.engine.device
        minute.frames_s += [
            seconds(lambda camera=camera: self.loaded.add_frame(camera), device)
            for camera in self.loaded.cameras
        ]
        for name in self.names:
            if self.frames_to_wait[name] > 0:
                self.frames_to_wait[name] -= 1
                if self.frames_to_wait[name] == 0:
                    minute.asks_s.append(seconds(lambda name=name: self.ask(name), device))
        answering = [name for name in self.names if self.frames_to_wait[name] == 0]
        if not answering:
            return
        before = time.thread_time()
        minute.steps_s.append(seconds(lambda: self.answer(answering), device))
        minute.cpu_s.append(time.thread_time() - before)

    def ask(self, name: str) -> None:
        """The first question of a dialog, or its next."""
        question = self.questions[self.num_asked % len(self.questions)]
        self.num_asked += 1
        if name in self.engine.dialogs:
            self.engine.start_turn(name, question)
            return
        camera = self.loaded.cameras[self.names.index(name) % len(self.loaded.cameras)]
        self.engine.open_dialog(name, camera, question, DialogOptions(max_tokens=ANSWER))

    def answer(self, answering: Sequence[str]) -> None:
        """A token for each of these dialogs; a finished one waits before it asks again."""
        for made in self.engine.step(answering):
            if made.finish_reason:
                self.frames_to_wait[made.dialog_id] = PAUSE

    def measure(self, minute: Minute) -> None:
        """Memory, at the end of a minute."""
        gc.collect()
        minute.rss_mb = psutil.Process().memory_info().rss / 2**20
        minute.cache_mb = (
            self.engine.frame_pages.allocated_bytes + self.engine.text_pages.allocated_bytes
        ) / 2**20


def summary(minutes: Sequence[Minute]) -> dict[str, float]:
    """Medians over some minutes."""
    return {
        "ms/step": round(statistics.median(s for m in minutes for s in m.steps_s) * 1e3, 4),
        "cpu ms/step": round(statistics.median(s for m in minutes for s in m.cpu_s) * 1e3, 4),
        "ms/frame": round(statistics.median(s for m in minutes for s in m.frames_s) * 1e3, 4),
        "ms/question": round(statistics.median(s for m in minutes for s in m.asks_s) * 1e3, 4),
        "resident MB": round(statistics.median(m.rss_mb for m in minutes), 2),
        "cache MB": round(statistics.median(m.cache_mb for m in minutes), 3),
    }


def make_plot(minutes: Sequence[Minute]) -> Plot:
    """Step time and memory over the hour."""
    plot = Plot("An hour of stream with repeated questions", 2)
    x = [float(number + 1) for number in range(len(minutes))]
    plot.line(0, x, [summary([minute])["ms/step"] for minute in minutes], "wall")
    plot.line(0, x, [summary([minute])["cpu ms/step"] for minute in minutes], "CPU")
    plot.label(0, "minute of the stream", "ms a step, median")
    plot.line(1, x, [minute.rss_mb for minute in minutes])
    plot.label(1, "minute of the stream", "resident MB")
    for axes in plot.axes:
        axes.set_ylim(bottom=0)
    return plot


def run(load: DialogLoad, num_minutes: int) -> list[Minute]:
    """Run all minutes."""
    minutes: list[Minute] = []
    for number in range(num_minutes):
        minute = Minute()
        for _ in range(round(60 * FPS)):
            load.tick(minute)
        load.measure(minute)
        minutes.append(minute)
        if number % 10 == 9:
            print(f"minute {number + 1}: {summary([minute])}", file=sys.stderr, flush=True)
    return minutes


def main() -> None:
    """Read the command line, measure, keep, print."""
    parser = make_parser(__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="tiny")
    parser.add_argument("--minutes", type=int, default=0, help="of stream")
    parser.add_argument("--cameras", type=int, default=2)
    parser.add_argument("--dialogs", type=int, default=4)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--window", type=int, default=1024, help="tokens of text that a dialog keeps at most")
    options = parser.parse_args()
    device, dtype = setup(options)
    config = make_config(options.shape, fifo_frames=options.frames)
    config = replace(config, max_position_embeddings=options.window)
    load = DialogLoad(make_model(config, device, dtype), options.cameras, options.dialogs)
    started = time.perf_counter()
    minutes = run(load, options.minutes or (2 if options.quick else 60))
    end = max(len(minutes) // 6, 1)
    first, last = summary(minutes[:end]), summary(minutes[-end:])
    over: dict[str, Any] = {key: round(last[key] / first[key], 4) for key in first}
    print_table(
        [
            {"minutes": f"first {end}", **first},
            {"minutes": f"last {end}", **last},
            {"minutes": "ratio", **over},
        ]
    )
    result = {
        "shape": options.shape,
        "dtype": str(dtype),
        "minutes": len(minutes),
        "took_s": round(time.perf_counter() - started, 1),
        "cameras": options.cameras,
        "dialogs": options.dialogs,
        "questions": load.num_asked,
        "tokens": load.num_asked * (QUESTION + ANSWER),
        "window": options.window,
        "first": first,
        "last": last,
        "last_over_first": over,
    }
    save_result(result_name("long", options.shape), result, make_plot(minutes), options, device)


if __name__ == "__main__":
    main()
