"""Helen: every row steps by the gradient at a worst-case point whose distance grows with the row's frequency.

Source: Zhu et al., "Helen: Optimizing CTR Prediction Models with Frequency-wise Hessian Eigenvalue
Regularization", WWW 2024 (arXiv 2403.00798), equations 6-10 and Algorithm 1. Frequent rows have the sharpest
loss (the paper's finding), so they go furthest; the bound xi keeps rare rows from losing the ascent altogether.

    optimizer = Helen(model, lr=1e-3)
    for ids, labels in batches:

        def closure():
            loss = bce(model(ids), labels)
            loss.backward()
            return loss

        loss = optimizer.step(closure)

The authors' published code computes something else (`variant="authors"`): counts of the batch alone, a norm
over the whole table, and below, the lines that say so. This is the oracle of the sharded engine.
"""

# D = columns, k = touched rows of table j, u = their number, h = parameters that are in no table

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparta.optim.bases import is_number
from sparta.optim.tables import Table
from sparta.optim.two_pass import DenseOptimizer, TwoPass, direction, norm_of

Frequency = Literal["cumulative", "batch", "dataset"]
Norm = Literal["row", "table"]
Base = Literal["adam", "nadam", "radam", "dense_adam", "rowwise_adagrad", "sgd"]

_PAPER = {"frequency": "cumulative", "norm": "row", "base": "adam"}
_AUTHORS = {"frequency": "batch", "norm": "table", "base": "dense_adam"}


