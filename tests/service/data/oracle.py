"""The slow, obvious `prepare`: rows as dicts in, encoded rows as dicts out, one value at a time."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sparta.service.data.spec import DenseColumn, SparseColumn, Spec

Row = Mapping[str, Any]
_MASK = (1 << 64) - 1


def mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def hash_text(text: str, seed: int = 0x243F6A8885A308D3) -> int:
    data = text.encode()
    h = mix(seed ^ len(data))
    for at in range(0, len(data), 8):
        h = mix(h ^ int.from_bytes(data[at : at + 8].ljust(8, b"\0"), "little"))
    return h


def text(value: Any, missing: Sequence[str]) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return None if str(value) in missing else str(value)


def bucket(value: float | None, column: DenseColumn) -> int | None:
    if value is None or not math.isfinite(value):
        value = column.fill
    if value is None:
        return None
    return math.floor(math.log(value) ** 2) if value > 2 else int(value)


def calendar(written: str | None, column: SparseColumn) -> str | None:
    """The column's part of a time."""
    if written is None:
        return None
    how = column.time_format
    time = datetime.strptime(written, how) if how else datetime.fromisoformat(written)
    sunday = time.isoweekday() % 7
    return str(
        {"hour": time.hour, "weekday": sunday, "weekend": int(sunday in (0, 6))}[column.calendar or "hour"]
    )


def values(row: Row, name: str, spec: Spec) -> list[str | None]:
    """The texts of a feature in a row; None = missing. One of them unless the feature is multi-valued."""
    column = spec.categories[name]
    raw = row[column.source or name]
    if name in spec.dense:
        raw = bucket(raw, spec.dense[name])
    if column.calendar:
        raw = calendar(text(raw, spec.missing), column)
    if not column.lists:
        return [text(raw, spec.missing)]
    if isinstance(raw, list):
        parts = [text(value, spec.missing) for value in raw]
    else:
        whole = text(raw, spec.missing)
        parts = [] if whole is None else [part.strip() for part in whole.split(column.separator or ",")]
    return [part for part in parts if part is not None and part not in (*spec.missing, "")]


def vocabulary(
    train: Sequence[Row], name: str, spec: Spec, old: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Texts to ids, those of `old` kept."""
    old = old or {}
    column = spec.categories[name]
    counts = Counter(part for row in train for part in values(row, name, spec) if part is not None)
    ranked = sorted(
        (value for value in counts if counts[value] >= column.min_count and value not in old),
        key=lambda v: (-counts[v], v),
    )
    kept = ranked if column.max_rows is None else ranked[: max(0, column.max_rows - 1 - len(old))]
    return dict(old) | {value: i for i, value in enumerate(kept, start=len(old) + 1)}


def id_of(value: str | None, column: SparseColumn, ids: Mapping[str, int]) -> int:
    if value is None:
        return 0
    return 1 + hash_text(value) % column.hash if column.hash else ids.get(value, 0)


LARGEST = 2.0**128 - 2.0**104  # of float32


def number(value: float | None, column: DenseColumn, mean: float, deviation: float) -> float:
    if value is None or not math.isfinite(value):
        value = column.fill
    if value is None:
        return 0.0
    value = shaped(value, column)
    value = (value - mean) / deviation if "standardise" in column.transform else value
    return min(max(value, -LARGEST), LARGEST)


def shaped(value: float, column: DenseColumn) -> float:
    return math.copysign(math.log1p(abs(value)), value) if "log1p" in column.transform else value


def moments(train: Sequence[Row], name: str, column: DenseColumn) -> tuple[float, float]:
    there = [row[name] for row in train if row[name] is not None and math.isfinite(row[name])]
    there = [shaped(value, column) for value in there]
    if not there:
        return 0.0, 1.0
    mean = math.fsum(there) / len(there)
    variance = math.fsum((x - mean) ** 2 for x in there) / len(there)
    return mean, variance**0.5 or 1.0


def encode(
    rows: Sequence[Row], train: Sequence[Row], spec: Spec, *newer: Sequence[Row]
) -> dict[str, list[Any]]:
    """The columns of a split, in a dataset of `train` that was extended with `newer` one after the other."""
    columns: dict[str, list[Any]] = {}
    for name in spec.numbers:
        mean, deviation = moments(train, name, spec.dense[name])
        columns[name] = [number(row[name], spec.dense[name], mean, deviation) for row in rows]
    for name, column in spec.categories.items():
        ids: dict[str, int] = {}
        for more in (train, *newer) if not column.hash else ():
            ids = vocabulary(more, name, spec, ids)
        lists = [[id_of(value, column, ids) for value in values(row, name, spec)] for row in rows]
        columns[name] = lists if column.lists else [one[0] for one in lists]
    for name in (*spec.labels, *([spec.weight] if spec.weight else [])):
        columns[name] = [float(row[name]) for row in rows]
    return columns
