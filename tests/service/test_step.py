"""The plain step: weighted loss of the global batch, one norm over the whole dense gradient, scaled rates."""

import pytest
import torch

from sparta.service.step import FusedStep
from sparta.sharding.collectives import total
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
