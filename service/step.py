"""One optimizer step on one global batch.

The trainer takes any `Step`; which one is chosen once, when the job is built. The plain step is one
forward and one backward pass, in which the fused tables step by themselves.
"""

from typing import Protocol

import torch
from torch import Tensor

from sparta.models.batch import Batch
from sparta.models.loss import loss
from sparta.sharding.collectives import total
from sparta.sharding.shard import Sharded


class Step(Protocol):
    """What the trainer needs of a step."""

    def __call__(self, batch: Batch) -> Tensor:
        """Train on the batch; this rank's share of the global batch's loss, a detached scalar."""
        ...

    def set_lr(self, factor: float) -> None:
        """Scale the learning rate of tables and dense parameters from the next step on."""
        ...


class OnePass:
    """Forward, backward, dense step.

    The loss of W ranks is `W * sum_local(w l) / sum_global(w)`, because TorchRec and DDP divide gradients
    by W: the step is that of the global batch's weighted mean, whatever W.

    Args:
        clip_norm: largest 2-norm of the whole dense gradient, None for no limit.
    """

    def __init__(
        self, sharded: Sharded, dense: torch.optim.Optimizer, *, ranks: int, clip_norm: float | None = None
    ) -> None:
        self._sharded = sharded
        self._dense = dense
        self._ranks = ranks
        self._clip_norm = clip_norm
        self._base_lrs = [group["lr"] for group in dense.param_groups]

    def __call__(self, batch: Batch) -> Tensor:
        weight = total(batch.slots.weights.sum())
        value = loss(self._sharded(batch), batch.labels, batch.slots.weights, weight, self._ranks)
        self._dense.zero_grad()
        torch.autograd.backward(value)
        if self._clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._sharded.dense_parameters().values(), self._clip_norm)
        self._dense.step()
        return value.detach() / self._ranks

    def set_lr(self, factor: float) -> None:
        for group, base in zip(self._dense.param_groups, self._base_lrs, strict=True):
            group["lr"] = base * factor
        self._sharded.set_table_lr(factor)
