"""The README's table of optimizers, from committed JSON alone.

    python -m benchmarks.quality_table [--write README.md]

Prints it, or puts it between the markers `<!-- quality -->` and `<!-- /quality -->` of a file. What a step
costs is another benchmark's business: the newest benchmarks/results/helen_step-*.json, a dash where that has nothing.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.quality_study import ROOT, Record, load_study
from sparta.models.errors import ConfigError, SpartaError
from sparta.service.run import write_atomically

RESULTS = ROOT / "benchmarks" / "results" / "quality"
FOLDS = RESULTS.with_name("quality_folds")
FOLDED = "criteo_tb80k"
"""The data set whose folds are there."""
STEPS = "helen_step-*.json"
BEGIN, END = "<!-- quality -->", "<!-- /quality -->"
WHY_FOLDS = (
    "With 259 positives the test split of criteo_tb80k says little. So, after this table was seen, it was cut into "
    "folds ([`criteo_folds.yaml`](benchmarks/studies/criteo_folds.yaml)), and every row was tested once:"
)
HEAD = ("data", "optimizer", "test AUC", "LogLoss", "AUC - Adam's [95%]", "seeds won", "chosen", "step")


def load(folder: Path = RESULTS) -> tuple[list[Record], Mapping[str, float]]:
    """The results in the study's order, and the cost of a step by the benchmark's names.

    Args:
        folder: of the results; the costs lie beside it.

    Raises:
        ConfigError: there is none.
    """
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    if not found:
        raise ConfigError(f"{folder}: holds no result; run `python -m benchmarks.quality` first")
    order = list(load_study().data)
    found.sort(
        key=lambda one: (order.index(one["data"]) if one["data"] in order else len(order), one["data"])
    )
    measured = sorted(folder.parent.glob(STEPS))
    return found, json.loads(measured[-1].read_text())["to_adam"] if measured else {}


def render(results: Sequence[Record], costs: Mapping[str, float]) -> str:
    """The table with what it says in words."""
    lines = [HEAD, ("---",) * len(HEAD)]
    lines += [row(result, line, costs) for result in results for line in result["optimizers"]]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    told = [*(verdict(result) for result in results), *cheaper(results, costs)]
    return "\n".join([table, "", *(f"- {sentence}" for sentence in told)])


def row(result: Record, line: Record, costs: Mapping[str, float]) -> tuple[str, ...]:
    """One optimizer on one data set."""
    auc, to_first, cost = line["auc"], line.get("to_first"), costs.get(line["cost"])
    won = sum(value > 0 for value in to_first["by_seed"]) if to_first else 0
    return (
        result["data"] if to_first is None else "",
        line["label"],
        f"{plain(auc['mean'])} ± {plain(auc['sd'])}",
        plain(line["logloss"]["mean"]),
        difference(to_first) if to_first else "",
        f"{won} of {len(to_first['by_seed'])}" if to_first else "",
        ", ".join(f"{knob} {value:g}" for knob, value in line["chosen"].items()),
        "—" if cost is None else f"{cost:.2f}x",
    )


def verdict(result: Record) -> str:
    """Whether Helen helps on this data, by the interval; and which of the others do or harm."""
    found = {line["name"]: line for line in result["optimizers"] if "to_first" in line}
    groups: dict[int, list[str]] = {1: [], 0: [], -1: []}
    for name, line in found.items():
        if name != result["full_helen"]:
            groups[sign(line["to_first"])].append(line["label"])
    full = found.get(result["full_helen"])
    said = "Helen was not run"
    if full:
        word = {1: "Helen helps", 0: "Helen does not help", -1: "Helen does harm"}[sign(full["to_first"])]
        said = f"{word}: {difference(full['to_first'])}"
    others = [
        f"{word}: {'; '.join(groups[which])}"
        for which, word in ((1, "Better than Adam"), (0, "No difference shown"), (-1, "Worse than Adam"))
        if groups[which]
    ]
    return f"{result['data']}: {'. '.join([said, *others])}."


def cheaper(results: Sequence[Record], costs: Mapping[str, float]) -> list[str]:
    """The mean gain of every kind of Helen, over the data sets that count for it, and its share of the full one's."""
    counted = [result for result in results if result["gain"]]
    if not counted:
        return []
    full, names = counted[0]["full_helen"], [result["data"] for result in counted]
    tables = [{line["name"]: line for line in result["optimizers"]} for result in counted]
    shared = [name for name in tables[0] if all(name in table for table in tables)]
    if full not in shared:
        return []
    means = {name: mean_gain([table[name]["to_first"] for table in tables]) for name in shared[1:]}
    told = [f"Mean gain over {', '.join(names)}: Helen {difference(means[full])}."]
    for name, mean in means.items():
        if name == full or not name.startswith(full):
            continue
        line = tables[0][name]
        kept = (
            f", {mean['difference'] / means[full]['difference']:.0%} of it"
            if sign(means[full]) > 0  # of a gain that is none there is no share
            else ""
        )
        cost = costs.get(line["cost"])
        price = f", at {cost:.2f}x the plain step" if cost is not None else ""
        told.append(f"{line['label']}: {difference(mean)}{kept}{price}.")
    return told


