"""The paths of Debian's prometheus and promtool: from the system, or where `make test` puts them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def program(name: str) -> str:
    """The program's path; FileNotFoundError says how to install it."""
    own = Path(sys.executable).parent / name
    found = str(own) if own.exists() else shutil.which(name)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: `make prometheus`, or Debian's package prometheus")
    return found


PROMETHEUS, PROMTOOL = program("prometheus"), program("promtool")
