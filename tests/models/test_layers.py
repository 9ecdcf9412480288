"""Laws of the layers: they know the global batch only, whichever rank holds which part of it."""

import math
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from sparta.models import layers
from sparta.models.batch import Slots
from sparta.models.layers import MLP, BatchNorm, Dropout
from tests.pool import Pool


def slots(weights: Tensor | int, *, seed: int = 1, step: int = 1, first: int = 0) -> Slots:
    return Slots(seed, step, first, torch.ones(weights) if isinstance(weights, int) else weights)


def draw(rows: int, units: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    x: Tensor = 3 + 2 * torch.randn(rows, units, generator=torch.Generator().manual_seed(rows), dtype=dtype)
    return x.requires_grad_()


# Dropout


def test_dropout_keeps_the_expectation_and_its_rate() -> None:
    x = torch.ones(4096, 100)
    dropped = Dropout(0.3, "a")(x, slots(4096))
    assert_close(dropped[dropped != 0], torch.full((int((dropped != 0).sum()),), 1 / 0.7))
    rate = float((dropped == 0).double().mean())
    assert abs(rate - 0.3) < 4 * math.sqrt(0.3 * 0.7 / x.numel())
    assert abs(float(dropped.mean()) - 1) < 4 * math.sqrt(0.3 / 0.7 / x.numel())


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=5), st.integers(0, 10**6))
def test_dropout_is_the_same_for_any_split_of_the_batch(sizes: list[int], first: int) -> None:
    rows = sum(sizes)
    x, dropout = torch.randn(rows, 9), Dropout(0.4, "a")
    whole = dropout(x, slots(rows, first=first))
    parts, start = [], 0
    for part in x.split(sizes):
        parts.append(dropout(part, slots(len(part), first=first + start)))
        start += len(part)
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("change", [{"seed": 2}, {"step": 2}, {"first": 1}])
def test_dropout_differs_by_seed_step_and_position(change: dict[str, int]) -> None:
    x, dropout = torch.ones(64, 9), Dropout(0.5, "a")
    assert torch.equal(dropout(x, slots(64)), dropout(x, slots(64)))
    assert not torch.equal(dropout(x, slots(64)), dropout(x, slots(64, **change)))


def test_dropout_differs_by_layer() -> None:
    x = torch.ones(64, 9)
    assert not torch.equal(Dropout(0.5, "a")(x, slots(64)), Dropout(0.5, "b")(x, slots(64)))


def test_dropout_passes_the_gradient_of_what_it_keeps() -> None:
    x = draw(20, 8)
    dropped = Dropout(0.5, "a")(x, slots(20))
    dropped.sum().backward()
    assert_close(x.grad, (dropped != 0) * 2.0)


def test_dropout_is_the_identity_in_evaluation_and_at_rate_zero() -> None:
    x = torch.randn(5, 3)
    assert Dropout(0.5, "a").eval()(x, slots(5)) is x
    assert Dropout(0.0, "a")(x, slots(5)) is x
    with pytest.raises(ValueError, match="not in"):
        Dropout(1.0, "a")


# Batch norm


def twins(units: int) -> tuple[BatchNorm, nn.BatchNorm1d]:
    ours, theirs = BatchNorm(units), nn.BatchNorm1d(units)
    with torch.no_grad():
        for norm in (ours, theirs):
            torch.manual_seed(1)
            norm.weight.normal_()
            norm.bias.normal_()
    return ours, theirs


def test_batch_norm_with_unit_weights_is_torchs_but_for_the_unbiased_running_variance() -> None:
    rows, units = 30, 4
    ours, theirs = twins(units)
    x, twin = draw(rows, units), draw(rows, units)
    push = torch.randn(rows, units)
    for step in range(3):
        y, expected = ours(x, slots(rows, step=step)), theirs(twin)
        assert_close(y, expected)
        (y * push).sum().backward()
        (expected * push).sum().backward()
        assert_close(x.grad, twin.grad, rtol=1e-4, atol=1e-5)
        assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-4)
        assert_close(ours.bias.grad, theirs.bias.grad, rtol=1e-4, atol=1e-4)
        x, twin = (x + step).detach().requires_grad_(), (twin + step).detach().requires_grad_()
    assert theirs.running_mean is not None
    assert theirs.running_var is not None
    assert_close(ours.running_mean, theirs.running_mean)
    kept = 0.9**3  # of the first running variance, 1
    assert_close(ours.running_var - kept, (theirs.running_var - kept) * (rows - 1) / rows)
    theirs.running_var.copy_(ours.running_var)
    assert_close(ours.eval()(x, slots(rows)), theirs.eval()(x))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 3))
