"""The alerts, by promtool: each fires on its case, stays silent on its other one, and has a page to read."""

import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from sparta.launcher.watch import plain_rules
from tests.scraping import RULES
from tests.service.telemetry.promql import PROCESS, SERIES, UP, uses

FOLDER = Path(__file__).parent / "alerts"
CASES = sorted(FOLDER.glob("*.yaml"))
GROUPS = yaml.safe_load(RULES.read_text())["spec"]["groups"]
ALERTS = [pytest.param(rule, id=rule["alert"]) for group in GROUPS for rule in group["rules"]]
PAGE = Path(__file__).parents[3] / "service" / "RUNBOOK.md"
CASE_OF = {path: yaml.safe_load(path.read_text()) for path in CASES}


def promtool(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    program = shutil.which("promtool")
    assert program, "promtool is not on PATH; install Prometheus (Debian: apt-get install prometheus)"
    return subprocess.run([program, *words], cwd=cwd, capture_output=True, text=True, timeout=120)


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """The folder that holds our groups as Prometheus reads them."""
    return plain_rules(RULES, tmp_path).rename(tmp_path / "rules.yaml").parent


@pytest.mark.prometheus
def test_prometheus_takes_the_rules(rules: Path) -> None:
    done = promtool("check", "rules", "--lint=all", "--lint-fatal", "rules.yaml", cwd=rules)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(ALERTS)} rules found" in done.stdout


@pytest.mark.prometheus
@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_alerts_fire_and_stay_silent(cases: Path, rules: Path) -> None:
    shutil.copy(cases, rules)
    done = promtool("test", "rules", cases.name, cwd=rules)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.prometheus
def test_a_case_that_is_not_met_is_seen(rules: Path) -> None:
    """promtool does fail: without this the tests above might pass whatever the rules say."""
    text = (rules / "rules.yaml").read_text()
    (rules / "rules.yaml").write_text(text.replace("> 900", "> 90000"))
    shutil.copy(FOLDER / "progress.yaml", rules)
    done = promtool("test", "rules", "progress.yaml", cwd=rules)
    assert done.returncode != 0
    assert "SpartaNoProgress" in done.stdout + done.stderr


@pytest.mark.parametrize("rule", ALERTS)
def test_every_alert_has_both_cases(rule: dict[str, Any]) -> None:
    fires: Counter[bool] = Counter()
    for file in CASE_OF.values():
        for case in file["tests"]:
            (wanted,) = case["alert_rule_test"]
            if wanted["alertname"] == rule["alert"]:
                verb = case["name"].removeprefix(f"{rule['alert']} ").split()[0]
                assert verb == ("fires" if wanted["exp_alerts"] else "stays")
                fires[bool(wanted["exp_alerts"])] += 1
    assert fires[True]
    assert fires[False]


@pytest.mark.parametrize("cases", CASES, ids=lambda path: path.stem)
def test_cases_are_made_of_what_there_is(cases: Path) -> None:
    for case in CASE_OF[cases]["tests"]:
        for made in case["input_series"]:
            (use,) = uses(made["series"])
            assert use.series in SERIES or use.series in PROCESS or use.series == UP
            assert use.labels <= use.known_labels


@pytest.mark.parametrize("rule", ALERTS)
def test_every_alert_says_what_is_wrong_how_much_and_what_to_do(rule: dict[str, Any]) -> None:
    assert rule["alert"].startswith("Sparta")
    assert rule["labels"]["severity"] in ("critical", "warning")
    told = rule["annotations"]
    assert "{{ $labels." in told["summary"]
    assert "{{ $value" in told["description"] or rule["alert"] == "SpartaRankDown"  # of which 0 is the value
    page, anchor = told["runbook_url"].split("#")
    assert page == "service/RUNBOOK.md"
    assert anchor == rule["alert"].lower()
    assert f"### {rule['alert']}\n" in PAGE.read_text()
