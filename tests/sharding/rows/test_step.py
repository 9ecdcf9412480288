"""The step of the rows engine on a whole model, against the one-process optimizers and TorchRec's and torch's own."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from torch import Tensor

from sparta.models.batch import Batch
from sparta.models.layers import BatchNorm
from sparta.models.loss import loss
from sparta.optim import ASAM, SAM, Helen
from sparta.optim.passes import frozen_averages
from sparta.service.step import RowStep
from sparta.sharding.collectives import total
from sparta.sharding.engines import TableOptimizer
from sparta.sharding.plan import make_plan
from sparta.sharding.rows.step import RowsStep
from sparta.sharding.shard import Sharded, shard
from tests.pool import Pool
from tests.sharding import toys
from tests.sharding.test_shard import sharded_toy, train, whole_tables

STEPS, LR, RHO = 20, 0.02, 0.05
CPU = torch.device("cpu")


def sharded_rows(optimizer: TableOptimizer, ranks: int, sharding: str = "row_wise") -> Sharded:
    model = toys.model()
    tables = model.embeddings.specs
    optimizers = {table.name: optimizer for table in tables}
    asked = toys.MIXED if sharding == "mixed" else dict.fromkeys(toys.MIXED, sharding)
    plan = make_plan(
        tables,
        ranks=ranks,
        local_ranks=min(2, ranks),
        device="cpu",
        batch_size=toys.GLOBAL,
        constraints={name: [kind] for name, kind in asked.items()},
        optimizers=optimizers,
    )
    return shard(model, plan, optimizers=optimizers, device=CPU, seed=toys.SEED, init_std=toys.STD)


def averages(model: torch.nn.Module) -> Tensor:
    """All running variances of batch norm; the means hold biases that batch norm takes out and nothing learns."""
    return torch.cat([layer.running_var for layer in model.modules() if isinstance(layer, BatchNorm)])


Found = tuple[list[float], dict[str, Tensor], dict[str, Tensor], Tensor]


def sharded_run(rank: int, ranks: int, optimizer: TableOptimizer, perturb_dense: bool, every: int) -> Found:
    """Losses, tables, dense parameters and running averages after 20 steps."""
    of = sharded_rows(optimizer, ranks, "mixed")
    dense = torch.optim.Adam(of.dense_parameters().values(), lr=toys.DENSE_LR)
    step = RowsStep(of.module, dense, perturb_dense=perturb_dense, rho=RHO, ascend_every=every)
    losses = []
    for number in range(STEPS):
        given = toys.batch(number, rank, ranks)
        value = step(lambda: toys.global_loss(of(given), given, number, ranks))  # noqa: B023
        losses.append(float(total(value)) / ranks)
    parameters = {name: p.detach().clone() for name, p in of.dense_parameters().items()}
    return losses, whole_tables(of), parameters, averages(of.model)


def plain_run(make: Callable[..., torch.optim.Optimizer], every: int) -> Found:
    """The same by a one-process optimizer on plain EmbeddingBags."""
    twin = toys.model()
    plain = toys.PlainTables(twin.embeddings)
    specs = twin.embeddings.specs
    twin.embeddings.tables = plain  # type: ignore[assignment]
    weights = dict(zip([spec.name for spec in specs], plain.parameters(), strict=True))
    inside = {id(weight) for weight in weights.values()}
    optimizer = make(
        twin, lr=LR, rho=RHO, dense=partial(torch.optim.Adam, lr=toys.DENSE_LR), ascend_every=every
    )
    losses = []
    for number in range(STEPS):
        given = toys.batch(number, 0, 1)

        def closure() -> Tensor:
            value = toys.global_loss(twin(given), given, number, 1)  # noqa: B023
            value.backward()
            return value

        losses.append(float(optimizer.step(closure)))  # type: ignore[arg-type]
    dense = {name: p.detach() for name, p in twin.named_parameters() if id(p) not in inside}
    return losses, {name: weight.detach() for name, weight in weights.items()}, dense, averages(twin)


CASES = {
    "helen": (TableOptimizer("helen", LR, rho=RHO), False, 1, Helen),
    "helen dense": (TableOptimizer("helen", LR, rho=RHO), True, 1, partial(Helen, perturb_dense=True)),
    "helen over rowwise_adagrad": (
        TableOptimizer("helen", LR, rho=RHO, base="rowwise_adagrad", norm="table"),
        False,
        1,
        partial(Helen, base="rowwise_adagrad", norm="table"),
    ),
    "helen over sgd, of the batch": (
        TableOptimizer("helen", LR, rho=RHO, base="sgd", frequency="batch", xi=0.0),
        False,
        1,
        partial(Helen, base="sgd", frequency="batch", xi=0.0),
    ),
    "helen, every third step": (TableOptimizer("helen", LR, rho=RHO), False, 3, Helen),
    "sam": (TableOptimizer("sam", LR, rho=RHO), False, 1, SAM),
    "asam": (TableOptimizer("asam", LR, rho=RHO), False, 1, ASAM),
}


@cache
def unsharded(case: str) -> Found:
    """What the one-process optimizer comes to."""
    *_, every, make = CASES[case]
    return plain_run(make, every)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_one_process_optimizer(pool: Pool, case: str, ranks: int) -> None:
    optimizer, perturb_dense, every, _ = CASES[case]
    losses, tables, dense, running = unsharded(case)
    found = pool.run(ranks, sharded_run, optimizer, perturb_dense, every, local_ranks=min(2, ranks))[0]
    torch.testing.assert_close(found[0], losses, rtol=1e-5, atol=0)
    for name, table in tables.items():
        limit = 1e-4 * float(table.abs().max())
        torch.testing.assert_close(found[1][name], table, rtol=0, atol=limit, msg=name)
    assert found[2].keys() == dense.keys()
    for name, parameter in dense.items():
        torch.testing.assert_close(found[2][name], parameter, rtol=1e-3, atol=1e-4, msg=name)
    torch.testing.assert_close(found[3], running, rtol=1e-4, atol=1e-5)


def by_fbgemm(rank: int, ranks: int, name: str) -> tuple[list[float], dict[str, Tensor]]:
    of = sharded_toy("table_wise", name, ranks, LR)
    return train(of, rank, ranks, STEPS), whole_tables(of)


@pytest.mark.parametrize("name", ["sgd", "rowwise_adagrad"])
def test_sgd_and_rowwise_adagrad_equal_fbgemms(pool: Pool, name: str) -> None:
    losses, tables = pool.run(2, by_fbgemm, name)[0]
    found = pool.run(2, sharded_run, TableOptimizer(name, LR), False, 1)[0]
    torch.testing.assert_close(found[0], losses, rtol=1e-6, atol=0)
    for table, weights in tables.items():
        torch.testing.assert_close(found[1][table], weights, rtol=0, atol=1e-6)


TINY = 1e-15
"""eps, which torch adds before its bias correction and everybody else after."""


class SparseAdam(torch.optim.SparseAdam):
    """torch's own, from the dense gradients of plain tables: their touched rows, absent bags included."""

    def __init__(self, tables: list[torch.nn.Parameter], names: list[str]) -> None:
        super().__init__(tables, lr=LR, eps=TINY)
        self.names = names

    def step_on(self, given: object) -> None:
        for group in self.param_groups:
            for name, table in zip(self.names, group["params"], strict=True):
                ids = given.sparse[name.removesuffix(".wide")].values().unique()  # type: ignore[attr-defined]
                values = table.grad[ids]
                table.grad = torch.sparse_coo_tensor(ids[None], values, table.shape, check_invariants=False)
        self.step()


