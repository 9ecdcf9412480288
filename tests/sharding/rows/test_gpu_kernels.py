"""The engine with a GPU's kernels and vectors, which are longer than the rows touched, in Triton's interpreter."""

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from sparta.optim.rows.frequency import plain_count, plain_scale
from sparta.optim.rows.group import Shape
from sparta.sharding.engines import ENGINES, TableOptimizer
from sparta.sharding.rows import learner
from tests.optim.rows.cases import make
from tests.pool import Pool
from tests.sharding.rows.world import SHARDINGS, Outcome, TableSpec, World, placements, run

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def interpreted(rank: int, ranks: int, world: World, placement: Mapping[str, str]) -> Outcome:
    from sparta.optim.rows.gpu import GPU

    with (
        patch.object(learner, "kernels_for", lambda device: GPU),
        patch.object(learner, "count", plain_count),
        patch.object(learner, "scale", plain_scale),
    ):
        return run(rank, ranks, world, placement)


def test_in_the_interpreter() -> None:
    if INTERPRETED:
        pytest.skip("they run here")
    # Triton reads the variable when it is imported, as TorchRec does: the ranks need it from their start.
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.mark.skipif(not INTERPRETED, reason="runs in a process with Triton's interpreter")
@pytest.mark.parametrize("kind", [*SHARDINGS, "mixed"])
def test_a_step_equals_that_of_the_cpus_kernels(pool: Pool, kind: str) -> None:
    def helen(**own: object) -> TableOptimizer:
        return TableOptimizer("helen", 0.05, rho=0.05, **own)  # type: ignore[arg-type]

    world = World(
        (
            TableSpec("t0", 12, 8, helen(count_missing=False, weight_decay=0.5)),
            TableSpec("t1", 3, 12, helen(xi=0.0, base="rowwise_adagrad"), 2),
            TableSpec("t2", 1, 1, helen(norm="table", base="sgd")),
            TableSpec("t3", 9, 10, helen(frequency="batch", l2=0.1)),
            TableSpec("t4", 5, 10, TableOptimizer("asam", 0.05, rho=0.05, l2=0.2)),
            TableSpec("t5", 15, 8, TableOptimizer("nadam", 0.05, weight_decay=1.0)),
            TableSpec("t6", 7, 3, TableOptimizer("sam", 0.05, base="radam", rho=0.05)),
        ),
        steps=3,
        dyadic=False,
    )
    where = placements(world, kind, 2)
    found = pool.run(2, interpreted, world, where)[0]
    expected = pool.run(2, run, world, where)[0]
    for mine, theirs in zip(
        [*found.weights, *found.perturbed, found.state],
        [*expected.weights, *expected.perturbed, expected.state],
        strict=True,
    ):
        assert mine.keys() == theirs.keys()
        for name in theirs:
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-6, msg=name)
    assert found.frequent == expected.frequent


@pytest.mark.skipif(not INTERPRETED, reason="runs in a process with Triton's interpreter")
@pytest.mark.parametrize("kind", [*SHARDINGS, "mixed"])
def test_weights_in_half_precision_round_alike_on_every_plan(pool: Pool, kind: str) -> None:
    """Random bits belong to an entry of the whole table, so a plan does not show in the last bit."""
    optimizer = TableOptimizer("helen", 2.0**-5, rho=0.25)
    tables = tuple(TableSpec(f"t{i}", rows, 12, optimizer) for i, rows in enumerate((12, 3, 1, 9, 5)))
    world = World(tables, half=True)
    expected = pool.run(1, interpreted, world, placements(world, "table_wise", 1))[0]
    found = pool.run(2, interpreted, world, placements(world, kind, 2))[0]
    for mine, theirs in zip(
        [*found.weights, *found.perturbed, found.state],
        [*expected.weights, *expected.perturbed, expected.state],
        strict=True,
    ):
        for name in theirs:
            torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=0, msg=name)
    after = expected.weights[1]
    assert any(not torch.equal(after[name], expected.weights[0][name]) for name in after)
    assert all(torch.equal(table, table.half().double()) for table in after.values())


@pytest.mark.skipif(not INTERPRETED, reason="runs in a process with Triton's interpreter")
@pytest.mark.parametrize("dim", [4, 16, 128])
def test_a_plan_counts_what_a_step_holds(dim: int) -> None:
    from sparta.optim.rows.gpu import GPU, LONGEST

    case = make([Shape(500, dim, dim)] * 3, [1] * 3 * 400, samples=400, seed=1)
    touched = GPU.touch(case.group, case.bags, case.scratch)
    one = GPU.reduce(case.group, case.bags, touched, case.pooled, None)
    scale = torch.ones_like(one.squares)
    saved = GPU.perturb(case.group, touched, one.gradient, scale, None, step=1)
    second = GPU.reduce(case.group, case.bags, touched, case.pooled, None)
    places = [getattr(touched.private, field.name) for field in fields(touched.private)]
    held = [touched.rows, touched.tables, touched.counts, *places, one.squares, scale]
    pieces = -(-len(case.bags.ids) // LONGEST) * (2 * dim * 4 + 8)  # of `reduce`, while it runs
    held_bytes = sum(x.nbytes for x in [*held, one.gradient, saved, second.gradient]) + pieces
    counted = ENGINES["rows"].buffer_bytes(TableOptimizer("helen", 0.1), len(case.bags.ids), dim, "cuda")
    assert 0.7 * counted < held_bytes <= counted
