"""The study file of `sparta compare`: data x models x optimizers x seeds, checked before it starts. No torch here.

Each cell is an ordinary job: the data set's job file, edited as `--set` edits it, in this order, later ones winning:
`set` of the study, of the data set, of the model, what the data set says of that model, `set` of the optimizer, the
knobs of the grid, the seed. Paths are relative to the study file. The first optimizer is what the others are compared
with. Every optimizer gets a grid of as many cells; they are run once, with a seed of their own, and the best AUC on
the valid split says what the final cells take, one a seed. Only these see the test split.

    name: helpful
    seeds: [1, 2, 3]
    tuning: {seed: 1001, model: deepfm}
    set: {train.ranks: 1, model.embedding_dim: 16}
    data:
      anime: {job: ../jobs/anime.yaml, prepare: ../jobs/anime.prepare.yaml, models: {dcn: {model.args.layers: 2}}}
    models:
      deepfm: {label: DeepFM, set: {model.name: deepfm}}
      dcn: {label: DCN, set: {model.name: dcn}}
    optimizers:
      adam: {label: Adam, set: {optim.tables.name: adam}, grid: {lr: [1.0e-3, 2.0e-3]}}
      helen: {label: Helen, set: {optim.tables.name: helen}, grid: {lr: [1.0e-3], rho: [0.01, 0.02]}}
"""

import itertools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from sparta.models.errors import ConfigError
from sparta.service.settings import Settings, explain, read_mapping

EACH = "each"
"""As the model of the tuning: every model has a grid of its own."""
FOLDS = 5

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*"
Name = Annotated[str, StringConstraints(pattern=f"^{NAME}$")]
"""Of a data set, a model or an optimizer: it becomes part of file names."""
Edits = Mapping[str, Any]
"""Keys of the job with their values, as in `optim.tables.lr: 0.001`."""
Knobs = tuple[tuple[str, Any], ...]
"""Names of knobs with their values."""

KNOBS: Mapping[str, tuple[str, ...]] = {
    "lr": ("optim.tables.lr", "optim.dense.lr"),
    "rho": ("optim.tables.rho",),
}
"""Those that every study has."""
_OURS = ("name", "train.seed", "train.test")
"""Keys of the job that the study sets itself."""


class Synth(Settings):
    """What `sparta synth` makes."""

    rows: PositiveInt = 400_000
    seed: int = 1


class Published(Settings):
    """What others report of a model on a data set: shown beside ours, and used for nothing else."""

    auc: float
    logloss: float


class DataSet(Settings):
    """One data set and the job that trains on it."""

    job: str
    """Job file."""
    prepare: str | None = None
    """Spec file, or name of a built-in spec: the dataset is prepared in the study's folder and `data.path` set to it.
    With neither this nor `synth` the job's `data.path` must hold a dataset."""
    synth: Synth | None = None
    """Synthetic data in place of raw files."""
    fold: int | None = Field(default=None, ge=1, le=FOLDS)
    """Only this one of five folds of the Parquet files that `prepare` names; see service/compare/folds.py."""
    label: str | None = None
    """Of several labels, the one that is compared."""
    set: Edits = {}
    models: Mapping[Name, Edits] = {}
    """By model: what it sets on this data set."""
    published: Mapping[Name, Published] = {}
    """By model: what others report."""

    @model_validator(mode="after")
    def _comes_from_one_place(self) -> "DataSet":
        if self.prepare and self.synth:
            raise ValueError("both prepare and synth say where the data comes from; drop one")
        if self.fold and not self.prepare:
            raise ValueError(f"fold {self.fold}: folds are cut from the files of prepare, which is missing")
        return self

    @property
    def made(self) -> bool:
        """Whether the study makes the dataset."""
        return bool(self.prepare or self.synth)


class Model(Settings):
    """A row of the table."""

    label: str = ""
    """What the table calls it; its name if not said."""
    set: Edits = {}


class Optimizer(Settings):
    """A column of the table."""

    label: str = ""
    """What the table calls it; its name if not said."""
    set: Edits = {}
    grid: Mapping[str, tuple[Any, ...]] = {}
    """By knob: the values to try, each with each of the others; numbers, booleans or words, for they name the cells."""

    @property
    def points(self) -> list[Knobs]:
        """The grid's cells, in the order of the file; one without knobs where there is no grid."""
        return [tuple(zip(self.grid, point, strict=True)) for point in itertools.product(*self.grid.values())]


class Tuning(Settings):
    seed: int
    """Of all cells of the grids; none of the study's seeds."""
    model: str = EACH
    """The model that the grids are run on; the others take what was chosen for it. `each`: every model chooses."""


