"""The README's tables, from the committed results alone: of studies, and those of speed (speed.py).

    python -m benchmarks.readme [--write]

Prints them, or puts each between its markers `<!-- <name> -->` and `<!-- /<name> -->`: studies and `speed` into
README.md, `measured`, every figure of speed, into benchmarks/README.md. A study's result is
benchmarks/results/<study>/study.json. The study `quality` asks what a step of each kind of Helen costs beside Adam's,
by the newest benchmarks/results/helen_step-*.json, and what it keeps of the gain.
"""

import argparse
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, variance

from benchmarks import speed
from benchmarks.measured import RESULTS, newest
from sparta.models.errors import ConfigError, SpartaError
from sparta.service.compare.cells import Record
from sparta.service.compare.intervals import bounds
from sparta.service.compare.table import (
    cut_short,
    difference,
    lines,
    markdown,
    plain,
    sign,
    summary,
    told,
    verdicts,
)
from sparta.service.run import write_atomically

ROOT = Path(__file__).parents[1]
QUALITY = "quality"
FULL = "helen"
"""The optimizer whose gain the cheaper ones are to keep."""
STEPS = {
    "helen_dense": "helen, perturb_dense",
    "helen_every2": "helen, ascend_every 2",
    "helen_every4": "helen, ascend_every 4",
    "helen_quarter": "helen, ascend_fraction 1/4",
    "helen_bf16": "helen, ascend_precision bf16",
    "helen_bf16_every2": "helen, bf16, ascend_every 2",
}
"""What optimizers are called in helen_step-*.json, where not by their names."""
SHOWN = (
    "Shown: the first one's AUC, and the others' difference to it with its 95% interval, for which test rows "
    "(paired bootstrap) and seeds count (Student's t, as few seeds ask for). Folds share training rows, for which no "
    "interval allows."
)
TO = " to adam"
"""How ratios of a step to plain Adam's end there."""
FOLD = re.compile(r"_fold\d+$")
"""What the names of a data set's folds end with."""


def documents(results: Path = RESULTS) -> dict[Path, dict[str, str]]:
    """By the file that shows them, what stands between its markers.

    Raises:
        ConfigError: as `tables` does.
    """
    shown = tables(results)
    more = {"measured": shown.pop("measured")} if "measured" in shown else {}
    return {ROOT / "README.md": shown, ROOT / "benchmarks" / "README.md": more}


def tables(results: Path = RESULTS) -> dict[str, str]:
    """What stands between the markers of each study that has results, and those of speed.

    Raises:
        ConfigError: there is none.
    """
    found = {path.parent.name: json.loads(path.read_text()) for path in sorted(results.glob("*/study.json"))}
    if not found:
        raise ConfigError(f"{results}: holds no <study>/study.json; run `sparta compare` and put them there")
    shown = {name: study(result) for name, result in found.items() if name != QUALITY}
    if QUALITY in found:
        shown[QUALITY] = quality(found[QUALITY], costs(results))
    return {**shown, **speed.tables(results)}


def study(result: Record) -> str:
    """A row a model and a column an optimizer; of a single model, or of two optimizers, a line an optimizer."""
    if len(result["models"]) > 1 and len(result["optimizers"]) > 2:
        return summary(result)
    said = "\n".join(f"- {sentence}" for sentence in verdicts(result))
    return "\n\n".join([told(result), lines(result), *([said] if said else [])])


def costs(results: Path = RESULTS) -> dict[str, float]:
    """Of a step beside plain Adam's, by the benchmark's names; none where it has not been run."""
    measured = newest(results).get("helen_step", {"ratios": {}})["ratios"]
    to_adam = {name.removesuffix(TO): one["median"] for name, one in measured.items() if name.endswith(TO)}
    return {"adam": 1.0, **to_adam} if to_adam else {}


