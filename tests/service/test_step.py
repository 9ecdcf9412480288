"""The plain step: weighted loss of the global batch, one norm over the whole dense gradient, scaled rates."""

from dataclasses import replace

import pytest
import torch

from sparta.models.batch import Batch
from sparta.models.errors import DataError
from sparta.service.step import FusedStep, RowStep, Step
from sparta.sharding.collectives import total
from sparta.sharding.rows.step import RowsStep
from sparta.sharding.shard import Sharded
from sparta.sharding.state import LogicalTable, Window
from tests.pool import Pool
from tests.sharding import toys
from tests.sharding.test_shard import sharded_toy

LR, CLIP = 0.5, 0.05


def stepped(
    rank: int, ranks: int, clip_norm: float | None, factor: float
) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss of one SGD step and how far it moved each dense parameter."""
    sharded = sharded_toy("row_wise", "sgd", ranks)
    before = {name: p.detach().clone() for name, p in sharded.dense_parameters().items()}
    dense = torch.optim.SGD(sharded.dense_parameters().values(), lr=LR)
    step = FusedStep(sharded, dense, ranks=ranks, clip_norm=clip_norm)
    step.set_lr(factor)
    loss = float(total(step(toys.batch(0, rank, ranks))))
    return loss, {name: before[name] - p.detach() for name, p in sharded.dense_parameters().items()}


def norm(moves: dict[str, torch.Tensor]) -> float:
    return float(torch.cat([move.flatten() for move in moves.values()]).norm())


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_clipping_shortens_the_global_gradient_and_keeps_its_direction(pool: Pool, ranks: int) -> None:
    loss, free = pool.run(1, stepped, None, 1.0)[0]
    assert norm(free) > 2 * LR * CLIP
    for found, clipped in pool.run(ranks, stepped, CLIP, 1.0, local_ranks=min(ranks, 2)):
        assert found == pytest.approx(loss, rel=1e-6)
        assert norm(clipped) == pytest.approx(LR * CLIP, rel=1e-4)
        for name, move in free.items():
            torch.testing.assert_close(clipped[name], move * (LR * CLIP / norm(free)), rtol=1e-3, atol=1e-7)


def test_a_norm_above_the_gradients_changes_nothing(pool: Pool) -> None:
    assert norm(pool.run(1, stepped, 1e6, 1.0)[0][1]) == norm(pool.run(1, stepped, None, 1.0)[0][1])


def test_the_factor_scales_the_dense_rate(pool: Pool) -> None:
    whole, half = (pool.run(1, stepped, None, factor)[0][1] for factor in (1.0, 0.5))
    for name, move in whole.items():
        torch.testing.assert_close(half[name], move / 2, rtol=1e-3, atol=1e-7)


def poisoned(of: Batch) -> Batch:
    """Labels, because batch norm brings what is in the features to all ranks."""
    return replace(of, labels=of.labels * torch.nan)


def skipped(
    rank: int, ranks: int, number: int
) -> tuple[int, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Steps that refused, and all there is after four, in the `number`-th of which the last rank meets a NaN."""
    sharded = sharded_toy("row_wise", "rowwise_adagrad", ranks)
    dense = torch.optim.Adam(sharded.dense_parameters().values(), lr=toys.DENSE_LR)
    step = FusedStep(sharded, dense, ranks=ranks)
    after = {}
    for at in range(4):
        of = toys.batch(at, rank, ranks)
        before = pieces(sharded, step)
        step(poisoned(of) if at == number and rank == ranks - 1 else of)
        if at == number:
            after = {name: tensor - before[name] for name, tensor in pieces(sharded, step).items()}
    return step.refused, after, pieces(sharded, step)


def pieces(sharded: Sharded, step: Step) -> dict[str, torch.Tensor]:
    """Copies of all that this rank has of weights and state."""
    found = {}
    for name, tensor in {**sharded.state_dict(), **step.state_dict()}.items():
        windows = tensor.windows if isinstance(tensor, LogicalTable) else [Window(0, 0, tensor)]
        found |= {
            f"{name} {number}": one.values.to(torch.float64, copy=True) for number, one in enumerate(windows)
        }
    return found


@pytest.mark.parametrize("number", [0, 2])
def test_a_loss_that_is_not_finite_on_one_rank_changes_nothing_on_any(pool: Pool, number: int) -> None:
    for refused, moved, last in pool.run(2, skipped, number):
        assert refused == 1
        assert any(name.startswith("dense/deep.norms.0.running_mean") for name in moved)
        assert any(name.startswith("optim/C1/sum") for name in moved)
        for name, move in moved.items():
            assert not move.any(), name
        assert all(tensor.isfinite().all() for tensor in last.values())
        assert last["optim/step 0"] == 3


def parts(rank: int, ranks: int, engine: str) -> list[tuple[str, bool]]:
    """What a step says of states with one wrong name or shape, and whether it then is as it was."""
    sharded = sharded_toy("table_wise", "rowwise_adagrad", ranks, engine=engine)
    dense = torch.optim.Adam(sharded.dense_parameters().values(), lr=toys.DENSE_LR)
    step: FusedStep | RowStep = (
        FusedStep(sharded, dense, ranks=ranks)
        if engine == "fbgemm"
        else RowStep(sharded, dense, RowsStep(sharded.module, dense), ranks=ranks)
    )
    step(toys.batch(0, rank, ranks))
    mine = pieces(sharded, step)
    other = {name: torch.full(value.shape, 7, dtype=value.dtype) for name, value in step.state_dict().items()}
    found = []
    for bad in (
        {name: value for name, value in other.items() if name != "dense_optim/deep.last.bias/step"},
        {**other, "dense_optim/deep.last.bias/exp_avg": torch.zeros(2)},
        {**other, "optim/C1/exp_avg": torch.zeros(37, 10)},
        {**other, "optim/few/sum": torch.zeros(8, 1)},
        {**other, "tables/C1": torch.zeros(37, 10)},
    ):
        with pytest.raises(DataError) as raised:
            step.load_state_dict(bad)
        now = pieces(sharded, step)
        found.append((str(raised.value), all(torch.equal(now[name], mine[name]) for name in mine)))
    return found


@pytest.mark.parametrize("engine", ["fbgemm", "rows"])
def test_the_state_of_another_job_is_refused_and_leaves_all_as_it_was(pool: Pool, engine: str) -> None:
    for (message, unchanged), words in zip(
        pool.run(1, parts, engine)[0],
        (
            "dense_optim/deep.last.bias/step is missing in the saved state",
            "dense_optim/deep.last.bias/exp_avg is (2,) in the saved state, (1,) in the model",
            "optim/C1/exp_avg is not in the model",
            "optim/few/sum",
            "tables/C1 is not in the model",
        ),
        strict=True,
    ):
        assert words in message
        assert "\n" not in message
        assert unchanged
