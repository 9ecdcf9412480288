"""What a step is said to have done to each table: summed over the ranks, the same under every plan, and true."""

from dataclasses import asdict

import pytest
import torch

from sparta.sharding.engines import TableOptimizer
from sparta.sharding.rows.step import RowsStep
from tests.pool import Pool
from tests.sharding import toys
from tests.sharding.rows.test_step import sharded_rows

LR, RHO, XI = 0.02, 0.05, 0.3


Sampled = tuple[dict[str, dict[str, float]], dict[str, int], dict[str, int]]
"""By table: one step's sample, rows here, N*."""


def sampled(rank: int, ranks: int, name: str, plan: str) -> Sampled:
    of = sharded_rows(TableOptimizer(name, LR, rho=RHO, xi=XI), ranks, plan)
    step = RowsStep(of.module, torch.optim.SGD(of.dense_parameters().values(), lr=0.0))
    given = toys.batch(0, rank, ranks)
    sampler = step.tables.sample()
    step(lambda: toys.global_loss(of(given), given, 0, ranks))
    found = {table: asdict(one) for table, one in sampler.read().items()}
    again = step.tables.sample()
    step.tables.begin()
    step.tables.refuse()  # a step that is refused fills nothing
    assert again.read() == {}
    return found, step.tables.rows_here(), step.tables.largest()


def oracle(name: str) -> dict[str, dict[str, float]]:
    """The same by plain autograd on whole tables, but for Helen's gradient, which is of the second pass."""
    model = toys.model()
    plain = toys.PlainTables(model.embeddings)
    specs = model.embeddings.specs
    model.embeddings.tables = plain  # type: ignore[assignment]
    given = toys.batch(0, 0, 1)
    toys.global_loss(model(given), given, 0, 1).backward()
    found = {}
    for spec, weight in zip(specs, plain.parameters(), strict=True):
        ids = given.sparse[spec.feature].values()
        rows, counts = ids.unique(return_counts=True)
        assert weight.grad is not None
        norms = weight.grad[rows].norm(dim=1)
        radius = RHO * (counts / counts.max()).clamp(min=XI).double() * (norms > 0)
        found[spec.name] = {
            "ids": len(ids),
            "rows": len(rows),
            "gradient": float(weight.grad.norm()),
            "radius": float(radius.mean()) if name == "helen" else 0.0,
            "perturbation": float(radius.norm()) if name == "helen" else 0.0,
            "most": int(counts.max()),
            "there": weight.shape[0],
        }
    return found


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("name", ["helen", "adam"])
def test_ranks_add_up_to_the_whole_tables(pool: Pool, name: str, ranks: int) -> None:
    parts = pool.run(ranks, sampled, name, "mixed", local_ranks=min(2, ranks))
    expected = oracle(name)
    assert {table for found, _, _ in parts for table in found} == set(expected)
    for table, true in expected.items():
        ones = [found[table] for found, _, _ in parts if table in found]
        assert sum(one["ids"] for one in ones) == true["ids"]
        assert sum(one["rows"] for one in ones) == true["rows"]
        assert sum(rows.get(table, 0) for _, rows, _ in parts) == true["there"]
        gradient, climbed = (
            sum((one[key] or 0.0) ** 2 for one in ones) ** 0.5 for key in ("gradient", "perturbation")
        )
        if name == "adam":
            assert gradient == pytest.approx(true["gradient"], rel=1e-4)
            assert all(one["radius"] is None and one["perturbation"] is None for one in ones)
        else:
            mean = sum((one["radius"] or 0.0) * one["rows"] for one in ones) / true["rows"]
            assert mean == pytest.approx(true["radius"], rel=1e-5)
            assert climbed == pytest.approx(true["perturbation"], rel=1e-4)
            assert gradient > 0
            assert all(largest[table] == true["most"] for _, _, largest in parts)
