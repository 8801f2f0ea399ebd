"""Mutations change what they say, and leave every module readable."""

from __future__ import annotations

import ast

import pytest

from model.config import PROJECT_ROOT
from tests.mutants.mutations import mutations

SOURCE = '''
def newest(frames, limit=3):
    """Docstrings stay."""
    assert limit > 0
    found = []
    for frame in frames:
        if not frame.ok and frame.age > limit:
            continue
        found.append(frame)
    found.total += 1
    return min(found) - 1
'''


def test_every_kind_of_change_is_found() -> None:
    changes = {(m.kind, m.original, m.replacement) for m in mutations(SOURCE)}
    assert changes == {
        ("boolean", "and", "or"),
        ("comparison", ">", ">="),
        ("condition", "not frame.ok and frame.age > limit", "not (not frame.ok and frame.age > limit)"),
        ("negation", "not", ""),
        ("loop", "continue", "break"),
        ("deleted call", "found.append(frame)", "pass"),
        ("deleted assignment", "found.total += 1", "pass"),
        ("constant", "1", "2"),
        ("arithmetic", "-", "+"),
        ("extremum", "min", "max"),
        ("return", "min(found) - 1", "None"),
    }
    assert {m.function for m in mutations(SOURCE)} == {"newest"}


@pytest.mark.parametrize("package", ["model", "services", "training"])
def test_every_mutant_of_the_sources_can_be_compiled(package: str) -> None:
    for path in sorted((PROJECT_ROOT / package).rglob("*.py")):
        source = path.read_text()
        for mutation in mutations(source)[::40]:
            mutant = mutation.apply(source)
            assert mutant != source
            ast.parse(mutant)
