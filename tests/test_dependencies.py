"""What the code imports is declared, in the part of `pyproject.toml` that installs it, and pinned within its bounds."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from model.config import PROJECT_ROOT

PROJECT = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
OURS = {"model", "services", "training", "helm", "tests"}
# The extras beside the core that each folder may import; `gpu` and `quantised` are optional for the model and training.
MAY_IMPORT = {
    "model": ("gpu", "quantised"),
    "services": (),
    "services/local": ("local",),
    "training": ("train", "gpu", "quantised"),
}
# training/evaluation/lmms_adapter.py runs in an environment of lmms-eval's own.
ELSEWHERE = {"lmms_eval", "accelerate", "tqdm"}
OPTIONAL = {
    "torchao": "torchao",
    "flash_attn": "flash-attn",
}  # import name and distribution, when not installed


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: str) -> set[str]:
    """Names of the core's distributions and of the extras'."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return {normal(Requirement(line).name) for line in lines}


def imported(path: Path) -> set[str]:
    """Top-level modules of others that a file imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add((node.module or "").partition(".")[0])
    return names - OURS - ELSEWHERE - set(sys.stdlib_module_names)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_are_declared(folder: str) -> None:
    installed = packages_distributions()
    known = declared(*MAY_IMPORT[folder])
    deeper = [PROJECT_ROOT / other for other in MAY_IMPORT if other.startswith(f"{folder}/")]
    wrong: dict[str, set[str]] = {}
    for path in (PROJECT_ROOT / folder).rglob("*.py"):
        if any(path.is_relative_to(other) for other in deeper):
            continue
        for name in imported(path):
            packages = {normal(package) for package in installed.get(name, [OPTIONAL.get(name, name)])}
            # pydantic_core comes with pydantic, whose errors are its own.
            if not packages & known and name != "pydantic_core":
                wrong.setdefault(str(path.relative_to(PROJECT_ROOT)), set()).add(name)
    assert wrong == {}


def test_every_dependency_has_an_upper_bound() -> None:
    lines = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
    unbounded = {"streamchat", "fsspec"}  # fsspec's versions are dates
    wrong = [
        line
        for line in lines
        if Requirement(line).name not in unbounded
        and not any(bound.operator in ("<", "==") for bound in Requirement(line).specifier)
    ]
    assert wrong == []


def test_pins_are_within_the_bounds() -> None:
    text = (PROJECT_ROOT / "constraints.txt").read_text()
    pins = {normal(name): version for name, version in re.findall(r"^(\S+)==(\S+)$", text, re.MULTILINE)}
    wrong: list[str] = []
    for line in [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]:
        wanted = Requirement(line)
        name = normal(wanted.name)
        if name in ("streamchat", "flash-attn"):  # flash-attn is built for the machine
            continue
        if name not in pins or not wanted.specifier.contains(pins[name], prereleases=True):
            wrong.append(f"{line}: pinned {pins.get(name)}")
    assert wrong == []
