"""A step by some row kernels, compared piece by piece with the same step by the plain ones."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from sparta.optim.rows.group import Kernels
from sparta.optim.rows.plain import PLAIN
from tests.optim.rows.cases import Case, by_row, over_rows, values_by_row


def exactly(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def closely(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=1e-7)


def whole_step(kernels: Kernels, case: Case, *, step: int = 3) -> Iterator[tuple[str, object]]:
    """Everything a two-pass step does and changes, with what it returns in a form that shows no order."""
    group = case.group
    touched = kernels.touch(group, case.bags, case.scratch)
    yield "bounds", touched.bounds
    yield "packed", touched.packed
    yield "counts", by_row(touched, touched.counts)
    yield "tables", by_row(touched, touched.tables)
    if group.weights.dtype == torch.float32:
        decayed = (
            torch.rand(max(group.rows, 1), generator=torch.Generator().manual_seed(3))
            .double()
            .round(decimals=1)
        )
        decayed, decay = (x.to(group.weights.device) for x in (decayed, torch.full_like(case.rates.lr, 0.5)))
        kernels.catch_up(group, touched, decayed, decay)
        yield "caught up", group.weights.clone()
        yield "decayed", decayed
    found = kernels.reduce(group, case.bags, touched, case.pooled, case.eta)
    yield "gradient", values_by_row(group, touched, found.gradient)
    yield "squares", {row: torch.tensor(x) for row, x in by_row(touched, found.squares).items()}
    scale = over_rows(group, touched, 5)
    saved = kernels.perturb(group, touched, found.gradient, scale, case.eta, step=step)
    yield "saved", values_by_row(group, touched, saved)
    yield "perturbed", group.weights.clone()
    yield "weight gradient", kernels.weight_gradient(group, case.bags, case.pooled)
    kernels.restore(group, touched, saved)
    yield "restored", group.weights.clone()
    l2 = torch.tensor([0.25, 0.0] * len(group.shapes), dtype=torch.float64)[: len(group.shapes)]
    second = kernels.reduce(group, case.bags, touched, case.pooled, None, l2.to(group.weights.device))
    yield "penalised", values_by_row(group, touched, second.gradient)
    yield "its squares", {row: torch.tensor(x) for row, x in by_row(touched, second.squares).items()}
    kernels.perturb(group, touched, found.gradient, scale, case.eta, step=step)
    means = over_rows(group, touched, 7)
    kernels.step(group, touched, second.gradient, means, saved, case.rates, case.slots, step=step)
    yield "stepped", group.weights.clone()
    kernels.step(group, touched, second.gradient, means, None, case.rates, case.slots, step=step + 1)
    yield "stepped from where it was", group.weights.clone()
    for name in ("first", "second", "sums"):
        yield name, getattr(case.slots, name)


def compare(kernels: Kernels, case: Case, close: Callable[[Tensor, Tensor], None]) -> None:
    """A step by these kernels and one by the plain ones."""
    twin = case.fresh()
    pairs = zip(whole_step(kernels, case), whole_step(PLAIN, twin), strict=True)
    for (name, found), (_, expected) in pairs:
        if isinstance(found, Tensor) and isinstance(expected, Tensor):
            close(found, expected)
        else:
            assert isinstance(found, dict)
            assert isinstance(expected, dict)
            assert set(found) == set(expected), name
            for row, value in found.items():
                if isinstance(value, Tensor):
                    close(value, expected[row])
                else:
                    assert value == expected[row], name
