"""The tables of a plain PyTorch model, and which of their rows a step touches.

A table is a weight that nn.Embedding or nn.EmbeddingBag modules look rows up in; modules that share the weight
share the table. Lookups in training mode, with autograd on, are counted until the first pass is over: every
occurrence counts, a repeat within a bag too, per-sample weights change nothing, and `padding_idx`, which has
no gradient, has no count either. A row is touched when its count is above 0, whatever its gradient.
"""

# R = rows of a table, D = its columns, k = touched rows in ascending order, u = their number

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(eq=False)
class Table:
    """A table, and what the step at hand knows of it."""

    name: str
    """Its weight's first name in the model, without `.weight`."""
    weight: nn.Parameter
    """(R, D)."""
    settings: dict[str, Any]
    """Its param group, which a learning-rate scheduler may change."""
    state: dict[str, Any] = field(default_factory=dict)
    """What outlives a step: moments, accumulators, counts."""
    k: Tensor | None = None
    """(u,) int64; None until the first pass is over."""
    c: Tensor | None = None
    """(u,) int64: occurrences of each touched row, c_jk."""
    g: Tensor = field(init=False)
    """(u, D): what `gradient` found after the last backward pass."""
    looked_up: list[Tensor] = field(default_factory=list)
    """Ids of the first pass."""

    def count(self) -> None:
        """Close the counting of this step, if it is open."""
        if self.k is None:
            none = torch.empty(0, dtype=torch.int64, device=self.weight.device)
            self.k, self.c = torch.unique(torch.cat([none, *self.looked_up]), return_counts=True)

    def forget(self) -> None:
        """Open the counting of the next step."""
        self.k, self.c, self.looked_up = None, None, []

    def gradient(self) -> Tensor:
        """(u, D): the gradient of the touched rows, each summed over its occurrences.

        Raises:
            ValueError: a row has a gradient although nobody looked it up.
        """
        assert self.k is not None
        grad = self.weight.grad
        if grad is None:
            return self.weight.new_zeros(len(self.k), self.weight.shape[1])
        if grad.is_sparse:
            grad = grad.coalesce()
            g, g_k = grad.values(), grad.index_select(0, self.k).to_dense()
        else:
            g, g_k = grad, grad[self.k]
        # A gradient that is not finite, which clipping may have spread over all rows, is refused anyway.
        if g.count_nonzero() != g_k.count_nonzero() and bool(g.isfinite().all()):
            raise ValueError(
                f"table {self.name}: a row has a gradient and no count; look rows up in nn.Embedding or "
                "nn.EmbeddingBag in training mode, use the weight nowhere else, give both passes one batch"
            )
        return g_k


def embeddings(model: nn.Module) -> dict[nn.Parameter, list[nn.Module]]:
    """The modules of each table, in the order of the model.

    Raises:
        ValueError: no table, or one that changes in the forward pass.
    """
    found: dict[nn.Parameter, list[nn.Module]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.weight.requires_grad:
            weight = module.weight
            if not isinstance(weight, nn.Parameter):
                raise ValueError(
                    f"embedding {name}: its weight is computed from others, so it has no rows to step"
                )
            if module.max_norm is not None:
                raise ValueError(
                    f"embedding {name}: max_norm changes rows in the forward pass, so they could not be restored"
                )
            found.setdefault(weight, []).append(module)
    if not found:
        raise ValueError("the model has no nn.Embedding or nn.EmbeddingBag with a weight to train")
    return found


def note_lookups(table: Table, modules: Sequence[nn.Module]) -> None:
    """Have a table hear what its modules look up."""
    ref = weakref.ref(table)  # a model outlives its optimizers

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], _: Tensor) -> None:
        table = ref()
        if table is None or table.k is not None or not (module.training and torch.is_grad_enabled()):
            return
        if module.weight is table.weight:  # a copy of the model has this hook and other weights
            ids = (args[0] if args else kwargs["input"]).detach().reshape(-1).long()
            table.looked_up.append(ids if module.padding_idx is None else ids[ids != module.padding_idx])

    for module in modules:
        module.register_forward_hook(note, with_kwargs=True)
