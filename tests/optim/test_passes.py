"""Two passes: one set of random numbers, one movement of running averages."""

import pytest
import torch
from torch import nn

from sparta.models.batch import Slots
from sparta.models.layers import BatchNorm
from sparta.optim.passes import Passes, frozen_averages


def test_both_passes_draw_the_same_and_the_next_step_draws_anew() -> None:
    dropout = nn.Dropout(0.5)
    ones = torch.ones(64)
    torch.manual_seed(3)
    masks = []
    for _ in range(2):
        with Passes(dropout) as passes:
            with passes.first():
                masks.append(dropout(ones))
            torch.rand(7)  # what an ascent might draw
            with passes.second():
                masks.append(dropout(ones))
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[2], masks[3])
    assert not torch.equal(masks[0], masks[2])


def test_a_plain_step_draws_as_if_there_were_no_passes() -> None:
    dropout = nn.Dropout(0.5)
    torch.manual_seed(3)
    expected = [dropout(torch.ones(64)) for _ in range(2)]
    torch.manual_seed(3)
    for mask in expected:
        with Passes(dropout) as passes, passes.second(averages=True):
            assert torch.equal(dropout(torch.ones(64)), mask)


@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
@pytest.mark.parametrize("averaging", ["first", "second"])
def test_running_averages_move_in_one_pass(momentum: float | None, averaging: str) -> None:
    norm, twin = nn.BatchNorm1d(2, momentum=momentum), nn.BatchNorm1d(2, momentum=momentum)
    x = torch.arange(8.0).reshape(4, 2)
    for step in range(1, 4):
        batches = {"first": x * step, "second": x * step + 100}
        with Passes(norm) as passes:
            with passes.first(averages=averaging == "first"):
                norm(batches["first"])
            with passes.second(averages=averaging == "second"):
                by_own_statistics = norm(batches["second"])
        torch.testing.assert_close(by_own_statistics.mean(0), torch.zeros(2), rtol=0, atol=1e-4)
        twin(batches[averaging])
    assert norm.num_batches_tracked == 3
    for (name, buffer), expected in zip(norm.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(buffer, expected), name


def test_backward_goes_through_frozen_averages_and_infinity_does_not_stay() -> None:
    norm = nn.BatchNorm1d(2)
    x = torch.randn(4, 2, requires_grad=True)
    before = norm.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    with frozen_averages(norm):
        norm(x).square().sum().backward()
        norm(x * float("inf"))
    assert x.grad is not None
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_our_own_batch_norm_is_frozen_too_also_when_a_pass_raises() -> None:
    norm = nn.Sequential(BatchNorm(2))

    def fails() -> None:
        norm[0](torch.randn(3, 2), Slots(seed=0, step=1, first=0, weights=torch.ones(3)))
        assert norm[0].running_mean.any()
        with frozen_averages(norm):
            norm[0](torch.randn(3, 2) + 9, Slots(seed=0, step=1, first=0, weights=torch.ones(3)))
            assert norm[0].running_mean.min() > 0.5
            raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert norm[0].running_mean.max() < 0.5
