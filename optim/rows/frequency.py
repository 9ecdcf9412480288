"""From frequencies and norms to the factor of each touched row's gradient, and the counting itself.

Small vectors, many torch operations: on a CPU one compiled loop takes their place (3 ms of a step become .5).
`plain_count` and `plain_scale` say what they compute, and are what a GPU runs.
"""

# T = tables of a group, u = touched rows

import numpy as np
import torch
from torch import Tensor

from sparta.optim.rows.group import Touched


def plain_count(touched: Touched, counts: Tensor, advances: Tensor, missing: Tensor) -> Tensor:
    """Add a batch's occurrences; the largest count among its rows, (T,) int64, 0 for a table without any.

    Args:
        counts: (rows,) int64 by linear row, changed in place.
        advances: (T,) bool, tables whose counts grow.
        missing: (T,) int64, the linear row of a table's id 0 if that may not be its most frequent, else -1.
    """
    counts.index_add_(0, touched.rows, touched.counts * advances[touched.tables])
    # Entries beyond the touched rows, which occur 0 times, stand for row 0, whoever's that is.
    left_out = (touched.counts == 0) | (touched.rows == missing[touched.tables])
    seen = counts[touched.rows].masked_fill(left_out, 0)
    return torch.zeros_like(missing).scatter_reduce_(0, touched.tables, seen, "amax")


def plain_scale(
    touched: Touched,
    squares: Tensor,
    counts: Tensor | None,
    largest: Tensor,
    rho: Tensor,
    xi: Tensor,
    norms: Tensor,
) -> Tensor:
    """`rho max(N / N*, xi) / norm` of each touched row, (u,) float64; 0 where the norm is 0 or not finite.

    A row whose gradient is not finite stays where it is, so that the model sees finite rows in the second
    pass too, which all ranks take before they agree that the step is refused.

    Args:
        squares: (u,) float64 squared norms of the rows' gradients.
        counts: (rows,) int64 by linear row; None if no table counts.
        largest: (T,) int64 N*; 0 for a table that does not count, whose xi must be 1.
        rho, xi: (T,) float64.
        norms: (T,) float64 norm over more than the row, negative where the row's own is meant.
    """
    radius = rho[touched.tables]
    if counts is not None:
        # Only a row of id 0 that may not set N* can have more than that.
        share = (counts[touched.rows].double() / largest.clamp(min=1)[touched.tables]).clamp(max=1.0)
        radius = radius * torch.maximum(share, xi[touched.tables])
    norm = norms[touched.tables]
    norm = torch.where(norm < 0, squares.sqrt(), norm)
    return torch.where((norm > 0) & norm.isfinite(), radius / norm, 0.0)


def count(touched: Touched, counts: Tensor, advances: Tensor, missing: Tensor) -> Tensor:
    """See `plain_count`."""
    if counts.device.type != "cpu":
        return plain_count(touched, counts, advances, missing)
    from sparta.optim.rows import frequency_loops

    largest = torch.zeros_like(missing)
    frequency_loops.count(
        touched.rows.numpy(),
        touched.counts.numpy(),
        touched.bounds.numpy(),
        counts.numpy(),
        advances.numpy(),
        missing.numpy(),
        largest.numpy(),
    )
    return largest


def scale(
    touched: Touched,
    squares: Tensor,
    counts: Tensor | None,
    largest: Tensor,
    rho: Tensor,
    xi: Tensor,
    norms: Tensor,
) -> Tensor:
    """See `plain_scale`."""
    if squares.device.type != "cpu":
        return plain_scale(touched, squares, counts, largest, rho, xi, norms)
    from sparta.optim.rows import frequency_loops

    factors = torch.empty_like(squares)
    frequency_loops.scale(
        touched.rows.numpy(),
        touched.bounds.numpy(),
        squares.numpy(),
        np.zeros(0, np.int64) if counts is None else counts.numpy(),
        largest.numpy(),
        rho.numpy(),
        xi.numpy(),
        norms.numpy(),
        factors.numpy(),
    )
    return factors
