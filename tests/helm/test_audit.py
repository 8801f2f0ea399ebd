"""The dependency audit says what it knows, and not more: silence of the index is no clean bill."""

from __future__ import annotations

import importlib.util
from types import ModuleType
from typing import Any

import pytest

from model.config import PROJECT_ROOT

CLEAN = {"name": "av", "version": "18.1.0", "vulns": []}
SKIPPED = {
    "name": "ray",
    "skip_reason": "Dependency not found on PyPI and could not be audited: ray (2.60.0)",
}
HOLED = {"name": "pillow", "version": "1.0", "vulns": [{"id": "CVE-1", "fix_versions": ["1.1"]}]}


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    """deploy/audit.py."""
    spec = importlib.util.spec_from_file_location("audit", PROJECT_ROOT / "deploy" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("packages", "status", "words"),
    [
        (None, 0, ["could not be asked"]),
        ([SKIPPED, SKIPPED], 0, ["could not be asked"]),
        ([CLEAN, CLEAN], 0, ["nothing is known against 2 packages"]),
        (
            [CLEAN, SKIPPED],
            0,
            ["nothing is known against 1 packages", "of 1 packages the index tells nothing: ray"],
        ),
        ([CLEAN, HOLED, SKIPPED], 1, ["pillow 1.0: CVE-1, fixed in ['1.1']", "tells nothing: ray"]),
    ],
)
def test_it_says_what_it_knows(
    audit: ModuleType, packages: list[dict[str, Any]] | None, status: int, words: list[str]
) -> None:
    answer = None if packages is None else {"dependencies": packages}
    found, said = audit.verdict(answer)
    assert found == status
    assert len(said) == len(words)
    assert all(word in line for word, line in zip(words, said, strict=True))


def test_what_was_accepted_is_not_told_again(audit: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "ACCEPTED", {"CVE-1": "not reachable"})
    assert audit.verdict({"dependencies": [HOLED]}) == (0, ["== audit: nothing is known against 1 packages"])
