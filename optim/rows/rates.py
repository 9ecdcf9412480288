"""A step's scalars, made on the host once a step, so that one loop over rows serves all of Adam's kind.

A table of adam, nadam or radam moves by `(a m + b g) / (c sqrt(v) + d)` with m and v the moments after this step:
adam has no b, radam neither, and before its variance is to be told `c = 0, d = 1`.
"""

# T = tables of a group

import math
from functools import lru_cache

import torch
from torch import Tensor

from sparta.optim.bases import nadam_mu, nadam_product, rectification
from sparta.optim.rows.group import BASES, Rates


def packed(rates: Rates, step: int) -> Tensor:
    """(T, 8) float64 on the host: lr, eps, both betas, a, b, c, d; the last four mean nothing without moments.

    Args:
        step: number of this step, from 1.
    """
    tables = zip(
        rates.base.tolist(), rates.lr.tolist(), rates.eps.tolist(), rates.betas.tolist(), strict=True
    )
    rows = []
    for base, lr, eps, (beta1, beta2) in tables:
        a, b, c, d = _scalars(BASES[base], eps, beta1, beta2, step)
        rows.append((lr, eps, beta1, beta2, lr * a, lr * b, c, d))
    return torch.tensor(rows, dtype=torch.float64).view(-1, 8)


@lru_cache(maxsize=64)  # tables of a group rarely differ
def _scalars(base: str, eps: float, beta1: float, beta2: float, t: int) -> tuple[float, float, float, float]:
    """a, b, c, d at a rate of 1."""
    a, c = 1 / (1 - beta1**t), 1 / math.sqrt(1 - beta2**t)
    match base:
        case "adam":
            return a, 0.0, c, eps
        case "nadam":
            now, ahead = nadam_product(beta1, t), nadam_product(beta1, t + 1)
            return nadam_mu(beta1, t + 1) / (1 - ahead), (1 - nadam_mu(beta1, t)) / (1 - now), c, eps
        case "radam":
            r = rectification(beta2, t)
            return (a * r, 0.0, c, c * eps) if r else (a, 0.0, 0.0, 1.0)
    return 0.0, 0.0, 0.0, 1.0