class Helen(TwoPass):
    """Helen for a model with nn.Embedding or nn.EmbeddingBag tables, in one process.

    Args:
        model: all its parameters are stepped.
        lr: of the tables, and of the dense parameters unless `dense` says otherwise.
        rho: radius of the ascent.
        xi: lower bound of a row's share of the radius; from 1 up it is a uniform radius.
        frequency: occurrences counted since training began ("cumulative", the default), in this "batch", or in
            the training set ("dataset").
        counts: (rows,) occurrences in the training set by table name, for "dataset".
        count_missing: whether id 0 may be the table's most frequent.
        norm: a "row"'s own gradient (the default) or the whole "table"'s is brought to length 1.
        base: what steps the tables: "adam" (the default), "nadam", "radam", "rowwise_adagrad" or "sgd" touched rows
            only, "dense_adam" all.
        betas, eps: the base's. weight_decay: of dense_adam, coupled.
        perturb_dense: let the dense parameters ascend too, under one norm.
        dense: makes their optimizer; Adam by default.
        tables: settings that single tables have otherwise, by name; {"ascend": False} leaves a table out.
        ascend_every: ascend in every so-manieth step only.
        variant: "authors" is the published class, whose frequency, norm and base cannot be chosen; its defaults
            are rho=0.05, xi=0.3, perturb_dense=True.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        lr: float = 1e-3,
        rho: float = 0.01,
        xi: float = 0.5,
        frequency: Frequency | None = None,
        counts: Mapping[str, Tensor] | None = None,
        count_missing: bool = True,
        norm: Norm | None = None,
        base: Base | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        perturb_dense: bool = False,
        dense: DenseOptimizer | None = None,
        tables: Mapping[str, Mapping[str, Any]] | None = None,
        ascend_every: int = 1,
        variant: Literal["paper", "authors"] = "paper",
    ) -> None:
        if variant not in ("paper", "authors"):
            raise ValueError(f"variant {variant!r}; use paper or authors")
        chosen = {"frequency": frequency, "norm": norm, "base": base}
        chosen = {key: value for key, value in chosen.items() if value is not None}
        if variant == "authors":
            for one in (chosen, *(tables or {}).values()):
                for key in sorted(set(one) & set(_AUTHORS)):
                    raise ValueError(
                        f"{key} {one[key]!r}: variant authors has {_AUTHORS[key]!r}; leave it out"
                    )
        settings = {
            "lr": lr,
            "rho": rho,
            "xi": xi,
            **(_PAPER if variant == "paper" else _AUTHORS),
            **chosen,
            "count_missing": count_missing,
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
        self.variant = variant
        self.rho = rho
        self.dense_in_first_pass = perturb_dense or variant == "authors"
        self._g1_h: dict[nn.Parameter, Tensor] = {}
        for table in self.tables.values():
            self._start_counts(table, counts or {})

    def epsilons(self) -> dict[nn.Parameter, Tensor]:
        """Algorithm 1's epsilon, of touched rows and of h; the published code's for `variant="authors"`."""
        epsilon, norm_j = {}, torch.zeros(())
        for table in self.ascending():
            g_k, rho_k = table.g, table.settings["rho"] * self.share(table)[:, None]
            if self.variant == "authors":
                norm_j = norm_of([g_k])
                epsilon[table.weight] = rho_k * g_k / (norm_j + 1e-12)
            elif table.settings["norm"] == "table":
                epsilon[table.weight] = rho_k * direction(g_k, norm_of([g_k]))
            else:
                norm_k = torch.linalg.vector_norm(g_k, dim=1, keepdim=True, dtype=torch.float64)
                epsilon[table.weight] = rho_k * direction(g_k, norm_k)  # Eq. 8
        g_h = {h: h.grad for h in self.dense_parameters.values() if h.grad is not None}
        if self.perturb_dense:
            norm_h = norm_of(list(g_h.values()))
            for h, g in g_h.items():
                # The published code divides by the norm of the table it came to last.
                epsilon[h] = (
                    self.rho * g / (norm_j + 1e-12)
                    if self.variant == "authors"
                    else self.rho * direction(g, norm_h)
                )
        elif self.variant == "authors":
            # Without net_pert it also steps h by the first pass's gradient.
            self._g1_h = {h: g.clone() for h, g in g_h.items()}
        return epsilon

    def share(self, table: Table) -> Tensor:
        """(u,) float64: max(N_jk / N*_j, xi), each touched row's share of the radius."""
        N_k, N_star = self.frequencies(table)
        # Only an id 0 that may not set N* can have more than it.
        share_k = (N_k.double() / max(N_star, 1)).clamp(max=1.0)
        return share_k.clamp(min=table.settings["xi"])

    def frequencies(self, table: Table) -> tuple[Tensor, int]:
        """N_jk of the touched rows, (u,) int64, and N*_j over the whole table, this batch included."""
        assert table.k is not None
        assert table.c is not None
        match table.settings["frequency"]:
            case "batch":
                N_k, N_star = table.c, 0
            case "cumulative":
                N_k, N_star = table.state["N"][table.k] + table.c, table.state["N_star"]
            case _:
                N_k, N_star = table.state["N"][table.k], table.state["N_star"]
        setting = N_k if table.settings["count_missing"] else N_k[table.k != 0]
        return N_k, max(N_star, largest(setting))

    def commit(self) -> None:
        """Keep the counts of a step that was taken."""
        for table in self.tables.values():
            if table.settings["frequency"] == "cumulative":
                table.state["N"][table.k], table.state["N_star"] = self.frequencies(table)

    def step_dense(self) -> None:
        for h, g1 in self._g1_h.items():
            h.grad = g1
        super().step_dense()

    def forget(self) -> None:
        self._g1_h = {}
        super().forget()

    def _start_counts(self, table: Table, counts: Mapping[str, Tensor]) -> None:
        """Make the state that frequencies need, and check the settings that only Helen knows."""
        name, rows, frequency = table.name, len(table.weight), table.settings["frequency"]
        if table.settings["norm"] not in ("row", "table"):
            raise ValueError(f"table {name}: no norm {table.settings['norm']!r}; use row or table")
        if frequency not in ("cumulative", "batch", "dataset"):
            raise ValueError(f"table {name}: no frequency {frequency!r}; use cumulative, batch or dataset")
        if not is_number(table.settings["xi"]):
            raise ValueError(f"table {name}: xi {table.settings['xi']!r} is not a number from 0 up")
        if frequency == "batch":
            return
        N = torch.zeros(rows, dtype=torch.int64, device=table.weight.device)
        if frequency == "dataset":
            if name not in counts or counts[name].shape != (rows,):
                raise ValueError(
                    f"counts: table {name} with frequency dataset needs {rows} occurrences, one a row"
                )
            N.copy_(counts[name])
        setting = N if table.settings["count_missing"] else N[1:]
        table.state["N"], table.state["N_star"] = N, largest(setting)


def largest(N: Tensor) -> int:
    """The largest of some counts, 0 of none."""
    return int(N.max()) if len(N) else 0
