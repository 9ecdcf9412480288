"""Names cannot drift: what dashboards and alerts ask for is what instruments.py makes, and all of that."""

from dataclasses import dataclass

import pytest
import yaml

from sparta.service.telemetry.instruments import PHASES, WINDOW
from sparta.service.telemetry.reference import entries
from tests.scraping import RULES, every_question
from tests.service.telemetry.promql import PROCESS, SERIES, UP, Use, uses


@dataclass(frozen=True)
class Asked:
    """An expression and who asks."""

    where: str
    expression: str


PANELS = [Asked(f"{asked.board}: {asked.panel}", asked.plain()) for asked in every_question()]
ALERTS = [
    Asked(rule["alert"], rule["expr"])
    for group in yaml.safe_load(RULES.read_text())["spec"]["groups"]
    for rule in group["rules"]
]
ASKED = [pytest.param(asked, id=asked.where) for asked in PANELS + ALERTS]


@pytest.mark.parametrize("asked", ASKED)
def test_every_series_and_label_exists(asked: Asked) -> None:
    found = uses(asked.expression)
    assert found
    for use in found:
        assert use.series in SERIES or use.series in PROCESS or use.series == UP
        assert use.labels <= use.known_labels, use.series


@pytest.mark.parametrize("asked", ASKED)
def test_every_value_of_a_bounded_label_exists(asked: Asked) -> None:
    known = {"phase": set(PHASES), "split": {WINDOW, "valid"}, "job": {"sparta"}}
    for use in uses(asked.expression):
        for label, value in use.equal:
            assert value in known.get(label, {value})


@pytest.mark.parametrize("asked", ASKED)
def test_every_kind_is_used_as_what_it_is(asked: Asked) -> None:
    for use in uses(asked.expression):
        assert rises(use) == bool({"rate", "increase"} & set(use.functions)), use.series
        if "histogram_quantile" in use.functions:
            assert use.series.endswith("_bucket")


def rises(use: Use) -> bool:
    """Whether only the growth of such a series means something."""
    return use.kind in ("counter", "histogram")


@pytest.mark.parametrize("asked", ASKED)
def test_nothing_is_padded(asked: Asked) -> None:
    assert "vector(" not in asked.expression
    assert "absent" not in asked.expression


@pytest.mark.parametrize(
    "asked", [asked for asked in PANELS if "variable" not in asked.where], ids=lambda a: a.where
)
def test_a_panel_shows_what_was_chosen(asked: Asked) -> None:
    """Of the job, the run and the rank; an endpoint that is down has told neither run nor rank."""
    for use in uses(asked.expression):
        assert use.labels >= ({"name"} if use.series == UP else {"name", "run", "rank"})


@pytest.mark.parametrize("asked", ALERTS, ids=lambda asked: asked.where)
def test_what_others_also_make_is_ours(asked: Asked) -> None:
    for use in uses(asked.expression):
        if use.series not in SERIES:
            assert ("job", "sparta") in use.equal


def test_every_instrument_is_in_a_panel_or_an_alert() -> None:
    used = {use.series for asked in PANELS + ALERTS for use in uses(asked.expression)}
    assert [entry.name for entry in entries() if not used & set(entry.series)] == []


@pytest.mark.parametrize(
    "expression", ["sum(rate(a[5m]", "rate(a)", "sum by (run) (a) ignoring (rank) / b", '{job="sparta"}']
)
def test_a_wrong_expression_is_found(expression: str) -> None:
    with pytest.raises((ValueError, AssertionError)):
        uses(expression)


def test_uses_sees_through_an_expression() -> None:
    found = uses('sum by (run) (rate(a{phase="x"}[5m])) / on (name) b > 1')
    assert found == [
        Use("a", (("phase", "x"),), frozenset({"phase", "run", "name"}), ("rate",)),
        Use("b", (), frozenset({"name"}), ()),
    ]
