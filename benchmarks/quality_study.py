"""What a study of optimizers consists of: data sets, optimizers with their grids, seeds, and the cells these make.

A cell is one training run: an ordinary job file with `--set` edits. Its key names it among files, and its
fingerprint is a hash of all that decides its result, so that a changed study never meets an old cell's result.
"""

import hashlib
import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sparta.models.errors import ConfigError
from sparta.service.settings import Yaml, edit

ROOT = Path(__file__).parents[1]
STUDY = ROOT / "benchmarks" / "studies" / "quality.yaml"
KNOBS = {"lr": ("optim.tables.lr", "optim.dense.lr"), "rho": ("optim.tables.rho",)}
"""What a grid may vary, and the keys of the job that each stands for."""

Knobs = tuple[tuple[str, float], ...]
Record = dict[str, Any]


@dataclass(frozen=True)
class DataSet:
    """One data set and the job that trains on it."""

    name: str
    job: str
    set: Mapping[str, Any]
    gain: bool
    spec: str | None = None
    """What prepares it; or, in its place, the rows and the seed of `sparta synth`."""
    synth: Mapping[str, int] | None = None
    fold: int | None = None
    """Only one fold of what the spec reads; see quality_folds.py."""


@dataclass(frozen=True)
class Optimizer:
    """One line of the table."""

    name: str
    label: str
    cost: str
    set: Mapping[str, Any]
    grid: Mapping[str, Sequence[float]]

    @property
    def points(self) -> list[Knobs]:
        """The grid's cells, in the order of the file."""
        return [
            tuple(zip(self.grid, values, strict=True)) for values in itertools.product(*self.grid.values())
        ]


@dataclass(frozen=True)
class Cell:
    """One training run."""

    data: DataSet
    optimizer: Optimizer
    knobs: Knobs
    seed: int
    common: Mapping[str, Any]

    @property
    def edits(self) -> list[str]:
        """What it changes in the job file of its data, as `--set` takes it."""
        settings = {**self.common, **self.data.set, **self.optimizer.set, "train.seed": self.seed}
        settings |= {key: value for knob, value in self.knobs for key in KNOBS[knob]}
        return [f"{key}={json.dumps(value)}" for key, value in settings.items()]

    @property
    def fingerprint(self) -> str:
        """A short hash of the edited job file."""
        raw = yaml.load((ROOT / self.data.job).read_text(), Yaml)
        for change in self.edits:
            edit(raw, change)
        del raw["name"]
        return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def key(self) -> str:
        knobs = "-".join(f"{name}{value:g}" for name, value in self.knobs)
        return f"{self.data.name}-{self.optimizer.name}-{knobs}-s{self.seed}-{self.fingerprint}"

    @property
    def rerun(self) -> str:
        """The command that repeats it, run in the repository with the data prepared to `data/<name>`."""
        edits = itertools.chain.from_iterable(("--set", change) for change in self.edits)
        return "OMP_NUM_THREADS=1 " + shlex.join(["sparta", "train", self.data.job, *edits])


@dataclass(frozen=True)
class Study:
    """All of it."""

    data: Mapping[str, DataSet]
    optimizers: Mapping[str, Optimizer]
    seeds: tuple[int, ...]
    tuning_seed: int
    resamples: int
    full_helen: str
    """The optimizer whose gain the cheaper ones are to keep."""
    common: Mapping[str, Any]

    def tuning(self, data: str, optimizer: str) -> list[Cell]:
        """The grid of one optimizer on one data set."""
        of = self.optimizers[optimizer]
        return [Cell(self.data[data], of, knobs, self.tuning_seed, self.common) for knobs in of.points]

    def final(self, data: str, optimizer: str, knobs: Knobs) -> list[Cell]:
        """One cell a seed, with the knobs that were chosen."""
        of = self.optimizers[optimizer]
        return [Cell(self.data[data], of, knobs, seed, self.common) for seed in self.seeds]


def load_study(path: Path = STUDY) -> Study:
    """Read a study.

    Raises:
        ConfigError: budgets differ, the tuning seed is one of the seeds, or a grid varies an unknown knob.
    """
    raw = yaml.load(path.read_text(), Yaml)
    study = Study(
        data={name: DataSet(name=name, **rest) for name, rest in raw["data"].items()},
        optimizers={name: Optimizer(name=name, **rest) for name, rest in raw["optimizers"].items()},
        seeds=tuple(raw["seeds"]),
        tuning_seed=raw["tuning_seed"],
        resamples=raw["resamples"],
        full_helen=raw["full_helen"],
        common=raw["set"],
    )
    sizes = {name: len(optimizer.points) for name, optimizer in study.optimizers.items()}
    if len(set(sizes.values())) > 1:
        raise ConfigError(f"{path}: grids of {sizes} cells; give every optimizer as many")
    if study.tuning_seed in study.seeds:
        raise ConfigError(f"{path}: tuning_seed {study.tuning_seed} is one of the seeds; take another")
    unknown = {knob for optimizer in study.optimizers.values() for knob in optimizer.grid} - set(KNOBS)
    if unknown:
        raise ConfigError(f"{path}: grid of {', '.join(sorted(unknown))}; a grid varies {', '.join(KNOBS)}")
    return study


def best(records: Sequence[Record]) -> Record:
    """The cell with the highest validation AUC, the first of equals; one that diverged has none.

    Raises:
        ConfigError: all diverged.
    """
    scored = [record for record in records if record["valid"] is not None]
    if not scored:
        raise ConfigError(
            f"{records[0]['data']}, {records[0]['optimizer']}: every cell of the grid diverged; "
            "give it lower rates"
        )
    return max(scored, key=lambda record: record["valid"]["auc"])