def quality(result: Record, costs: Mapping[str, float]) -> str:
    """A line an optimizer: what its step costs, what it gains on each data set and in the mean, and of Helen's."""
    gains, labels = gains_of(result), result["optimizers"]
    first, *others = labels
    means = {
        name: mean_gain([of[name] for of in gains.values()])
        for name in others
        if all(name in of for of in gains.values())
    }
    rows = [(labels[first], _cost(first, costs), *(plain(auc_of(result, data)) for data in gains), "", "")]
    for name in others:
        # Of a gain that is none there is no share.
        known = name in means and FULL in means and sign(means[FULL]) > 0
        share = f"{means[name]['difference'] / means[FULL]['difference']:.0%}" if known else ""
        found = (*(of.get(name) for of in gains.values()), means.get(name))
        shown = (difference(of) if of else "diverged" for of in found)
        rows.append((labels[name], _cost(name, costs), *shown, share))
    head = ("optimizer", "step", *(_titled(result, data) for data in gains), "mean", f"of {labels[FULL]}'s")
    shared = None if any(row[-1] for row in rows) else -1
    said = [told(result, tested=False), SHOWN, *cut_short(result)]
    return "\n\n".join([" ".join(said), markdown(head[:shared], [row[:shared] for row in rows])])


def auc_of(result: Record, data: str) -> float:
    """Of the first optimizer, the mean over folds."""
    first = next(iter(result["optimizers"]))
    return fmean(
        group["auc"]["mean"]
        for group in result["groups"]
        if group["optimizer"] == first and FOLD.sub("", group["data"]) == data
    )


def gains_of(result: Record) -> dict[str, dict[str, Record]]:
    """By data set and optimizer, the difference of AUC to the first optimizer; folds of a data set are one, their mean.

    An optimizer of which a seed diverged, in one of the folds, has none.
    """
    found: dict[str, dict[str, list[Record]]] = {}
    folds = Counter(FOLD.sub("", name) for name in {group["data"] for group in result["groups"]})
    for group in result["groups"]:
        of = found.setdefault(FOLD.sub("", group["data"]), {})
        if "to_first" in group:
            of.setdefault(group["optimizer"], []).append(gain(group["to_first"]["auc"]))
    return {
        data: {name: mean_gain(of) for name, of in gains.items() if len(of) == folds[data]}
        for data, gains in found.items()
    }


def gain(told: Record) -> Record:
    """A difference with the variances of its parts and their degrees of freedom: of other rows, and of other seeds."""
    by_seed = told["by_seed"]
    seeds = (variance(by_seed) / len(by_seed), len(by_seed) - 1)
    return {"difference": told["difference"], "parts": [(told["standard_error"] ** 2, math.inf), seeds]}


def mean_gain(gains: Sequence[Record]) -> Record:
    """The mean over data sets, whose test rows and runs have nothing to do with each other, or over folds.

    Folds share training rows, so their differences are more alike than the interval allows for.
    """
    mean = math.fsum(one["difference"] for one in gains) / len(gains)
    parts = [(part / len(gains) ** 2, freedom) for one in gains for part, freedom in one["parts"]]
    return {"difference": mean, "interval": list(bounds(mean, parts)), "parts": parts}


def _titled(result: Record, data: str) -> str:
    """A data set with its folds and test rows."""
    rows = [one["test_rows"] for one in result["data"] if FOLD.sub("", one["name"]) == data]
    return f"{data}{f', {len(rows)} folds' if len(rows) > 1 else ''}, {sum(rows):,} test rows"


def _cost(name: str, costs: Mapping[str, float]) -> str:
    cost = costs.get(STEPS.get(name, name))
    return f"{cost:.2f}x" if cost else ""


def placed(text: str, tables: Mapping[str, str]) -> str:
    """The text with each table between its markers.

    Raises:
        ConfigError: markers are not there, each once and in order.
    """
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise ConfigError(f"--write: needs {begin} and after it {end}, each once; put them into the file")
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n{table}\n{end}{after}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put them where they are shown")
    options = parser.parse_args()
    try:
        for file, shown in documents().items():
            if options.write:
                write_atomically(file, placed(file.read_text(), shown))
            else:
                print("\n\n".join(shown.values()))
    except SpartaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
