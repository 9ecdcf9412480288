"""The cells of a study, each an ordinary job, and the folder in which they are done. No torch here.

    <folder>/data/<name>-<spec>   datasets that the study makes
             runs/<cell>          run directories, as those of `sparta train`
             cells/<cell>.json    what a cell came to; a cell that has one is not run again
             logs/                what the slots print
             study.json  table.md  study.png

A cell's file name ends in its fingerprint, a hash of what decides its result: the job as edited, the schema of its
dataset with the hash of its vocabularies, the spec of a dataset that the study makes, the label if the study names one.
So a study that was changed never meets a result from before. Raw files and the code are not in it: where these changed,
remove the datasets, or the cells.
"""

import hashlib
import itertools
import json
import os
import shlex
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sparta.models.errors import ConfigError, DataError
from sparta.models.schema import Schema, load_schema
from sparta.service.compare.study import Knobs, Study
from sparta.service.config import Job, load_job
from sparta.service.job_text import read_text
from sparta.service.run import RunDirectory, write_atomically
from sparta.service.settings import Yaml, read_mapping

Record = dict[str, Any]
METRICS = ("auc", "logloss")
CIRCUMSTANCES = ("machine", "device", "ranks", "threads", "versions")
"""What a record says of where it was trained."""


@dataclass(frozen=True)
class Cell:
    """One training run."""

    data: str
    model: str
    optimizer: str
    knobs: Knobs
    seed: int
    final: bool
    """Whether it is scored on the test split; a cell of a grid does not read it."""
    job: str
    """The job file it edits."""
    settings: tuple[tuple[str, Any], ...]
    """Keys of the job with their values, all but where the dataset lies; the last of equal keys counts."""

    @property
    def name(self) -> str:
        """What it is, for people."""
        knobs = [
            f"{name}{value:g}" if isinstance(value, float) else f"{name}{value}" for name, value in self.knobs
        ]
        return "-".join([self.data, self.model, self.optimizer, *knobs, f"s{self.seed}"])


def tuning(study: Study, data: str, model: str, optimizer: str) -> list[Cell]:
    """The grid of one optimizer; none where there is nothing to choose."""
    points = study.optimizers[optimizer].points
    if study.tuning is None or len(points) == 1:
        return []
    model, seed = study.tuned_on(model), study.tuning.seed
    return [_cell(study, data, model, optimizer, knobs, seed, final=False) for knobs in points]


def final(study: Study, data: str, model: str, optimizer: str, knobs: Knobs) -> list[Cell]:
    """One cell a seed, with the knobs that were chosen."""
    return [_cell(study, data, model, optimizer, knobs, seed, final=True) for seed in study.seeds]


def _cell(
    study: Study, data: str, model: str, optimizer: str, knobs: Knobs, seed: int, *, final: bool
) -> Cell:
    of = study.data[data]
    told: list[Mapping[str, Any]] = [study.set, of.set, study.models[model].set, of.models.get(model, {})]
    told += [study.optimizers[optimizer].set]
    told += [{key: value} for name, value in knobs for key in study.knobs[name]]
    told += [{"name": study.name, "train.seed": seed, "train.test": "kept" if final else "unread"}]
    settings = tuple(itertools.chain.from_iterable(edits.items() for edits in told))
    return Cell(data, model, optimizer, knobs, seed, final, of.job, settings)


