"""Layers that give the same result on any number of ranks: dropout, batch norm, the MLP made of them."""

# B = slots of this rank, U = units

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sparta.models.batch import Slots
from sparta.models.hashing import keep_mask, key


class Dropout(nn.Module):
    """Inverted dropout whose mask is hashed from (seed, step, layer, position in the global batch, unit)."""

    def __init__(self, probability: float, layer: str) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise ValueError(f"dropout {probability} is not in [0, 1)")
        self.probability = probability
        self.layer = layer

    def forward(self, x_BU: Tensor, slots: Slots) -> Tensor:
        if not self.training or self.probability == 0:
            return x_BU
        keep = 1 - self.probability
        seed_key = key(slots.seed, slots.step, "dropout", self.layer)
        mask = keep_mask(keep, seed_key, slots.first, len(x_BU), x_BU.shape[1], x_BU.device, slots.stride)
        # Float first: float times bool is not vectorised.
        return x_BU * mask.to(x_BU.dtype).mul_(1 / keep)


def total_over_ranks(x: Tensor) -> Tensor:
    """Sum over the ranks, in place and outside autograd; the identity on one rank."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(x)
    return x


class _Normalise(torch.autograd.Function):
    """(x - mean) / std * scale + bias with weighted statistics of the global batch; also gives mean, var, weight.

    By hand, because autograd's chain of small operations took twice the time and kept four copies of x.
    """

    @staticmethod
    def forward(
        ctx: Any, x_BU: Tensor, scale_U: Tensor, bias_U: Tensor, weights_B: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        tiny = torch.finfo(torch.float32).tiny
        weight = weights_B.sum()
        centre_U = (weights_B @ x_BU) / weight.clamp(min=tiny)
        normal_BU = x_BU - centre_U
        offset_U = weights_B @ normal_BU  # what rounding left of it
        square_U = weights_B @ (normal_BU * normal_BU)
        # Every rank centres its own samples in float32; the moments are joined in float64, where
        # E[x^2] - E[x]^2 may cancel and the number of ranks does not show.
        weight, centre_U, offset_U = weight.double(), centre_U.double(), offset_U.double()
        sum_U = weight * centre_U + offset_U
        square_U = square_U.double() + centre_U * (sum_U + offset_U)
        moments = total_over_ranks(torch.cat([sum_U, square_U, weight[None]]))
        weight = moments[-1]
        mean_U, square_U = (moments[:-1] / weight.clamp(min=tiny)).chunk(2)
        var_U = (square_U - mean_U**2).clamp(min=0)
        inverse_std_U = torch.rsqrt(var_U + eps).to(x_BU.dtype)
        normal_BU.sub_((mean_U - centre_U).to(x_BU.dtype)).mul_(inverse_std_U)
        ctx.save_for_backward(
            normal_BU, scale_U, inverse_std_U, weights_B / weight.clamp(min=tiny).to(x_BU.dtype)
        )
        ctx.mark_non_differentiable(mean_U, var_U, weight)
        return torch.addcmul(bias_U, normal_BU, scale_U), mean_U, var_U, weight

    @staticmethod
    def backward(ctx: Any, gradient_BU: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        normal_BU, scale_U, inverse_std_U, share_B = ctx.saved_tensors
        bias_U = gradient_BU.sum(0)
        slope_U = (gradient_BU * normal_BU).sum(0)
        # Through the mean and the variance every sample of the global batch moves every other one.
        bias_all_U, slope_all_U = total_over_ranks(torch.cat([bias_U, slope_U])).chunk(2)
        through_BU = torch.addcmul(bias_all_U, normal_BU, slope_all_U).mul_(share_B[:, None])
        x_BU = (gradient_BU - through_BU).mul_(scale_U * inverse_std_U)
        return x_BU, slope_U, bias_U, None, None


class BatchNorm(nn.Module):
    """Batch norm over the global batch, samples weighted as in the loss; padding counts nowhere.

    Source: Ioffe and Szegedy, 2015. SyncBatchNorm refuses CPU tensors and knows no weights. The running
    variance is the plain weighted one, without torch's n / (n - 1): a sample of weight 2 is two samples
    of weight 1, and weights need not be counts at all.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, units: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(units))
        self.bias = nn.Parameter(torch.zeros(units))
        self.register_buffer("running_mean", torch.zeros(units))
        self.register_buffer("running_var", torch.ones(units))

    def forward(self, x_BU: Tensor, slots: Slots) -> Tensor:
        if not self.training:
            scale = self.weight * torch.rsqrt(self.running_var + self.eps)
            return x_BU * scale + (self.bias - self.running_mean * scale)
        dtype = self.weight.dtype
        with torch.autocast(x_BU.device.type, enabled=False):  # statistics in full precision always
            normal_BU, mean_U, var_U, weight = _Normalise.apply(  # type: ignore[no-untyped-call]
                x_BU.to(dtype), self.weight, self.bias, slots.weights.to(dtype), self.eps
            )
        with torch.no_grad():
            # A batch without weight says nothing about the statistics.
            momentum = (self.momentum * (weight > 0)).to(self.running_mean.dtype)
            self.running_mean.lerp_(mean_U.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_(var_U.to(self.running_var.dtype), momentum)
        return normal_BU  # type: ignore[no-any-return]


class MLP(nn.Module):
    """Linear, then batch norm, ReLU, dropout (each if asked for), repeated; optionally a last Linear.

    Order as FuxiCTR's MLP_Block; weights Xavier-normal with zero bias, also as there. A Linear before batch norm
    has no bias: it would be taken away again, and its gradient is rounding noise, of which Adam makes whole steps.

    Args:
        width: columns of the input.
        hidden: units per layer, possibly none.
        out: units of a last plain Linear, None for none.
        name: distinguishes the dropout masks of a model's several MLPs.
    """

    def __init__(
        self,
        width: int,
        hidden: Sequence[int],
        *,
        dropout: float = 0.0,
        batch_norm: bool = False,
        out: int | None = None,
        name: str = "mlp",
    ) -> None:
        super().__init__()
        self.linears = nn.ModuleList()
        self.norms = nn.ModuleList()
        self.dropouts = nn.ModuleList()
        for index, units in enumerate(hidden):
            self.linears.append(linear(width, units, bias=not batch_norm))
            self.norms.append(BatchNorm(units) if batch_norm else nn.Identity())
            self.dropouts.append(Dropout(dropout, f"{name}.{index}"))
            width = units
        self.batch_norm = batch_norm
        self.last = linear(width, out) if out is not None else None
        self.width = width if out is None else out

    def forward(self, x_BU: Tensor, slots: Slots) -> Tensor:
        for layer, norm, dropout in zip(self.linears, self.norms, self.dropouts, strict=True):
            x_BU = layer(x_BU)
            if self.batch_norm:
                x_BU = norm(x_BU, slots)
            x_BU = dropout(x_BU.relu_(), slots)  # in place: nothing else reads it
        return x_BU if self.last is None else self.last(x_BU)


def linear(width: int, units: int, *, bias: bool = True) -> nn.Linear:
    """nn.Linear with Xavier-normal weights and zero bias, FuxiCTR's default."""
    layer = nn.Linear(width, units, bias=bias)
    nn.init.xavier_normal_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
