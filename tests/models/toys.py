"""Small schemas, batches and models with real weights, for every test that needs a model to run.

schema = toy_schema(dense=3, sparse=4, multi=1)
model = materialise(zoo.build("deepfm", Inputs(schema, embedding_dim=8), {}), std=0.3, seed=1)
logits = model(toy_batch(schema, 32, seed=2))
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from sparta.models import zoo
from sparta.models.batch import Batch, Slots
from sparta.models.embedding import torchrec_name
from sparta.models.hashing import fill_normal, key
from sparta.models.schema import Feature, Schema

Model = TypeVar("Model", bound=nn.Module)
Bags = list[list[list[int]]]
"""Ids by feature and sample."""


def toy_schema(
    *, dense: int = 3, sparse: int = 4, multi: int = 1, labels: int = 1, rows: Sequence[int] = (5, 11, 7)
) -> Schema:
    """`sparse` categorical features C1.. of which the last `multi` hold lists, dense columns I1.., labels y1.."""
    return Schema(
        dense=tuple(f"I{i + 1}" for i in range(dense)),
        sparse=tuple(
            Feature(name=f"C{i + 1}", rows=rows[i % len(rows)], multi=i >= sparse - multi)
            for i in range(sparse)
        ),
        labels=tuple(f"y{i + 1}" for i in range(labels)),
        splits={"train": 1000},
    )


def toy_batch(
    schema: Schema,
    slots: int,
    seed: int,
    *,
    padding: int = 0,
    step: int = 1,
    first: int = 0,
    longest: int = 4,
    weighted: bool = False,
) -> Batch:
    """Random samples, then `padding` padding slots within `slots`; lists hold 0 to `longest` ids."""
    draw = torch.Generator().manual_seed(seed)
    real = slots - padding
    bags: Bags = []
    for feature in schema.sparse:
        lengths = torch.ones(real, dtype=torch.int64)
        if feature.multi:
            lengths = torch.randint(0, longest + 1, (real,), generator=draw)
            lengths[:1] = 0  # the empty list is never left out
        ids = [torch.randint(0, feature.rows, (int(n),), generator=draw).tolist() for n in lengths]
        bags.append(ids + [[] for _ in range(padding)])
    dense = torch.randn(slots, len(schema.dense), generator=draw)
    labels = torch.randint(0, 2, (slots, len(schema.labels)), generator=draw).float()
    weights = 0.5 + torch.rand(slots, generator=draw) if weighted else torch.ones(slots)
    for part in (dense, labels, weights):
        part[real:] = 0
    return make_batch(schema, bags, dense, labels, Slots(seed, step, first, weights))


def make_batch(schema: Schema, bags: Bags, dense: Tensor, labels: Tensor, slots: Slots) -> Batch:
    """A batch of these very samples."""
    sparse = KeyedJaggedTensor.from_lengths_sync(
        keys=[feature.name for feature in schema.sparse],
        values=torch.tensor([i for feature in bags for bag in feature for i in bag], dtype=torch.int64),
        lengths=torch.tensor([len(bag) for feature in bags for bag in feature], dtype=torch.int64),
    )
    return Batch(sparse, dense, labels, slots)


def bags_of(batch: Batch) -> Bags:
    """The ids of a batch, by feature and sample."""
    values = batch.sparse.values().tolist()
    offsets = batch.sparse.offsets().tolist()
    bags = [values[start:stop] for start, stop in pairwise(offsets)]
    stride = batch.sparse.stride()
    return [bags[start : start + stride] for start in range(0, len(bags), stride)]


def take(schema: Schema, batch: Batch, samples: Sequence[int], *, first: int = 0) -> Batch:
    """Some samples of a batch, in this order, now standing at `first` of the global batch."""
    index = torch.tensor(samples, dtype=torch.int64)
    bags = [[feature[sample] for sample in samples] for feature in bags_of(batch)]
    slots = replace(batch.slots, first=first, weights=batch.slots.weights[index])
    return make_batch(schema, bags, batch.dense[index], batch.labels[index], slots)


def materialise(model: Model, *, std: float = 0.1, seed: int = 0) -> Model:
    """Give the tables storage on the CPU and the weights that sharding would give them."""
    model.embeddings.tables.to_empty(device="cpu")  # type: ignore[union-attr, operator]
    for table in zoo.tables(model):
        weight = table_weights(model)[table.name]
        fill_normal(weight.data, key(seed, "table", table.name), 0, 0, table.dim, std)
    return model


def table_weights(model: nn.Module) -> Mapping[str, nn.Parameter]:
    """The stored (padded) weights of a materialised model, by table name."""
    bags = model.embeddings.tables.embedding_bags  # type: ignore[union-attr]
    return {
        table.name: bags[torchrec_name(table.name)].weight  # type: ignore[index, union-attr, misc]
        for table in zoo.tables(model)
    }
