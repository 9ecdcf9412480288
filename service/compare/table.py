"""A study's result as Markdown: a row a model and a column an optimizer, as in Helen's paper, and a line each.

Everything is made from `study.json` alone. The best of a row is bold; a `*` says that it differs from the first
optimizer (p < .05 over the seeds). What was not run, or has not been, is a dash.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from statistics import fmean
from typing import Any

from sparta.service.compare.cells import Record
from sparta.service.compare.intervals import joint

TITLES = {"auc": "AUC", "logloss": "LogLoss"}
SURE = 0.05
"""Above this p a difference may well be chance."""
_DASH = "—"


def document(result: Record) -> str:
    """The whole of `table.md`."""
    return f"# {result['name']}\n\n{summary(result)}\n\n{lines(result)}\n"


def summary(result: Record) -> str:
    """How the numbers came about, for each data set a table a metric, and what they say in words."""
    parts = [told(result)]
    if any("to_first" in group for group in result["groups"]):
        star = f" `*`: p < {plain(SURE, 2)}, of AUC and of LogLoss each for itself."
        parts.append("Bold: the best of a row." + star * (len(result["seeds"]) > 1))
    for data in result["data"]:
        found = [matrix(result, data["name"], metric) for metric in TITLES]
        parts += [f"**{data['name']}**{_size(data)}", *found] if any(found) else []
    return "\n\n".join([*parts, "\n".join(f"- {said}" for said in verdicts(result))])


def told(result: Record, *, tested: bool = True) -> str:
    """How the numbers came about, in a few sentences.

    Args:
        tested: also by which tests optimizers are told apart.
    """
    seeds, tuning = len(result["seeds"]), result["tuning"]
    said = [f"Mean over {seeds} seed{'s' * (seeds > 1)} on the test split."]
    if result.get("open"):
        whole = result["open"] + len(result["groups"])
        said.append(f"Not all is done: of {whole} lines {result['open']} are missing.")
    cells = max((len(group["tuning"]) for group in result["groups"]), default=0)
    if tuning and cells:
        on = (
            "each model"
            if tuning["model"] == "each"
            else result["models"].get(tuning["model"], tuning["model"])
        )
        on = f", on {on}" if len(result["models"]) > 1 else ""
        said.append(f"Every optimizer chose among {cells} cells by AUC on the valid split{on}.")
        said += at_ends(result)
    if tested and any("to_first" in group for group in result["groups"]):
        if seeds > 1:
            said.append(f"`p`: paired t-test over the seeds against {_first(result)}, two-sided.")
        if result["resamples"]:
            drawn = f"paired bootstrap over the test rows, {result['resamples']:,} resamples"
            sure = f", p < {plain(SURE, 2)} and an interval for rows and seeds leaves it out too" * (
                seeds > 1
            )
            said.append(f"Intervals: {drawn}; better and worse are said where they leave 0 out{sure}.")
        comparisons = sum("to_first" in group for group in result["groups"])
        if (chance := round(SURE * comparisons)) > 0:
            said.append(f"Of {comparisons} comparisons a metric chance alone would mark about {chance}.")
    if result.get("note"):
        said.append(result["note"])
    said.append(f"{'; '.join([', '.join(result['dates']), *result.get('machines', []), _versions(result)])}.")
    return " ".join(said)


def at_ends(result: Record) -> list[str]:
    """A sentence on what was chosen at an end of its grid, so that more might lie beyond; of three values or more."""
    choices: dict[tuple[str, str], list[bool]] = {}
    # Models that share a grid share the choice.
    grids = {str((one["data"], one["optimizer"], one["tuning"])): one for one in result["groups"]}
    for group in grids.values():
        for knob, chosen in (group["chosen"] or {}).items():
            tried = {cell["knobs"][knob] for cell in group["tuning"]}
            if len(tried) > 2 and all(isinstance(value, int | float) for value in tried):
                optimizer = result["optimizers"][group["optimizer"]]
                choices.setdefault((optimizer, knob), []).append(chosen in (min(tried), max(tried)))
    told = [
        f"{optimizer}'s {knob} ({sum(ends)} of {len(ends)})"
        for (optimizer, knob), ends in choices.items()
        if any(ends)
    ]
    return [f"Chosen at an end of the values tried: {', '.join(told)}."] if told else []


def cut_short(result: Record) -> list[str]:
    """A sentence on the runs that ended with their last epoch while others of the study were stopped early."""
    ended = {
        label: [
            not run["stopped_early"] for one in _of(result, optimizer=name) for run in _sound(one["runs"])
        ]
        for name, label in result["optimizers"].items()
    }
    if all(all(runs) for runs in ended.values()):
        return []
    told = [f"{label} {sum(runs)} of {len(runs)}" for label, runs in ended.items() if any(runs)]
    return [
        f"Runs that ended with their last epoch, before they were stopped early: {', '.join(told)}."
    ] * bool(told)


def matrix(result: Record, data: str, metric: str) -> str:
    """One metric on one data set: a row a model, a column an optimizer, the best of a row bold; and the means.

    Where others' figures are known they stand in a last column.
    """
    groups = {(one["model"], one["optimizer"]): one for one in _of(result, data=data)}
    optimizers = [name for name in result["optimizers"] if _of(result, optimizer=name)]
    models = [model for model in result["models"] if any(name == model for name, _ in groups)]
    published = next(one for one in result["data"] if one["name"] == data).get("published", {})
    rows, columns = [], dict[str, list[float]]()
    for model in models:
        values = {
            name: groups[model, name][metric]["mean"]
            for name in optimizers
            if metric in groups.get((model, name), {})
        }
        best = _best(values, metric) if len(optimizers) > 1 else None
        cells = [_cell(groups.get((model, name)), metric, best) for name in optimizers]
        beside = [plain(published[model][metric]) if model in published else _DASH] * bool(published)
        rows.append((result["models"][model], *cells, *beside))
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    if len(models) > 1:
        means = {name: fmean(values) for name, values in columns.items() if len(values) == len(models)}
        best = _best(means, metric) if len(optimizers) > 1 else None
        cells = [_bold(plain(means[name]), best) if name in means else _DASH for name in optimizers]
        rows.append(("mean", *cells, *[_DASH] * bool(published)))
    head = (
        TITLES[metric],
        *(result["optimizers"][name] for name in optimizers),
        *["published"] * bool(published),
    )
    return markdown(head, rows) if rows else ""


def lines(result: Record) -> str:
    """A line for every data set, model and optimizer, with its difference to the first optimizer."""
    first, resampled = _first(result), bool(result["resamples"])
    several = len(result["models"]) > 1
    compared = len(result["optimizers"]) > 1
    chosen = any(group["tuning"] for group in result["groups"])
    head = ["data", *["model"] * several, "optimizer", "test AUC", "LogLoss"]
    head += [f"AUC - {first}'s{' [95%]' * resampled}", "p", "seeds won"] * compared + ["chosen"] * chosen
    rows, before = [], ("", "")
    for group in result["groups"]:
        here = (group["data"], result["models"][group["model"]])
        new = here != before
        row = [here[0] if here[0] != before[0] else "", *[here[1] if new else ""] * several]
        row += [result["optimizers"][group["optimizer"]], *_scores(group)]
        row += [*(_difference(group) if compared else ()), *[_knobs(group)] * chosen]
        rows.append(tuple(row))
        before = here
    return markdown(tuple(head), rows)


def verdicts(result: Record) -> list[str]:
    """For each data set and model which optimizers are better than the first and which worse; how many are neither."""
    said, first, shown = [], _first(result), 0
    for data, model in product([data["name"] for data in result["data"]], result["models"]):
        groups: dict[int, list[str]] = {1: [], 0: [], -1: []}
        for group in _of(result, data=data, model=model):
            if "to_first" in group:
                auc = group["to_first"]["auc"]
                groups[sign(auc)].append(f"{result['optimizers'][group['optimizer']]} {difference(auc)}")
        found = [
            f"{word} than {first}: {'; '.join(groups[which])}"
            for which, word in ((1, "better"), (-1, "worse"))
            if groups[which]
        ]
        shown += len(groups[1]) + len(groups[-1])
        if found:
            where = f"{data}, {result['models'][model]}" if len(result["models"]) > 1 else data
            said.append(f"{where}: {'; '.join(found)}.")
    compared = sum("to_first" in group for group in result["groups"])
    if shown < compared:
        which = f"the other {compared - shown} of {compared}" if shown else f"any of {compared}"
        said.append(f"No difference is shown in {which} comparison{'s' * (compared > 1)} with {first}.")
    return said


def sign(to_first: Record) -> int:
    """1 for better, -1 for worse, where other test rows and other seeds would hardly say otherwise; else 0.

    The interval is over test rows, of the same seeds; `p` over seeds, on the same rows; and an interval for both has to
    leave 0 out too. What is not there is not asked.
    """
    low, high = to_first.get("interval", (to_first["difference"],) * 2)
    p = to_first.get("p")
    if p is not None and "standard_error" in to_first:
        both = joint(to_first["difference"], to_first["standard_error"], to_first["by_seed"])
        low, high = min(low, both[0]), max(high, both[1])
    if (p is not None and p >= SURE) or (p is None and "interval" not in to_first):
        return 0
    return 1 if low > 0 else -1 if high < 0 else 0


def difference(of: Record) -> str:
    """Of AUC, with its interval if it has one."""
    if "interval" not in of:
        return signed(of["difference"])
    low, high = of["interval"]
    return f"{signed(of['difference'])} [{signed(low)}, {signed(high)}]"


def plain(value: float, digits: int = 4) -> str:
    """.8262: no 0 in front."""
    return f"{value:.{digits}f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.{digits}f}"


def signed(value: float) -> str:
    return f"{value:+.4f}".replace("0.", ".", 1)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; what is a bar in a cell stays one."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (rows[0], ("---",) * len(head), *rows[1:]))


def failed(group: Record) -> str:
    """What became of a group without a mean: `diverged`, in the grid or with how many of the seeds."""
    if not group["runs"]:
        return "diverged in tuning"
    wrong = sum(run["valid"] is None for run in group["runs"])
    return f"{wrong} of {len(group['runs'])} diverged"


def _cell(group: Record | None, metric: str, best: str | None) -> str:
    if group is None:
        return _DASH
    if metric not in group:
        return failed(group)
    p = group.get("to_first", {}).get(metric, {}).get("p")
    return _bold(plain(group[metric]["mean"]), best) + ("\\*" if p is not None and p < SURE else "")


def _best(values: Mapping[str, float], metric: str) -> str | None:
    """The best of them as it is shown."""
    return plain((max if metric == "auc" else min)(values.values())) if values else None


def _bold(text: str, best: str | None) -> str:
    # Those that are equal as far as one sees are all the best.
    return f"**{text}**" if text == best else text


def _scores(group: Record) -> tuple[str, str]:
    if "auc" not in group:
        return failed(group), _DASH
    spread = f" ± {plain(group['auc']['sd'])}" if len(group["runs"]) > 1 else ""
    return f"{plain(group['auc']['mean'])}{spread}", plain(group["logloss"]["mean"])


def _difference(group: Record) -> tuple[str, str, str]:
    if "to_first" not in group:
        return "", "", ""
    auc = group["to_first"]["auc"]
    won = sum(value > 0 for value in auc["by_seed"])
    p = "" if auc["p"] is None else "<.001" if auc["p"] < 0.001 else plain(auc["p"], 3)
    return difference(auc), p, f"{won} of {len(auc['by_seed'])}"


def _knobs(group: Record) -> str:
    chosen = (group["chosen"] or {}).items()
    return ", ".join(
        f"{knob} {f'{value:g}' if isinstance(value, float) else value}" for knob, value in chosen
    )


def _first(result: Record) -> str:
    label: str = next(iter(result["optimizers"].values()))
    return label


def _of(result: Record, **wanted: str) -> list[Record]:
    return [group for group in result["groups"] if all(group[key] == value for key, value in wanted.items())]


def _sound(runs: Sequence[Record]) -> list[Record]:
    """Those that did not diverge."""
    return [run for run in runs if run["valid"] is not None]


def _versions(result: Record) -> str:
    return " and ".join(
        ", ".join(f"{name} {number}" for name, number in one.items()) for one in result["versions"]
    )


def _size(data: Mapping[str, Any]) -> str:
    """How large a test split is."""
    positive = f", {data['test_positives']:,} positive" if "test_positives" in data else ""
    return f", {data['test_rows']:,} test rows{positive}" if "test_rows" in data else ""
