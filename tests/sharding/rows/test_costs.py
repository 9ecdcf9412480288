"""What a step costs: nothing grows with the rows of a table, no collective comes with another table."""

from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparta.sharding.engines import TableOptimizer
from sparta.sharding.rows.step import RowsStep
from tests.pool import Pool
from tests.sharding.rows.world import SHARDINGS, TableSpec, World, batch, placements, sharded

LR = 2.0**-5
KINDS = (*SHARDINGS, "mixed")


BY_ROW = {"index", "index_put_", "index_add_", "index_select", "gather", "embedding_bag", "_embedding_bag"}
"""Operators that go to the rows they are told, and read or write no others."""


class _Largest(TorchDispatchMode):
    """The elements of the largest tensor that an operator goes over: reads, writes or makes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0
        self.by = ""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        if func.is_view or name in BY_ROW or func.namespace == "fbgemm":
            return out
        for one in tree_leaves([args, kwargs, out]):
            if isinstance(one, Tensor) and one.numel() > self.elements:
                self.elements, self.by = one.numel(), name
        return out


def largest_tensor(rank: int, ranks: int, world: World, kind: str) -> tuple[int, str]:
    module = sharded(world, placements(world, kind, ranks), ranks)
    step = RowsStep(module, None)
    for number in (1, 2):
        sparse = batch(world, number, rank, ranks)
        with _Largest() as seen:
            step(lambda: sum(out.sum() for out in module(sparse).values()))  # type: ignore[arg-type, return-value] # noqa: B023
    return seen.elements, seen.by


@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_no_operator_of_a_step_goes_over_a_table(pool: Pool, kind: str, rate: float) -> None:
    rows, helen = 100_000, TableOptimizer("helen", LR, weight_decay=rate, l2=rate)
    tables = tuple(TableSpec(f"t{n}", rows, 8, helen) for n in range(5))
    for elements, by in pool.run(2, largest_tensor, World(tables), kind):
        assert 0 < elements < rows / 10, by


def dense_of(rank: int, ranks: int, world: World) -> list[str]:
    return list(RowsStep(sharded(world, placements(world, "table_wise", ranks), ranks), None)._parameters)


def test_no_table_is_taken_for_a_dense_parameter(pool: Pool) -> None:
    """They would be copied whole when dense parameters ascend."""
    world = World((TableSpec("t0", 9, 8, TableOptimizer("helen", LR)),))
    assert pool.run(1, dense_of, world)[0] == []


def reductions(rank: int, ranks: int, world: World, kind: str) -> list[int]:
    """Elements of every all-reduce in a step."""
    module = sharded(world, placements(world, kind, ranks), ranks)
    step = RowsStep(module, None)
    sizes: list[int] = []
    reduce = dist.all_reduce

    def noted(tensor: Tensor, *args: object, **settings: object) -> object:
        sizes.append(tensor.numel())
        return reduce(tensor, *args, **settings)  # type: ignore[arg-type]

    sparse = batch(world, 1, rank, ranks)
    with patch.object(dist, "all_reduce", noted):
        step(lambda: torch.stack([out.square().sum() for out in module(sparse).values()]).sum())
    return sizes


@pytest.mark.parametrize("kind", ["table_wise", "row_wise", "table_row_wise"])
def test_collectives_do_not_grow_with_the_tables(pool: Pool, kind: str) -> None:
    """N* of all tables at once, and at the end the agreement that all is finite; a shared norm is one more."""
    for optimizer, more in (
        (TableOptimizer("helen", LR), []),
        (TableOptimizer("helen", LR, norm="table"), [1]),
        (TableOptimizer("sam", LR), [1]),
    ):
        for count in (1, 5):
            world = World(tuple(TableSpec(f"t{i}", 9, 8, optimizer) for i in range(count)))
            counted = [count] if optimizer.name == "helen" else []
            expected = [*counted, *[count * n for n in more], 1]
            assert pool.run(2, reductions, world, kind) == [expected, expected]
