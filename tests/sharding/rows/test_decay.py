"""Weight decay and L2 of sharded tables, against dense tables of which every row decays in every step."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from sparta.models.errors import ConfigError
from sparta.optim.helen import Helen
from sparta.optim.rows.plain import PLAIN
from sparta.sharding.engines import ENGINES, TableOptimizer
from sparta.sharding.rows.decay import Decay
from sparta.sharding.rows.step import RowsStep
from tests.optim.rows.cases import Case, cases
from tests.pool import Pool
from tests.sharding.rows.test_laws import KINDS, trained
from tests.sharding.rows.world import (
    TableSpec,
    World,
    batch,
    coefficients,
    ids_of,
    initial,
    parts_of,
    placements,
    run,
    settle,
    sharded,
    whole_weights,
)

LR = 0.05


def helen(**own: object) -> TableOptimizer:
    return TableOptimizer("helen", LR, rho=0.05, **own)  # type: ignore[arg-type]


WORLD = World(
    (
        TableSpec("t0", 30, 8, helen(weight_decay=0.5)),
        TableSpec("t1", 3, 12, helen(base="sgd", weight_decay=1.0, l2=0.3), 2),
        TableSpec("t2", 9, 10, helen(base="rowwise_adagrad", l2=0.1, norm="table")),
        TableSpec("t3", 20, 3, TableOptimizer("adam", LR, weight_decay=2.0)),
        TableSpec("t4", 25, 10, TableOptimizer("nadam", LR, l2=0.2), 2),
        TableSpec("t5", 12, 8, TableOptimizer("adam", LR)),
    ),
    steps=8,
    seed=3,
    dyadic=False,
    factors=(0.25, 0.5, 1.0, 1.0, 0.7, 0.4, 0.2, 0.1),
    poison={4: "gradient", 6: "loss"},
)


def dense(world: World) -> dict[str, Tensor]:
    """The one-process optimizer in float64; then every row of a table loses its share of what it was."""
    model = nn.ModuleDict(
        {
            one.name: nn.EmbeddingBag(one.rows, one.dim, mode="sum", dtype=torch.float64)
            for one in world.tables
        }
    )
    weights = {name: table.weight for name, table in model.items()}
    for name, start in initial(world).items():
        weights[name].data.copy_(start)
    by_name = {one.name: one.optimizer for one in world.tables}
    settings = {
        name: {"base": one.steps_by, "norm": one.norm, "ascend": one.rule is not None}
        for name, one in by_name.items()
    }
    optimizer = Helen(model, rho=0.05, tables=settings)
    for step in set(range(1, world.steps + 1)) - set(world.poison):
        ids, factors = ids_of(world, step), coefficients(world, step)

        def loss() -> Tensor:
            parts = []
            for table in world.tables:
                for key in table.keys:
                    of_key, lengths = ids[key]  # noqa: B023
                    out = model[table.name](of_key, lengths.cumsum(0) - lengths)
                    parts += [(out * factors[key]).sum(), 0.5 * out.square().sum()]  # noqa: B023
                touched = torch.cat([ids[key][0] for key in table.keys]).unique()  # noqa: B023
                penalty = weights[table.name][touched].square().sum() / 2
                parts.append(table.optimizer.l2 * penalty * world.samples)
            value = torch.stack(parts).sum() / world.samples
            value.backward()
            return value

        for group in optimizer.param_groups:
            group["lr"] = LR * world.factors[step - 1]
        before = {name: weight.detach().clone() for name, weight in weights.items()}
        optimizer.step(loss)
        for name, one in by_name.items():
            weights[name].data -= LR * world.factors[step - 1] * one.weight_decay * before[name]
    return {name: weight.detach() for name, weight in weights.items()}


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_dense_tables_of_which_every_row_decays(pool: Pool, kind: str, ranks: int) -> None:
    found = trained(pool, WORLD, kind, ranks)
    assert found.refused == 2
    for name, expected in dense(WORLD).items():
        torch.testing.assert_close(found.weights[-1][name], expected, rtol=0, atol=2e-5, msg=name)


def test_adam_with_weight_decay_is_torchs_adamw_where_all_rows_are_touched(pool: Pool) -> None:
    """In a table of one row."""
    world = replace(
        WORLD, tables=(TableSpec("t", 1, 8, TableOptimizer("adam", LR, weight_decay=2.0)),), poison={}
    )
    w = initial(world)["t"].double().requires_grad_()
    optimizer = torch.optim.AdamW([w], lr=LR, weight_decay=2.0)
    for step, factor in enumerate(world.factors, 1):
        (_, lengths), of_loss = ids_of(world, step)["t_0"], coefficients(world, step)["t_0"]
        optimizer.param_groups[0]["lr"] = LR * factor
        optimizer.zero_grad()
        out = w * lengths[:, None]
        ((out * of_loss).sum() + 0.5 * out.square().sum()).div(world.samples).backward()
        optimizer.step()
    found = trained(pool, world, "row_wise", 2).weights[-1]["t"]
    torch.testing.assert_close(found, w.detach(), rtol=0, atol=1e-6)


def test_when_rows_pay_does_not_matter_but_for_rounding(pool: Pool) -> None:
    seldom, often = trained(pool, WORLD), trained(pool, replace(WORLD, settles=tuple(range(9))))
    for name, table in often.weights[-1].items():
        torch.testing.assert_close(seldom.weights[-1][name], table, rtol=1e-5, atol=1e-7)


@settings(deadline=None)
@given(
    cases(dtypes=(torch.float64,)),
    st.lists(st.sampled_from([0.0, 1e-6, 0.3, 1.0]), min_size=4, max_size=4),
    st.lists(st.one_of(st.floats(0, 1 - 1e-15), st.just(1 - 1e-15), st.none()), max_size=14),
    st.dictionaries(st.integers(0, 13), st.booleans()),
)
def test_being_saved_or_taken_up_changes_no_bit_of_what_rows_owe(
    case: Case, rates: list[float], steps: list[float | None], saves: dict[int, bool]
) -> None:
    """Steps at a rate, and batches (None), in weights of float64, which would show the last bit."""
    found = []
    for at in ({}, saves):
        group = case.fresh().group
        touched, rates = PLAIN.touch(group, case.bags, case.scratch), rates[: len(group.shapes)]
        decay = Decay(rates, group, PLAIN)
        for number, lr in enumerate(steps):
            if number in at:
                saved = decay.pending().clone()
                if at[number]:
                    decay = Decay(rates, group, PLAIN)
                    decay.pending().copy_(saved)
            if lr is None:
                decay.catch_up(touched)
            else:
                decay.advance(torch.full((len(group.shapes),), lr, dtype=torch.float64))
        owed = decay.pending().clone()
        decay.settle()
        assert not decay.pending().any()
        found.append((owed, group.weights))
    for straight, other in zip(*found, strict=True):
        assert torch.equal(straight, other)


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_to_the_bit_as_if_it_had_never_been_saved(
    pool: Pool, tmp_path: Path, kind: str
) -> None:
    where, folder = placements(WORLD, kind, 2), str(tmp_path)
    pool.run(2, run, replace(WORLD, steps=3), where, None, folder, local_ranks=2)
    gone_on = pool.run(2, run, WORLD, where, folder, None, local_ranks=2)[0]
    straight = pool.run(2, run, WORLD, where, local_ranks=2)[0]
    for name, table in straight.weights[-1].items():
        assert torch.equal(gone_on.weights[-1][name], table)


@pytest.mark.parametrize("to", ["row_wise", "column_wise", "data_parallel"])
def test_a_run_goes_on_under_another_plan(pool: Pool, tmp_path: Path, to: str) -> None:
    folder = str(tmp_path)
    first = replace(WORLD, steps=3)
    pool.run(2, run, first, placements(WORLD, "mixed", 2), None, folder, local_ranks=2)
    gone_on = pool.run(2, run, WORLD, placements(WORLD, to, 2), folder, None, local_ranks=2)[0]
    for name, expected in dense(WORLD).items():
        torch.testing.assert_close(gone_on.weights[-1][name], expected, rtol=0, atol=2e-5, msg=name)


def looked_at(rank: int, ranks: int, kind: str, how: str) -> dict[str, tuple[Tensor, Tensor]]:
    """Every table as it is after two steps and a look, and after all rows paid."""
    module = sharded(WORLD, placements(WORLD, kind, ranks), ranks)
    step, shared = RowsStep(module, None), module.state_dict()
    for number in (1, 2):
        sparse = batch(WORLD, number, rank, ranks)
        step(lambda: torch.stack([out.square().sum() for out in module(sparse).values()]).sum())  # noqa: B023
    if how == "evaluation":
        with torch.no_grad():
            module.eval()(batch(WORLD, 3, rank, ranks))
    elif how == "state_dict":
        module.state_dict()
    else:  # what is pending when other weights come is not theirs
        module.load_state_dict(shared)
    looked = parts_of(WORLD, module)
    settle(step)
    before, after = whole_weights(WORLD, [looked, parts_of(WORLD, module)])
    return {name: (table, after[name]) for name, table in before.items()}


@pytest.mark.parametrize("how", ["evaluation", "state_dict", "load_state_dict"])
@pytest.mark.parametrize("kind", ["table_wise", "data_parallel"])
def test_whoever_reads_weights_sees_no_row_that_owes(pool: Pool, kind: str, how: str) -> None:
    for seen, settled in pool.run(2, looked_at, kind, how, local_ranks=2)[0].values():
        assert torch.equal(seen, settled)


def logs(rank: int, ranks: int) -> list[tuple[str, int]]:
    step = RowsStep(sharded(WORLD, placements(WORLD, "row_wise", ranks), ranks), None)
    return [
        (name, learner.decay._paid.nbytes // len(learner.names))
        for learner in step.tables.learners
        if learner.decay
        for name in learner.names
    ]


def test_a_decaying_table_keeps_8_bytes_a_row_and_no_other_table_any(pool: Pool) -> None:
    held = pool.run(1, logs)[0]
    assert {name for name, _ in held} == {"t0", "t1", "t3"}
    for table in WORLD.tables:
        without = replace(table.optimizer, weight_decay=0.0)
        sizes = [ENGINES["rows"].state_bytes(one, table.rows, 8, "cpu") for one in (table.optimizer, without)]
        assert sizes[0] - sizes[1] == sum(nbytes for name, nbytes in held if name == table.name)


@pytest.mark.parametrize(
    "optimizer, words",
    [
        (
            TableOptimizer("sgd", 0.5, weight_decay=2.0),
            "lr 0.5 times weight_decay 2.0 is not below 1, so a step would leave nothing of a row; lower one of them",
        ),
        (TableOptimizer("sgd", 0.5, l2=-1.0), "l2 -1.0 is not a number from 0 up"),
        (TableOptimizer("sgd", 0.5, weight_decay=0.1, engine="fbgemm"), "engine fbgemm has no weight_decay"),
        (
            TableOptimizer("sgd", 0.5, l2=0.1, engine="fbgemm"),
            "engine fbgemm has no l2; use engine rows or drop it",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(optimizer: TableOptimizer, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^table t: {words}"):
        ENGINES[optimizer.engine].check("t", optimizer, "cpu")


def refusals(rank: int, ranks: int) -> list[str]:
    found = []
    table = TableSpec("t", 3, 8, TableOptimizer("adam", LR, weight_decay=2.0))
    world = replace(WORLD, tables=(table,))
    with pytest.raises(ConfigError) as half:
        sharded(replace(world, half=True), {"t": "table_wise:0"}, ranks)
    found.append(str(half.value))
    step = RowsStep(sharded(world, {"t": "table_wise:0"}, ranks), None)
    with pytest.raises(ValueError) as factor:
        step.tables.set_lr(10.0)
    return [*found, str(factor.value)]


def test_half_precision_and_rates_that_leave_nothing_are_refused(pool: Pool) -> None:
    assert pool.run(1, refusals)[0] == [
        "table t: weight_decay in FP16 would be rounded away; keep the table in fp32",
        "table t: 10.0 times lr 0.05 times weight_decay 2.0 is not below 1; take a smaller factor",
    ]
