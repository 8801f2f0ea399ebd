"""Run the steps of the Dockerfile without Docker: its copies and installs, in a folder with a fresh environment.

    python deploy/docker/rehearse.py cpu

It leaves out the base image, users, cache mounts and layers. At the end it runs the programs of the image.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DOCKERFILE = Path(__file__).with_name("Dockerfile")
NOT_IN_A_FOLDER = ("useradd",)  # commands that need a real image
# Commands that show that the image works: the command line, Serve, and the app with everything that it imports.
SERVES = (
    "streamchat --help",
    "serve --help",
    "python -c 'import services.app, services.llm_decoder.llm_decoder, services.frame_fifo.frame_fifo,"
    " services.publisher.publish'",
)
CHECKS = {"cpu": SERVES, "gpu": SERVES, "train": (*SERVES, "python training/sft.py --help")}


def stages(text: str) -> dict[str, list[tuple[str, str]]]:
    """The instructions of each stage, by the name of the stage; the first one is `FROM`."""
    found: dict[str, list[tuple[str, str]]] = {}
    steps: list[tuple[str, str]] = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            source, _, name = rest.partition(" AS ")
            steps = found[name] = [("FROM", source)]
        elif instruction.isupper():
            steps.append((instruction, rest))
    return found


def chain(found: dict[str, list[tuple[str, str]]], target: str) -> list[tuple[str, str]]:
    """All instructions of a target, after those of the stages that it copies from."""
    steps: list[tuple[str, str]] = []
    for instruction, rest in found[target]:
        copied = re.match(r"--from=(\S+)", rest)
        if instruction == "FROM" and rest in found:
            steps += chain(found, rest)
        elif copied:
            steps = chain(found, copied[1]) + steps
        else:
            steps.append((instruction, rest))
    return steps


def rehearse(target: str, image: Path) -> None:
    """Run all steps below `image`, the root of the image; raises CalledProcessError when a step fails."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(image / "tmp")}
    (image / "tmp").mkdir()
    folder = image
    for instruction, rest in chain(stages(DOCKERFILE.read_text()), target):
        inside = re.sub(r"(?<![\w.])/(opt|app)\b", rf"{image}/\1", re.sub(r"--mount=\S+ ", "", rest))
        if instruction == "WORKDIR":
            folder = Path(inside)
            folder.mkdir(parents=True, exist_ok=True)
        elif instruction == "COPY":
            copy(inside.split(), folder)
        elif instruction in ("ENV", "ARG"):
            for name, text in re.findall(r'(\w+)=("[^"]*"|\S*)', inside):
                environment[name] = text.strip('"').replace("$PATH", environment["PATH"])
        elif instruction == "RUN" and not inside.startswith(NOT_IN_A_FOLDER):
            run(inside, folder, environment)
    for command in CHECKS[target]:
        run(command, folder, environment)


def copy(words: list[str], folder: Path) -> None:
    """`COPY a b there`, from the root of the repository."""
    *sources, there = words
    for source in sources:
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, folder / there, dirs_exist_ok=True)
        else:
            shutil.copy(ROOT / source, folder / there)


def run(command: str, folder: Path, environment: dict[str, str]) -> None:
    """Print a line of shell, then run it."""
    print(f"+ {command}", file=sys.stderr, flush=True)
    # pip's settings of the user hold, as in a real build.
    pip = {name: text for name, text in os.environ.items() if name.startswith("PIP_")}
    subprocess.run(
        command, shell=True, cwd=folder, env=pip | environment, check=True, stdout=subprocess.DEVNULL
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("target", choices=tuple(CHECKS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as image:
        rehearse(options.target, Path(image))
    print(f"{options.target}: every step succeeded")


if __name__ == "__main__":
    main()
