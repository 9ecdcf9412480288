"""The laws of Helen on sharded tables, each a test named after it; world.py draws tables, batches and plans."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparta.optim.rows.group import BASES
from sparta.sharding.engines import TableOptimizer
from tests.pool import Pool
from tests.sharding.rows.world import (
    SHARDINGS,
    Outcome,
    TableSpec,
    World,
    coefficients,
    ids_of,
    placements,
    run,
    table_specs,
)

KINDS = (*SHARDINGS, "mixed")
LR = 2.0**-5

few = settings(max_examples=5, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


def optimizers() -> st.SearchStrategy[TableOptimizer]:
    """Every rule over every base, every norm and frequency, tables left out, missing ids left out."""
    helen = st.builds(
        TableOptimizer,
        name=st.just("helen"),
        lr=st.just(LR),
        base=st.sampled_from(BASES),
        rho=st.sampled_from([0.25, 0.0625]),
        xi=st.sampled_from([0.0, 0.5, 1.0]),
        norm=st.sampled_from(["row", "table"]),
        frequency=st.sampled_from(["cumulative", "batch"]),
        count_missing=st.booleans(),
    )
    others = st.builds(
        TableOptimizer,
        name=st.sampled_from(["sam", "asam", *BASES]),
        lr=st.just(LR),
        base=st.sampled_from(["sgd", "adam"]),
        rho=st.just(0.125),
    )
    return st.one_of(helen, helen, others)


def worlds(**fixed: object) -> st.SearchStrategy[World]:
    return st.builds(
        World, tables=table_specs(optimizers()), samples=st.just(8), seed=st.integers(0, 999), **fixed
    )


def trained(pool: Pool, world: World, kind: str = "table_wise", ranks: int = 1) -> Outcome:
    found = pool.run(ranks, run, world, placements(world, kind, ranks), local_ranks=min(2, ranks))
    return found[0]


def assert_same(found: Outcome, expected: Outcome) -> None:
    """To the bit."""
    for mine, theirs in zip(
        [*found.weights, *found.perturbed, found.state],
        [*expected.weights, *expected.perturbed, expected.state],
        strict=True,
    ):
        assert mine.keys() == theirs.keys()
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], rtol=0, atol=0, msg=name)
    assert found.frequent == expected.frequent


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("kind", KINDS)
@few
@given(world=worlds(steps=st.just(1), dyadic=st.just(True)))
def test_plan_invariance_to_the_bit_with_dyadic_gradients(
    pool: Pool, kind: str, ranks: int, world: World
) -> None:
    assert_same(trained(pool, world, kind, ranks), trained(pool, world))


def nearly_cancels(world: World, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """(rows,) bool of each table: the row's gradient is tiny beside those of its occurrences."""
    found = {}
    for table in world.tables:
        sums = torch.zeros(table.rows, table.dim, dtype=torch.float64)
        norms = torch.zeros(table.rows, dtype=torch.float64)
        for name in table.keys:
            (ids, lengths), factors = ids_of(world, 1)[name], coefficients(world, 1)[name].double()
            for bag, factor in zip(ids.split(lengths.tolist()), factors, strict=True):
                gradient = factor + weights[table.name][bag].sum(0)  # of c x + x^2 / 2 at x, the pooled rows
                sums.index_add_(0, bag, gradient.expand(len(bag), -1))
                norms.index_add_(0, bag, gradient.norm().expand(len(bag)))
        found[table.name] = (sums.norm(dim=1) < 1e-5 * norms) & (norms > 0)
    return found


@pytest.mark.parametrize("kind", KINDS)
@few
@given(world=worlds(steps=st.just(1), dyadic=st.just(False)), ranks=st.sampled_from([2, 4]))
def test_plan_invariance_of_one_step(pool: Pool, kind: str, world: World, ranks: int) -> None:
    expected, found = trained(pool, world), trained(pool, world, kind, ranks)
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-5, atol=1e-7)
    cancels = [nearly_cancels(world, weights) for weights in (expected.weights[0], *expected.perturbed)]
    for table in world.tables:
        left_out = torch.stack([of_pass[table.name] for of_pass in cancels]).any(0)
        assert left_out.sum() <= 0.05 * table.rows
        after = expected.weights[1][table.name]
        limit = 1e-4 * float(after.abs().max())
        torch.testing.assert_close(
            found.weights[1][table.name][~left_out], after[~left_out], rtol=0, atol=limit, msg=table.name
        )


