"""Mutation testing: changes the sources one place at a time, and asks whether a source file's own tests notice.

    python tests/mutants/run_mutants.py --seed 7 --num 100

Takes a random sample of mutations of the files that have unit tests of their own (tests/<same path>/test_<file>.py) and
runs each against those tests, in copies of the tree: first the fast ones, then the slow ones. A mutant that no test
kills is a survivor. `judged.json` says of each known survivor what it is: "equivalent" (behaves the same), "slower"
(only costs time), "elsewhere" (the tests of another file kill it) or "hole" (a test is missing). Ends with 1 if a
survivor is a hole or nobody has judged it. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))
from model.config import PROJECT_ROOT
from tests.mutants.mutations import Mutation, mutations

JUDGED = Path(__file__).with_name("judged.json")
PACKAGES = ("model", "services", "training")
SLOWEST_S = 180.0  # test files that take longer are left out
PATIENCE = 5  # times the usual duration, after which a mutant counts as killed


@dataclass(frozen=True, slots=True)
class Mutant:
    """One mutation of one file."""

    source: str
    test: str
    mutation: Mutation

    def key(self) -> str:
        """Identifies the mutant as long as its line stays as it is."""
        text = (PROJECT_ROOT / self.source).read_text()
        start = text.rfind("\n", 0, self.mutation.start) + 1
        end = text.find("\n", self.mutation.end)
        line, column = text[start:end], self.mutation.start - start
        changed = line[:column] + self.mutation.replacement + text[self.mutation.end : end]
        return f"{self.source} {self.mutation.function}: {line.strip()} -> {changed.strip()}"


class Checkout:
    """A copy of the tree in which one mutant at a time is tested."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True).stdout
        for name in names.splitlines():
            if (PROJECT_ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(PROJECT_ROOT / name, folder / name)

    def passes(self, test: str, timeout_s: float, *, slow: bool) -> bool:
        """Whether the fast tests of a file pass in time, or its `slow` ones. A file may have none."""
        chosen = "slow" if slow else "not slow"
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", chosen, "-p", "no:cacheprovider", test]
        environment = os.environ | {"PYTHONPATH": str(self.folder), "OMP_NUM_THREADS": "1"}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"  # a mutant has its original's size and time of change
        with tempfile.TemporaryFile() as output:
            try:
                done = subprocess.run(
                    command,
                    cwd=self.folder,
                    env=environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    stdin=subprocess.DEVNULL,
                    timeout=timeout_s,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                return False
        return done.returncode in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED)

    def survives(self, mutant: Mutant, timeout_s: float, *, slow: bool) -> bool:
        """Whether the file's tests pass although it is mutated."""
        path = self.folder / mutant.source
        original = path.read_text()
        path.write_text(mutant.mutation.apply(original))
        try:
            return self.passes(mutant.test, timeout_s, slow=slow)
        finally:
            path.write_text(original)


def tested_files() -> dict[str, str]:
    """Source files that have a test file of their own, and that test file."""
    pairs: dict[str, str] = {}
    for package in PACKAGES:
        for path in sorted((PROJECT_ROOT / package).rglob("*.py")):
            source = path.relative_to(PROJECT_ROOT)
            test = Path("tests", source.parent, f"test_{source.name}")
            if (PROJECT_ROOT / test).is_file():
                pairs[str(source)] = str(test)
    return pairs


def sample(seed: int, num: int) -> list[Mutant]:
    """A random sample of all mutations of all tested files, the same for a seed and a tree."""
    mutants = [
        Mutant(source, test, mutation)
        for source, test in tested_files().items()
        for mutation in mutations((PROJECT_ROOT / source).read_text())
    ]
    return random.Random(seed).sample(mutants, min(num, len(mutants)))


class Runner:
    """Runs mutants in several copies of the tree."""

    def __init__(self, folder: Path, workers: int) -> None:
        self._checkouts = SimpleQueue[Checkout]()
        for number in range(workers):
            self._checkouts.put(Checkout(folder / str(number)))
        self._usual_s: dict[tuple[str, bool], float | None] = {}

    def survives(self, mutant: Mutant) -> bool | None:
        """Whether no test kills it. None: the tests do not pass without it either, or take too long."""
        checkout = self._checkouts.get()
        try:
            for slow in (False, True):
                usual_s = self._usual(checkout, mutant.test, slow)
                if usual_s is None:
                    return None
                if not checkout.survives(mutant, 10.0 + PATIENCE * usual_s, slow=slow):
                    return False
            return True
        finally:
            self._checkouts.put(checkout)

    def _usual(self, checkout: Checkout, test: str, slow: bool) -> float | None:
        if (test, slow) not in self._usual_s:
            began_s = time.monotonic()
            passed = checkout.passes(test, SLOWEST_S, slow=slow)
            self._usual_s[test, slow] = time.monotonic() - began_s if passed else None
        return self._usual_s[test, slow]


def run(mutants: list[Mutant], workers: int) -> tuple[list[Mutant], int, int]:
    """The survivors, how many were killed, and how many were left out because their tests do not pass alone."""
    survivors, killed, left_out = list[Mutant](), 0, 0
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(workers) as pool:
        runner = Runner(Path(folder), workers)
        for number, (mutant, result) in enumerate(
            zip(mutants, pool.map(runner.survives, mutants), strict=True), 1
        ):
            killed += result is False
            left_out += result is None
            if result:
                survivors.append(mutant)
            if result is not False:
                word = "survived" if result else "left out"
                print(f"\n{word}: {mutant.mutation.kind}: {mutant.key()}", flush=True)
            print(
                f"\r{number}/{len(mutants)}: {killed} killed, {len(survivors)} survived",
                end="",
                file=sys.stderr,
            )
    print(file=sys.stderr)
    return survivors, killed, left_out


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--num", type=int, default=100, help="how many mutants")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    judged: dict[str, str] = json.loads(JUDGED.read_text()) if JUDGED.is_file() else {}
    mutants = sample(options.seed, options.num)
    survivors, killed, left_out = run(mutants, options.workers)
    verdicts = [judged.get(mutant.key(), "not judged") for mutant in survivors]
    counts = {
        kind: verdicts.count(kind) for kind in ("equivalent", "slower", "elsewhere", "hole", "not judged")
    }
    summary: dict[str, Any] = {"seed": options.seed, "mutants": len(mutants), "killed": killed}
    print(json.dumps(summary | {"left_out": left_out, "survived": len(survivors)} | counts))
    return 1 if counts["hole"] or counts["not judged"] else 0


if __name__ == "__main__":
    sys.exit(main())
