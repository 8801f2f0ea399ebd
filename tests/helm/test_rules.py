"""The alerts are what Prometheus takes, fire on their fault, stay silent without, and say what to do."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import yaml

from model.config import PROJECT_ROOT
from tests.helm.queries import RULES, alerts
from tests.prometheus import PROMTOOL

CASES = Path(__file__).with_name("alerts.yaml")


def promtool(*words: str) -> None:
    done = subprocess.run([PROMTOOL, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_takes_the_rules() -> None:
    promtool("check", "rules", str(RULES))


def test_each_alert_fires_on_its_fault_and_is_silent_without(tmp_path: Path) -> None:
    made = tmp_path / "alerts.yaml"
    made.write_text(CASES.read_text().replace("[RULES]", f"[{RULES}]"))
    promtool("test", "rules", str(made))


def test_no_alert_is_left_out_of_the_cases() -> None:
    names = {rule["alert"] for rule in alerts()}
    well, *faults = yaml.safe_load(CASES.read_text())["tests"]
    asked = [case for test in faults for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in asked if case.get("exp_alerts")} == names
    assert {case["alertname"] for case in well["alert_rule_test"]} == names
    assert not any(case.get("exp_alerts") for case in well["alert_rule_test"])


def test_each_alert_says_what_it_means_and_what_to_do() -> None:
    headings = re.findall(r"^## (\w+)$", (PROJECT_ROOT / "docs" / "runbook.md").read_text(), re.MULTILINE)
    for rule in alerts():
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{rule['alert'].lower()}"
        assert rule["labels"]["severity"] in ("warning", "critical")
    assert sorted(headings) == sorted(rule["alert"] for rule in alerts())
