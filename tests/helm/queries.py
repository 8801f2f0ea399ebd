"""Every query of the dashboards and alerts, as Prometheus would be asked."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

import yaml

from model.config import PROJECT_ROOT

CHART = PROJECT_ROOT / "helm" / "streamchat"
RULES = CHART / "rules" / "streamchat.yaml"


@dataclass(frozen=True, slots=True)
class Asked:
    """One query; `where` it stands."""

    where: str
    expr: str

    @property
    def names(self) -> set[str]:
        """The metrics in it, without a histogram's endings."""
        found = re.findall(r"\bstreamchat_\w+", self.expr)
        return {re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


def dashboards() -> dict[str, dict[str, Any]]:
    """The chart's dashboards by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(CHART.glob("dashboards/*.json"))}


def panels(board: dict[str, Any]) -> list[dict[str, Any]]:
    """A dashboard's panels, without the rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def of_panels() -> list[Asked]:
    """The panels' queries, of all namespaces."""
    return [
        Asked(f"{name}: {panel['title']}", target["expr"].replace("$namespace", ".*"))
        for name, board in dashboards().items()
        for panel in panels(board)
        for target in panel["targets"]
    ]


def alerts() -> list[dict[str, Any]]:
    """The alerts as they stand in the file."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def of_alerts() -> list[Asked]:
    """The alerts' values: each alert is a value and a bound, and only the value is there while all is well."""
    asked: list[Asked] = []
    for rule in alerts():
        found = re.fullmatch(r"(.+) [<>] [0-9.]+", rule["expr"], re.DOTALL)
        assert found, f"{rule['alert']}: no value and bound"
        asked.append(Asked(f"alert {rule['alert']}", found[1]))
    return asked
