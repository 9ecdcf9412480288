"""Table optimizers inside TorchRec's backward, one table at a time, against the formulas."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchrec import KeyedJaggedTensor

from sparta.models.batch import Batch, Slots
from sparta.models.embedding import Embeddings, Inputs, Table, padded
from sparta.models.errors import ConfigError
from sparta.models.schema import Feature, Schema
from sparta.sharding.engines import ENGINES, TableOptimizer, engine_for
from sparta.sharding.plan import make_plan
from sparta.sharding.shard import Sharded, shard
from tests.pool import Pool
from tests.sharding.test_shard import whole_tables

ROWS = 7
IDS = [0, 3, 3, 6, 2, 3, 0, 5]


class OneTable(nn.Module):
    """The pooled rows themselves."""

    def __init__(self, dim: int, *, features: int = 1) -> None:
        super().__init__()
        sparse = tuple(Feature(name=f"F{n}", rows=ROWS) for n in range(features))
        self.embeddings = Embeddings(Inputs(Schema(sparse=sparse, labels=("y",), splits={}), dim))

    def forward(self, batch: Batch) -> torch.Tensor:
        return torch.cat(self.embeddings(batch).fields(), 1)


def batch(features: int = 1) -> Batch:
    values = torch.tensor(IDS * features)
    sparse = KeyedJaggedTensor(
        [f"F{n}" for n in range(features)], values, lengths=torch.ones(len(values), dtype=torch.int32)
    )
    weights = torch.ones(len(IDS))
    return Batch(sparse, torch.zeros(len(IDS), 0), weights[:, None], Slots(1, 1, 0, weights))


def sharded_table(optimizers: dict[str, TableOptimizer], dim: int) -> Sharded:
    model = OneTable(dim, features=len(optimizers))
    plan = make_plan(
        model.embeddings.specs,
        ranks=1,
        local_ranks=1,
        device="cpu",
        batch_size=len(IDS),
        constraints={name: ["table_wise"] for name in optimizers},
        optimizers=optimizers,
    )
    return shard(model, plan, optimizers=optimizers, device=torch.device("cpu"), seed=1, init_std=0.5)


def gradients(dim: int, step: int) -> torch.Tensor:
    return torch.randn(len(IDS), dim, generator=torch.Generator().manual_seed(step))


def by_fbgemm(
    rank: int, ranks: int, optimizer: TableOptimizer, dim: int, scales: list[float]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The table before and after one step per scale of the learning rate."""
    sharded = sharded_table({"F0": optimizer}, dim)
    before = whole_tables(sharded)["F0"]
    for step, scale in enumerate(scales):
        sharded.set_table_lr(scale)
        sharded(batch()).backward(gradients(dim, step))
    return before, whole_tables(sharded)["F0"]


def by_formula(weights: torch.Tensor, optimizer: TableOptimizer, scales: list[float]) -> torch.Tensor:
    """The optimizers as their papers write them, over the logical columns, in float64."""
    w = weights.double().clone()
    sums = torch.zeros(ROWS, 1 if optimizer.name == "rowwise_adagrad" else w.shape[1], dtype=torch.float64)
    for step, scale in enumerate(scales):
        g = torch.zeros_like(w).index_add_(0, torch.tensor(IDS), gradients(w.shape[1], step).double())
        if optimizer.name == "sgd":
            w -= optimizer.lr * scale * g
            continue
        sums += (g * g).mean(1, keepdim=True) if optimizer.name == "rowwise_adagrad" else g * g
        w -= optimizer.lr * scale * g / (sums.sqrt() + optimizer.eps)
    return w


# An eps of the size of the accumulator's root, so that a wrongly scaled one shows.
OPTIMIZERS = [
    TableOptimizer("sgd", 0.1, engine="fbgemm"),
    TableOptimizer("adagrad", 0.1, eps=0.5, engine="fbgemm"),
    TableOptimizer("rowwise_adagrad", 0.1, eps=0.5, engine="fbgemm"),
]