RANKS_OF = {"adam": (1, 2, 4), "nadam": (2,), "radam": (2,)}
"""Of bases: the default has most, those that share its kernel least; the others have 1 and 2."""


def every_rule_over(base: str) -> World:
    """Twenty steps of tables of all kinds."""

    def helen(**own: object) -> TableOptimizer:
        return TableOptimizer("helen", 0.05, base=base, rho=0.05, **own)  # type: ignore[arg-type]

    return World(
        (
            TableSpec("t0", 30, 8, helen()),
            TableSpec("t1", 3, 12, helen(xi=0.0), 2),
            TableSpec("t2", 1, 1, helen(norm="table")),
            TableSpec("t3", 9, 10, helen(frequency="batch")),
            TableSpec("t4", 6, 3, TableOptimizer("sam", 0.05, base=base, rho=0.05), 2),
            TableSpec("t5", 5, 10, TableOptimizer("asam", 0.05, base=base, rho=0.05)),
        ),
        steps=20,
        dyadic=False,
    )


@cache
def unsharded(pool: Pool, base: str) -> Outcome:
    """What one rank comes to."""
    return trained(pool, every_rule_over(base))


@pytest.mark.parametrize(
    "base, ranks", [(base, ranks) for base in BASES for ranks in RANKS_OF.get(base, (1, 2))]
)
@pytest.mark.parametrize("kind", KINDS)
def test_plan_invariance_over_20_steps(pool: Pool, kind: str, ranks: int, base: str) -> None:
    expected, found = unsharded(pool, base), trained(pool, every_rule_over(base), kind, ranks)
    torch.testing.assert_close(found.losses, expected.losses, rtol=1e-5, atol=0)
    for name, table in expected.weights[-1].items():
        limit = 1e-4 * float(table.abs().max())
        torch.testing.assert_close(found.weights[-1][name], table, rtol=0, atol=limit, msg=name)


def touched(world: World, step: int, table: TableSpec) -> Tensor:
    """(rows,) bool."""
    found = torch.zeros(table.rows, dtype=torch.bool)
    for name, (ids, _) in ids_of(world, step).items():
        if name in table.keys:
            found[ids] = True
    return found


@pytest.mark.parametrize("kind", KINDS)
@few
@given(world=worlds(steps=st.just(3), dyadic=st.just(False)))
def test_untouched_rows_and_their_state_do_not_change_by_a_bit(pool: Pool, kind: str, world: World) -> None:
    found = trained(pool, world, kind, 2)
    earlier = trained(pool, replace(world, steps=world.steps - 1), kind, 2)
    for table in world.tables:
        ever = torch.zeros(table.rows, dtype=torch.bool)
        for step in range(1, world.steps + 1):
            now = touched(world, step, table)
            before, after = found.weights[step - 1][table.name], found.weights[step][table.name]
            assert torch.equal(before[~now], after[~now])
            if found.perturbed:
                assert torch.equal(before[~now], found.perturbed[step - 1][table.name][~now])
            ever |= now
        for name, state in found.state.items():
            if name.startswith(f"optim/{table.name}/"):
                assert not state[~ever].any()
                assert torch.equal(state[~now], earlier.state[name][~now])


@pytest.mark.parametrize("kind", KINDS)
@few
@given(world=worlds(steps=st.just(2), dyadic=st.just(False)))
def test_restored_weights_are_those_before_the_ascent_to_the_bit(pool: Pool, kind: str, world: World) -> None:
    # At rate 0 the step ends where the restored weights are.
    still = world.learning_by(name="helen", base="sgd", lr=0.0)
    found = trained(pool, still, kind, 2)
    for before, moved, after in zip(found.weights[:-1], found.perturbed, found.weights[1:], strict=True):
        assert any(not torch.equal(before[name], moved[name]) for name in before)
        for name in before:
            assert torch.equal(before[name], after[name])


@pytest.mark.parametrize("base", BASES)
@few
@given(world=worlds(steps=st.just(4), dyadic=st.just(False)), rule=st.sampled_from(["helen", "sam", "asam"]))
def test_a_radius_of_zero_is_the_base_optimizer_to_the_bit(
    pool: Pool, base: str, world: World, rule: str
) -> None:
    plain = trained(pool, world.learning_by(name=base), "row_wise", 2)
    still = trained(pool, world.learning_by(name=rule, base=base, rho=0.0), "row_wise", 2)
    for mine, theirs in zip(still.weights, plain.weights, strict=True):
        for name in theirs:
            assert torch.equal(mine[name], theirs[name])
    for name in plain.state:
        assert torch.equal(still.state[name], plain.state[name])


