"""Asks the package index what is known against the pinned packages; fails on what is, not on being offline.

An index that does not know a package (a mirror without what is known against it) says nothing for that package either:
those are told apart from the ones that were asked about.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Known, looked at, and no danger here: id -> why. To be emptied whenever a fixed version can be pinned.
ACCEPTED: dict[str, str] = {}
TIMEOUT_S = 90  # for all of it


def audited(requirements: Path) -> dict[str, Any] | None:
    """pip-audit's answer; None when the index cannot be asked."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    command += ["--requirement", str(requirements), "--no-deps", "--disable-pip", "--timeout", "5"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
        return json.loads(done.stdout)
    except (subprocess.TimeoutExpired, json.JSONDecodeError):
        return None


def known_against(answer: dict[str, Any]) -> list[str]:
    """One line for each vulnerability that is not accepted."""
    return [
        f"{package['name']} {package['version']}: {found['id']}, fixed in {found['fix_versions'] or 'none yet'}"
        for package in answer["dependencies"]
        for found in package.get("vulns", ())
        if found["id"] not in ACCEPTED
    ]


def not_asked(answer: dict[str, Any]) -> list[str]:
    """Packages of which the index told nothing."""
    return [package["name"] for package in answer["dependencies"] if "skip_reason" in package]


def verdict(answer: dict[str, Any] | None) -> tuple[int, list[str]]:
    """Exit status and what to say: 1 when something is known against a package."""
    packages, missing = (answer["dependencies"], not_asked(answer)) if answer else ([], [])
    if answer is None or len(missing) == len(packages):
        return 0, ["== audit: the package index could not be asked; nothing is known, for or against"]
    found = known_against(answer)
    said = found or [f"== audit: nothing is known against {len(packages) - len(missing)} packages"]
    if missing:
        said.append(f"== audit: of {len(missing)} packages the index tells nothing: {', '.join(missing)}")
    return (1 if found else 0), said


def main() -> int:
    """1 when something is known against a package."""
    status, said = verdict(audited(ROOT / "constraints.txt"))
    print("\n".join(said))
    return status


if __name__ == "__main__":
    sys.exit(main())
