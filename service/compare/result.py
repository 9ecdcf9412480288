"""What a study has come to, as one record: `study.json`, of which the table and the picture are made.

Every data set, model and optimizer whose seeds are all done is there, whatever became of them: a seed that diverged
stays among the runs, and then the others make no mean. Each is compared with the study's first optimizer.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparta.models.errors import ConfigError, DataError
from sparta.service.compare.cells import CIRCUMSTANCES, METRICS, Cell, Folder, Record, final
from sparta.service.compare.statistics import Floats, Ranked, bootstrap, interval, paired, spread
from sparta.service.kept import load_kept

FORMAT = 1
"""Version of study.json."""


def collect(folder: Folder) -> Record:
    """All that is done so far.

    Raises:
        ConfigError: nothing is.
        DataError: kept scores are not those of the run, or of other rows than another run's.
    """
    study, groups, data = folder.study, [], []
    for name in study.data:
        rows: Record = {}
        for model in study.models:
            group, told = _of_model(folder, name, model)
            groups += group
            rows |= told
        if published := study.data[name].published:
            rows["published"] = {model: figures.model_dump() for model, figures in published.items()}
        data.append({"name": name, **rows})
    if not groups:
        raise ConfigError(f"{folder.path}: no cell is done with all its seeds yet; run `sparta compare` on")
    runs = [run for group in groups for run in group["runs"]]
    wanted = len(study.data) * len(study.models) * len(study.optimizers)
    return {
        "format": FORMAT,
        "name": study.name,
        **({"note": study.note} if study.note else {}),
        "seeds": list(study.seeds),
        "tuning": study.tuning.model_dump() if study.tuning else None,
        "resamples": study.resamples,
        "data": data,
        "models": {name: model.label for name, model in study.models.items()},
        "optimizers": {name: optimizer.label for name, optimizer in study.optimizers.items()},
        "groups": [{**group, "runs": _short(group["runs"])} for group in groups],
        **({"open": wanted - len(groups)} if len(groups) < wanted else {}),
        "dates": sorted({run["date"] for run in runs}),
        "machines": _distinct([_machine(run) for run in runs if "machine" in run]),
        "versions": _distinct([run["versions"] for run in runs if "versions" in run]),
    }


def _of_model(folder: Folder, data: str, model: str) -> tuple[list[Record], Record]:
    """Its groups, an optimizer each, and how large the test split is."""
    study, groups, cells = folder.study, [], {}
    for optimizer in study.optimizers:
        knobs, tuned = folder.chosen(data, model, optimizer)
        grid_is_done = len(tuned) == len(study.optimizers[optimizer].points)
        of_seeds = [] if knobs is None else final(study, data, model, optimizer, knobs)
        runs = [record for cell in of_seeds if (record := folder.record(cell)) is not None]
        if len(runs) < len(of_seeds) or (knobs is None and not grid_is_done):
            continue
        group: Record = {"data": data, "model": model, "optimizer": optimizer}
        group |= {"chosen": None if knobs is None else dict(knobs), "tuning": _short(tuned), "runs": runs}
        if runs and all(run["valid"] is not None for run in runs):
            group |= {metric: spread([run["test"][metric] for run in runs]) for metric in METRICS}
        if runs:
            group["rerun"], cells[optimizer] = folder.command(of_seeds[0]), of_seeds
        groups.append(group)
    told = _compare(folder, groups, cells)
    if cells:
        told["test_rows"] = folder.schema(next(iter(cells.values()))[0]).splits["test"]
    return groups, told


def _compare(folder: Folder, groups: Sequence[Record], cells: dict[str, list[Cell]]) -> Record:
    """Add to each group how it differs from the first optimizer's; how many test rows are positive."""
    sound = [group for group in groups if "auc" in group]
    told: Record = {}
    if len(sound) < 2 or sound[0]["optimizer"] != folder.study.first:
        return told
    first = sound[0]
    drawn: dict[str, Floats] = {}
    if folder.study.resamples:
        pairs = [
            (cell, run)
            for group in sound
            for cell, run in zip(cells[group["optimizer"]], group["runs"], strict=True)
        ]
        aucs, told = _resampled(folder, pairs)
        drawn = dict(
            zip((group["optimizer"] for group in sound), np.split(aucs, len(sound), axis=1), strict=True)
        )
    for group in sound[1:]:
        group["to_first"] = {
            metric: paired(*([run["test"][metric] for run in one["runs"]] for one in (group, first)))
            for metric in METRICS
        }
        if drawn:
            group["to_first"]["auc"] |= interval(drawn[group["optimizer"]], drawn[first["optimizer"]])
    return told


def _resampled(folder: Folder, pairs: Sequence[tuple[Cell, Record]]) -> tuple[Floats, Record]:
    """AUC of every run on every resample, (R, runs); the positives of the test split."""
    ranked: list[Ranked] = []
    labels, weights = None, np.empty(0, np.float32)
    for cell, run in pairs:
        path = folder.run(cell) / "scores"
        task = folder.schema(cell).labels.index(folder.label(cell))
        try:
            logits_NT, labels_NT, weights = load_kept(path)
        except DataError as error:
            again = f"{_again(folder, cell)}, or write resamples: 0"
            raise DataError(f"{path}: the scores that are resampled are gone; {again}") from error
        mine = labels_NT[:, task] > 0.5
        labels = mine if labels is None else labels
        if not np.array_equal(mine, labels):
            raise DataError(f"{path}: other test rows than those of other runs; {_again(folder, cell)}")
        ranked.append(Ranked(logits_NT[:, task], mine))
        auc, said = ranked[-1].auc(weights.astype(np.float64)), run["test"]
        if abs(auc - said["auc"]) > 1e-6 + said.get("auc_error", 0.0):
            raise DataError(f"{path}: AUC {auc}, but {said['auc']} was scored; {_again(folder, cell)}")
    assert labels is not None
    aucs = bootstrap(ranked, weights, resamples=folder.study.resamples)
    return aucs, {"test_positives": int(labels.sum())}


def _again(folder: Folder, cell: Cell) -> str:
    """The way out."""
    return f"remove {folder.run(cell)} and {folder.noted(cell)} and run the study again"


def _short(records: Sequence[Record]) -> list[Record]:
    """Records without what stands elsewhere in the file."""
    elsewhere = ("data", "model", "optimizer", "rerun", *CIRCUMSTANCES)
    return [{key: value for key, value in record.items() if key not in elsewhere} for record in records]


def _machine(run: Record) -> str:
    counts = [f"{run[what]} {what if run[what] > 1 else what[:-1]}" for what in ("ranks", "threads")]
    return f"{run['machine']}, {run['device']}, {' of '.join(counts)}"


def _distinct(found: Sequence[Any]) -> list[Any]:
    return [one for number, one in enumerate(found) if one not in found[:number]]
