"""SAM and ASAM against their formulas, element by element."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparta.optim.bases import BASES
from sparta.optim.sam import ASAM, SAM
from tests.optim.toys import Batch, Toy, batch_of, batches, closure, loss_of

RHO, ETA = 0.07, 0.03


def ascent(model: Toy, optimizer: SAM, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """One ascend and restore; (gradient, how far it went) by parameter."""
    optimizer.zero_grad()
    loss_of(model, batch).backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    optimizer.ascend()
    moved = {name: p.detach() - before[name] for name, p in model.named_parameters()}
    optimizer.restore()
    return gradients, moved


@given(batches(), st.booleans(), st.booleans())
@settings(deadline=None, max_examples=50)
def test_epsilon_is_the_formula_with_one_norm_over_all_that_ascends(
    batch: Batch, adaptive: bool, dense: bool
) -> None:
    model = Toy(dtype=torch.float64)
    kind = (
        ASAM(model, rho=RHO, eta=ETA, perturb_dense=dense)
        if adaptive
        else SAM(model, rho=RHO, perturb_dense=dense)
    )
    gradients, moved = ascent(model, kind, batch)

    entries = []  # (g, T, epsilon) of every number of every parameter
    for name, p in model.named_parameters():
        if not dense and not name.startswith("tables"):
            assert not moved[name].any()
            continue
        w, g, epsilon = (
            p.flatten().tolist(),
            gradients[name].flatten().tolist(),
            moved[name].flatten().tolist(),
        )
        for i in range(len(w)):
            T = abs(w[i]) + ETA if adaptive and not name.endswith("bias") else 1.0
            entries.append((g[i], T, epsilon[i]))
    norm = math.sqrt(sum((T * g) ** 2 for g, T, _ in entries))
    expected = [RHO * T * T * g / norm if norm else 0.0 for g, T, _ in entries]
    assert [epsilon for _, _, epsilon in entries] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("kind", [SAM, ASAM])
def test_a_table_that_is_left_out_is_left_out_of_the_norm(kind: type[SAM]) -> None:
    model = Toy(dtype=torch.float64)
    optimizer = kind(model, rho=RHO, tables={"tables.1": {"ascend": False}})
    gradients, moved = ascent(model, optimizer, batch_of(1))
    assert gradients["tables.1.weight"].any()
    assert not moved["tables.1.weight"].any()
    if kind is SAM:
        length = torch.cat([epsilon.flatten() for epsilon in moved.values()]).norm()
        assert float(length) == pytest.approx(RHO)


@pytest.mark.parametrize("kind", [SAM, ASAM])
def test_a_gradient_of_zero_goes_nowhere(kind: type[SAM]) -> None:
    model = Toy()
    optimizer = kind(model)
    loss_of(model, batch_of(1)).backward()
    before = [p.detach().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad.zero_()
    optimizer.ascend()
    for p, w in zip(model.parameters(), before, strict=True):
        assert torch.equal(p, w)


@pytest.mark.parametrize("kind", [SAM, ASAM])
@pytest.mark.parametrize("base", BASES)
def test_zero_radius_is_the_base_optimizer_bit_for_bit(kind: type[SAM], base: str) -> None:
    model, twin = Toy(), Toy()
    optimizer, plain = kind(model, rho=0.0, base=base), kind(twin, base=base)
    for seed in range(4):
        optimizer.step(closure(model, batch_of(seed)))
        plain.zero_grad()
        closure(twin, batch_of(seed))()
        plain.second_step()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q)


def test_the_rows_of_a_table_are_in_the_norm_once_however_often_they_are_looked_up() -> None:
    """The norm is that of the summed gradient of a row, not of its occurrences."""
    model = Toy(dtype=torch.float64)
    _, moved = ascent(
        model, SAM(model, rho=RHO, perturb_dense=False), Batch([[[1, 1, 1], [1]], [[], []]], [1.0, 1.0])
    )
    assert float(moved["tables.0.weight"].norm()) == pytest.approx(RHO)
