"""The data spec: which raw files and columns make a dataset, and how each is encoded. No torch here.

A spec is a small YAML file; `specs/generic.yaml` shows every key. Paths in it are relative to the spec's own
folder, paths given by `--set` or through `${NAME}` to the working directory. `base: criteo` starts from a
built-in spec and changes only what the file names.
"""

import glob
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from sparta.models.errors import ConfigError, DataError
from sparta.service.settings import Settings, edit, explain, read_mapping

ALL = "all"
"""Key of files that are split by a fraction."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_VARIABLE = re.compile(r"\$\{(\w+)\}")


class DenseColumn(Settings):
    """A number per sample, float32 in the dataset."""

    transform: Literal["none", "log1p", "standardise", "log1p_standardise", "bucketise"] = "none"
    """log1p: sign(x) log(1 + |x|), so that negatives keep their order; standardise: (x - mean) / deviation of
    the training rows; log1p_standardise: the one after the other, what counts want; bucketise: a categorical
    column of int(x) up to 2 and int(log(x)^2) above, encoded as `defaults.sparse` says."""
    fill: float | None = None
    """Raw value that stands for a missing one; if not said, missing becomes 0 after the transform (which is
    the mean of a standardised column). A bucketised column keeps missing as id 0 unless filled."""
    nan: Literal["error", "missing"] = "error"
    """What NaN and infinities are; null or empty is always missing."""


class SparseColumn(Settings):
    """A category (or a list of them) per sample, an id in the dataset.

    Values are compared as text; 3.0 in a column of floats is the text 3.
    """

    min_count: PositiveInt = 1
    """Values with fewer training occurrences become id 0."""
    max_rows: int | None = Field(default=None, ge=2)
    """Rows of the table at most, id 0 included: the most frequent values are kept."""
    hash: int | None = Field(default=None, gt=0, lt=2**31 - 1)
    """Number of hash buckets in place of a vocabulary; the table has one row more, id 0 for missing."""
    multi: bool = False
    """A list per sample: a list column, or text that is split at `separator`. Missing values are left out of a
    list, unseen ones stay as id 0."""
    separator: str | None = Field(default=None, min_length=1)
    """Splits text into values, which are then stripped of white space; implies `multi`."""
    source: str | None = None
    """The column it is read from, if not the one of its name: several features may come from one column."""
    calendar: Literal["hour", "weekday", "weekend"] | None = None
    """Of a time take only the hour (0 to 23), the weekday (0 is Sunday) or whether it is weekend (1)."""
    time_format: str | None = Field(default=None, min_length=1)
    """How such times are written, as strptime has it: "%y%m%d%H"; as 2026-01-31 12:00:00 if not said."""

    @model_validator(mode="after")
    def _says_nothing_that_is_not_heard(self) -> "SparseColumn":
        if self.hash and (self.min_count > 1 or self.max_rows):
            raise ValueError("hash keeps no vocabulary, so min_count and max_rows say nothing; drop either")
        if self.time_format and not self.calendar:
            raise ValueError("time_format says how to read a time for calendar; add calendar or drop it")
        if self.calendar and self.lists:
            raise ValueError("calendar takes one time a sample; drop multi and separator")
        return self

    @property
    def lists(self) -> bool:
        return self.multi or self.separator is not None


class Defaults(Settings):
    """What columns do that do not say otherwise."""

    dense: DenseColumn = DenseColumn()
    sparse: SparseColumn = SparseColumn()


class Fractions(Settings):
    """How one set of files is divided; the rest is train."""

    valid: float = Field(default=0.0, ge=0, lt=1)
    test: float = Field(default=0.0, ge=0, lt=1)
    seed: NonNegativeInt = 0
    """Of the random split; row n of the files falls into the same split whenever the seed is the same."""
    time: str | None = None
    """Column to split by instead: the newest rows are test, those before them valid. Equal times stay together."""

    @model_validator(mode="after")
    def _train_is_left(self) -> "Fractions":
        if self.valid + self.test >= 1:
            raise ValueError(f"valid {self.valid} + test {self.test} leave no rows for train; lower them")
        if self.valid + self.test == 0:
            raise ValueError("neither valid nor test is above 0; name the files as files.train instead")
        return self


class Spec(Settings):
    """A whole data spec; columns without options are written as a list of names."""

    files: Mapping[Literal["train", "valid", "test", "all"], tuple[str, ...]]
    """Per split a path, a glob or a list of them; or only such a list, divided by `split`."""
    split: Fractions | None = None
    format: Literal["csv", "tsv", "parquet"] | None = None
    """Of files whose names do not tell by .csv, .tsv or .parquet (text also .gz)."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """Between the columns of text files; if not said, a comma in CSV and a tab in TSV."""
    quote: str | None = Field(default=None, max_length=1)
    """Around values of text files, empty for none; if not said, double quotes in CSV and none in TSV."""
    columns: tuple[str, ...] | None = None
    """Column names of text files without a header line."""
    missing: tuple[str, ...] = ("",)
    """Texts that mean a missing value."""
    rename: Mapping[str, str] = {}
    """Raw column name to the name used here and in the dataset."""
    labels: tuple[str, ...] = Field(min_length=1)
    """Columns of 0 and 1, one a task."""
    weight: str | None = None
    """Column of sample weights."""
    defaults: Defaults = Defaults()
    dense: Mapping[str, DenseColumn] = {}
    sparse: Mapping[str, SparseColumn] = {}
    attainable: Mapping[str, Mapping[str, float]] = {}
    """Best test metrics any model can reach, per label; known for synthetic data only."""

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, raw: Any) -> Any:
        return _defaulted(_shaped(raw)) if isinstance(raw, dict) else raw

    @model_validator(mode="after")
    def _hangs_together(self) -> "Spec":
        if not self.files or not all(self.files.values()):
            raise ValueError("files names no file; give files.train, or a list of files and a split")
        if ALL in self.files and self.split is None:
            raise ValueError("files is one list, so say with `split` how to divide it, or name files.train")
        if ALL not in self.files and self.split is not None:
            raise ValueError("`split` divides one list of files; with files per split leave it out")
        if ALL in self.files and len(self.files) > 1:
            raise ValueError("files is either one list with a `split`, or train, valid and test")
        if ALL not in self.files and "train" not in self.files:
            raise ValueError("files.train is required; vocabularies are built from it")
        names = [*self.labels, *([self.weight] if self.weight else []), *self.dense, *self.sparse]
        for name in names:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"column name {name!r} may hold only letters, digits, _ and -; "
                    f"rename it, as in rename: {{{name!r}: {re.sub('[^A-Za-z0-9_-]+', '_', name)}}}"
                )
            if names.count(name) > 1:
                raise ValueError(f"column {name!r} is used twice; a column has one role")
        for name, column in self.sparse.items():
            if column.source and column.source in (*self.labels, self.weight, *self.dense):
                raise ValueError(
                    f"sparse.{name}.source: {column.source!r} is read as a number; name another column"
                )
        if not self.dense and not self.sparse:
            raise ValueError("neither dense nor sparse names a column; a model needs some input")
        for given, what in ((self.columns or (), "columns"), (tuple(self.rename.values()), "rename")):
            twice = [name for name in given if given.count(name) > 1]
            if twice:
                raise ValueError(f"{what} names {twice[0]!r} twice")
        return self

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """Dense columns that stay numbers, in schema order."""
        return tuple(name for name, column in self.dense.items() if column.transform != "bucketise")

    @cached_property
    def categories(self) -> Mapping[str, SparseColumn]:
        """Categorical features in schema order: bucketised numbers first."""
        one = {"multi": False, "separator": None, "source": None, "calendar": None, "time_format": None}
        single = self.defaults.sparse.model_copy(update=one)
        return {name: single for name in self.dense if name not in self.numbers} | dict(self.sparse)

    def source(self, feature: str) -> str:
        """The column that a categorical feature is read from."""
        return self.categories[feature].source or feature

    def paths(self) -> dict[str, list[Path]]:
        """The files of each split (or `all`), globs expanded in sorted order.

        Raises:
            DataError: a file that is not there, a glob that matches none.
        """
        found: dict[str, list[Path]] = {}
        for split, patterns in self.files.items():
            for pattern in patterns:
                names = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))
                if not names:
                    raise DataError(f"{pattern}: no such file; mend files.{split} of the spec")
                found.setdefault(split, []).extend(Path(name) for name in names)
        return found


def load_spec(source: str | Path, overrides: Sequence[str] = ()) -> Spec:
    """The spec in a YAML file, or the built-in of that name, edited by `key=value` overrides.

    Raises:
        ConfigError: no such file or built-in, bad YAML, unknown key or bad value; one line each.
    """
    path = Path(source)
    if path.is_file():
        raw = _with_base(_yaml(path.read_bytes(), str(path)), str(path))
        raw = _anchored(_shaped(raw), path.parent.absolute())
    elif str(source) in builtins():
        raw = _shaped(_builtin(str(source)))
    else:
        near = get_close_matches(str(source), builtins(), 1)
        hint = f"did you mean {near[0]}?" if near else f"built-in specs are {', '.join(builtins())}"
        raise ConfigError(f"{source}: no such spec file; {hint}")
    for override in overrides:
        edit(raw, override)
    try:
        return Spec.model_validate(_with_files(_shaped(raw), _expanded))
    except ValidationError as error:
        raise ConfigError(f"{source}: {explain(error, Spec)}") from error


def builtins() -> list[str]:
    """Names of the specs that come with sparta."""
    folder = resources.files("sparta.service.data").joinpath("specs")
    return sorted(Path(entry.name).stem for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def _builtin(name: str) -> dict[str, Any]:
    text = resources.files("sparta.service.data").joinpath("specs", f"{name}.yaml").read_bytes()
    return _yaml(text, name)


def _yaml(text: bytes, source: str) -> dict[str, Any]:
    return read_mapping(lambda: text, source, "spec", "files, labels, sparse")


def _with_base(raw: dict[str, Any], source: str) -> dict[str, Any]:
    if "base" not in raw:
        return raw
    name = raw["base"]
    if name not in builtins():
        raise ConfigError(f"{source}: base: {name!r} is none of the built-in specs {', '.join(builtins())}")
    return _merged(_shaped(_builtin(name)), _shaped({key: raw[key] for key in raw if key != "base"}))


def _merged(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, mapping by mapping."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


def _shaped(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Short forms written out: lists of columns as mappings, single paths and labels as lists."""
    result = dict(raw)
    files = result.get("files")
    if isinstance(files, str | list):
        files = {ALL: files}
    if isinstance(files, Mapping):
        result["files"] = {key: [value] if isinstance(value, str) else value for key, value in files.items()}
    if isinstance(result.get("labels"), str):
        result["labels"] = [result["labels"]]
    for kind in ("dense", "sparse"):
        columns = result.get(kind)
        if isinstance(columns, list) and all(isinstance(name, str) for name in columns):
            columns = dict.fromkeys(columns)
        if isinstance(columns, Mapping):
            result[kind] = {name: {} if options is None else options for name, options in columns.items()}
    return result


