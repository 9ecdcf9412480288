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
        mask = keep_mask(keep, seed_key, slots.first, x_BU.shape[0], x_BU.shape[1], x_BU.device)
        return x_BU * (mask / keep)


class _TotalOverRanks(torch.autograd.Function):
    """Sum over all ranks; so is its gradient, since every rank's loss reads the total."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def total_over_ranks(x: Tensor) -> Tensor:
    """Differentiable sum over the ranks; the identity on one."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return _TotalOverRanks.apply(x)  # type: ignore[no-any-return, no-untyped-call]
    return x


class BatchNorm(nn.Module):
    """Batch norm over the global batch, samples weighted as in the loss; padding counts nowhere.

    Source: Ioffe and Szegedy, 2015. SyncBatchNorm refuses CPU tensors and knows no weights.
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
        # float64 sums: E[x^2] - E[x]^2 cancels, and the ranks' partial sums must not show.
        x = x_BU.double()
        w = slots.weights.double()[:, None]
        sums = torch.cat([(w * x).sum(0), (w * x * x).sum(0), w.sum()[None]])
        sums = total_over_ranks(sums)
        weight = sums[-1].clamp(min=torch.finfo(torch.float32).tiny)
        mean, square = (sums[:-1] / weight).chunk(2)
        var = (square - mean * mean).clamp(min=0)
        with torch.no_grad():
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(var.to(self.running_var.dtype), self.momentum)
        scale = self.weight * torch.rsqrt(var + self.eps).to(x_BU.dtype)
        return x_BU * scale + (self.bias - mean.to(x_BU.dtype) * scale)


class MLP(nn.Module):
    """Linear, then batch norm, ReLU, dropout (each if asked for), repeated; optionally a last Linear.

    Order as FuxiCTR's MLP_Block; weights Xavier-normal with zero bias, also as there.

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
            self.linears.append(linear(width, units))
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
            x_BU = dropout(torch.relu(x_BU), slots)
        return x_BU if self.last is None else self.last(x_BU)


def linear(width: int, units: int, *, bias: bool = True) -> nn.Linear:
    """nn.Linear with Xavier-normal weights and zero bias, FuxiCTR's default."""
    layer = nn.Linear(width, units, bias=bias)
    nn.init.xavier_normal_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer
