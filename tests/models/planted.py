"""Planted rows as tensors, and the two yardsticks of the learning law: a factorisation machine and its linear part.

Rows come straight from the generator of `sparta synth`, encoded as its prepare.yaml would: ids by
training frequency or not at all (0); dense as log1p, standardised, and then 0 for missing.
"""

# n = rows, B = rows of a batch, S = 26 single-valued fields, M = most tags of a row, D = dense columns

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, embedding_bag
from torchrec import KeyedJaggedTensor, KeyedTensor

from sparta.models.batch import Batch, Slots
from sparta.models.embedding import Table, padded, torchrec_name
from sparta.models.schema import Feature, Schema
from sparta.service.data.planted import COUNTS, FIELDS, MOST_TAGS, TAGS, Planted
from sparta.service.data.synth import LABEL, MIN_COUNT

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Encoded rows of one split."""

    single: Tensor
    """(n, S) ids, each in its own table."""
    tags: Tensor
    """(n, M) ids, 0 beyond the row's tags."""
    tag_counts: Tensor
    """(n,)"""
    dense: Tensor
    """(n, D) float32"""
    label: Tensor
    """(n,) float32"""
    probability: Tensor
    """(n,) float64, the planted one."""

    def __len__(self) -> int:
        return len(self.label)

    def take(self, index: Tensor | slice) -> "Rows":
        """Some of the rows."""
        return Rows(*(getattr(self, field.name)[index] for field in fields(self)))

    @property
    def tag_there(self) -> Tensor:
        """(n, M) bool"""
        return torch.arange(MOST_TAGS) < self.tag_counts[:, None]


@dataclass(frozen=True)
class Task:
    """Training and test rows of one planted model."""

    train: Rows
    test: Rows
    schema: Schema

    @property
    def sizes(self) -> list[int]:
        """Rows of each field's table."""
        return [feature.rows for feature in self.schema.sparse]


def make_task(train_rows: int, test_rows: int, seed: int) -> Task:
    """The first rows of the training and test splits that `sparta synth --seed SEED` writes."""
    model = Planted(seed)
    splits = {"train": train_rows, "test": test_rows}
    raw = {split: list(model.split(split, rows)) for split, rows in splits.items()}
    values = {split: np.concatenate([c.values for c in chunks], axis=1) for split, chunks in raw.items()}
    tags = {split: np.concatenate([_padded(c.tags, c.tag_counts) for c in raw[split]]) for split in raw}

    single: dict[str, list[Integers]] = {split: [] for split in raw}
    features = []
    for f, field in enumerate(FIELDS):
        kept, rows = _vocabulary(values["train"][f])
        features.append(Feature(name=field.name, rows=rows))
        for split, columns in single.items():
            columns.append(_encoded(kept, values[split][f]))
    kept, rows = _vocabulary(tags["train"].ravel())
    features.append(Feature(name=TAGS.name, rows=rows, multi=True))

    dense = {split: np.concatenate([c.dense for c in chunks], axis=1) for split, chunks in raw.items()}
    there = [np.log1p(column[column >= 0]) for column in dense["train"]]
    mean, deviation = np.array([x.mean() for x in there]), np.array([x.std() for x in there])

    def encoded(split: str) -> Rows:
        counts = dense[split].T
        z = (np.log1p(np.maximum(counts, 0)) - mean) / deviation
        return Rows(
            torch.from_numpy(np.stack(single[split], axis=1)),
            torch.from_numpy(_encoded(kept, tags[split])),
            torch.from_numpy(np.concatenate([c.tag_counts for c in raw[split]])),
            torch.from_numpy(np.where(counts < 0, 0, z)).float(),
            torch.from_numpy(np.concatenate([c.label for c in raw[split]])).float(),
            torch.from_numpy(np.concatenate([c.probability for c in raw[split]])),
        )

    schema = Schema(
        dense=tuple(count.name for count in COUNTS),
        sparse=tuple(features),
        labels=(LABEL,),
        splits=splits,
    )
    return Task(encoded("train"), encoded("test"), schema)


def _padded(flat: Integers, counts: Integers) -> Integers:
    """Values of all rows -> (n, M), -1 where a row has fewer."""
    table = np.full((len(counts), MOST_TAGS), -1, dtype=np.int64)
    table[np.arange(MOST_TAGS) < counts[:, None]] = flat
    return table


def _vocabulary(train: Integers) -> tuple[Integers, int]:
    """The values that get an id of their own, and the rows of the table."""
    values, count = np.unique(train[train >= 0], return_counts=True)
    kept = values[count >= MIN_COUNT]
    return kept, len(kept) + 1


def _encoded(kept: Integers, values: Integers) -> Integers:
    place = np.minimum(np.searchsorted(kept, values), len(kept) - 1)
    return np.where(kept[place] == values, place + 1, 0)


def shuffled(rows: Rows, seed: int) -> Rows:
    """The same rows with every categorical column permuted on its own: frequencies stay, meaning goes."""
    generator = torch.Generator().manual_seed(seed)
    columns = [c[torch.randperm(len(rows), generator=generator)] for c in rows.single.unbind(1)]
    order = torch.randperm(len(rows), generator=generator)
    return replace(
        rows, single=torch.stack(columns, 1), tags=rows.tags[order], tag_counts=rows.tag_counts[order]
    )