def test_adam_equals_torchs_sparse_adam(pool: Pool) -> None:
    twin = toys.model()
    plain = toys.PlainTables(twin.embeddings)
    specs = twin.embeddings.specs
    twin.embeddings.tables = plain  # type: ignore[assignment]
    weights = list(plain.parameters())
    inside = {id(weight) for weight in weights}
    rows = SparseAdam(weights, [spec.name for spec in specs])
    dense = torch.optim.Adam([p for p in twin.parameters() if id(p) not in inside], lr=toys.DENSE_LR)
    losses = []
    for number in range(STEPS):
        given = toys.batch(number, 0, 1)
        value = toys.global_loss(twin(given), given, number, 1)
        twin.zero_grad()
        value.backward()
        dense.step()
        rows.step_on(given)
        losses.append(float(value.detach()))
    found = pool.run(2, sharded_run, TableOptimizer("adam", LR, eps=TINY), False, 1)[0]
    torch.testing.assert_close(found[0], losses, rtol=1e-5, atol=0)
    for spec, weight in zip(specs, weights, strict=True):
        limit = 1e-4 * float(weight.detach().abs().max())
        torch.testing.assert_close(found[1][spec.name], weight.detach(), rtol=0, atol=limit)


def one_step(rank: int, ranks: int, every: int) -> tuple[float, dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Loss, counts by table, tables between the passes, running averages of one step on a share of the batch."""
    of = sharded_rows(TableOptimizer("helen", LR, rho=RHO), ranks)
    dense = torch.optim.Adam(of.dense_parameters().values(), lr=toys.DENSE_LR)
    rows = RowsStep(of.module, dense)
    between: dict[str, Tensor] = {}
    perturb = rows.tables.perturb

    def noted(*given: object) -> dict[str, Tensor]:
        shared = perturb(*given)  # type: ignore[arg-type]
        between.update(whole_tables(of))
        return shared

    rows.tables.perturb = noted  # type: ignore[method-assign]
    value = RowStep(of, dense, rows, ranks=ranks, every=every)(toys.batch(3, rank, ranks))
    counts = dict(rows.tables.most_frequent())
    return float(total(value)), counts, between, averages(of.model)  # type: ignore[return-value]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("every", [2, 3, 5])
def test_a_share_of_the_batch_moves_its_own_rows_only(pool: Pool, every: int, ranks: int) -> None:
    loss, counts, between, running = pool.run(ranks, one_step, every, local_ranks=min(2, ranks))[0]
    whole_loss, whole_counts, whole, _ = pool.run(1, one_step, 1)[0]
    assert counts == whole_counts  # of the full batch
    assert loss != pytest.approx(whole_loss, rel=1e-6)  # the second pass's, uphill
    expected = pool.run(1, one_step, every)[0]
    assert loss == pytest.approx(expected[0], rel=1e-5)
    torch.testing.assert_close(running, expected[3], rtol=1e-4, atol=1e-6)
    start = toys.PlainTables(toys.model().embeddings)
    given = toys.batch(3, 0, 1)
    share = given.every(every).sparse
    for (table, _), bag in zip(start.outputs, start.bags, strict=True):
        torch.testing.assert_close(between[table.name], expected[2][table.name], rtol=0, atol=1e-6)
        moved = (between[table.name] != bag.weight.detach()).any(1).nonzero().flatten()
        ids = set(share[table.feature].values().tolist())
        assert set(moved.tolist()) <= ids
        assert len(moved) > 0
        everyone = (whole[table.name] != bag.weight.detach()).any(1).nonzero().flatten()
        assert set(moved.tolist()) <= set(everyone.tolist())


def share_run(rank: int, ranks: int, every: int) -> Found:
    """Loss, tables, dense parameters and running averages after one step over sgd on a share of the batch."""
    of = sharded_rows(TableOptimizer("helen", LR, rho=RHO, base="sgd", xi=0.0), ranks)
    dense = torch.optim.SGD(of.dense_parameters().values(), lr=toys.DENSE_LR)
    step = RowStep(of, dense, RowsStep(of.module, dense), ranks=ranks, every=every)
    value = step(toys.batch(3, rank, ranks))
    parameters = {name: p.detach().clone() for name, p in of.dense_parameters().items()}
    return [float(total(value))], whole_tables(of), parameters, averages(of.model)


def share_by_hand(every: int) -> Found:
    """The same from Algorithm 1, the gradient of line 6 being that of the share."""
    twin = toys.model()
    plain = toys.PlainTables(twin.embeddings)
    twin.embeddings.tables = plain  # type: ignore[assignment]
    given = toys.batch(3, 0, 1)
    weights = [bag.weight for bag in plain.bags]
    dense = {name: p for name, p in twin.named_parameters() if not any(p is weight for weight in weights)}

    def value(of: Batch) -> Tensor:
        return loss(twin(of), of.labels, of.slots.weights, of.slots.weights.sum(), 1)

    with frozen_averages(twin):
        uphill = torch.autograd.grad(value(given.every(every)), weights)
    before = [weight.detach().clone() for weight in weights]
    for (table, _), weight, g in zip(plain.outputs, weights, uphill, strict=True):
        counts = torch.bincount(
            given.sparse[table.feature].values(), minlength=len(weight)
        )  # of the full batch
        norms = g.norm(dim=1)
        radius = RHO * counts / counts.max()
        weight.data += torch.where(norms > 0, radius / norms, 0.0)[:, None] * g
    last = value(given)
    gradients = torch.autograd.grad(last, [*weights, *dense.values()])
    for weight, was, g in zip(weights, before, gradients, strict=False):
        weight.data = was - LR * g
    for p, g in zip(dense.values(), gradients[len(weights) :], strict=True):
        p.data -= toys.DENSE_LR * g
    tables = {table.name: w.detach() for (table, _), w in zip(plain.outputs, weights, strict=True)}
    return [float(last.detach())], tables, {n: p.detach() for n, p in dense.items()}, averages(twin)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("every", [2, 5])
def test_the_share_sets_the_ascent_and_the_whole_batch_all_else(pool: Pool, every: int, ranks: int) -> None:
    losses, tables, dense, running = pool.run(ranks, share_run, every)[0]
    expected = share_by_hand(every)
    torch.testing.assert_close(losses, expected[0], rtol=1e-5, atol=0)
    for found, right in ((tables, expected[1]), (dense, expected[2])):
        assert found.keys() == right.keys()
        for name in right:
            # Of biases before batch norm, which takes them out, there is rounding alone.
            limit = 1e-7 + 1e-5 * float(right[name].abs().max())
            torch.testing.assert_close(found[name], right[name], rtol=0, atol=limit, msg=name)
    torch.testing.assert_close(running, expected[3], rtol=1e-4, atol=1e-6)


def poisoned(rank: int, ranks: int, perturb_dense: bool) -> list[bool]:
    """Whether tables, dense parameters, running averages and optimizer keep their bits in a step that is not finite."""
    of = sharded_rows(TableOptimizer("helen", LR, rho=RHO), ranks)
    dense = torch.optim.Adam(of.dense_parameters().values(), lr=toys.DENSE_LR)
    step = RowsStep(of.module, dense, perturb_dense=perturb_dense, rho=RHO)
    good, bad = toys.batch(0, rank, ranks), toys.batch(1, rank, ranks)
    if rank == ranks - 1:
        bad = replace(bad, dense=bad.dense * torch.nan)
    step(lambda: toys.global_loss(of(good), good, 0, ranks))

    def everything() -> list[Tensor]:
        parameters = [p.detach().clone() for p in of.dense_parameters().values()]
        moments = [x.clone() for p in of.dense_parameters().values() for x in dense.state[p].values()]
        return [*whole_tables(of).values(), *parameters, *moments, averages(of.model)]

    before = everything()
    step(lambda: toys.global_loss(of(bad), bad, 1, ranks))
    kept = [torch.equal(a, b) for a, b in zip(before, everything(), strict=True)]
    step(lambda: toys.global_loss(of(good), good, 0, ranks))
    moved = [not torch.equal(a, b) for a, b in zip(before, everything(), strict=True)]
    assert step.refused == 1
    assert step.tables.steps == 2
    return [*kept, any(moved)]


@pytest.mark.parametrize("perturb_dense", [False, True])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_bad_sample_on_one_rank_changes_nothing_on_any(pool: Pool, ranks: int, perturb_dense: bool) -> None:
    for kept in pool.run(ranks, poisoned, perturb_dense):
        assert all(kept)


def dense_gradients(rank: int, ranks: int) -> list[bool]:
    """For each pass, whether any dense parameter has a gradient after it."""
    of = sharded_rows(TableOptimizer("helen", LR, rho=RHO), ranks)
    step = RowsStep(of.module, None)
    seen = []
    perturb, agree = step.tables.perturb, step.tables.agree

    def looked(then: Callable[..., object]) -> Callable[..., object]:
        def call(*given: object) -> object:
            seen.append(any(p.grad is not None for p in of.dense_parameters().values()))
            return then(*given)

        return call

    step.tables.perturb, step.tables.agree = looked(perturb), looked(agree)  # type: ignore[method-assign, assignment]
    given = toys.batch(0, rank, ranks)
    step(lambda: toys.global_loss(of(given), given, 0, ranks))
    return seen


def test_the_first_pass_computes_no_dense_gradient(pool: Pool) -> None:
    assert pool.run(2, dense_gradients) == [[False, True]] * 2