class Study(Settings):
    """All of it."""

    name: Name
    note: str = ""
    """What whoever reads the tables must know, in a sentence; they show it."""
    seeds: tuple[int, ...] = Field(min_length=1)
    tuning: Tuning | None = None
    """Left out where no optimizer has more than one cell to choose from."""
    resamples: NonNegativeInt = 1000
    """Of the paired bootstrap over the test rows; 0 for none."""
    set: Edits = {}
    """For all cells."""
    data: Mapping[Name, DataSet] = Field(min_length=1)
    models: Mapping[Name, Model] = Field(min_length=1)
    optimizers: Mapping[Name, Optimizer] = Field(min_length=1)
    knobs: Mapping[str, tuple[str, ...]] = KNOBS
    """What a grid may vary, and the keys of the job that each stands for, beside `lr` (optim.tables.lr and
    optim.dense.lr) and `rho` (optim.tables.rho), as in `l2: [optim.tables.l2]`."""

    @field_validator("knobs")
    @classmethod
    def _beside_ours(cls, value: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
        return {**KNOBS, **value}

    @field_validator("models", "optimizers")
    @classmethod
    def _labelled(cls, value: Mapping[str, Any]) -> Mapping[str, Any]:
        return {
            name: one if one.label else one.model_copy(update={"label": name}) for name, one in value.items()
        }

    @model_validator(mode="after")
    def _is_fair(self) -> "Study":
        sizes = {name: len(optimizer.points) for name, optimizer in self.optimizers.items()}
        for name, optimizer in self.optimizers.items():
            if empty := [knob for knob, values in optimizer.grid.items() if not values]:
                raise ValueError(f"optimizers.{name}.grid.{empty[0]}: no value to try; give some, or drop it")
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{name} {size}" for name, size in sizes.items())
            raise ValueError(f"grids of unequal size ({told} cells); give every optimizer as many")
        for name, optimizer in self.optimizers.items():
            if unknown := sorted(set(optimizer.grid) - set(self.knobs)):
                raise ValueError(
                    f"optimizers.{name}.grid: {', '.join(unknown)} is no knob; known: {', '.join(self.knobs)}; "
                    f"or say which keys of the job it is, as in knobs: {{{unknown[0]}: [optim.tables.{unknown[0]}]}}"
                )
            for knob, values in optimizer.grid.items():
                for value in values:
                    if not (isinstance(value, bool | int | float) or re.fullmatch(NAME, str(value))):
                        raise ValueError(
                            f"optimizers.{name}.grid.{knob}: {value!r} is neither a number nor a word of letters, "
                            "digits, . _ and -; give each such setting as an optimizer or model of its own"
                        )
                if len(set(values)) < len(values):
                    raise ValueError(
                        f"optimizers.{name}.grid.{knob}: a value is there twice; it would be tried once"
                    )
        if self.resamples == 1:
            raise ValueError("resamples 1: of one there is no spread; take 0 for none, or 1000")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {list(self.seeds)}: one is there twice; a seed tells nothing new twice")
        if self.tuning is None and max(sizes.values()) > 1:
            raise ValueError(
                "tuning is missing: with what seed are the grids to be run? write tuning: {seed: 1001}"
            )
        if self.tuning and self.tuning.seed in self.seeds:
            raise ValueError(f"tuning.seed {self.tuning.seed} is one of the seeds; take another")
        return self

    @model_validator(mode="after")
    def _names_what_is_there(self) -> "Study":
        known = ", ".join(self.models)
        if self.tuning and self.tuning.model not in (EACH, *self.models):
            raise ValueError(
                f"tuning.model {self.tuning.model}: no model of the study; known: {EACH}, {known}"
            )
        if EACH in self.models:
            raise ValueError(f"models.{EACH}: that name means all of them in tuning.model; take another")
        for name, data in self.data.items():
            for key, named in (("models", data.models), ("published", data.published)):
                if unknown := sorted(set(named) - set(self.models)):
                    raise ValueError(
                        f"data.{name}.{key}: {', '.join(unknown)}: no model of the study; known: {known}"
                    )
        for place, edits in self._edits():
            if ours := [key for key in edits if key in _OURS]:
                raise ValueError(f"{place}.{ours[0]}: the study itself decides that; drop it")
        return self

    def _edits(self) -> list[tuple[str, Edits]]:
        found: list[tuple[str, Edits]] = [("set", self.set)]
        found += [(f"data.{name}.set", data.set) for name, data in self.data.items()]
        for name, data in self.data.items():
            found += [(f"data.{name}.models.{model}", edits) for model, edits in data.models.items()]
        found += [(f"models.{name}.set", model.set) for name, model in self.models.items()]
        found += [(f"optimizers.{name}.set", one.set) for name, one in self.optimizers.items()]
        return found

    @property
    def first(self) -> str:
        """The optimizer that the others are compared with."""
        return next(iter(self.optimizers))

    def tuned_on(self, model: str) -> str:
        """The model whose grid decides for that one."""
        return model if self.tuning is None or self.tuning.model == EACH else self.tuning.model


def load_study(path: Path) -> Study:
    """Read a study file; the paths in it become absolute.

    Raises:
        ConfigError: unreadable file, bad YAML, unknown key, unequal budgets and the like; one line each.
    """
    raw = read_mapping(path.read_text, path, "study file", "name, seeds, data")
    try:
        study = Study.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {explain(error, Study)}") from error
    here = path.absolute().parent
    data = {
        name: one.model_copy(update={"job": _at(here, one.job), "prepare": _spec(here, one.prepare)})
        for name, one in study.data.items()
    }
    return study.model_copy(update={"data": data})


def _spec(here: Path, spec: str | None) -> str | None:
    """The path of a spec; a word without a folder or an ending is the name of a built-in one."""
    return _at(here, spec) if spec and ("/" in spec or "." in spec) else spec


def _at(folder: Path, path: str) -> str:
    return os.path.normpath(folder / path)
