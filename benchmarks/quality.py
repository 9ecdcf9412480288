"""The study behind the README's table of optimizers: tune, train with every seed, compare.

    python -m benchmarks.quality --work DIR [--data NAMES] [--optimizers NAMES] [--workers 2]
                                 [--stage prepare|tune|final|table]

Without --stage all of them, one data set after another. One process a worker, each on one thread; a cell that is
done lies in DIR/cells and is not run again, so a study that was killed goes on where it stopped. Validation AUC
alone decides what is chosen; what a tuning run says of the test split is thrown away. Every cell is an ordinary
job: its record tells the `sparta train` command that repeats it. Results go to
benchmarks/results/quality/<data>.json, of which `python -m benchmarks.quality_table` makes the table.
"""

import argparse
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import numpy as np

from benchmarks import quality_compare, quality_folds, quality_table, quality_worker
from benchmarks.quality_study import ROOT, STUDY, Cell, Record, Study, best, load_study
from sparta.launcher.tether import PARENT
from sparta.models.errors import ConfigError, DataError, SpartaError
from sparta.service.data.prepare import prepare
from sparta.service.data.spec import load_spec
from sparta.service.data.synth import synth
from sparta.service.run import write_atomically

STAGES = ("prepare", "tune", "final", "table")


class Work:
    """The folder of a study under way."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        for folder in ("cells", "predictions", "runs", "logs", "data", "raw"):
            (self.path / folder).mkdir(parents=True, exist_ok=True)

    def record(self, cell: Cell) -> Record | None:
        """What a cell came to, if it is done."""
        path = self.path / "cells" / f"{cell.key}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def note(self, cell: Cell, record: Record) -> Record:
        """Keep what a cell came to."""
        whole = {
            "data": cell.data.name,
            "optimizer": cell.optimizer.name,
            "knobs": dict(cell.knobs),
            "seed": cell.seed,
            **record,
            "rerun": cell.rerun,
        }
        write_atomically(self.path / "cells" / f"{cell.key}.json", json.dumps(whole, indent=1) + "\n")
        return whole

    def predictions(self, cell: Cell) -> Path:
        return self.path / "predictions" / f"{cell.key}.npy"

    def dataset(self, name: str) -> Path:
        return self.path / "data" / name


def prepare_data(study: Study, work: Work, names: Iterable[str]) -> None:
    """Make the datasets that are not there; SPARTA_DATA is where the specs find the raw files."""
    for name in names:
        data, out = study.data[name], work.dataset(name)
        if out.exists():
            continue
        if data.synth is not None:
            raw = work.path / "raw" / name
            synth(raw, **data.synth)
            spec = load_spec(raw / "prepare.yaml")
        else:
            path = ROOT / (data.spec or "")
            spec = load_spec(path)
            if data.fold is not None:
                spec = load_spec(path, quality_folds.cut(spec, data.fold, work.path / "raw" / name))
        prepare(spec, out, progress=False)
        print(f"prepared {out}")


def pool(workers: int, work: Work) -> ProcessPoolExecutor:
    """Processes that stay up."""
    # Threads beside the two or so processes would only get into each other's way.
    for variable in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[variable] = "1"
    os.environ[PARENT] = str(os.getpid())
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(
        workers, spawn, initializer=quality_worker.start, initargs=(work.path / "logs",)
    )


def run(cells: Sequence[Cell], work: Work, workers: ProcessPoolExecutor, *, final: bool) -> list[Record]:
    """The records of the cells, in their order; those that are not done are run."""
    todo = {}
    for cell in cells:
        if work.record(cell) is None:
            task = quality_worker.Task(
                job=cell.data.job,
                edits=[*cell.edits, f"data.path={work.dataset(cell.data.name)}"],
                run=work.path / "runs" / cell.key,
                predictions=work.predictions(cell) if final else None,
            )
            todo[workers.submit(quality_worker.run, task)] = cell
    for number, done in enumerate(as_completed(todo), 1):
        record = work.note(todo[done], done.result())
        scores = record["valid"] and f"valid {record['valid']['auc']:.5f}"
        more = f"test {record['test']['auc']:.5f}" if "test" in record else ""
        print(
            f"{time.strftime('%H:%M:%S')} {number}/{len(todo)} {todo[done].key} {scores or record['error']} {more} "
            f"step {record.get('best_step')} of {record.get('steps')}, {record.get('seconds')} s",
            flush=True,
        )
    return [record for cell in cells if (record := work.record(cell)) is not None]


def tune(
    study: Study, work: Work, workers: ProcessPoolExecutor, data: str, optimizers: Sequence[str]
) -> None:
    """Every grid, once."""
    run([cell for name in optimizers for cell in study.tuning(data, name)], work, workers, final=False)


def final_cells(study: Study, work: Work, data: str, optimizer: str) -> list[Cell]:
    """The cells of the seeds with the knobs that validation chose; none while the grid is not done."""
    tuned = [work.record(cell) for cell in study.tuning(data, optimizer)]
    done = [record for record in tuned if record is not None]
    return study.final(data, optimizer, tuple(best(done)["knobs"].items())) if len(done) == len(tuned) else []


def final(
    study: Study, work: Work, workers: ProcessPoolExecutor, data: str, optimizers: Sequence[str]
) -> None:
    """Every seed of what was chosen."""
    cells = [cell for name in optimizers for cell in final_cells(study, work, data, name)]
    run(cells, work, workers, final=True)


def collect(study: Study, work: Work, data: str) -> Record | None:
    """What is committed of one data set: every optimizer that is done against the first; None without that one.

    Raises:
        DataError: a final run diverged, or the kept predictions are not those that were scored.
    """
    runs: dict[str, list[Record]] = {}
    scores, labels = [], None
    for name in study.optimizers:
        cells = final_cells(study, work, data, name)
        records = [record for cell in cells if (record := work.record(cell)) is not None]
        if len(records) < len(study.seeds):
            continue
        runs[name] = records
        for cell, record in zip(cells, records, strict=True):
            if record["valid"] is None:
                raise DataError(f"{cell.key}: {record['error']}; the comparison needs every seed")
            logits_N, labels_N = np.load(work.predictions(cell))
            labels = labels_N > 0.5 if labels is None else labels
            auc = quality_compare.Ranked(logits_N, labels).auc(np.ones(len(labels)))
            if ((labels_N > 0.5) != labels).any() or abs(auc - record["test"]["auc"]) > 1e-6:
                raise DataError(
                    f"{work.predictions(cell)}: AUC {auc}, but {record['test']['auc']} was scored"
                )
            scores.append(logits_N)
    base = next(iter(study.optimizers))
    if base not in runs or labels is None:
        return None
    aucs_RM = quality_compare.bootstrap(scores, labels, resamples=study.resamples)
    of_seeds = dict(zip(runs, np.split(aucs_RM, len(runs), axis=1), strict=True))
    lines = []
    for name, records in runs.items():
        optimizer, test = study.optimizers[name], [record["test"]["auc"] for record in records]
        line: Record = {
            "name": name,
            "label": optimizer.label,
            "cost": optimizer.cost,
            "chosen": records[0]["knobs"],
            "auc": quality_compare.spread(test),
            "logloss": quality_compare.spread([record["test"]["logloss"] for record in records]),
        }
        if name != base:
            of_base = [record["test"]["auc"] for record in runs[base]]
            line["to_first"] = quality_compare.compared(of_seeds[name], of_seeds[base], test, of_base)
        tuned = [work.record(cell) or {} for cell in study.tuning(data, name)]
        line["tuning"] = [_short(record) for record in tuned]
        line["runs"] = [_short(record) for record in records]
        line["rerun"] = records[0]["rerun"]
        lines.append(line)
    every = [record for records in runs.values() for record in records]
    return {
        "data": data,
        "test_rows": len(labels),
        "gain": study.data[data].gain,
        "full_helen": study.full_helen,
        "tuning_seed": study.tuning_seed,
        "resamples": study.resamples,
        "optimizers": lines,
        "dates": sorted({record["date"] for record in every}),
        "versions": every[-1]["versions"],
    }


def _short(record: Record) -> Record:
    """A record without what stands elsewhere in the file."""
    return {
        key: value for key, value in record.items() if key not in ("data", "optimizer", "versions", "rerun")
    }


def names(text: str | None, known: Iterable[str], what: str) -> list[str]:
    """The names of a list with commas, in the study's order; all of them if it is not given.

    Raises:
        ConfigError: an unknown one.
    """
    wanted = text.split(",") if text else list(known)
    if unknown := sorted(set(wanted) - set(known)):
        raise ConfigError(f"--{what} {', '.join(unknown)}: the study has {', '.join(known)}")
    return [name for name in known if name in wanted]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of data, cells and predictions")
    parser.add_argument("--study", type=Path, default=STUDY)
    parser.add_argument("--data", help="some of the data sets, with commas")
    parser.add_argument("--optimizers", help="some of the optimizers, with commas")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--out", type=Path, default=quality_table.RESULTS, help="folder of the results")
    options = parser.parse_args()
    stages = [options.stage] if options.stage else STAGES
    try:
        study, work = load_study(options.study), Work(options.work)
        data = names(options.data, study.data, "data")
        optimizers = names(options.optimizers, study.optimizers, "optimizers")
        if "prepare" in stages:
            prepare_data(study, work, data)
        with pool(options.workers, work) as workers:
            for name in data:
                if "tune" in stages:
                    tune(study, work, workers, name, optimizers)
                if "final" in stages:
                    final(study, work, workers, name, optimizers)
                if "table" in stages and (found := collect(study, work, name)):
                    options.out.mkdir(parents=True, exist_ok=True)
                    write_atomically(options.out / f"{name}.json", json.dumps(found, indent=1) + "\n")
    except SpartaError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    if "table" in stages:
        print(quality_table.render(*quality_table.load(options.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
