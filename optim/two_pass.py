"""What Helen, SAM and ASAM share: one step of two passes, and the state that outlives it.

One process, plain torch, no speed: this is the oracle of the row kernels and of the sharded engine. A rule
(helen.py, sam.py) only says how far every parameter goes uphill; here stands how it gets there and back.

tables.py says what is counted, bases.py how rows step.
"""

# D = columns of a table, k = its touched rows, u = their number

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparta.optim.bases import check, descend, first_state
from sparta.optim.passes import Passes
from sparta.optim.tables import Table, embeddings, note_lookups

DenseOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""Makes the optimizer of the parameters that are in no table: `partial(torch.optim.Adam, lr=1e-3)`."""


class TwoPass(torch.optim.Optimizer):
    """Ascends, finds the gradient there, restores, and lets a base optimizer step from where it was.

    `ascend`, `restore` and `step` for loops that run the two passes themselves; `first_step` and `second_step`
    are the same in the words of the published API. `step(closure)` does all of it.

    Args:
        model: its tables are counted and stepped here, all else by `dense`.
        settings: of every table: base (bases.BASES), lr, betas, eps, weight_decay
            (coupled; dense_adam only), ascend (false leaves a table out of the first pass), and the rule's.
        tables: settings that single tables have otherwise, by table name.
        dense: makes the optimizer of the dense parameters; its param groups stand behind the tables'.
        perturb_dense: whether the dense parameters ascend too.
        ascend_every: `step(closure)` ascends when the number of the step, from 1, divides by it.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: Mapping[str, Any],
        *,
        tables: Mapping[str, Mapping[str, Any]] | None,
        dense: DenseOptimizer,
        perturb_dense: bool,
        ascend_every: int,
    ) -> None:
        if ascend_every < 1:
            raise ValueError(f"ascend_every {ascend_every} is below 1; 1 ascends in every step")
        modules = embeddings(model)
        names = {weight: name.removesuffix(".weight") for name, weight in model.named_parameters()}
        own = dict(tables or {})
        for name in sorted(set(own) - {names[weight] for weight in modules}):
            there = ", ".join(names[weight] for weight in modules)
            raise ValueError(f"tables: no table {name!r} in the model; there are {there}")
        groups = []
        for weight in modules:
            one = {**settings, **own.get(names[weight], {})}
            check(names[weight], one, known=settings)
            groups.append({"params": [weight], "name": names[weight], **one})
        self.model = model
        self.perturb_dense = perturb_dense
        self.ascend_every = ascend_every
        self.t = 0
        """Steps taken; a refused one is none."""
        self.refused = 0
        """Steps left out because a loss or a gradient was not finite."""
        self._complete = False
        super().__init__(groups, {})
        self._complete = True
        self._table_groups = list(self.param_groups)
        self.tables = {}
        """By name."""
        for weight, group in zip(modules, self._table_groups, strict=True):
            table = self.tables[group["name"]] = Table(group["name"], weight, group, self.state[weight])
            table.state.update(first_state(table))
            note_lookups(table, modules[weight])
        self.dense_parameters = {
            name: p for name, p in model.named_parameters() if p.requires_grad and p not in modules
        }
        self.dense = dense(list(self.dense_parameters.values())) if self.dense_parameters else None
        self.param_groups += self.dense.param_groups if self.dense else []
        self.dense_in_first_pass = perturb_dense
        """Whether the first pass has to find the dense parameters' gradients."""
        self._saved: list[tuple[nn.Parameter, Tensor | slice, Tensor]] = []
        self._finite = True
        self._asked_uphill = False

    # --- what a rule says ----------------------------------------------------------------------------------

    def epsilons(self) -> dict[nn.Parameter, Tensor]:
        """How far to go from w: (u, D) for each table that ascends, the whole of a dense parameter."""
        raise NotImplementedError

    def commit(self) -> None:
        """Keep what the rule learnt in a step that was taken."""

    def forget(self) -> None:
        """Begin the next step: nothing is looked up yet, all is finite."""
        self._finite = True
        self._asked_uphill = False
        for table in self.tables.values():
            table.forget()

    def step_dense(self) -> None:
        """Step what is in no table."""
        if self.dense is not None:
            self.dense.step()

    def ascending(self) -> list[Table]:
        """The tables that are not left out of the first pass."""
        return [table for table in self.tables.values() if table.settings["ascend"]]

    # --- one step ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def ascend(self) -> None:
        """After the first backward pass: save w, go to w + epsilon."""
        if self._saved:
            raise RuntimeError("ascend: the weights are uphill already; restore or step first")
        self._asked_uphill = True
        self._examine()
        if not self._finite:
            return
        touched = {table.weight: table.k for table in self.tables.values()}
        for parameter, epsilon in self.epsilons().items():
            rows = touched.get(parameter)
            where = slice(None) if rows is None else rows
            before = parameter[where].clone()
            self._saved.append((parameter, where, before))
            parameter[where] = before + epsilon.to(before.dtype)

    @torch.no_grad()
    def restore(self) -> None:
        """Back to the saved w, bit for bit."""
        for parameter, where, before in self._saved:
            parameter[where] = before
        self._saved = []

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Restore w if need be and step from it with the gradients that are there; with a closure, all of a step.

        Args:
            closure: computes the loss of one batch, calls backward and returns the loss; runs once or twice,
                with the same dropout masks. Batch norm's running averages are the first run's.

        Returns:
            The loss at w, detached; None without a closure.

        Raises:
            RuntimeError: no closure, and nobody went uphill first; or the closure found no gradient.
        """
        if closure is None:
            if self._is_due() and not self._asked_uphill:
                raise RuntimeError(
                    "step: nobody went uphill, the gradient is that at w; give step a closure, or call first_step "
                    "before and find the gradient again (second_step alone is a plain step)"
                )
            self._descend()
            return None
        t, buffers = self.t, [(buffer, buffer.clone()) for buffer in self.model.buffers()]
        first = None
        self.forget()
        try:
            with Passes(self.model) as passes:
                if self._is_due():
                    with passes.first(), self._without_unused_gradients():
                        first = self._backward(closure)
                    self.ascend()
                with passes.second(averages=first is None):
                    last = self._backward(closure)
            self._descend()
        finally:  # refused steps end here too, and closures that raise
            self.restore()
            self.forget()
            if self.t == t:
                for buffer, before in buffers:
                    buffer.copy_(before)
        return last if first is None else first

    def first_step(self, zero_grad: bool = False) -> None:
        """`ascend`."""
        self.ascend()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """`restore` and `step`; without a `first_step` before it a plain step."""
        self._descend()
        if zero_grad:
            self.zero_grad()

    # --- inside --------------------------------------------------------------------------------------------

    def _is_due(self) -> bool:
        """Whether this step ascends."""
        ascends = self.perturb_dense or bool(self.ascending())
        return ascends and (self.t + 1) % self.ascend_every == 0

    def _backward(self, closure: Callable[[], Any]) -> Tensor:
        self.zero_grad()
        with torch.enable_grad():
            loss = torch.as_tensor(closure()).detach()
        if all(p.grad is None for group in self.param_groups for p in group["params"]):
            raise RuntimeError(
                "step: the closure found no gradient; let it call backward on the loss it returns"
            )
        self._finite = self._finite and bool(loss.isfinite().all())
        return loss

    @contextmanager
    def _without_unused_gradients(self) -> Iterator[None]:
        """The first pass needs no gradient of dense weights that do not ascend."""
        unused = [] if self.dense_in_first_pass else list(self.dense_parameters.values())
        for parameter in unused:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in unused:
                parameter.requires_grad_(True)

    def _examine(self) -> None:
        """Close the counting, and look at the gradients that are there."""
        for table in self.tables.values():
            table.count()
            table.g = table.gradient()
        self._finite = self._finite and self._gradients_are_finite()

    def _descend(self) -> None:
        self.restore()
        self._examine()
        if self._finite:
            self.t += 1
            for table in self.tables.values():
                descend(table, table.g, self.t)
            self.step_dense()
            self.commit()
        else:
            self.refused += 1
        self.forget()

    def _gradients_are_finite(self) -> bool:
        # Of a table those of its touched rows, for no other has one.
        grads = [table.g for table in self.tables.values()]
        grads += [h.grad for h in self.dense_parameters.values() if h.grad is not None]
        return all(bool(grad.isfinite().all()) for grad in grads)

    # --- for checkpoints -----------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refused: the constructor has seen the whole model."""
        if self._complete:
            raise ValueError(
                "add_param_group: the tables are those of the model; make a new optimizer for a new one"
            )
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """Steps, settings and state by table name, and the dense optimizer's own."""
        return {
            "t": self.t,
            "settings": {
                name: {key: value for key, value in table.settings.items() if key != "params"}
                for name, table in self.tables.items()
            },
            "tables": {name: dict(table.state) for name, table in self.tables.items()},
            "dense": None if self.dense is None else self.dense.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave; nothing changes if it does not fit.

        Raises:
            ValueError: other tables, other state, or other shapes.
        """
        saved = state_dict["tables"]
        if set(saved) != set(self.tables):
            raise ValueError(f"the state is of tables {sorted(saved)}, the model has {sorted(self.tables)}")
        for name, table in self.tables.items():
            for key in sorted(set(saved[name]) ^ set(table.state)):
                raise ValueError(
                    f"table {name}: {key!r} is in only one of the saved state and this optimizer's"
                )
            for key, value in saved[name].items():
                if torch.is_tensor(value) and value.shape != table.state[key].shape:
                    there, here = tuple(value.shape), tuple(table.state[key].shape)
                    raise ValueError(f"table {name}: {key} was saved with shape {there}, here it has {here}")
        if (state_dict["dense"] is None) != (self.dense is None):
            raise ValueError("dense parameters are in only one of the saved state and the model")
        if self.dense is not None:
            self.dense.load_state_dict(state_dict["dense"])
            self.param_groups = [*self._table_groups, *self.dense.param_groups]
        self.t = state_dict["t"]
        for name, table in self.tables.items():
            table.settings.update(state_dict["settings"][name])
            for key, value in saved[name].items():
                if torch.is_tensor(value):
                    table.state[key].copy_(value)
                else:
                    table.state[key] = value


def direction(gradient: Tensor, norm: Tensor) -> Tensor:
    """`gradient / norm` in float64, exactly 0 where the norm is 0."""
    return torch.where(norm == 0, 0.0, gradient.double() / norm)


def norm_of(gradients: Sequence[Tensor]) -> Tensor:
    """ONE 2-norm over all of them, a float64 scalar."""
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), dtype=torch.float64)
