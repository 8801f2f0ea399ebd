"""Throw random requests, events, records and files at a running stack. bench_soak.py starts this as a process.

    python tests/bench/soak/fuzz.py URL KAFKA --seed 0

It goes on until SIGTERM, then prints its counts and the broken promises as one JSON line.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from types import FrameType

sys.path.insert(0, str(Path(__file__).parent.parent.parent.parent))
from tests.bench.soak.findings import Findings, Fuzzing
from tests.bench.soak.fuzz_realtime import fuzz_realtime
from tests.bench.soak.fuzz_records import fuzz_files, fuzz_records
from tests.bench.soak.fuzz_requests import fuzz_from_description, fuzz_questions, fuzz_routes

NICENESS = 10  # a client that competes with the stack for its own CPU is no measure of it


def main() -> None:
    """Run all fuzzers until SIGTERM."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("url")
    parser.add_argument("kafka")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--pause", type=float, default=1.0, help="a factor for the pauses: 0.5 is twice as much"
    )
    options = parser.parse_args()
    os.nice(NICENESS)
    logging.disable()
    findings, ended = Findings(), threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    fuzzers = [
        (fuzz_questions, options.url, 0.3),
        (fuzz_questions, options.url, 0.3),
        (fuzz_routes, options.url, 0.5),
        (fuzz_from_description, options.url, 0.5),
        (fuzz_realtime, options.url, 0.2),
        (fuzz_records, options.kafka, 0.03),
        (fuzz_files, options.kafka, 20.0),
    ]

    def run(number: int) -> None:
        fuzz, address, pause_s = fuzzers[number]
        random = Random(f"{options.seed}/{number}")
        fuzzing = Fuzzing(findings, random, pause_s * options.pause, ended)
        while not ended.is_set():
            try:
                fuzz(address, fuzzing)
            except Exception:  # its own fault, or a reply that it did not expect: told, and on it goes
                findings.break_promise(
                    fuzz.__name__, "the fuzzer understands", "", traceback.format_exc()[-500:]
                )

    with ThreadPoolExecutor(len(fuzzers)) as pool:
        list(pool.map(run, range(len(fuzzers))))
    print(json.dumps({"sent": dict(sorted(findings.counts.items())), "num_broken": findings.num_broken,
                      "broken": findings.broken}), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