def _defaulted(raw: dict[str, Any]) -> dict[str, Any]:
    """`defaults` laid under every column."""
    defaults = raw.get("defaults")
    result = dict(raw)
    for kind in ("dense", "sparse"):
        default = defaults.get(kind) if isinstance(defaults, Mapping) else None
        if isinstance(raw.get(kind), Mapping):
            result[kind] = {
                name: _over(default if isinstance(default, Mapping) else {}, own)
                for name, own in raw[kind].items()
            }
    return result


def _over(default: Mapping[str, Any], own: Any) -> Any:
    """A column's own options over the defaults; hashing and a vocabulary exclude each other."""
    if not isinstance(own, Mapping):
        return own
    dropped: Iterable[str] = ()
    if own.get("hash"):
        dropped = ("min_count", "max_rows")
    elif own.get("min_count") or own.get("max_rows"):
        dropped = ("hash",)
    return {key: value for key, value in default.items() if key not in dropped} | dict(own)


def _anchored(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Every path taken from `folder`, but for those that begin with `${NAME}` or `~`."""
    return _with_files(raw, lambda path: path if path.startswith(("${", "~")) else os.path.join(folder, path))


def _expanded(path: str) -> str:
    """`${NAME}` and `~` replaced; what is relative then is so to the working directory."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise ConfigError(f"files: {path} needs the environment variable {match[1]}; export it")
        return os.environ[match[1]]

    return os.path.join(Path.cwd(), os.path.expanduser(_VARIABLE.sub(value, path)))


def _with_files(raw: dict[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    def changed(paths: Any) -> Any:
        return [change(p) if isinstance(p, str) else p for p in paths] if isinstance(paths, list) else paths

    files = raw.get("files")
    if not isinstance(files, Mapping):
        return raw
    return raw | {"files": {key: changed(paths) for key, paths in files.items()}}