def test_batch_norms_gradient_is_that_of_its_formula(seed: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    norm = BatchNorm(3).double()
    w = 0.2 + spread * torch.rand(6, generator=generator, dtype=torch.float64)
    w[4] = 0
    x = torch.randn(6, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(3, generator=generator, dtype=torch.float64, requires_grad=True)
    # Real slots only, as in the loss: a padding slot's output is used nowhere.
    keep = w > 0
    assert torch.autograd.gradcheck(
        lambda x, scale, bias: layers._Normalise.apply(x, scale, bias, w, 1e-5)[0][keep],  # type: ignore[no-untyped-call]
        (x, norm.weight, bias),
    )
    mean = (w[:, None] * x).sum(0) / w.sum()
    var = (w[:, None] * (x - mean) ** 2).sum(0) / w.sum()
    assert_close(norm(x, slots(w)), (x - mean) / (var + 1e-5).sqrt(), rtol=1e-6, atol=1e-6)


def test_a_weight_of_two_is_two_samples_also_in_the_running_statistics() -> None:
    (once, _), (twice, _) = twins(4), twins(4)
    x = draw(10, 4)
    weights = torch.ones(10)
    weights[:3] = 2
    repeated = torch.cat([x, x[:3]])
    y, expected = once(x, slots(weights)), twice(repeated, slots(13))
    assert_close(y, expected[:10])
    (gradient,) = torch.autograd.grad((weights[:, None] * y**3).sum(), x)
    (expected_gradient,) = torch.autograd.grad((expected**3).sum(), x)
    assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-4)
    assert_close(dict(once.named_buffers()), dict(twice.named_buffers()))


def test_padding_counts_nowhere_in_batch_norm() -> None:
    (padded, _), (real, _) = twins(4), twins(4)
    x = draw(10, 4)
    weights = torch.ones(10)
    weights[7:] = 0
    assert_close(padded(x, slots(weights))[:7], real(x[:7], slots(7)))
    assert_close(dict(padded.named_buffers()), dict(real.named_buffers()))


def test_a_batch_without_weight_leaves_the_running_statistics_alone() -> None:
    norm, _ = twins(4)
    y = norm(draw(5, 4), slots(torch.zeros(5)))
    assert torch.isfinite(y).all()
    assert_close(norm.running_mean, torch.zeros(4))
    assert_close(norm.running_var, torch.ones(4))


def test_batch_norm_does_not_cancel_when_the_mean_is_large() -> None:
    norm = BatchNorm(1)
    x = (1e4 + torch.randn(1000, 1, dtype=torch.float64)).float()
    expected = (x.double() - x.double().mean(0)) / (x.double().var(0, correction=0) + 1e-5).sqrt()
    assert_close(norm(x, slots(1000)).double(), expected, rtol=0, atol=1e-5)


def test_batch_norm_takes_its_statistics_in_full_precision_under_autocast() -> None:
    (mixed, _), (full, _) = twins(4), twins(4)
    x = draw(64, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = mixed(x, slots(64))
    assert_close(y, full(x, slots(64)))


def train_part(
    rank: int, ranks: int, mlp: MLP, x_BU: Tensor, weights_B: Tensor, push_BT: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One rank's share of a batch through the MLP: output, input gradient, weight gradients, running statistics."""
    share = len(x_BU) // ranks
    part = slice(rank * share, (rank + 1) * share)
    x, mlp = x_BU[part].clone().requires_grad_(), deepcopy(mlp)
    y = mlp(x, slots(weights_B[part], first=rank * share))
    (y * push_BT[part]).sum().backward()
    assert x.grad is not None
    gradients = torch.cat([p.grad.flatten() for p in mlp.parameters() if p.grad is not None])
    return y.detach(), x.grad, gradients, torch.cat([buffer.flatten() for buffer in mlp.buffers()])


@pytest.mark.parametrize("ranks", [2, 4])
def test_an_mlp_gives_the_same_on_any_number_of_ranks(pool: Pool, ranks: int) -> None:
    rows = 24
    x = draw(rows, 5).detach()
    weights = torch.rand(rows) + 0.1
    weights[-5:] = 0  # with 4 ranks, the last has one real sample only
    push = torch.randn(rows, 2) * weights[:, None]
    mlp = MLP(5, (6, 4), dropout=0.4, batch_norm=True, out=2, name="m")
    y, gradient, total, buffers = train_part(0, 1, mlp, x, weights, push)
    found = pool.run(ranks, train_part, mlp, x, weights, push)
    assert_close(torch.cat([part[0] for part in found]), y, rtol=1e-5, atol=1e-5)
    assert_close(torch.cat([part[1] for part in found]), gradient, rtol=1e-4, atol=1e-5)
    assert_close(sum(part[2] for part in found), total, rtol=1e-4, atol=1e-4)
    for part in found:
        assert_close(part[3], buffers)


# MLP


def test_an_mlp_is_linear_batch_norm_relu_dropout() -> None:
    torch.manual_seed(1)
    mlp = MLP(5, (6, 4), dropout=0.4, batch_norm=True, out=2, name="m")
    x, where = draw(20, 5), slots(20)
    expected: Tensor = x
    for index, units in enumerate((6, 4)):
        expected = mlp.linears[index](expected)
        expected = torch.relu(nn.BatchNorm1d(units)(expected))
        expected = Dropout(0.4, f"m.{index}")(expected, where)
    assert_close(mlp(x, where), mlp.last(expected) if mlp.last else expected)
    assert mlp.width == 2


def test_an_mlp_without_layers_is_its_last_linear_or_nothing() -> None:
    x = draw(4, 3)
    assert MLP(3, ())(x, slots(4)) is x
    mlp = MLP(3, (), out=1)
    assert mlp.last is not None
    assert torch.equal(mlp(x, slots(4)), mlp.last(x))