def auc(score: Tensor, label: Tensor) -> float:
    """Exact area under the ROC curve; ties count half."""
    _, rank, count = score.double().unique(return_inverse=True, return_counts=True)
    middle = (count.cumsum(0) - (count - 1) / 2.0)[rank].double()
    positives = float(label.double().sum())
    area = float(middle[label == 1].sum()) - positives * (positives + 1) / 2
    return area / (positives * (len(label) - positives))


class FactorisationMachine(nn.Module):
    """Rendle's model (2010) over all 27 + 13 fields; without factors it is a logistic regression."""

    def __init__(self, task: Task, factors: int, *, std: float = 0.02) -> None:
        super().__init__()
        self.offset = torch.tensor([0, *task.sizes]).cumsum(0)[:-1]
        self.table = nn.Embedding(sum(task.sizes), 1 + factors)
        nn.init.normal_(self.table.weight, std=std)
        self.dense = nn.Parameter(torch.randn(len(COUNTS), 1 + factors) * std)
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, rows: Rows) -> Tensor:
        single = self.table(rows.single + self.offset[:-1])  # (B, S, 1 + K)
        tags = self.table(rows.tags + self.offset[-1]) * rows.tag_there[..., None]
        tags = tags.sum(1) / rows.tag_counts.clamp(min=1)[:, None]
        total = single.sum(1) + tags + rows.dense @ self.dense
        squares = (single * single).sum(1) + tags * tags + rows.dense**2 @ self.dense**2
        return self.bias + total[:, 0] + (total * total - squares)[:, 1:].sum(1) / 2


class Tables(nn.Module):
    """All tables of a model as one matrix per width, in place of its EmbeddingBagCollection.

    54 small tables would spend the test's time in calls; the same sums in the same columns come out.
    Deep rows start from N(0, std), wide ones from 0.
    """

    def __init__(self, specs: Sequence[Table], std: float) -> None:
        super().__init__()
        self.groups = [[s for s in specs if s.dim == dim] for dim in sorted({s.dim for s in specs})]
        both = len({s.feature for s in specs}) < len(specs)
        self.weights = nn.ParameterList()
        self.offsets, self.names = [], []
        for group in self.groups:
            weight = torch.zeros(sum(s.rows for s in group), padded(group[0].dim))
            if group[0].dim > 1:
                weight.normal_(std=std)
            self.weights.append(weight)
            self.offsets.append(torch.tensor([0, *(s.rows for s in group)]).cumsum(0)[:-1])
            self.names += [f"{s.feature}@{torchrec_name(s.name)}" if both else s.feature for s in group]

    def forward(self, sparse: KeyedJaggedTensor) -> KeyedTensor:
        columns: list[Tensor] = []
        ids = torch.tensor(sparse.length_per_key())
        for group, weight, offset in zip(self.groups, self.weights, self.offsets, strict=True):
            rows = sparse.values() + offset.repeat_interleave(ids)
            bags = embedding_bag(rows, weight, sparse.offsets()[:-1], mode="sum")
            columns += bags.view(len(group), sparse.stride(), -1).unbind(0)
        return KeyedTensor(self.names, [c.shape[1] for c in columns], torch.cat(columns, dim=1))


def to_batch(rows: Rows, schema: Schema, step: int) -> Batch:
    """What the loader would deliver."""
    values = torch.cat([rows.single.T.flatten(), rows.tags[rows.tag_there]])
    lengths = torch.cat([torch.ones(rows.single.numel(), dtype=torch.int64), rows.tag_counts])
    keys = [feature.name for feature in schema.sparse]
    sparse = KeyedJaggedTensor(keys, values, lengths=lengths, stride=len(rows))
    return Batch(sparse, rows.dense, rows.label[:, None], Slots(0, step, 0, torch.ones(len(rows))))


def fit(
    logit: Callable[[Rows, int], Tensor],
    groups: Iterable[tuple[Iterable[nn.Parameter], float]],
    rows: Rows,
    *,
    epochs: int,
    batch: int = 1024,
) -> None:
    """Adam with a warm-up over the first tenth and a cosine to zero.

    `logit` takes rows and the number of the step; `groups` are parameters with their learning rates.
    """
    steps = epochs * (len(rows) // batch)
    options = [{"params": list(parameters), "lr": lr} for parameters, lr in groups]
    optimizer = torch.optim.Adam(options, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, [option["lr"] for option in options], total_steps=steps + 1, pct_start=0.1
    )
    step = 0
    for _ in range(epochs):
        for index in torch.randperm(len(rows))[: steps // epochs * batch].split(batch):
            step += 1
            part = rows.take(index)
            optimizer.zero_grad()
            binary_cross_entropy_with_logits(logit(part, step), part.label).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def score(logit: Callable[[Rows, int], Tensor], rows: Rows) -> float:
    """AUC on all rows; step 0 means evaluation."""
    parts = [logit(rows.take(slice(i, i + 8192)), 0) for i in range(0, len(rows), 8192)]
    return auc(torch.cat(parts), rows.label)