@pytest.mark.parametrize("dim", [1, 10, 8, 6])
@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.name)
def test_padding_changes_no_step(pool: Pool, optimizer: TableOptimizer, dim: int) -> None:
    scales = [1.0, 1.0, 1.0]
    before, after = pool.run(1, by_fbgemm, optimizer, dim, scales)[0]
    assert before.shape == (ROWS, dim)
    torch.testing.assert_close(after.double(), by_formula(before, optimizer, scales), rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda o: o.name)
def test_a_new_learning_rate_holds_from_the_next_backward(pool: Pool, optimizer: TableOptimizer) -> None:
    scales = [0.0, 1.0, 0.25, 1.0]
    before, after = pool.run(1, by_fbgemm, optimizer, 10, scales)[0]
    torch.testing.assert_close(after.double(), by_formula(before, optimizer, scales), rtol=2e-6, atol=2e-7)
    untouched = [row for row in range(ROWS) if row not in IDS]
    assert torch.equal(before[untouched], after[untouched])


def several(rank: int, ranks: int) -> tuple[list[torch.Tensor], list[torch.Tensor], int]:
    optimizers = {
        "F0": TableOptimizer("sgd", 0.1, engine="fbgemm"),
        "F1": TableOptimizer("sgd", 0.5, engine="fbgemm"),
        "F2": TableOptimizer("adagrad", 0.1, engine="fbgemm"),
        "F3": TableOptimizer("sgd", 0.1, engine="fbgemm"),
    }
    sharded = sharded_table(optimizers, 8)
    before = whole_tables(sharded)
    gradient = torch.cat([gradients(8, 0)] * 4, 1)
    sharded(batch(4)).backward(gradient)
    after = whole_tables(sharded)
    kernels = sum(len(lookup._emb_modules) for lookup in sharded.model.embeddings.tables._lookups)
    return [before[name] for name in optimizers], [after[name] for name in optimizers], kernels


def test_every_table_has_its_own_optimizer_and_equals_share_a_kernel(pool: Pool) -> None:
    before, after, kernels = pool.run(1, several)[0]
    optimizers = [
        TableOptimizer("sgd", 0.1, engine="fbgemm"),
        TableOptimizer("sgd", 0.5, engine="fbgemm"),
        TableOptimizer("adagrad", 0.1, engine="fbgemm"),
        TableOptimizer("sgd", 0.1, engine="fbgemm"),
    ]
    for start, end, optimizer in zip(before, after, optimizers, strict=True):
        torch.testing.assert_close(end.double(), by_formula(start, optimizer, [1.0]), rtol=2e-6, atol=2e-7)
    assert kernels == 3


TABLES = [Table("F0", "F0", ROWS, 8), Table("F0.wide", "F0", ROWS, 1)]


def both(optimizer: TableOptimizer) -> dict[str, TableOptimizer]:
    return {table.name: optimizer for table in TABLES}


@pytest.mark.parametrize(
    ("optimizers", "device", "words"),
    [
        (
            lambda: both(TableOptimizer("adam", 0.1, engine="fbgemm")),
            "cpu",
            "F0: engine fbgemm runs adam on GPUs only",
        ),
        (
            lambda: both(TableOptimizer("lamb", 0.1, engine="fbgemm")),
            "cuda",
            "F0: engine fbgemm has no optimizer 'lamb'",
        ),
        (lambda: both(TableOptimizer("sgd", 0.1, engine="row")), "cpu", "no engine 'row'; use rows, fbgemm"),
        (lambda: both(TableOptimizer("adagrad", 0.1)), "cpu", "F0: engine rows has no optimizer 'adagrad'"),
        (lambda: {"F0": TableOptimizer("sgd", 0.1, engine="fbgemm")}, "cpu", "F0.wide has no optimizer"),
    ],
)
def test_optimizers_that_are_not_there_are_refused(
    optimizers: Callable[[], dict[str, TableOptimizer]], device: str, words: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        engine_for(TABLES, optimizers(), device)
    assert words in str(raised.value)


def test_adam_is_there_on_gpus() -> None:
    engine = engine_for(TABLES, both(TableOptimizer("adam", 0.1, engine="fbgemm")), "cuda")
    assert engine is ENGINES["fbgemm"]
    assert (
        engine.state_bytes(TableOptimizer("adam", 0.1, engine="fbgemm"), 10, padded(1), "cpu")
        == 10 * 4 * 4 * 2
    )