def perturbations(world: World, found: Outcome, step: int = 1) -> dict[str, Tensor]:
    """How far each row of each table went up, (rows,)."""
    moved, before = found.perturbed[step - 1], found.weights[step - 1]
    return {table.name: (moved[table.name] - before[table.name]).norm(dim=1) for table in world.tables}


@few
@given(world=worlds(steps=st.just(1), dyadic=st.just(False)), kind=st.sampled_from(KINDS))
def test_a_bound_of_one_is_a_uniform_radius(pool: Pool, world: World, kind: str) -> None:
    uniform = world.learning_by(name="helen", rho=0.25, xi=1.0, norm="row")
    for table, length in perturbations(uniform, trained(pool, uniform, kind, 2)).items():
        spec = next(spec for spec in uniform.tables if spec.name == table)
        here = touched(uniform, 1, spec)
        torch.testing.assert_close(length[here], torch.full_like(length[here], 0.25), rtol=1e-5, atol=0)


def shares(world: World, table: TableSpec, steps: range, *, missing: bool = True) -> Tensor:
    """(rows,) N / N* of these steps' batches, counted in a loop."""
    counts = torch.zeros(table.rows)
    for step in steps:
        for name, (ids, _) in ids_of(world, step).items():
            if name in table.keys:
                for row in ids.tolist():
                    counts[row] += 1
    return (counts / counts[0 if missing else 1 :].max()).clamp(max=1)


@pytest.mark.parametrize("kind", KINDS)
def test_frequencies_set_the_radius(pool: Pool, kind: str) -> None:
    def helen(**own: object) -> TableOptimizer:
        return TableOptimizer("helen", LR, rho=0.25, xi=0.125, **own)  # type: ignore[arg-type]

    dataset = [7, 5, 3, 1] + [2] * 16
    world = World(
        (
            TableSpec("cumulative", 20, 8, helen(), 2),
            TableSpec("batch", 20, 8, helen(frequency="batch"), 2),
            TableSpec("dataset", 20, 8, helen(frequency="dataset")),
            TableSpec("unmissed", 20, 8, helen(count_missing=False)),
        ),
        steps=3,
        dyadic=False,
        counts={"dataset": dataset},
    )
    found = trained(pool, world, kind, 2)
    for step in (1, 2, 3):
        lengths = perturbations(world, found, step)
        for table in world.tables:
            match table.name:
                case "cumulative":
                    share = shares(world, table, range(1, step + 1))
                case "batch":
                    share = shares(world, table, range(step, step + 1))
                case "dataset":
                    share = torch.tensor(dataset) / 7
                case _:
                    share = shares(world, table, range(1, step + 1), missing=False)
            here = touched(world, step, table)
            expected = 0.25 * share.clamp(min=0.125)
            torch.testing.assert_close(
                lengths[table.name][here].float(), expected[here], rtol=1e-4, atol=0, msg=table.name
            )


@pytest.mark.parametrize("kind", KINDS)
@few
@given(
    world=worlds(steps=st.just(4), dyadic=st.just(False)),
    poison=st.sampled_from([{2: "gradient", 4: "loss"}, {2: "loss", 4: "gradient"}]),
)
def test_a_step_that_is_not_finite_leaves_everything_as_it_was(
    pool: Pool, kind: str, world: World, poison: dict[int, str]
) -> None:
    found = trained(pool, replace(world, poison=poison), kind, 2)
    assert found.refused == 2
    for bad in (2, 4):
        for name, before in found.weights[bad - 1].items():
            assert torch.equal(found.weights[bad][name], before)
    # After a refused last step all state is that of the steps before.
    expected = trained(pool, replace(world, steps=3, poison={2: poison[2]}), kind, 2)
    for name, state in expected.state.items():
        assert torch.equal(found.state[name], state)
    assert found.frequent == expected.frequent


@pytest.mark.parametrize("kind", ["table_wise", "row_wise"])
def test_steps_between_ascents_are_plain_and_still_count(pool: Pool, kind: str) -> None:
    tables = (TableSpec("t", 20, 8, TableOptimizer("helen", LR, rho=0.25)),)
    seldom = trained(pool, World(tables, steps=5, ascend_every=2, dyadic=False), kind, 2)
    always = trained(pool, World(tables, steps=5, dyadic=False), kind, 2)
    assert (len(seldom.perturbed), len(always.perturbed)) == (2, 5)
    assert torch.equal(seldom.state["optim/t/count"], always.state["optim/t/count"])
