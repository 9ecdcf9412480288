"""A small world to shard: schema, global batches with every awkward case, and the unsharded twin."""

# G = slots of the global batch, B = of one rank

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torchrec import KeyedJaggedTensor

from sparta.models.batch import Batch, Slots
from sparta.models.deepfm import DeepFM
from sparta.models.embedding import Embeddings, Inputs, Table, padded
from sparta.models.hashing import fill_normal, key
from sparta.models.loss import loss
from sparta.models.schema import Feature, Schema
from sparta.sharding.engines import TableOptimizer
from sparta.sharding.plan import Plan, make_plan

SEED = 5
GLOBAL = 24
STD = 0.1
DENSE_LR = 1e-2
SCHEMA = Schema(
    dense=("d0", "d1"),
    sparse=(
        Feature(name="C1", rows=37),
        Feature(name="C2", rows=8),
        Feature(name="tags", rows=19, multi=True),
        Feature(name="few", rows=7),  # on 4 ranks a row-wise shard of a single row
    ),
    labels=("y",),
    splits={"train": 1000},
)


def model(dim: int = 10) -> DeepFM:
    """DeepFM with dropout and batch norm; tables of `dim` columns and their 1-wide twins."""
    torch.manual_seed(3)
    return DeepFM(Inputs(SCHEMA, dim), hidden=(12, 8), dropout=0.2, batch_norm=True)


def batch(step: int, rank: int, ranks: int) -> Batch:
    """Rank's contiguous share of global batch `step`: Zipf ids, empty bags, weights, padding at the tail."""
    generator = np.random.default_rng(step)
    padding = 1 + step % 3
    lengths_FG = np.ones((len(SCHEMA.sparse), GLOBAL), dtype=np.int64)
    lengths_FG[2] = generator.integers(0, 4, GLOBAL)
    lengths_FG[:, GLOBAL - padding :] = 0
    ids = [
        [
            np.minimum(generator.zipf(1.3, length) - 1, feature.rows - 1).astype(np.int64)
            for length in lengths_FG[row]
        ]
        for row, feature in enumerate(SCHEMA.sparse)
    ]
    dense_GD = generator.normal(size=(GLOBAL, 2)).astype(np.float32)
    labels_G1 = generator.integers(0, 2, (GLOBAL, 1)).astype(np.float32)
    weights_G = generator.uniform(0.5, 2, GLOBAL).astype(np.float32)
    weights_G[GLOBAL - padding :] = 0
    share = GLOBAL // ranks
    mine = slice(rank * share, (rank + 1) * share)
    sparse = KeyedJaggedTensor(
        keys=[feature.name for feature in SCHEMA.sparse],
        values=torch.from_numpy(np.concatenate([bag for row in ids for bag in row[mine]])),
        lengths=torch.from_numpy(lengths_FG[:, mine].reshape(-1).astype(np.int32)),
    )
    slots = Slots(SEED, step + 1, rank * share, torch.from_numpy(weights_G[mine]))
    return Batch(sparse, torch.from_numpy(dense_GD[mine]), torch.from_numpy(labels_G1[mine]), slots)


def global_loss(logits: Tensor, of: Batch, step: int, ranks: int) -> Tensor:
    """This rank's loss in the convention of the whole project."""
    return loss(logits, of.labels, of.slots.weights, batch(step, 0, 1).slots.weights.sum(), ranks)


def optimizers(
    tables: Sequence[Table], name: str, lr: float = 0.05, engine: str = "fbgemm"
) -> dict[str, TableOptimizer]:
    return {table.name: TableOptimizer(name, lr, engine=engine) for table in tables}


MIXED = {"C1": "row_wise", "C2": "column_wise", "tags": "table_row_wise", "few": "table_wise"}


