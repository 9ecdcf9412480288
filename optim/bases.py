"""The base optimizers of a table's rows, as helen.md's formulas; `t` is the global step, from 1.

`sgd`, `adam`, `nadam`, `radam` and `rowwise_adagrad` move touched rows and their state only, with a zero gradient
too. Adam's bias correction, NAdam's momentum schedule and RAdam's rectification are by the global step, as
SparseAdam's, so a row that Adam first sees late moves up to 3.2 lr. Where every row is touched in every step they are
torch.optim.NAdam (Dozat, ICLR 2016 workshop) and torch.optim.RAdam (Liu et al., ICLR 2020).
`dense_adam` is torch.optim.Adam, which moves every row of a table that has a gradient, with coupled L2 on the whole
table: the only base that has that penalty, for what the absent rows would owe depends on their moments.
"""

# R = rows, D = columns, k = touched rows, u = their number

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

from sparta.optim.tables import Table

BASES = ("sgd", "adam", "nadam", "radam", "dense_adam", "rowwise_adagrad")
MOMENTS = ("adam", "nadam", "radam", "dense_adam")
"""Those that keep Adam's two."""
MOMENTUM_DECAY = 4e-3
"""Of NAdam's schedule."""


def first_state(table: Table) -> dict[str, Tensor]:
    """What the base of a table keeps, before the first step."""
    w = table.weight.detach()
    base = table.settings["base"]
    if base in MOMENTS:
        return {"exp_avg": torch.zeros_like(w), "exp_avg_sq": torch.zeros_like(w)}
    return {"sum": w.new_zeros(len(w))} if base == "rowwise_adagrad" else {}


def descend(table: Table, g_k: Tensor, t: int) -> None:
    """One step of a table's base optimizer from its weight as it is.

    Args:
        g_k: (u, D) gradient of the touched rows.
    """
    w, k, base = table.weight, table.k, table.settings
    assert k is not None
    lr, eps = base["lr"], base["eps"]
    match base["base"]:
        case "sgd":
            w[k] -= lr * g_k
        case "rowwise_adagrad":
            acc = table.state["sum"]
            acc[k] += g_k.square().mean(dim=1)
            w[k] -= lr * g_k / (acc[k].sqrt() + eps)[:, None]
        case "dense_adam" if w.grad is not None:
            adam(
                [w],
                [w.grad.to_dense()],
                [table.state["exp_avg"]],
                [table.state["exp_avg_sq"]],
                max_exp_avg_sqs=[],
                state_steps=[torch.tensor(float(t - 1))],  # it counts this step itself
                foreach=False,
                amsgrad=False,
                maximize=False,
                lr=lr,
                eps=eps,
                beta1=base["betas"][0],
                beta2=base["betas"][1],
                weight_decay=base["weight_decay"],
            )
        case "adam" | "nadam" | "radam":
            _by_moments(table, k, g_k, t)


def _by_moments(table: Table, k: Tensor, g: Tensor, t: int) -> None:
    lr, eps, (beta1, beta2) = (table.settings[key] for key in ("lr", "eps", "betas"))
    m, v = table.state["exp_avg"], table.state["exp_avg_sq"]
    m[k] = beta1 * m[k] + (1 - beta1) * g
    v[k] = beta2 * v[k] + (1 - beta2) * g.square()
    m_hat, v_hat = m[k] / (1 - beta1**t), v[k] / (1 - beta2**t)
    match table.settings["base"]:
        case "nadam":
            ahead, now = nadam_product(beta1, t + 1), nadam_product(beta1, t)
            m_hat = nadam_mu(beta1, t + 1) * m[k] / (1 - ahead) + (1 - nadam_mu(beta1, t)) * g / (1 - now)
        case "radam":
            r = rectification(beta2, t)
            table.weight[k] -= lr * m_hat * (r / (v_hat.sqrt() + eps / math.sqrt(1 - beta2**t)) if r else 1)
            return
    table.weight[k] -= lr * m_hat / (v_hat.sqrt() + eps)


def nadam_mu(beta1: float, t: int) -> float:
    """NAdam's momentum of a step."""
    return beta1 * (1 - 0.5 * math.pow(0.96, t * MOMENTUM_DECAY))


def nadam_product(beta1: float, t: int) -> float:
    """The product of NAdam's momenta of steps 1 to t, 0 once 1 minus it is 1 in float64 by far."""
    product = 1.0
    for step in range(1, t + 1):
        product *= nadam_mu(beta1, step)
        if product < 2.0**-60:
            return 0.0
    return product


def rectification(beta2: float, t: int) -> float:
    """RAdam's r of a step; 0 where the variance is not to be told yet, so that the step is the momentum's alone."""
    rho_inf = 2 / (1 - beta2) - 1
    rho_t = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
    if rho_t <= 5:
        return 0.0
    return math.sqrt((rho_t - 4) * (rho_t - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho_t))


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
