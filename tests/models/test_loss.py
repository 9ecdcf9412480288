"""Laws of the loss: the weighted mean of per-task log losses, whoever holds the samples."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from sparta.models.loss import loss


def slow(logits: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor) -> float:
    total = 0.0
    for z_T, y_T, w in zip(logits.tolist(), labels.tolist(), weights.tolist(), strict=True):
        for z, y in zip(z_T, y_T, strict=True):
            p = 1 / (1 + math.exp(-z))
            total -= w * (y * math.log(p) + (1 - y) * math.log(1 - p))
    return total / float(weights.sum())


def draw(slots: int, tasks: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(slots, tasks, generator=generator)
    labels = torch.randint(0, 2, (slots, tasks), generator=generator).float()
    return logits, labels, torch.rand(slots, generator=generator) + 0.1


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 3), st.integers(0, 2**31))
def test_loss_is_the_weighted_mean_of_log_losses_summed_over_tasks(slots: int, tasks: int, seed: int) -> None:
    logits, labels, weights = draw(slots, tasks, seed)
    value = loss(logits, labels, weights, weights.sum(), 1)
    assert math.isclose(float(value), slow(logits, labels, weights), rel_tol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 2, 3, 4]), st.integers(0, 2**31))
def test_the_mean_over_ranks_is_the_loss_of_the_global_batch(ranks: int, seed: int) -> None:
    logits, labels, weights = draw(12, 2, seed)
    total = float(weights.sum())
    parts = zip(logits.chunk(ranks), labels.chunk(ranks), weights.chunk(ranks), strict=True)
    mean = sum(float(loss(*part, total, ranks)) for part in parts) / ranks
    assert math.isclose(mean, float(loss(logits, labels, weights, total, 1)), rel_tol=1e-5)


def test_a_padding_slot_gives_neither_loss_nor_gradient_whatever_stands_in_it() -> None:
    logits, labels, weights = draw(6, 2, 1)
    expected = loss(logits[:3], labels[:3], weights[:3], weights[:3].sum(), 1)
    weights[3:] = 0
    logits[3], logits[4], logits[5] = float("inf"), float("nan"), -1e30
    labels[3:] = float("nan")
    logits.requires_grad_()
    value = loss(logits, labels, weights, weights.sum(), 1)
    value.backward()
    assert_close(value, expected)
    assert logits.grad is not None
    assert not logits.grad[3:].any()
    assert logits.grad[:3].all()


def test_a_batch_without_weight_has_loss_zero_and_no_gradient() -> None:
    logits, labels, weights = draw(4, 1, 1)
    logits.requires_grad_()
    value = loss(logits, labels, weights * 0, torch.tensor(0.0), 2)
    value.backward()
    assert value == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4], [-1e4]])
    value = loss(logits, torch.tensor([[0.0], [1.0]]), torch.ones(2), 2.0, 1)
    assert value == 1e4
