"""The dashboards are what the code makes, and ask for what the services tell."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from helm.boards.__main__ import documents
from model.config import PROJECT_ROOT
from services.ports.metric_catalogue import METRICS
from tests.helm.queries import CHART, Asked, dashboards, of_alerts, of_panels, panels
from tests.prometheus import PROMTOOL

TRAINING = re.findall(
    r"\bstreamchat_train_\w+", (PROJECT_ROOT / "training" / "monitoring" / "metrics.py").read_text()
)
EVERY_PANEL = [
    pytest.param(panel, id=f"{name}: {panel['title']}")
    for name, board in dashboards().items()
    for panel in panels(board)
]


def test_the_files_are_what_the_code_makes() -> None:
    """After a change: `python -m helm.boards`."""
    files = {path.stem: path.read_text() for path in CHART.glob("dashboards/*.json")}
    assert files == documents()
    assert set(files) == {"live", "latency", "pipeline", "engine", "training"}


@pytest.mark.parametrize("panel", EVERY_PANEL)
def test_each_panel_says_what_it_shows(panel: dict[str, Any]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"]
    assert len(panel["description"]) > 10
    steps = defaults["thresholds"]["steps"]
    assert steps[0]["value"] is None
    values = [step["value"] for step in steps[1:]]
    assert values
    assert values == sorted(values)
    assert panel["targets"]


@pytest.mark.parametrize("asked", [*of_panels(), *of_alerts()], ids=lambda asked: asked.where)
def test_what_is_asked_for_is_told(asked: Asked) -> None:
    assert asked.names
    assert asked.names <= METRICS.keys() | set(TRAINING)


def test_what_is_told_is_shown() -> None:
    shown = {name for asked in [*of_panels(), *of_alerts()] for name in asked.names}
    left_out = (METRICS.keys() | set(TRAINING)) - shown
    assert left_out == {"streamchat_publish_bytes_total"}


def test_counters_are_asked_for_their_rate() -> None:
    counters = {name for name in [*METRICS, *TRAINING] if name.endswith("_total")}
    plain = re.compile(r"(?<!rate\()(?<!increase\()\b(streamchat_\w+_total)\b")
    found = {name for asked in of_panels() for name in plain.findall(asked.expr)}
    # How many there were since a run began.
    assert found & counters == {
        "streamchat_train_checkpoints_total",
        "streamchat_train_rows_skipped_total",
        "streamchat_train_steps_skipped_total",
    }


def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    rules = [
        {"record": f"asked:{number}", "expr": asked.expr}
        for number, asked in enumerate([*of_panels(), *of_alerts()])
    ]
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": rules}]}))
    done = subprocess.run(
        [PROMTOOL, "check", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