class Folder:
    """The folder of a study: its datasets, its run directories, and what the cells came to."""

    def __init__(self, path: Path, study: Study) -> None:
        self.path, self.study = path.absolute(), study
        self.result = self.path / "study.json"
        self.table = self.path / "table.md"
        self.plot = self.path / "study.png"
        self.logs = self.path / "logs"
        self._schemas: dict[str, Schema] = {}
        self._keys: dict[tuple[Any, ...], str] = {}

    def make(self) -> None:
        """Make what is not there.

        Raises:
            ConfigError: the folder cannot be made, or holds another study's result.
            DataError: it holds a damaged one.
        """
        if self.result.is_file() and (other := _read(self.result, "name")["name"]) != self.study.name:
            raise ConfigError(
                f"{self.path}: holds the study {other}, and this one is {self.study.name}; give another --work"
            )
        try:
            for name in ("cells", "runs", "logs", "data", "raw"):
                (self.path / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"{self.path}: cannot be made ({error.strerror}); give a writable --work"
            ) from error

    def dataset(self, data: str) -> Path:
        """Where a dataset lies that the study makes; elsewhere when its spec says something else, comments aside.

        Raises:
            ConfigError: there is no such spec.
        """
        of = self.study.data[data]
        made = of.model_dump(mode="json", include={"prepare", "synth", "fold"})
        if of.prepare and os.path.isabs(of.prepare):
            spec, place = Path(of.prepare), f"data.{data}.prepare {of.prepare}"
            # As a text: the order of its columns is that of the dataset's.
            made["prepare"] = json.dumps(
                read_mapping(spec.read_bytes, place, "spec", "files, labels"), default=str
            )
        return self.path / "data" / f"{data}-{_hash(made)[:8]}"

    def edits(self, cell: Cell, *, short: bool = False) -> list[str]:
        """What a cell changes in its job file, as `--set` takes it; `short` for people, in this folder."""
        settings: dict[str, Any] = {}
        for key, value in cell.settings:
            settings.pop(key, None)  # `model.args` after `model.args.hidden` replaces it, before it does not
            settings[key] = value
        if self.study.data[cell.data].made:
            path = self.dataset(cell.data)
            settings["data.path"] = Path(_short(path)) if short else str(path)
        return [f"{key}={_text(value)}" for key, value in settings.items()]

    def job(self, cell: Cell) -> Job:
        """The job of a cell.

        Raises:
            ConfigError: it is none.
        """
        try:
            return load_job(Path(cell.job), self.edits(cell))
        except ConfigError as error:
            raise ConfigError(f"{cell.name}, with what the study sets: {error}") from error

    def schema(self, cell: Cell) -> Schema:
        """What its dataset holds.

        Raises:
            DataError: there is none yet.
        """
        made = self.study.data[cell.data].made
        path = str(self.dataset(cell.data)) if made else self.job(cell).data.path
        if path not in self._schemas:
            self._schemas[path] = load_schema(path)
        return self._schemas[path]

    def label(self, cell: Cell) -> str:
        """The label that is compared.

        Raises:
            ConfigError: there are several, and the study does not say which; or not the one it says.
        """
        wanted, labels = self.study.data[cell.data].label, self.schema(cell).labels
        if wanted is None and len(labels) == 1:
            return labels[0]
        if wanted not in labels:
            raise ConfigError(
                f"data.{cell.data}.label {wanted}: the dataset has {', '.join(labels)}; name one"
            )
        return wanted

    def key(self, cell: Cell) -> str:
        """What a cell's files are called."""
        what = (cell.data, cell.model, cell.optimizer, cell.knobs, cell.seed)
        if what in self._keys:
            return self._keys[what]
        raw = read_text(Path(cell.job), self.edits(cell))
        raw.pop("name", None)
        raw["data"].pop("path", None)
        decides: list[Any] = [raw, self.schema(cell).model_dump(mode="json")]
        of = self.study.data[cell.data]
        decides += [self.dataset(cell.data).name] if of.made else []
        decides += [of.label] if of.label else []
        self._keys[what] = f"{cell.name}-{_hash(decides)[:10]}"
        return self._keys[what]

    def run(self, cell: Cell) -> Path:
        """Its run directory."""
        return self.path / "runs" / self.key(cell)

    def command(self, cell: Cell, verb: Sequence[str] = ("sparta", "train")) -> str:
        """The command that repeats it."""
        words = itertools.chain.from_iterable(("--set", change) for change in self.edits(cell, short=True))
        return shlex.join([*verb, _short(cell.job), *words])

    def noted(self, cell: Cell) -> Path:
        """The file of what it came to."""
        return self.path / "cells" / f"{self.key(cell)}.json"

    def record(self, cell: Cell) -> Record | None:
        """What a cell came to, if it is done.

        Raises:
            DataError: its file is damaged.
        """
        try:
            path = self.noted(cell)
        except DataError:  # there is no dataset yet
            return None
        return _read(path, "valid") if path.is_file() else None

    def finished(self, cell: Cell) -> bool:
        """Whether its run directory says what it came to."""
        run = RunDirectory(self.run(cell))
        return run.result.exists() or run.diverged.exists()

    def note(self, cell: Cell, seconds: float | None = None) -> Record | None:
        """Keep what a cell came to, as its run directory says; None where that has no result yet.

        Args:
            seconds: what its last start took, all included; those of the training where nobody knows.

        Raises:
            DataError: a split of one class, which has no AUC; a damaged result.
        """
        run = RunDirectory(self.run(cell))
        if run.diverged.exists():
            found: Record = {"valid": None, "error": run.diverged.read_text().strip()}
            ended = run.diverged
        elif run.result.exists():
            result = _read(run.result, "eval")
            label = self.label(cell)
            found = {split: _scores(metrics[label]) for split, metrics in result["eval"].items()}
            if missing := [split for split in found if found[split]["auc"] is None]:
                raise DataError(
                    f"{cell.name}: no AUC on the {missing[0]} split, which has one class; prepare another"
                )
            told = ("steps", "best_step", "stopped_early", "examples_per_second", "seconds", *CIRCUMSTANCES)
            found |= {key: result[key] for key in told if key in result}
            ended = run.result
        else:
            return None
        record = {
            "data": cell.data,
            "model": cell.model,
            "optimizer": cell.optimizer,
            "knobs": dict(cell.knobs),
            "seed": cell.seed,
            **found,
            **({} if seconds is None else {"seconds": round(seconds, 1)}),
            "date": time.strftime("%Y-%m-%d", time.localtime(ended.stat().st_mtime)),
            "rerun": self.command(cell),
        }
        shutil.rmtree(run.checkpoints, ignore_errors=True)  # the study asks nothing more of the weights
        write_atomically(self.noted(cell), json.dumps(record, indent=1) + "\n")
        return record

    def chosen(self, data: str, model: str, optimizer: str) -> tuple[Knobs | None, list[Record]]:
        """The knobs that the valid split chose, and the records of the grid.

        No knobs while the grid is not done, and where every cell of it diverged.
        """
        cells = tuning(self.study, data, model, optimizer)
        if not cells:
            return self.study.optimizers[optimizer].points[0], []
        records = [record for cell in cells if (record := self.record(cell)) is not None]
        best = choose(records) if len(records) == len(cells) else None
        return (None if best is None else cells[best].knobs), records


def choose(records: Sequence[Record]) -> int | None:
    """Which cell has the highest AUC on the valid split, the first of equals; None if all diverged."""
    scored = [number for number, record in enumerate(records) if record["valid"] is not None]
    return max(scored, key=lambda number: records[number]["valid"]["auc"], default=None)


def _read(path: Path, key: str) -> Record:
    """A JSON object that has this key.

    Raises:
        DataError: it is none.
    """
    try:
        found = json.loads(path.read_text())
    except ValueError:
        found = None
    if not isinstance(found, dict) or key not in found:
        raise DataError(
            f"{path}: damaged, it is no JSON object with {key!r}; remove it and run the study again"
        )
    return found


def _hash(what: Any) -> str:
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()


def _text(value: Any) -> str:
    """A value as YAML on one line, and as one would type it."""
    typed = isinstance(value, str) and value.isidentifier() and yaml.load(value, Yaml) == value
    return str(value) if typed or isinstance(value, Path) else json.dumps(value)


def _scores(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {metric: metrics[metric] for metric in (*METRICS, "auc_error") if metric in metrics}


def _short(path: str | Path) -> str:
    """A path as one would type it: relative where it lies below here."""
    near = os.path.relpath(path)
    return str(path) if near.startswith("..") else near