def planned(
    sharding: str | None,
    optimizer: str,
    *,
    ranks: int,
    local_ranks: int,
    dim: int = 10,
    engine: str = "fbgemm",
) -> Plan:
    """A plan with every table of one sharding type (twins that cannot be are table_wise), "mixed" or automatic."""
    tables = model(dim).embeddings.specs
    asked = MIXED if sharding == "mixed" else dict.fromkeys(MIXED, sharding) if sharding else {}
    return make_plan(
        tables,
        ranks=ranks,
        local_ranks=local_ranks,
        device="cpu",
        batch_size=GLOBAL,
        constraints={name: [kind] for name, kind in asked.items()},
        optimizers=optimizers(tables, optimizer, engine=engine),
    )


class _Outputs:
    def __init__(self, by_key: dict[str, Tensor]) -> None:
        self._by_key = by_key

    def to_dict(self) -> dict[str, Tensor]:
        return self._by_key


class PlainTables(nn.Module):
    """torch.nn.EmbeddingBag per table, unpadded, in the place of TorchRec's collection."""

    def __init__(self, embeddings: Embeddings) -> None:
        super().__init__()
        self.outputs = list(embeddings._outputs())
        self.bags = nn.ModuleList()
        for table in embeddings.specs:
            bag = nn.EmbeddingBag(table.rows, table.dim, mode="sum")
            with torch.no_grad():
                fill_normal(bag.weight, key(SEED, "table", table.name), 0, 0, table.dim, STD)
            self.bags.append(bag)

    def forward(self, sparse: KeyedJaggedTensor) -> _Outputs:
        by_key = {}
        for (table, output), bag in zip(self.outputs, self.bags, strict=True):
            jagged = sparse[table.feature]
            pooled = bag(jagged.values(), jagged.offsets()[:-1])
            by_key[output] = nn.functional.pad(pooled, (0, padded(table.dim) - table.dim))
        return _Outputs(by_key)


class PlainRowwiseAdagrad:
    """acc_k += mean_d g^2; w -= lr g / (sqrt(acc_k) + eps), over the logical columns."""

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, eps: float) -> None:
        self.parameters = list(parameters)
        self.sums = [torch.zeros(len(parameter), 1) for parameter in self.parameters]
        self.lr, self.eps = lr, eps

    @torch.no_grad()
    def step(self) -> None:
        for parameter, total in zip(self.parameters, self.sums, strict=True):
            assert parameter.grad is not None
            total += (parameter.grad**2).mean(1, keepdim=True)
            parameter -= self.lr * parameter.grad / (total.sqrt() + self.eps)


@dataclass(frozen=True)
class Trajectory:
    """What 20 steps leave: the losses and every table."""

    losses: list[float]
    tables: dict[str, Tensor]


def plain_trajectory(optimizer: str, steps: int, dim: int = 10, lr: float = 0.05) -> Trajectory:
    """The unsharded twin under plain torch optimizers."""
    twin = model(dim)
    specs = twin.embeddings.specs
    plain = PlainTables(twin.embeddings)
    twin.embeddings.tables = plain  # type: ignore[assignment]
    weights = list(plain.parameters())
    inside = {id(weight) for weight in weights}
    dense = torch.optim.Adam([p for p in twin.parameters() if id(p) not in inside], lr=DENSE_LR)
    rows: torch.optim.Optimizer | PlainRowwiseAdagrad
    if optimizer == "sgd":
        rows = torch.optim.SGD(weights, lr=lr)
    elif optimizer == "adagrad":
        rows = torch.optim.Adagrad(weights, lr=lr, eps=1e-8)
    else:
        rows = PlainRowwiseAdagrad(weights, lr=lr, eps=1e-8)
    losses = []
    for step in range(steps):
        of = batch(step, 0, 1)
        value = global_loss(twin(of), of, step, 1)
        twin.zero_grad()
        value.backward()
        dense.step()
        rows.step()
        losses.append(float(value))
    return Trajectory(losses, {t.name: w.detach() for t, w in zip(specs, weights, strict=True)})
