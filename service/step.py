"""One optimizer step on one global batch.

The trainer takes any `Step`; which one is chosen once, when the job is built.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from sparta.models.batch import Batch
from sparta.models.loss import loss
from sparta.sharding.collectives import total
from sparta.sharding.dense_state import DENSE_OPTIM, DenseState
from sparta.sharding.fused_state import FusedTables
from sparta.sharding.rows.state import learning_state, load_learning
from sparta.sharding.rows.step import RowsStep
from sparta.sharding.rows.tables import RowTables
from sparta.sharding.shard import Sharded
from sparta.sharding.state import OPTIM, State, check_all, dense_tensors


def nothing() -> None:
    """What there is to do meanwhile, by default."""


def unheard(_: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Seen:
    """What a step saw, on the device, for whoever watches."""

    logits: Tensor
    """(B, T) of the weights before the step, of this rank's samples or of the share that was looked at first."""
    labels: Tensor
    """(B, T)."""
    weights: Tensor
    """(B,), 0 for padding."""
    gradient_norm: Tensor | None = None
    """2-norm of the whole dense gradient before it is clipped; None where nobody needs it."""


class Step(Protocol):
    """What the trainer needs of a step."""

    def __call__(
        self, batch: Batch, meanwhile: Callable[[], None] = nothing, phase: Callable[[str], None] = unheard
    ) -> Tensor:
        """Train on the batch; this rank's share of the global batch's loss, a detached scalar.

        Args:
            meanwhile: called when the passes are under way, to prepare what comes next.
            phase: told what begins: ascend, second_pass, optimizer.
        """
        ...

    @property
    def seen(self) -> Seen:
        """Of the last step."""
        ...

    @property
    def tables(self) -> RowTables | None:
        """The tables, where the rows engine steps them."""
        ...

    def set_lr(self, factor: float) -> None:
        """Scale the learning rate of tables and dense parameters from the next step on."""
        ...

    @property
    def refused(self) -> int:
        """Steps so far that left everything as it was, because something was not finite."""
        ...

    def most_frequent(self) -> dict[str, tuple[int, int]]:
        """Of tables that count how often rows occur: the largest count (N*), and the row; collective."""
        ...

    def state_dict(self) -> State:
        """What it has learned beside the weights: `optim/...` of tables, `dense_optim/...` of the rest.

        With `Sharded.state_dict()` all that the next steps depend on, and like that independent of the plan and
        in memory that is shared with what is live, where that is there. Names are the same on all ranks and
        before the first step.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take such a state, or one of whole tensors; collective.

        A state that torch.distributed.checkpoint has read into `state_dict()` is given here too: not all of it
        was live.

        Raises:
            DataError: it is of another job; then everything is as it was.
        """
        ...