def folded(results: Sequence[Record], folds: Sequence[Record], costs: Mapping[str, float]) -> list[str]:
    """What the folds say, and the mean gains with them in place of the one split."""
    tables = [{line["name"]: line for line in fold["optimizers"]} for fold in folds]
    lines = [
        {**line, "to_first": mean_gain([table[name]["to_first"] for table in tables])}
        for name, line in tables[0].items()
        if "to_first" in line
    ]
    rows = sum(fold["test_rows"] for fold in folds)
    name = f"{FOLDED} in {len(folds)} folds"
    first = {"name": folds[0]["optimizers"][0]["name"]}
    whole = {**folds[0], "data": name, "optimizers": [first, *lines]}
    said = "; ".join(f"{line['label']} {difference(line['to_first'])}" for line in lines)
    others = [result for result in results if result["data"] != FOLDED]
    return [f"{name}, {rows:,} test rows in all: {said}.", *cheaper([whole, *others], costs)]


def mean_gain(differences: Sequence[Record]) -> Record:
    """The mean over data sets, whose test rows have nothing to do with each other."""
    mean = math.fsum(one["difference"] for one in differences) / len(differences)
    error = math.sqrt(math.fsum(one["standard_error"] ** 2 for one in differences)) / len(differences)
    return {
        "difference": mean,
        "interval": [mean - 1.96 * error, mean + 1.96 * error],
        "standard_error": error,
    }


def sign(to_first: Record) -> int:
    """On which side of 0 the interval lies; 0 if on both."""
    low, high = to_first["interval"]
    return 1 if low > 0 else -1 if high < 0 else 0


def difference(of: Record) -> str:
    low, high = of["interval"]
    return f"{signed(of['difference'])} [{signed(low)}, {signed(high)}]"


def plain(value: float) -> str:
    """.8262: four digits, no 0 in front."""
    return f"{value:.4f}".replace("0.", ".", 1)


def signed(value: float) -> str:
    return f"{value:+.4f}".replace("0.", ".", 1)


def placed(text: str, table: str) -> str:
    """The text with the table between its markers.

    Raises:
        ConfigError: the markers are not there, each once and in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ConfigError(f"--write: the file needs {BEGIN} and after it {END}, each once; put them in")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", type=Path, help="file to put the table into")
    options = parser.parse_args()
    try:
        table = render(*load())
        if FOLDS.is_dir():
            said = folded(load()[0], *load(FOLDS))
            table += f"\n\n{WHY_FOLDS}\n\n" + "\n".join(f"- {sentence}" for sentence in said)
        if options.write:
            write_atomically(options.write, placed(options.write.read_text(), table))
        else:
            print(table)
    except SpartaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
