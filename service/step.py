"""One optimizer step on one global batch.

The trainer takes any `Step`; which one is chosen once, when the job is built.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from sparta.models.batch import Batch
from sparta.models.loss import loss
from sparta.sharding.collectives import total
from sparta.sharding.rows.step import RowsStep
from sparta.sharding.shard import Sharded


def nothing() -> None:
    """What there is to do meanwhile, by default."""


class Step(Protocol):
    """What the trainer needs of a step."""

    def __call__(self, batch: Batch, meanwhile: Callable[[], None] = nothing) -> Tensor:
        """Train on the batch; this rank's share of the global batch's loss, a detached scalar.

        Args:
            meanwhile: called when the passes are under way, to prepare what comes next.
        """
        ...

    def set_lr(self, factor: float) -> None:
        """Scale the learning rate of tables and dense parameters from the next step on."""
        ...

    @property
    def refused(self) -> int:
        """Steps so far that left everything as it was, because something was not finite."""
        ...

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state: Any) -> None: ...

    def most_frequent(self) -> dict[str, tuple[int, int]]:
        """Of tables that count how often rows occur: the largest count (N*), and the row; collective."""
        ...


class BatchLoss:
    """This rank's part of a global batch's loss: `W * sum_local(w l) / sum_global(w)` on W ranks.

    TorchRec and DDP divide gradients by W: the step is that of the batch's weighted mean, whatever W.
    """

    def __init__(self, sharded: Sharded, ranks: int) -> None:
        self._sharded = sharded
        self._ranks = ranks

    def __call__(self, batch: Batch) -> Tensor:
        weight = total(batch.slots.weights.sum())
        return loss(self._sharded(batch), batch.labels, batch.slots.weights, weight, self._ranks)


class DenseRate:
    """The learning rates of a dense optimizer, as multiples of those it was made with."""

    def __init__(self, dense: torch.optim.Optimizer) -> None:
        self._groups = dense.param_groups
        self._base = [group["lr"] for group in self._groups]

    def set(self, factor: float) -> None:
        for group, base in zip(self._groups, self._base, strict=True):
            group["lr"] = base * factor


class FusedStep:
    """Engine fbgemm: forward, backward, in which the tables step by themselves, dense step.

    Args:
        clip_norm: largest 2-norm of the whole dense gradient, None for no limit.
    """

    refused = 0  # what backward has applied cannot be taken back

    def __init__(
        self, sharded: Sharded, dense: torch.optim.Optimizer, *, ranks: int, clip_norm: float | None = None
    ) -> None:
        self._sharded = sharded
        self._dense = dense
        self._rate = DenseRate(dense)
        self._loss = BatchLoss(sharded, ranks)
        self._ranks = ranks
        self._clip_norm = clip_norm

    def __call__(self, batch: Batch, meanwhile: Callable[[], None] = nothing) -> Tensor:
        value = self._loss(batch)
        self._dense.zero_grad()
        torch.autograd.backward(value)
        meanwhile()
        if self._clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self._sharded.dense_parameters().values(), self._clip_norm)
        self._dense.step()
        return value.detach() / self._ranks

    def set_lr(self, factor: float) -> None:
        self._rate.set(factor)
        self._sharded.set_table_lr(factor)

    def most_frequent(self) -> dict[str, tuple[int, int]]:
        return {}


class RowStep:
    """Engine rows: one pass or two, tables and dense parameters in the end.

    Args:
        rows: takes the step, given the loss.
        every: the first pass sees every so-manieth sample of the global batch.
    """

    def __init__(
        self, sharded: Sharded, dense: torch.optim.Optimizer, rows: RowsStep, *, ranks: int, every: int = 1
    ) -> None:
        self._rows = rows
        self._d = (dense, sharded.dense_parameters())
        self._rate = DenseRate(dense)
        self._loss = BatchLoss(sharded, ranks)
        self._ranks = ranks
        self._every = every

    @property
    def refused(self) -> int:
        return self._rows.refused

    def __call__(self, batch: Batch, meanwhile: Callable[[], None] = nothing) -> Tensor:
        if self._every == 1:
            value = self._rows(lambda: self._loss(batch), meanwhile=meanwhile)
        else:
            self._rows.tables.arrive(batch.sparse)
            share = batch.every(self._every)
            value = self._rows(lambda: self._loss(batch), lambda: self._loss(share), meanwhile)
        return value / self._ranks

    def set_lr(self, factor: float) -> None:
        self._rate.set(factor)
        self._rows.tables.set_lr(factor)

    def state_dict(self) -> Any:
        from sparta.sharding.rows.state import learning_state

        names = {id(p): n for n, p in self._d[1].items()}
        out = learning_state(self._rows.tables)
        for g in self._d[0].param_groups:
            for p in g["params"]:
                st = self._d[0].state[p]
                if not st:
                    st.update(
                        step=torch.tensor(0.0), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p)
                    )
                for k, v in st.items():
                    out[f"dense_optim/{names[id(p)]}/{k}"] = v
        return out

    def load_state_dict(self, state: Any) -> None:
        from sparta.sharding.rows.state import load_learning

        load_learning(self._rows.tables, {k: v for k, v in state.items() if k.startswith("optim/")})

    def most_frequent(self) -> dict[str, tuple[int, int]]:
        return self._rows.tables.most_frequent()
