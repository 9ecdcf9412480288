"""What a dataset takes over from the one that it extends, so that weights trained on that one stay right.

Every value that the old vocabularies know keeps its id and new values get the ids behind; means and deviations
stay the old ones. Training counts are not taken over: they are those of the new rows alone, so a value that does
not occur any more counts 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from sparta.models.errors import ConfigError
from sparta.models.schema import load_schema
from sparta.service.data.encode import load_transform
from sparta.service.data.spec import Spec
from sparta.service.data.vocab import load_vocabulary


@dataclass(frozen=True)
class Parent:
    """The dataset that is extended."""

    folder: Path
    moments: Mapping[str, tuple[float, float]]
    """Mean and deviation of every standardised column."""
    lineage: tuple[str, ...]
    """Fingerprints of its ancestors and itself, oldest first."""

    @classmethod
    def load(cls, folder: Path, spec: Spec) -> "Parent":
        """The dataset in `folder`, to be extended by what `spec` describes.

        Raises:
            ConfigError: the spec has other columns, or gives an id or a number another meaning.
            DataError: no dataset there, or a damaged one.
        """
        schema = load_schema(folder)
        old, moments = load_transform(folder)
        ours, theirs = _meaning(spec), _meaning(old)
        for what in dict.fromkeys([*ours, *theirs]):
            if ours.get(what) != theirs.get(what):
                raise ConfigError(
                    f"{folder}: its {what} is {_said(theirs, what)}, the spec's is {_said(ours, what)}; "
                    "a dataset is extended with its own columns and settings: mend the spec, or drop --extend"
                )
        return cls(folder, moments, (*schema.ancestors, schema.fingerprint))

    def values(self, feature: str) -> pa.Array | None:
        """The texts of ids 1, 2, ...; None for a hashed feature.

        Raises:
            DataError: the vocabulary is missing or damaged.
        """
        return load_vocabulary(self.folder, feature).values

    def ancestors(self, fingerprint: str) -> tuple[str, ...]:
        """Those of the extended dataset; extending may add nothing, and then it is its parent's equal."""
        return tuple(older for older in self.lineage if older != fingerprint)


def _meaning(spec: Spec) -> dict[str, object]:
    """All of a spec that the encoding of a row depends on, in the order in which differences are told.

    `nan` is not in it: it decides which rows are refused, not what the others become.
    """
    roles = {"dense column": spec.numbers, "feature": tuple(spec.categories), "label": spec.labels}
    meaning: dict[str, object] = {
        f"{role} {at}": name for role, names in roles.items() for at, name in enumerate(names, start=1)
    }
    meaning |= {"weight": spec.weight, "missing": sorted(spec.missing)}
    for name, number in spec.dense.items():
        meaning |= {f"dense.{name}.transform": number.transform, f"dense.{name}.fill": number.fill}
    for name, category in spec.categories.items():
        for option in ("hash", "lists", "separator", "source", "calendar", "time_format"):
            meaning[f"sparse.{name}.{option}"] = getattr(category, option)
    return meaning


def _said(meaning: Mapping[str, object], what: str) -> str:
    value = meaning.get(what)
    return "none" if value is None else repr(value)
