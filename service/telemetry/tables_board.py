"""The dashboard `Tables & Helen`: how skewed ids are, which tables are hot, what the ascent does to them.

What is sampled of a table is of the rows on one rank. Shards add up; of norms the squares do.
"""

from grafana_foundation_sdk.models.dashboard import Dashboard

from sparta.service.telemetry.panels import HALF, Row, bars, board, lines, time_share

_CHOSEN = '{@,table=~"$table"}'
_SHARDS = "sum by (name, run, table)"
_LEGEND = "{{run}} {{table}}"


def tables() -> Dashboard:
    """The dashboard, ready to be written."""
    text = "Skew, radius and hot tables. Sampled steps; each panel shows the ten tables that stand out."
    return board("Tables & Helen", "sparta-tables", text, [_HOT, _SKEW, _HELEN, _BALANCE], tables=True)


def _top(expression: str) -> tuple[str, str]:
    return f"topk(10, {expression})", _LEGEND


def _shards(metric: str) -> str:
    """The sum over a table's shards."""
    return f"{_SHARDS} (sparta_{metric}{_CHOSEN})"


def _norm(metric: str) -> str:
    """The norm of a whole table, from those of its shards."""
    return f"sqrt({_SHARDS} (sparta_{metric}{_CHOSEN} ^ 2))"


_MEAN_RADIUS = (
    f"{_SHARDS} (sparta_table_radius_mean{_CHOSEN} * sparta_table_touched_rows{_CHOSEN})"
    f" / {_shards('table_touched_rows')}"
)

_HOT: Row = (
    "Hot tables",
    [
        bars(
            "Ids in a step",
            "The tables that most lookups go to: the first to speed up or to place elsewhere.",
            "short",
            _top(_shards("table_ids")),
        ),
        bars(
            "Rows",
            "The largest tables: what memory goes to.",
            "short",
            _top(_shards("table_rows")),
        ),
        bars(
            "Rows touched in a step",
            "Different rows: what the optimizer reads and writes.",
            "short",
            _top(_shards("table_touched_rows")),
        ),
    ],
)

_SKEW: Row = (
    "Skew",
    [
        lines(
            "N*: occurrences of the most frequent row",
            "What Helen scales every row's radius by. With `frequency: cumulative` it grows with the run.",
            "short",
            _top(f"max by (name, run, table) (sparta_table_frequency_max{_CHOSEN})"),
            logarithmic=True,
            width=HALF,
        ),
        lines(
            "Share of the most frequent row",
            "N* over the table's ids so far (`frequency: cumulative`). Near 1: all samples share one value.",
            "percentunit",
            _top(
                f"max by (name, run, table) (sparta_table_frequency_max{_CHOSEN})"
                f" / ({_shards('table_ids')} * on (name, run) group_left () max by (name, run) (sparta_step{{@}}))"
            ),
            from_zero=True,
            width=HALF,
        ),
        lines(
            "Ids by different rows",
            "De-duplication: lookups that one row serves. High: skewed, and cheap for its size.",
            "none",
            _top(f"{_shards('table_ids')} / {_shards('table_touched_rows')}"),
        ),
        lines(
            "De-duplication of the worst rank",
            "The lowest ratio among the ranks that hold the table.",
            "none",
            (f"bottomk(10, min by (name, run, table) (sparta_table_dedup_ratio{_CHOSEN}))", _LEGEND),
        ),
        lines(
            "Share of rows touched in a step",
            "Near 1: the table is small beside the batch, and its rows learn in every step.",
            "percentunit",
            _top(f"{_shards('table_touched_rows')} / {_shards('table_rows')}"),
            from_zero=True,
        ),
    ],
)

_HELEN: Row = (
    "Helen",
    [
        lines(
            "Mean radius",
            "How far touched rows ascend: rho for the most frequent row, xi times that for rare ones.",
            "none",
            _top(_MEAN_RADIUS),
            width=HALF,
        ),
        lines(
            "Perturbation norm",
            "2-norm of the ascent, of the whole table.",
            "none",
            _top(_norm("table_perturbation_norm")),
            logarithmic=True,
            width=HALF,
        ),
        lines(
            "Gradient norm",
            "2-norm of the last pass's gradient, of the whole table.",
            "none",
            _top(_norm("table_gradient_norm")),
            logarithmic=True,
            width=HALF,
        ),
        lines(
            "What Helen costs",
            "Share of the step that the first pass with its ascent takes, over all ranks.",
            "percentunit",
            (time_share("ascend", "name, run"), "{{run}}"),
            from_zero=True,
            width=HALF,
        ),
    ],
)

_BALANCE: Row = (
    "Balance over ranks",
    [
        lines(
            "Rows by rank",
            "Far apart: the plan puts memory on few ranks; see `sparta plan`.",
            "short",
            (f"sum by (name, run, rank) (sparta_table_rows{_CHOSEN})", "{{run}} rank {{rank}}"),
            from_zero=True,
            width=HALF,
        ),
        lines(
            "Ids by rank",
            "Far apart: the rank with most of them is what all others wait for.",
            "short",
            (f"sum by (name, run, rank) (sparta_table_ids{_CHOSEN})", "{{run}} rank {{rank}}"),
            from_zero=True,
            width=HALF,
        ),
    ],
)
