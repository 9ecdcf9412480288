"""A study's result as a picture: for each data set the scores of every seed, and the differences paired by seed.

Drawn on a Figure of its own: pyplot would keep global state and look for a display.
"""

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sparta.service.compare.cells import Record
from sparta.service.compare.table import SURE, TITLES

BESIDE = 0.035
"""How far left of a mean its seeds stand; models are 1 apart."""
MEAN = "mean"
"""What the marks of means are called."""
FAR = 3.0
"""A mean that is so many times the distance of the tenth from the ninth tenth off the median is cut off."""


def draw(result: Record, out: Path) -> None:
    """Draw `study.json` into the PNG `out`, which is replaced in one go."""
    with rc_context({"text.parse_math": False}):  # a label may have a $ in it
        _draw(result, out)


def _draw(result: Record, out: Path) -> None:
    names, models, optimizers = [data["name"] for data in result["data"]], *_labels(result)
    compared = any("to_first" in group for group in result["groups"])
    width = max(4.6, 0.14 * len(models) * len(optimizers) + 1.5, 0.8 * len(models))
    rows = (1 + compared) * len(names)
    figure = Figure(figsize=(2 * width, 2.7 * rows + 0.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, 2, squeeze=False)
    first = next(iter(result["optimizers"].values()))
    for place, data in enumerate(names):
        for column, metric in enumerate(TITLES):
            axes = panels[(1 + compared) * place : (1 + compared) * (place + 1), column]
            for axis, title, show in zip(
                axes,
                (f"test {TITLES[metric]}", f"{TITLES[metric]} - {first}'s"),
                (_scores, _gains),
                strict=False,
            ):
                axis.set_title(f"{data}: {title}")
                for group in result["groups"]:
                    if group["data"] == data:
                        number = list(optimizers).index(group["optimizer"])
                        at = list(models).index(group["model"]) + (number + 0.5) / len(optimizers) * 0.8 - 0.4
                        show(axis, at, group, metric, f"C{number}")
            if compared:
                axes[1].axhline(0, color="0.6", linewidth=0.8)
            for axis in axes:
                axis.set_xticks(range(len(models)), list(models.values()))
                axis.set_xlim(-0.5, len(models) - 0.5)
                close_up(axis)
                axis.grid(axis="y", alpha=0.25)
                axis.spines[["top", "right"]].set_visible(False)
                axis.ticklabel_format(axis="y", useOffset=False)
    for number, label in enumerate(optimizers.values()):
        panels[0][0].plot([], [], "o", color=f"C{number}", label=label)
    differences = f"; differences paired by seed, filled where p < {SURE:g}" * compared
    figure.suptitle(f"{result['name']}: seeds, mean and deviation{differences}", fontsize="medium")
    inches = 0.6 + 0.08 * max(map(len, optimizers.values()))  # of an entry
    figure.legend(
        *panels[0][0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=max(1, int(2 * width / inches)),
        frameon=False,
    )
    unfinished = out.with_name(out.name + ".part")
    figure.savefig(unfinished, format="png")
    unfinished.replace(out)


def _labels(result: Record) -> tuple[dict[str, str], dict[str, str]]:
    """Models and optimizers that something is known of, with their labels."""
    known = ({group[kind] for group in result["groups"]} for kind in ("model", "optimizer"))
    models, optimizers = (
        {name: label for name, label in labels.items() if name in names}
        for labels, names in zip((result["models"], result["optimizers"]), known, strict=True)
    )
    return models, optimizers


def close_up(axis: Axes) -> None:
    """Cut the axis where a mean lies so far off that the others would be one line, and write there what it is."""
    marks = [line for line in axis.lines if line.get_gid() == MEAN]
    places = [np.asarray(line.get_xydata())[0].tolist() for line in marks]
    if len(marks) < 8:
        return
    low, middle, high = np.quantile([value for _, value in places], [0.1, 0.5, 0.9]).tolist()
    room = FAR * (high - low)
    near = [value for _, value in places if abs(value - middle) <= room]
    if len(near) == len(marks):
        return
    bottom, top = min(near) - (high - low) / 2, max(near) + (high - low) / 2
    axis.set_ylim(bottom, top)
    for mark, (at, value) in zip(marks, places, strict=True):
        if abs(value - middle) > room:
            below = value < middle
            axis.annotate(
                f"{value:.3f}",
                (at, bottom if below else top),
                xytext=(0, 4 if below else -4),
                textcoords="offset points",
                ha="center",
                va="bottom" if below else "top",
                fontsize="x-small",
                color=mark.get_color(),
            )


def _scores(axis: Axes, at: float, group: Record, metric: str, color: str) -> None:
    """A dot a seed, the mean with the deviation over the seeds; a cross at the bottom where one diverged."""
    sound = [run["test"][metric] for run in group["runs"] if run["valid"] is not None]
    axis.plot([at - BESIDE] * len(sound), sound, ".", color=color, alpha=0.6, markersize=4)
    if metric in group:
        spread = group[metric]
        axis.errorbar(at, spread["mean"], spread["sd"], fmt="none", ecolor=color, capsize=2)
        axis.plot([at], [spread["mean"]], "o", color=color, markersize=4, gid=MEAN)
    else:
        axis.plot([at], [0.02], "x", color=color, transform=axis.get_xaxis_transform())


def _gains(axis: Axes, at: float, group: Record, metric: str, color: str) -> None:
    """A dot for each pair of seeds and their mean, filled where the t-test is sure."""
    if "to_first" not in group:
        return
    told = group["to_first"][metric]
    axis.plot(
        [at - BESIDE] * len(told["by_seed"]), told["by_seed"], ".", color=color, alpha=0.6, markersize=4
    )
    sure = told["p"] is not None and told["p"] < SURE
    filled = color if sure else "white"
    axis.plot([at], [told["difference"]], "o", color=color, markersize=5, markerfacecolor=filled, gid=MEAN)
