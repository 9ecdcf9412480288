"""The two passes of a step: what each is guarded by, and what they have in common."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sparta.sharding import RowsStep
from tests.pool import Pool
from tests.sharding.rows.test_misuse import alone, collection, counts_of, ids, sharded, table_of

WHAT = ("loss", "rows", "dense")


def guarded(rank: int, ranks: int, what: str, at: int) -> None:
    """A step in which only one thing is not finite, in one pass, leaves everything as it was."""
    model = sharded(collection())
    over = model.module.over
    dense = torch.optim.Adam(over.parameters(), lr=0.1)
    step = RowsStep(model, dense, perturb_dense=True)
    passes = 0

    def spoil(g: Tensor) -> Tensor:
        return torch.full_like(g, torch.nan) if passes == at else g

    def value() -> Tensor:
        nonlocal passes
        passes += 1
        out: Tensor = model(ids(1, 2, 2)).sum()
        return out + torch.inf if what == "loss" and passes == at else out

    def everything() -> list[Tensor]:
        moments = [x.clone() for p in over.parameters() for x in dense.state[p].values()]
        return [table_of(step), *(p.detach().clone() for p in over.parameters()), *moments]

    step(lambda: model(ids(2, 3)).sum())
    before, counts = everything(), counts_of(step)
    if what == "rows":
        model.module.spoil = spoil
    if what == "dense":
        over.bias.register_hook(spoil)
    step(value)
    assert passes == 2
    assert (step.refused, step.tables.steps) == (1, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, everything(), strict=True))
    assert counts_of(step) == counts
    step(value)  # the third pass and the fourth are as they should be
    assert (step.refused, step.tables.steps) == (1, 2)


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.parametrize("what", WHAT)
def test_each_guard_of_each_pass_refuses_alone(pool: Pool, what: str, at: int) -> None:
    pool.run(1, guarded, what, at)


def rows_of_second_pass(rank: int, ranks: int) -> list[bool]:
    """Whether what the second pass looks up is finite, on each rank, when the first one's gradients were not."""
    model = sharded(collection())
    step, seen = RowsStep(model, None), []

    def value() -> Tensor:
        out: Tensor = model(ids(1, 2)).sum()
        seen.append(bool(out.isfinite()))
        return out * torch.nan

    step(value)
    return seen


def test_what_is_not_finite_does_not_ascend(pool: Pool) -> None:
    """A model that raises when it sees NaN would leave the other ranks waiting in a collective."""
    assert alone(rows_of_second_pass, pool) == [True, True]


def draws(rank: int, ranks: int) -> list[list[Tensor]]:
    model = sharded(collection())
    step = RowsStep(model, None, ascend_every=2)
    found = []
    for _ in range(4):
        masks: list[Tensor] = []

        def value() -> Tensor:
            kept = torch.nn.functional.dropout(torch.ones(64), 0.5)
            masks.append(kept)  # noqa: B023
            return (model(ids(*range(8))).flatten() * kept[:8]).sum()  # type: ignore[no-any-return]

        step(value)
        found.append(masks)
    return found


def test_both_passes_have_one_dropout_mask_and_every_step_its_own(pool: Pool) -> None:
    steps = alone(draws, pool)
    assert [len(masks) for masks in steps] == [1, 2, 1, 2]
    for masks in steps:
        assert all(torch.equal(mask, masks[0]) for mask in masks)
    assert len({tuple(masks[0].tolist()) for masks in steps}) == 4


def evaluating(
    rank: int, ranks: int, freeze: Callable[[torch.nn.Module], torch.nn.Module]
) -> list[list[int]]:
    model = sharded(collection())
    freeze(model).eval()
    step = RowsStep(model, None)
    before = table_of(step)
    step(lambda: model(ids(1, 2, 2)).sum())
    moved = (table_of(step) != before).view(10, -1).any(1).nonzero().flatten().tolist()
    return [counts_of(step), moved]


def whole(model: torch.nn.Module) -> torch.nn.Module:
    return model


def tower(model: torch.nn.Module) -> torch.nn.Module:
    return model.module.towers  # type: ignore[return-value, union-attr]


@pytest.mark.parametrize("freeze", [whole, tower])
def test_tables_in_eval_mode_learn_all_the_same(pool: Pool, freeze: Callable[..., torch.nn.Module]) -> None:
    """As TorchRec's do: eval mode is about batch norm and dropout."""
    counts, moved = pool.run(1, evaluating, freeze)[0]
    assert counts == [0, 1, 2, 0, 0, 0, 0, 0, 0, 0]
    assert moved == [1, 2]
