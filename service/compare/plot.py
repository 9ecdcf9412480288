"""A study's result as a picture: for each data set the scores of every seed, and the differences paired by seed.

Drawn on a Figure of its own: pyplot would keep global state and look for a display.
"""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sparta.service.compare.cells import Record
from sparta.service.compare.table import SURE, TITLES


def draw(result: Record, out: Path) -> None:
    """Draw `study.json` into the PNG `out`, which is replaced in one go."""
    names, models = [data["name"] for data in result["data"]], list(result["models"])
    width = max(4.6, 0.16 * len(models) * len(result["optimizers"]) + 1.5)
    figure = Figure(figsize=(4 * width, 3.2 * len(names) + 0.4), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    panels: Sequence[Sequence[Axes]] = list(figure.subplots(len(names), 4, squeeze=False))
    first = next(iter(result["optimizers"].values()))
    for row, data in zip(panels, names, strict=True):
        for metric, (scores, gains) in zip(TITLES, (row[:2], row[2:]), strict=True):
            scores.set_title(f"{data}: test {TITLES[metric]}")
            gains.set_title(f"{data}: {TITLES[metric]} - {first}'s, a seed a dot; filled: p < {SURE:g}")
            gains.axhline(0, color="0.6", linewidth=0.8)
            for number, optimizer in enumerate(result["optimizers"]):
                found = [
                    group
                    for group in result["groups"]
                    if (group["data"], group["optimizer"]) == (data, optimizer)
                ]
                place = (number + 0.5) / len(result["optimizers"]) * 0.8 - 0.4
                for group in found:
                    at = models.index(group["model"]) + place
                    _scores(scores, at, group, metric, f"C{number}")
                    _gains(gains, at, group, metric, f"C{number}")
                scores.plot([], [], "o", color=f"C{number}", label=result["optimizers"][optimizer])
        for axis in row:
            axis.set_xticks(range(len(models)), [result["models"][model] for model in models])
            axis.set_xlim(-0.5, len(models) - 0.5)
            axis.grid(axis="y", alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            axis.ticklabel_format(axis="y", useOffset=False)
    figure.legend(
        *panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False
    )
    unfinished = out.with_name(out.name + ".part")
    figure.savefig(unfinished, format="png")
    unfinished.replace(out)


def _scores(axis: Axes, at: float, group: Record, metric: str, color: str) -> None:
    """A dot a seed, the mean with the deviation over the seeds; a cross at the bottom where one diverged."""
    sound = [run["test"][metric] for run in group["runs"] if run["valid"] is not None]
    axis.plot([at] * len(sound), sound, ".", color=color, alpha=0.4, markersize=4)
    if metric in group:
        spread = group[metric]
        axis.errorbar(at, spread["mean"], spread["sd"], fmt="o", color=color, markersize=4, capsize=2)
    else:
        axis.plot([at], [0.02], "x", color=color, transform=axis.get_xaxis_transform())


def _gains(axis: Axes, at: float, group: Record, metric: str, color: str) -> None:
    """A dot for each pair of seeds and their mean, filled where the t-test is sure."""
    if "to_first" not in group:
        return
    told = group["to_first"][metric]
    axis.plot([at] * len(told["by_seed"]), told["by_seed"], ".", color=color, alpha=0.4, markersize=4)
    sure = told["p"] is not None and told["p"] < SURE
    axis.plot(
        at, told["difference"], "o", color=color, markersize=5, markerfacecolor=color if sure else "white"
    )
