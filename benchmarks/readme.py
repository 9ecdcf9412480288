"""The README's tables, from the committed results alone: of studies, and those of speed (speed.py).

    python -m benchmarks.readme [--write README.md]

Prints them, or puts each between its markers `<!-- <study> -->` and `<!-- /<study> -->` of a file; `speed` has markers
of its own. A study's result is benchmarks/results/<study>/study.json. The study `quality`
asks more than which optimizer is better: what a step of each costs beside Adam's, by the newest
benchmarks/results/helen_step-*.json, and what a cheaper Helen keeps of the gain.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import variance

from benchmarks import speed
from benchmarks.measured import DATED, RESULTS
from sparta.models.errors import ConfigError, SpartaError
from sparta.service.compare.cells import Record
from sparta.service.compare.table import difference, lines, sign, summary, told, verdicts
from sparta.service.run import write_atomically

QUALITY, FOLDS = "quality", "criteo_folds"
FULL = "helen"
"""The optimizer whose gain the cheaper ones are to keep; their names begin with it."""
STEPS = {
    "helen_dense": "helen, perturb_dense",
    "helen_every2": "helen, ascend_every 2",
    "helen_every4": "helen, ascend_every 4",
    "helen_quarter": "helen, ascend_fraction 1/4",
    "helen_bf16": "helen, ascend_precision bf16",
    "helen_bf16_every2": "helen, bf16, ascend_every 2",
}
"""What optimizers are called in helen_step-*.json, where not by their names."""
NOT_COUNTED = ("census_income",)
"""It has 861 rows in all its tables: nothing for Helen to gain."""
FOLDED = "criteo_tb80k"
"""The data set whose folds are there."""
WHY_FOLDS = (
    "With 259 positives the test split of criteo_tb80k says little. So, after this table was seen, it was cut into "
    "folds ([`criteo_folds.yaml`](benchmarks/studies/criteo_folds.yaml)), and every row was tested once:"
)


def tables(results: Path = RESULTS) -> dict[str, str]:
    """What stands between the markers of each study that has results, and those of speed.

    Raises:
        ConfigError: there is none.
    """
    found = {path.parent.name: json.loads(path.read_text()) for path in sorted(results.glob("*/study.json"))}
    if not found:
        raise ConfigError(f"{results}: holds no <study>/study.json; run `sparta compare` and put them there")
    shown = {name: study(result) for name, result in found.items() if name not in (QUALITY, FOLDS)}
    if QUALITY in found:
        shown[QUALITY] = quality(found[QUALITY], found.get(FOLDS), costs(results))
    return {**shown, **speed.tables(results)}


def study(result: Record) -> str:
    """A row a model and a column an optimizer; of a single model a line an optimizer."""
    if len(result["models"]) > 1:
        return summary(result)
    said = "\n".join(f"- {sentence}" for sentence in verdicts(result))
    return "\n\n".join([told(result), lines(result), *([said] if said else [])])


def costs(results: Path = RESULTS) -> dict[str, float]:
    """Of a step beside plain Adam's, by the benchmark's names; none where it has not been run."""
    measured = sorted(results.glob(f"helen_step{DATED}"))
    found: dict[str, float] = json.loads(measured[-1].read_text())["to_adam"] if measured else {}
    return found


def quality(result: Record, folds: Record | None, costs: Mapping[str, float]) -> str:
    """The table of optimizers with their steps, and what it says in words."""
    priced = {
        name: costs[STEPS.get(name, name)] for name in result["optimizers"] if STEPS.get(name, name) in costs
    }
    table = lines(result, {"step": {name: f"{cost:.2f}x" for name, cost in priced.items()}})
    gains = {data["name"]: gains_of(result, data["name"]) for data in result["data"]}
    counted = {name: found for name, found in gains.items() if name not in NOT_COUNTED}
    said = [*verdicts(result), *cheaper(counted, result["optimizers"], priced)]
    text = "\n".join([told(result), "", table, "", *(f"- {sentence}" for sentence in said)])
    if folds is None:
        return text
    said = folded(counted, folds, priced)
    return "\n\n".join([text, WHY_FOLDS, told(folds), "\n".join(f"- {sentence}" for sentence in said)])


def cheaper(
    gains: Mapping[str, Mapping[str, Record]], labels: Mapping[str, str], costs: Mapping[str, float]
) -> list[str]:
    """The mean gain of every kind of Helen over data sets, and its share of the full one's.

    Args:
        gains: by data set and optimizer: the difference of AUC to the first optimizer.
    """
    shared = [name for name in labels if all(name in of for of in gains.values())]
    if FULL not in shared:
        return []
    means = {name: mean_gain([of[name] for of in gains.values()]) for name in shared}
    told = [f"Mean gain over {', '.join(gains)}: {labels[FULL]} {difference(means[FULL])}."]
    for name, mean in means.items():
        if name == FULL or not name.startswith(FULL):
            continue
        # Of a gain that is none there is no share.
        share = mean["difference"] / means[FULL]["difference"]
        kept = f", {share:.0%} of it" if sign(means[FULL]) > 0 else ""
        price = f", at {costs[name]:.2f}x the plain step" if name in costs else ""
        told.append(f"{labels[name]}: {difference(mean)}{kept}{price}.")
    return told


def folded(gains: Mapping[str, Mapping[str, Record]], folds: Record, costs: Mapping[str, float]) -> list[str]:
    """What the folds say, and the mean gains with them in place of the one split."""
    of_folds = [gains_of(folds, data["name"]) for data in folds["data"]]
    means = {name: mean_gain([of[name] for of in of_folds]) for name in of_folds[0]}
    rows, name = sum(data["test_rows"] for data in folds["data"]), f"{FOLDED} in {len(of_folds)} folds"
    labels = folds["optimizers"]
    said = "; ".join(f"{labels[one]} {difference(mean)}" for one, mean in means.items())
    others = {data: found for data, found in gains.items() if data != FOLDED}
    return [f"{name}, {rows:,} test rows in all: {said}.", *cheaper({name: means, **others}, labels, costs)]


def mean_gain(differences: Sequence[Record]) -> Record:
    """The mean over data sets, whose test rows have nothing to do with each other."""
    mean = math.fsum(one["difference"] for one in differences) / len(differences)
    error = math.sqrt(math.fsum(one["standard_error"] ** 2 for one in differences)) / len(differences)
    return {
        "difference": mean,
        "interval": [mean - 1.96 * error, mean + 1.96 * error],
        "standard_error": error,
    }


def gains_of(result: Record, data: str) -> dict[str, Record]:
    """Differences to the first optimizer; their standard errors are of other rows and of other seeds."""
    found = {}
    for group in result["groups"]:
        if group["data"] == data and "to_first" in group:
            told = group["to_first"]["auc"]
            of_seeds = math.sqrt(variance(told["by_seed"]) / len(told["by_seed"]))
            found[group["optimizer"]] = {
                **told,
                "standard_error": math.hypot(told["standard_error"], of_seeds),
            }
    return found


def placed(text: str, tables: Mapping[str, str]) -> str:
    """The text with each table between its markers.

    Raises:
        ConfigError: markers are not there, each once and in order.
    """
    for name, table in tables.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise ConfigError(f"--write: the file needs {begin} and after it {end}, each once; put them in")
        before, after = text.split(begin)[0], text.split(end)[1]
        text = f"{before}{begin}\n{table}\n{end}{after}"
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path, help="file to put the tables into")
    options = parser.parse_args()
    try:
        if options.write:
            write_atomically(options.write, placed(options.write.read_text(), tables()))
        else:
            print("\n\n".join(tables().values()))
    except SpartaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
