"""One optimizer step on a model whose tables the rows engine steps: one pass, or two.

The first pass finds the gradient at w, by which the rows (and, if asked for, the dense parameters) move uphill
to w + epsilon; the second finds the gradient there, and from the restored w the base optimizers step with it.
Samples, ids and dropout masks of the two passes are the same. The loss reported, and batch norm's running
averages, are those of the first pass, unless that saw a share of the batch only. Where a loss or a gradient is
not finite on any rank, nothing changes on any of them.

Source: Zhu et al., WWW 2024, Algorithm 1; sparta.optim.Helen is the one-process oracle.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sparta.models.errors import ConfigError
from sparta.optim.bases import is_number
from sparta.optim.passes import Passes
from sparta.sharding.rows.dense import DenseAscent, follow
from sparta.sharding.rows.tables import RowTables
from sparta.sharding.state import dense_tensors

Precision = Literal["fp32", "bf16"]


class RowsStep:
    """Trains the tables and the dense parameters of one model.

    Args:
        module: the sharded model.
        dense: optimizer of everything that is not in a table; None if nothing is.
        perturb_dense: the dense parameters ascend too, all under one norm. Beside SAM's and ASAM's tables they
            always do.
        rho: the dense radius; by default that of the tables of the same rule.
        eta: ASAM's constant for the dense part, likewise.
        ascend_every: ascend in steps whose number divides by it; the other steps are plain.
        ascend_precision: what the first pass's matrices are multiplied in, `torch.autocast` for bf16. It gives
            the rows a direction only, and the loss reported.
        clip_norm: largest 2-norm of the whole dense gradient, None for no limit.

    Raises:
        ConfigError: one of these is not what it can be, or the tables say different things about the dense part.
    """

    def __init__(
        self,
        module: nn.Module,
        dense: torch.optim.Optimizer | None,
        *,
        perturb_dense: bool = False,
        rho: float | None = None,
        eta: float | None = None,
        ascend_every: int = 1,
        ascend_precision: Precision = "fp32",
        clip_norm: float | None = None,
    ) -> None:
        for key, value, known in (
            ("perturb_dense", perturb_dense, (True, False)),
            ("ascend_precision", ascend_precision, get_args(Precision)),
        ):
            if value not in known:
                raise ConfigError(f"{key} {value!r}; use {' or '.join(map(repr, known))}")
        if not isinstance(ascend_every, int) or ascend_every < 1:
            raise ConfigError(f"ascend_every {ascend_every!r}; it is a whole number from 1 on")
        for key, number in (("rho", rho), ("eta", eta), ("clip_norm", clip_norm)):
            if number is not None and not is_number(number):
                raise ConfigError(f"{key} {number!r} is not a number from 0 up")
        self.tables = RowTables(module)
        self.refused = 0
        """Steps left out because something was not finite."""
        self.gradient_norm: Tensor | None = None
        """2-norm of the last dense gradient, before it was clipped."""
        self._passes = Passes(module)
        self._optimizer = dense
        parameters, buffers = dense_tensors(module)
        self._parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        inside = {id(p) for p in [*parameters.values(), *module.parameters()]}
        for group in dense.param_groups if dense else ():  # also what the optimizer has beside the module
            beside = [p for p in group["params"] if id(p) not in inside]
            self._parameters |= {f"beside.{len(self._parameters) + n}": p for n, p in enumerate(beside)}
        self._buffers = list(buffers.values())
        self._wrapped = [child for child in module.modules() if isinstance(child, DistributedDataParallel)]
        # Without dense parameters there is nothing to say about them.
        follows = self.tables.optimizers.values() if self._parameters else ()
        rule, radius, constant = follow(follows, perturb_dense, rho, eta)
        self._dense = DenseAscent(self._parameters, rule, rho=radius, eta=constant)
        self._ascends = bool(self.tables.rules or rule)
        self._every = ascend_every
        self._bf16 = ascend_precision == "bf16"
        self._clip_norm = clip_norm

    def __call__(
        self,
        forward: Callable[[], Tensor],
        share: Callable[[], Tensor] | None = None,
        meanwhile: Callable[[], None] = lambda: None,
        phase: Callable[[str], None] = lambda _: None,
    ) -> Tensor:
        """Take one step; this rank's loss, a detached scalar. Collective.

        Args:
            forward: the loss of this rank's samples, such that the batch's loss is the mean over the ranks.
            share: the same of a share of the samples, for the first pass; the whole batch must have arrived
                (`RowTables.arrive`).
            meanwhile: called when the passes are under way and before anybody waits for their outcome.
            phase: told what begins: ascend, second_pass (the only one, in a plain step), optimizer.
        """
        before = [buffer.clone() for buffer in self._buffers]
        self.tables.begin()
        try:
            return self._step(forward, share, meanwhile, phase, before)
        except BaseException:  # of the model, of an interrupted user: no row may stay where it climbed
            self._undo(before)
            raise

    def _undo(self, before: Sequence[Tensor]) -> None:
        """Leave everything as it was; not collective."""
        self._dense.restore()
        for buffer, was in zip(self._buffers, before, strict=True):
            buffer.copy_(was)
        self.tables.refuse()

    def _step(
        self,
        forward: Callable[[], Tensor],
        share: Callable[[], Tensor] | None,
        meanwhile: Callable[[], None],
        phase: Callable[[str], None],
        before: Sequence[Tensor],
    ) -> Tensor:
        finite = torch.ones((), dtype=torch.bool, device=self.tables.device)
        ascending = self._ascends and (self.tables.steps + 1) % self._every == 0
        with self._passes as passes:
            if ascending:
                phase("ascend")
                with passes.first(averages=share is None):
                    first, finite = self._ascend(share or forward, whole=share is not None)
            phase("second_pass")
            with passes.second(averages=not ascending or share is not None):
                last = self._backward(forward, tables_only=False)
        if not ascending:
            self.tables.count(whole=False)
        found = self.tables.reduce(ascending=False)
        gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        finite = finite & last.isfinite() & norm.isfinite() & self.tables.finite(found)
        self._dense.restore()
        meanwhile()
        phase("optimizer")
        self.gradient_norm = norm
        if self.tables.agree(finite):
            if self._clip_norm is not None:
                torch.nn.utils.clip_grads_with_norm_(list(self._parameters.values()), self._clip_norm, norm)
            if self._optimizer is not None:
                self._optimizer.step()
            self.tables.step(found)
        else:
            self._undo(before)
            self.refused += 1
        return first if ascending and share is None else last

    def _ascend(self, forward: Callable[[], Tensor], *, whole: bool) -> tuple[Tensor, Tensor]:
        """Pass 1 and what follows from it: (loss, whether all was finite)."""

        def cheap() -> Tensor:
            # A context of the caller's own stays as it is.
            kind = self.tables.device.type
            with torch.autocast(kind, torch.bfloat16) if self._bf16 else nullcontext():
                return forward()

        loss = self._backward(cheap, tables_only=self._dense.rule is None)
        self.tables.count(whole=whole)
        passes = self.tables.reduce(ascending=True)
        finite = loss.isfinite() & self.tables.finite(passes)
        if self._dense.rule is None:
            self.tables.perturb(passes, {})
        else:
            square = self._dense.square()
            finite &= square.isfinite()
            shared = self.tables.perturb(passes, {self._dense.rule: square})
            self._dense.perturb(shared.get(self._dense.rule, square.sqrt()))
        return loss, finite

    def _backward(self, forward: Callable[[], Tensor], *, tables_only: bool) -> Tensor:
        if tables_only:
            with self._without_dense_gradients():
                loss = forward()
                torch.autograd.backward(loss, inputs=self.tables.leaves())
        else:
            for parameter in self._parameters.values():
                parameter.grad = None
            loss = forward()
            torch.autograd.backward(loss)
        return loss.detach()

    @contextmanager
    def _without_dense_gradients(self) -> Iterator[None]:
        """Keep DistributedDataParallel from waiting for gradients that nobody computes."""
        static = [wrapped.static_graph for wrapped in self._wrapped]
        with ExitStack() as stack:
            for wrapped in self._wrapped:
                # The graph it takes for static is that of the other passes, and no_sync does not switch that off.
                wrapped.static_graph = False
                stack.enter_context(wrapped.no_sync())
            try:
                yield
            finally:
                for wrapped, was in zip(self._wrapped, static, strict=True):
                    wrapped.static_graph = was
