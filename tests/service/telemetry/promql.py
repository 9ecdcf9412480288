"""What an expression uses: which series, chosen and grouped by which labels, within which functions."""

from collections.abc import Iterator
from dataclasses import dataclass

from promql_parser import (
    AggModifierType,
    AggregateExpr,
    BinaryExpr,
    Call,
    Expr,
    LabelModifierType,
    MatchOp,
    VectorSelector,
    parse,
    walk,
)

from sparta.service.telemetry.reference import Entry, entries

RANK_LABELS = frozenset({"run", "rank"})
TARGET_LABELS = frozenset({"job", "name", "instance", "namespace", "pod", "container", "endpoint", "node"})
"""What Prometheus itself writes to every series, from file_sd or on Kubernetes."""

SERIES: dict[str, Entry] = {series: entry for entry in entries() for series in entry.series}
PROCESS = {
    "process_resident_memory_bytes": "gauge",
    "process_start_time_seconds": "gauge",
    "process_cpu_seconds_total": "counter",
}
"""Those of prometheus_client's ProcessCollector that we use, and their kinds."""
UP = "up"
"""Made by Prometheus for every endpoint."""


@dataclass(frozen=True)
class Use:
    """One selection of series in an expression."""

    series: str
    equal: tuple[tuple[str, str], ...]
    """Labels that are compared with `=`, and the values."""
    labels: frozenset[str]
    """All labels that it is chosen by, and that it is grouped or matched by further out."""
    functions: tuple[str, ...]
    """The functions around it, the innermost last."""

    @property
    def kind(self) -> str:
        """counter, gauge, histogram or info."""
        if self.series == UP:
            return "gauge"
        return PROCESS.get(self.series) or SERIES[self.series].kind

    @property
    def known_labels(self) -> frozenset[str]:
        """The labels that such series have."""
        if self.series == UP:
            return TARGET_LABELS
        own = SERIES[self.series].labels if self.series in SERIES else ()
        bucket = {"le"} if self.series.endswith("_bucket") else set()
        return TARGET_LABELS | RANK_LABELS | bucket | set(own)


def uses(expression: str) -> list[Use]:
    """Everything that an expression selects. Raises ValueError where it is none."""
    found: list[Use] = []
    around: list[Expr] = []

    def enter(node: Expr) -> None:
        if isinstance(node, VectorSelector):
            assert node.name is not None, f"{expression}: a selection without a name"
            matchers = node.matchers.matchers
            outer = {label for each in around for label in _grouping(each)}
            found.append(
                Use(
                    series=node.name,
                    equal=tuple((m.name, m.value) for m in matchers if m.op == MatchOp.Equal),
                    labels=frozenset(outer | {m.name for m in matchers}),
                    functions=tuple(each.func.name for each in around if isinstance(each, Call)),
                )
            )
        around.append(node)

    walk(parse(expression), enter, lambda node: around.pop() and None)
    return found


def groupings(expression: str) -> set[str]:
    """All labels that anything in an expression is grouped by."""
    found: set[str] = set()
    walk(parse(expression), lambda node: found.update(_grouping(node)))
    return found


def _grouping(node: Expr) -> Iterator[str]:
    if isinstance(node, AggregateExpr) and node.modifier and node.modifier.type == AggModifierType.By:
        yield from node.modifier.labels
    if isinstance(node, BinaryExpr) and node.modifier and node.modifier.matching:
        assert node.modifier.matching.type == LabelModifierType.Include, "match on labels, do not ignore some"
        yield from node.modifier.matching.labels
