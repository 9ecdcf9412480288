"""The learning curves of a run as a picture, drawn from its `history.jsonl`.

One panel for the training loss, one for each metric of the valid split, a line a task, the best point
marked. Drawn on a Figure of its own: pyplot would keep global state and look for a display.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from sparta.service.history import read_history

_PANELS = {"auc": ("AUC", max), "gauc": ("GAUC", max), "logloss": ("LogLoss", min)}
"""Metrics worth a panel: title and which end is best."""


def draw(history: Path, out: Path) -> None:
    """Draw `history` into the PNG `out`, which is replaced in one go.

    Raises:
        DataError: the history is missing or broken.
    """
    lines = read_history(history)
    evaluations = [line for line in lines if line.get("eval") == "valid"]
    panels = [name for name in _PANELS if any(_tasks(line, name) for line in evaluations)]
    figure = Figure(figsize=(4.6 * (1 + len(panels)), 3.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes: Sequence[Axes] = figure.subplots(1, 1 + len(panels), squeeze=False)[0]
    _training(axes[0], lines)
    for axis, name in zip(axes[1:], panels, strict=True):
        _validation(axis, name, evaluations)
    for axis in axes:
        axis.set_xlabel("step")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    unfinished = out.with_name(out.name + ".part")
    figure.savefig(unfinished, format="png")
    unfinished.replace(out)


def smoothed(values: Sequence[float]) -> list[float]:
    """Median of each value and its neighbours, a fortieth of all to either side; NaN is left out.

    Unlike a running mean it neither lags behind a falling loss nor follows a single wild one.
    """
    reach = min(max(len(values) // 40, 1), 100)
    result = []
    for place in range(len(values)):
        near = [x for x in values[max(place - reach, 0) : place + reach + 1] if not math.isnan(x)]
        result.append(median(near) if near else math.nan)
    return result


def _training(axis: Axes, lines: Sequence[Mapping[str, Any]]) -> None:
    logged = [line for line in lines if "eval" not in line]
    steps = [line["step"] for line in logged]
    losses = [math.nan if line["loss"] is None else line["loss"] for line in logged]
    axis.set_title("training loss")
    if not any(math.isfinite(loss) for loss in losses):
        axis.text(0.5, 0.5, "no step logged", ha="center", va="center", transform=axis.transAxes)
        axis.set_yticks([])
        return
    few = len(steps) < 20
    smooth = losses if few else smoothed(losses)
    if not few:
        axis.plot(steps, losses, color="C0", alpha=0.3, linewidth=0.8, label="each logged step")
    axis.plot(
        steps, smooth, color="C0", linewidth=1.8, marker="." if few else "", label="median of its neighbours"
    )
    if not few:
        axis.legend(fontsize="small", framealpha=0.7)
    seen = [x for x in smooth if not math.isnan(x)]
    room = 0.25 * (max(seen) - min(seen)) or 0.01
    axis.set_ylim(min(seen) - room, max(seen) + room)  # one wild step must not flatten the rest


def _validation(axis: Axes, name: str, evaluations: Sequence[Mapping[str, Any]]) -> None:
    title, best = _PANELS[name]
    axis.set_title(f"valid {title}")
    labels = dict.fromkeys(label for line in evaluations for label in _tasks(line, name))
    for number, label in enumerate(labels):
        points = [
            (line["step"], _tasks(line, name)[label]) for line in evaluations if label in _tasks(line, name)
        ]
        steps, values = zip(*points, strict=True)
        top = best(values)
        where = steps[values.index(top)]
        legend = f"{label + ': ' if label else ''}best {top:.4f} at step {where:,}"
        color = f"C{1 + number}"
        axis.plot(steps, values, color=color, linewidth=1.5, marker=".", label=legend)
        axis.plot([where], [top], color=color, marker="*", markersize=12, linestyle="none")
    axis.ticklabel_format(axis="y", useOffset=False)
    axis.legend(fontsize="small", framealpha=0.7)


def _tasks(line: Mapping[str, Any], name: str) -> dict[str, float]:
    """The defined values of a metric by label; the label of a single task is not in the file."""
    value = line.get(name)
    by_label = value if isinstance(value, Mapping) else {"": value}
    return {label: number for label, number in by_label.items() if number is not None}
