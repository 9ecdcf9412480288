"""The result of a run as a table: metrics per split and task, and how much of what is attainable."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from sparta.models.schema import Schema
from sparta.service.checkpoint.inspect import Entry, age
from sparta.sharding.human import human

Scores = Mapping[str, Mapping[str, float | None]]
"""Metrics per label."""

_COLUMNS = {"auc": "AUC", "gauc": "GAUC", "logloss": "LogLoss", "ne": "NE", "calibration": "calibration"}

_WIDEST = 200
"""Columns that no table of checkpoints needs."""


def result_table(result: Mapping[str, Any], schema: Schema) -> RenderableType:
    """The content of `result.json` for people: metrics, speed and, for synthetic data, the attainable."""
    lines = [*([f"weights of {_best(result)}"] if result.get("weights") == "best" else []), _speed(result)]
    return Group(scores_table(result["eval"], schema), *(Text(line) for line in lines))


def scores_table(scores: Mapping[str, Scores], schema: Schema) -> RenderableType:
    """Metrics by split and label, and how far the test split is from the best possible."""
    rows = [(split, label, metrics) for split, tasks in scores.items() for label, metrics in tasks.items()]
    shown = [name for name in _COLUMNS if name != "gauc" or any(name in metrics for *_, metrics in rows)]
    several = len({label for _, label, _ in rows}) > 1
    table = Table(box=box.SIMPLE)
    table.add_column("split", no_wrap=True)
    if several:
        table.add_column("task")
    for name in shown:
        table.add_column(_COLUMNS[name], justify="right", no_wrap=True)
    for split, label, metrics in rows:
        cells = [_cell(name, metrics) for name in shown]
        table.add_row(split, *([Text(label)] if several else []), *cells)
    return Group(table, *(Text(line) for line in attainable(scores, schema)))


def attainable(scores: Mapping[str, Scores], schema: Schema) -> list[str]:
    """How far each task of the test split came, where the best possible metrics are known."""
    lines = []
    for label, best in schema.attainable.items():
        metrics = scores.get("test", {}).get(label, {})
        who = f"{label}: " if len(schema.labels) > 1 else ""
        auc, logloss = metrics.get("auc"), metrics.get("logloss")
        if auc is not None and best.get("auc", 0.5) > 0.5:
            share = (auc - 0.5) / (best["auc"] - 0.5)
            lines.append(
                f"{who}AUC {auc:.4f} of {best['auc']:.4f} attainable ({share:.1%} of the gain over 0.5)"
            )
        if logloss is not None and "logloss" in best:
            lines.append(f"{who}LogLoss {logloss:.4f}, at best {best['logloss']:.4f}")
    return lines


def show(table: RenderableType, run: Path, *, out: Console | None = None) -> None:
    """Print the table and where the run is, on stdout."""
    out = out or Console()
    out.print(table)
    out.print(Text(f"run directory: {run}"), soft_wrap=True)


def show_checkpoints(entries: Sequence[Entry]) -> None:
    """Print the checkpoints of a run, oldest first, and what is wrong with the damaged ones, on stdout."""
    # The narrowest of rich's tables: with names, sizes and ages as long as they come it has 80 columns.
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False, collapse_padding=True)
    table.add_column("checkpoint", no_wrap=True)
    for title in ("size", "took", "ranks", "age"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for entry in entries:
        table.add_row(
            entry.name,
            "-" if entry.bytes is None else human(entry.bytes),
            "-" if entry.seconds is None else f"{entry.seconds:.1f} s",
            "-" if entry.ranks is None else str(entry.ranks),
            "-" if entry.at is None else age(entry.at),
            f"{entry.state}, best" if entry.best else entry.state,
        )
    # A terminal may wrap what is wider still; a pipe has no width, whatever rich takes it for.
    out = Console(width=max(Console().width, _WIDEST))
    out.print(table)
    for entry in entries:
        if entry.problem:
            out.print(Text(f"{entry.name}: {entry.problem}"), soft_wrap=True)


def _cell(name: str, metrics: Mapping[str, float | None]) -> str:
    value = metrics.get(name)
    if value is None:
        return "-"
    error = metrics.get("auc_error") if name == "auc" else None
    return f"{value:.4f}" if error is None else f"{value:.4f} ±{error:.0e}"


def _best(result: Mapping[str, Any]) -> str:
    stopped = f"; stopped early at {result['steps']:,}" if result["stopped_early"] else ""
    return f"step {result['best_step']:,}, the best on the valid split{stopped}"


def _speed(result: Mapping[str, Any]) -> str:
    steps, examples, speed = result["steps"], result["examples"], result["examples_per_second"]
    return f"{steps:,} steps, {examples:,} examples, {speed:,.0f} examples/s"