class BatchLoss:
    """This rank's part of a global batch's loss: `W * sum_local(w l) / sum_global(w)` on W ranks.

    TorchRec and DDP divide gradients by W: the step is that of the batch's weighted mean, whatever W.
    """

    def __init__(self, sharded: Sharded, ranks: int, *, bf16: bool) -> None:
        self._sharded = sharded
        self._ranks = ranks
        self._bf16 = bf16
        self.seen: Seen | None = None
        """Of the first batch since this was None."""

    def __call__(self, batch: Batch) -> Tensor:
        weight = total(batch.slots.weights.sum())
        # Without it a context of the caller's own stays as it is.
        kind = batch.labels.device.type
        with torch.autocast(kind, torch.bfloat16) if self._bf16 else nullcontext():
            logits = self._sharded(batch)
        if self.seen is None:
            self.seen = Seen(logits.detach(), batch.labels, batch.slots.weights)
        return loss(logits, batch.labels, batch.slots.weights, weight, self._ranks)


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

    Where the loss is not finite on any rank, nothing changes on any of them: the host waits for the forward pass
    to know. A gradient that overflows inside backward is not caught: what the tables have applied there cannot
    be taken back. Engine rows does catch it.

    Args:
        clip_norm: largest 2-norm of the whole dense gradient, None for no limit.
        bf16: multiply matrices in bfloat16; weights, sums, loss and optimizers stay in float32.
    """

    def __init__(
        self,
        sharded: Sharded,
        dense: torch.optim.Optimizer,
        *,
        ranks: int,
        clip_norm: float | None = None,
        bf16: bool = False,
    ) -> None:
        self.refused = 0
        self._sharded = sharded
        self._dense = dense
        self._rate = DenseRate(dense)
        self._loss = BatchLoss(sharded, ranks, bf16=bf16)
        self._ranks = ranks
        self._clip_norm = clip_norm
        self._buffers = list(dense_tensors(sharded.model)[1].values())
        self._tables = FusedTables(sharded.model, sharded.plan, sharded.optimizers)
        self._learned = DenseState(dense, sharded.dense_parameters())
        self._norm: Tensor | None = None

    tables = None

    @property
    def seen(self) -> Seen:
        assert self._loss.seen is not None
        return replace(self._loss.seen, gradient_norm=self._norm)

    def __call__(
        self, batch: Batch, meanwhile: Callable[[], None] = nothing, phase: Callable[[str], None] = unheard
    ) -> Tensor:
        self._loss.seen = None
        phase("second_pass")
        before = [buffer.clone() for buffer in self._buffers]
        self._tables.begin()
        value = self._loss(batch)
        if total((~value.detach().isfinite()).float()):
            self._refuse(before)
            meanwhile()
            return value.detach() / self._ranks
        self._dense.zero_grad()
        torch.autograd.backward(value)
        meanwhile()
        phase("optimizer")
        if self._clip_norm is not None:
            parameters = self._sharded.dense_parameters().values()
            self._norm = torch.nn.utils.clip_grad_norm_(parameters, self._clip_norm)
        self._dense.step()
        self._tables.steps += 1
        return value.detach() / self._ranks

    def _refuse(self, before: Sequence[Tensor]) -> None:
        for buffer, was in zip(self._buffers, before, strict=True):
            buffer.copy_(was)
        self.refused += 1

    def set_lr(self, factor: float) -> None:
        self._rate.set(factor)
        self._sharded.set_table_lr(factor)

    def most_frequent(self) -> dict[str, tuple[int, int]]:
        return {}

    def state_dict(self) -> State:
        return {**self._tables.state_dict(), **self._learned.state_dict()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        check_all(self.state_dict(), state)  # before any part is copied
        self._tables.load_state_dict(_below(OPTIM, state))
        self._learned.load_state_dict(_below(DENSE_OPTIM, state))


class RowStep:
    """Engine rows: one pass or two, tables and dense parameters in the end.

    Args:
        rows: takes the step, given the loss.
        every: the first pass sees every so-manieth sample of the global batch.
        bf16: multiply matrices in bfloat16, in both passes.
    """

    def __init__(
        self,
        sharded: Sharded,
        dense: torch.optim.Optimizer,
        rows: RowsStep,
        *,
        ranks: int,
        every: int = 1,
        bf16: bool = False,
    ) -> None:
        self._rows = rows
        self._rate = DenseRate(dense)
        self._loss = BatchLoss(sharded, ranks, bf16=bf16)
        self._ranks = ranks
        self._every = every
        self._learned = DenseState(dense, sharded.dense_parameters())

    @property
    def refused(self) -> int:
        return self._rows.refused

    @property
    def seen(self) -> Seen:
        assert self._loss.seen is not None
        return replace(self._loss.seen, gradient_norm=self._rows.gradient_norm)

    @property
    def tables(self) -> RowTables:
        return self._rows.tables

    def __call__(
        self, batch: Batch, meanwhile: Callable[[], None] = nothing, phase: Callable[[str], None] = unheard
    ) -> Tensor:
        self._loss.seen = None
        if self._every == 1:
            value = self._rows(lambda: self._loss(batch), None, meanwhile, phase)
        else:
            self._rows.tables.arrive(batch.sparse)
            share = batch.every(self._every)
            value = self._rows(lambda: self._loss(batch), lambda: self._loss(share), meanwhile, phase)
        return value / self._ranks

    def set_lr(self, factor: float) -> None:
        self._rate.set(factor)
        self._rows.tables.set_lr(factor)

    def most_frequent(self) -> dict[str, tuple[int, int]]:
        return self._rows.tables.most_frequent()

    def state_dict(self) -> State:
        return {**learning_state(self._rows.tables), **self._learned.state_dict()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        check_all(self.state_dict(), state)  # before any part is copied
        load_learning(self._rows.tables, _below(OPTIM, state))
        self._learned.load_state_dict(_below(DENSE_OPTIM, state))


def _below(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {name: value for name, value in state.items() if name.startswith(prefix)}
