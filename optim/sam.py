"""SAM and ASAM: every parameter steps by the gradient at the worst point of one ball around all of them.

Sources: Foret et al., "Sharpness-Aware Minimization", ICLR 2021 (arXiv 2010.01412); Kwon et al., "ASAM",
ICML 2021 (arXiv 2102.11600). Unlike the originals the rows of tables step lazily (bases.py): an untouched row
has no gradient, so it neither ascends nor moves. Both are used as Helen is (helen.py).
"""

# D = columns, k = touched rows of table j, u = their number, h = parameters that are in no table

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sparta.optim.two_pass import DenseOptimizer, TwoPass, direction, norm_of


class SAM(TwoPass):
    """`epsilon = rho g / ||g||`, ONE norm over all tables that ascend and the dense parameters.

    Args:
        model: all its parameters are stepped.
        lr: of the tables, and of the dense parameters unless `dense` says otherwise.
        rho: radius of the ascent.
        base: what steps the tables, as Helen's.
        betas, eps: the base's. weight_decay: of dense_adam, coupled.
        perturb_dense: false leaves the dense parameters where they are, and out of the norm.
        dense: makes their optimizer; Adam by default.
        tables: settings that single tables have otherwise, by name; {"ascend": False} leaves a table out, and
            out of the norm.
        ascend_every: ascend in every so-manieth step only.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-3,
        rho: float = 0.01,
        base: str = "adam",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        perturb_dense: bool = True,
        dense: DenseOptimizer | None = None,
        tables: Mapping[str, Mapping[str, Any]] | None = None,
        ascend_every: int = 1,
    ) -> None:
        settings = {
            "lr": lr,
            "rho": rho,
            "base": base,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "ascend": True,
        }
        super().__init__(
            model,
            settings,
            tables=tables,
            dense=dense or partial(torch.optim.Adam, lr=lr),
            perturb_dense=perturb_dense,
            ascend_every=ascend_every,
        )
        self.rho = rho

    def epsilons(self) -> dict[nn.Parameter, Tensor]:
        """`rho T^2 g / ||T g||`, where SAM's T is 1."""
        ways: list[tuple[nn.Parameter, float, Tensor, Tensor | float]] = []  # (w, rho, g, T)
        for table in self.ascending():
            w_k = table.weight[table.k]
            ways.append((table.weight, table.settings["rho"], table.g, self.scale(table.name, w_k)))
        if self.perturb_dense:
            for name, h in self.dense_parameters.items():
                if h.grad is not None:
                    ways.append((h, self.rho, h.grad, self.scale(name, h)))
        norm = norm_of([T * g for _, _, g, T in ways])
        return {w: rho * direction(T * T * g, norm) for w, rho, g, T in ways}

    def scale(self, name: str, w: Tensor) -> Tensor | float:
        """T: by how much a parameter's own size stretches the ball."""
        return 1.0


class ASAM(SAM):
    """`epsilon = rho T^2 g / ||T g||` with `T = |w| + eta`; parameters called `bias` are not stretched.

    Args:
        eta: constant beside |w|.
        settings: as SAM's.
    """

    def __init__(self, model: nn.Module, *, eta: float = 0.01, **settings: Any) -> None:
        if not eta >= 0:
            raise ValueError(f"eta {eta} is not a number from 0 up")
        super().__init__(model, **settings)
        self.eta = eta

    def scale(self, name: str, w: Tensor) -> Tensor | float:
        return 1.0 if name.rpartition(".")[2] == "bias" else w.abs() + self.eta
