"""The loader's batches as plain rows; slow and obvious."""

from pathlib import Path
from typing import Any

from sparta.models.batch import Batch
from sparta.models.schema import Schema
from sparta.service.data.loader import Loader

Row = tuple[Any, ...]


def unpack(schema: Schema, batch: Batch) -> list[Row | None]:
    """A batch's slots as rows in the order of `columns`, None for padding."""
    B = len(batch.slots.weights)
    assert batch.sparse.keys() == [feature.name for feature in schema.sparse]
    assert batch.sparse.stride() == B
    bags = {name: batch.sparse[name].to_dense() for name in batch.sparse.keys()}  # noqa: SIM118
    rows: list[Row | None] = []
    for slot in range(B):
        ids = [bags[feature.name][slot].tolist() for feature in schema.sparse]
        values = [*batch.dense[slot].tolist(), *batch.labels[slot].tolist()]
        weight = float(batch.slots.weights[slot])
        if weight == 0:
            assert not any(ids)
            assert not any(values)
            rows.append(None)
            continue
        single = [bag if feature.multi else bag[0] for feature, bag in zip(schema.sparse, ids, strict=True)]
        assert all(f.multi or len(bag) == 1 for f, bag in zip(schema.sparse, ids, strict=True))
        rows.append((*map(str, single), *values, *([weight] if schema.weight else [])))
    return rows


def global_batches(
    folder: str | Path, schema: Schema, *, ranks: int = 1, epoch: int = 0, **kwargs: Any
) -> list[list[Row]]:
    """The rows of every global batch in slot order, put together from all ranks."""
    loaders = [Loader(folder, schema, "train", rank=rank, ranks=ranks, **kwargs) for rank in range(ranks)]
    assert len({loader.steps for loader in loaders}) == 1
    batches = []
    for parts in zip(*(loader.epoch(epoch) for loader in loaders), strict=True):
        slots = [row for part in parts for row in unpack(schema, part)]
        assert len({len(part.labels) for part in parts}) == 1
        assert [part.slots.first for part in parts] == [r * len(parts[0].labels) for r in range(ranks)]
        batches.append([row for row in slots if row is not None])
    assert len(batches) == loaders[0].steps
    return batches
