"""A real Prometheus in a test: what it answers, and what our dashboards would ask it.

with prometheus(configuration(targets, rules, scrape_seconds=1)) as server:   # sparta.launcher
    eventually(lambda: not [asked for asked in every_question() if not has_data(server.url, asked.plain())])
    assert broken_rules(server.url) == []
"""

import json
import math
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

BASE = Path(__file__).parents[1] / "k8s" / "base"
RULES = BASE / "rules.yaml"
BOARDS = sorted((BASE / "dashboards").glob("*.json"))


@dataclass(frozen=True)
class Question:
    """An expression of a dashboard, and where it stands."""

    board: str
    panel: str
    expression: str
    legend: str = ""

    def plain(self, *, rate_interval: str = "5s", whole: str = "1m", interval: str = "1s") -> str:
        """The expression as Grafana would send it, with everything chosen."""
        values = {"__rate_interval": rate_interval, "__range": whole, "__interval": interval}
        return re.sub(r"\$(\w+)", lambda match: values.get(match[1], ".*"), self.expression)


def questions(dashboard: dict[str, Any]) -> Iterator[Question]:
    """Everything that a dashboard asks: its panels, and its variables, which ask for a label's values."""
    title = dashboard["title"]
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield Question(title, panel["title"], target["expr"], target["legendFormat"])
    for variable in dashboard["templating"]["list"]:
        if variable["type"] == "query":
            match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert match, f"{variable['query']}: not the values of a label"
            yield Question(title, f"variable {variable['name']}", f"count by ({match[2]}) ({match[1]})")


def every_question() -> list[Question]:
    """What all committed dashboards ask."""
    return [asked for board in BOARDS for asked in questions(json.loads(board.read_text()))]


def get(url: str, path: str, **parameters: str) -> Any:
    """The data of an answer of Prometheus' HTTP API; what it says against the question is an AssertionError."""
    try:
        with urlopen(f"{url}/api/v1/{path}?{urlencode(parameters)}", timeout=30) as answer:
            return json.load(answer)["data"]
    except HTTPError as refusal:
        raise AssertionError(f"{parameters}: {refusal.read().decode()}") from refusal


def query(url: str, expression: str) -> dict[tuple[tuple[str, str], ...], float]:
    """The values of an expression now, by sorted labels."""
    found = get(url, "query", query=expression)
    assert found["resultType"] == "vector", f"{expression}: a {found['resultType']}"
    return {tuple(sorted(each["metric"].items())): float(each["value"][1]) for each in found["result"]}


def has_data(url: str, expression: str) -> bool:
    """Whether there is a value at all that is a number."""
    return any(not math.isnan(value) for value in query(url, expression).values())


def broken_rules(url: str) -> list[str]:
    """The rules that could not be evaluated, and why; one that has not been yet is among them."""
    rules = [rule for group in get(url, "rules")["groups"] for rule in group["rules"]]
    assert rules, "no rules are loaded"
    return [
        f"{rule['name']}: {rule['health']} {rule.get('lastError', '')}"
        for rule in rules
        if rule["health"] != "ok"
    ]


def eventually(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until it is true; an AssertionError after that long. For what another process does in its own time."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not true within {seconds:g} s"
        time.sleep(0.2)
