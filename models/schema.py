"""What a prepared dataset holds: its columns, the rows of its tables, its splits. No torch here.

`sparta prepare` writes it as `schema.json`; loader, models and planner read it. Id 0 of every
categorical feature means missing or unseen.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError, model_validator

from sparta.models import storage
from sparta.models.errors import DataError

FORMAT = 1
"""Version of the dataset folder; a reader refuses any other by name."""

SPLITS = ("train", "valid", "test")


class Record(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Feature(Record):
    """One categorical feature and the table that embeds it."""

    name: str
    rows: PositiveInt
    """Rows of its table, id 0 included: every id is in [0, rows)."""
    multi: bool = False
    """True when a sample holds a list of ids (possibly empty)."""


class Schema(Record):
    """The columns of a dataset, in the order the loader delivers them."""

    format: Literal[1] = 1
    dense: tuple[str, ...] = ()
    """Float columns."""
    sparse: tuple[Feature, ...]
    """Categorical columns, encoded as ids."""
    labels: tuple[str, ...]
    """One label column (0 or 1) a task."""
    weight: str | None = None
    """Sample-weight column, if any; non-negative."""
    splits: Mapping[str, NonNegativeInt]
    """Rows of each split that is there: train, valid, test."""
    fingerprint: str = ""
    """Hash of the vocabularies and statistics: of what an id or a number of this dataset means."""
    ancestors: tuple[str, ...] = ()
    """Fingerprints of the datasets this one extends, oldest first: their ids are the first of its ids, mean the
    same, and so do their numbers."""
    attainable: Mapping[str, Mapping[str, float]] = {}
    """Best metrics any model can reach on the test split, per label; known for synthetic data only."""

    @model_validator(mode="after")
    def _columns_are_distinct(self) -> "Schema":
        names = [*self.dense, *(f.name for f in self.sparse), *self.labels]
        if self.weight:
            names.append(self.weight)
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"column {twice[0]!r} is named twice")
        return self

    @property
    def columns(self) -> tuple[object, ...]:
        """What a model is built for; the splits and their rows are not."""
        return self.dense, self.sparse, self.labels

    def feature(self, name: str) -> Feature:
        """The categorical feature of that name; KeyError when there is none."""
        for feature in self.sparse:
            if feature.name == name:
                return feature
        raise KeyError(name)

    def save(self, folder: Path) -> None:
        """Write `schema.json`, whole or not at all."""
        draft = folder / "schema.json.draft"
        draft.write_text(self.model_dump_json(indent=1) + "\n")
        draft.replace(folder / "schema.json")


def load_schema(folder: str | Path) -> Schema:
    """Read `schema.json` of a dataset folder, or of a URL that fsspec reads.

    Raises:
        DataError: no such folder, an unfinished `prepare`, a broken file, or another format version.
        ConfigError: a URL whose kind is unknown here.
    """
    path = storage.join(folder, "schema.json")
    again = "run `sparta prepare` again"
    try:
        try:
            content = storage.read_bytes(path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            if storage.is_folder(folder):
                what = f"holds no schema.json, so it is no (finished) dataset; {again}"
            else:
                what = f"no such dataset; make it with `sparta prepare SPEC.yaml --out {folder}`"
            raise DataError(f"{folder}: {what}") from error
        raw = json.loads(content)
    except OSError as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(
            f"{path}: not readable ({reason}); see that its storage answers, or {again}"
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); {again}") from error
    version = raw.get("format") if isinstance(raw, dict) else None
    if version != FORMAT:
        newer = isinstance(version, int) and version > FORMAT
        raise DataError(
            f"{path}: dataset format {version!r}, this sparta reads {FORMAT}; "
            f"{'update sparta or ' if newer else ''}{again}"
        )
    try:
        return Schema.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "schema"
        raise DataError(f"{path}: {place}: {first['msg']}; {again}") from error
