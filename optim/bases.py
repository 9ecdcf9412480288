"""The base optimizers of a table's rows, as helen.md's formulas; `t` is the global step, from 1.

`sgd`, `adam` and `rowwise_adagrad` move touched rows and their state only, with a zero gradient too. Adam's
bias correction is by the global step, as SparseAdam's, so a row first seen late moves up to 3.2 lr.
`dense_adam` is torch.optim.Adam, which moves every row of a table that has a gradient, with coupled L2.
"""

# R = rows, D = columns, k = touched rows, u = their number

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sparta.optim.tables import Table

BASES = ("sgd", "adam", "dense_adam", "rowwise_adagrad")


def first_state(table: Table) -> dict[str, Tensor]:
    """What the base of a table keeps, before the first step."""
    w = table.weight.detach()
    match table.settings["base"]:
        case "adam" | "dense_adam":
            return {"exp_avg": torch.zeros_like(w), "exp_avg_sq": torch.zeros_like(w)}
        case "rowwise_adagrad":
            return {"sum": w.new_zeros(len(w))}
        case _:
            return {}


def descend(table: Table, g_k: Tensor, t: int) -> None:
    """One step of a table's base optimizer from its weight as it is.

    Args:
        g_k: (u, D) gradient of the touched rows.
    """
    w, k, base = table.weight, table.k, table.settings
    assert k is not None
    lr, eps, (beta1, beta2) = base["lr"], base["eps"], base["betas"]
    match base["base"]:
        case "sgd":
            w[k] -= lr * g_k
        case "rowwise_adagrad":
            acc = table.state["sum"]
            acc[k] += g_k.square().mean(dim=1)
            w[k] -= lr * g_k / (acc[k].sqrt() + eps)[:, None]
        case "adam":
            _adam(table, k, g_k, t, lr=lr, beta1=beta1, beta2=beta2, eps=eps)
        case "dense_adam" if w.grad is not None:
            g = w.grad.to_dense() + base["weight_decay"] * w
            _adam(
                table, torch.arange(len(w), device=w.device), g, t, lr=lr, beta1=beta1, beta2=beta2, eps=eps
            )


def _adam(
    table: Table, k: Tensor, g: Tensor, t: int, *, lr: float, beta1: float, beta2: float, eps: float
) -> None:
    m, v = table.state["exp_avg"], table.state["exp_avg_sq"]
    m[k] = beta1 * m[k] + (1 - beta1) * g
    v[k] = beta2 * v[k] + (1 - beta2) * g.square()
    m_hat, v_hat = m[k] / (1 - beta1**t), v[k] / (1 - beta2**t)
    table.weight[k] -= lr * m_hat / (v_hat.sqrt() + eps)


def check(name: str, settings: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse what no base could step by, or no rule knows.

    Raises:
        ValueError: an unknown setting or base, a number out of its range.
    """
    for key in sorted(set(settings) - set(known)):
        raise ValueError(f"table {name}: unknown setting {key!r}; known: {', '.join(known)}")
    if settings["base"] not in BASES:
        raise ValueError(f"table {name}: no base {settings['base']!r}; use {', '.join(BASES)}")
    for key in ("lr", "eps", "weight_decay", "rho"):
        if not is_number(settings[key]):
            raise ValueError(f"table {name}: {key} {settings[key]!r} is not a number from 0 up")
    for beta in settings["betas"]:
        if not 0 <= beta < 1:
            raise ValueError(f"table {name}: betas {settings['betas']} are not in [0, 1)")
    if settings["eps"] == 0 and settings["base"] != "sgd":
        raise ValueError(f"table {name}: eps 0; a row whose gradient is 0 would be divided by it")
    if settings["weight_decay"] and settings["base"] != "dense_adam":
        raise ValueError(
            f"table {name}: weight_decay moves every row, which base {settings['base']} does not; use dense_adam"
        )


def is_number(value: object) -> bool:
    """Whether it is a finite number from 0 up."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf
