"""What the row kernels work on, and the one signature their three implementations share.

A step touches few rows. `touch` finds them once, each once; `catch_up` has them lose what weight decay took while
they were absent; `reduce` sums every touched row's gradient from
the pooled one, which it reads once a pass; `perturb` saves the rows and moves them; `step` puts them back
and applies the base optimizer. Between the calls stands what needs all tables or all ranks: frequencies,
norms, the agreement that every number is finite. Nothing here costs a table's number of rows.

- `plain`: torch operations on any device and in any precision; slow, obvious, the oracle.
- `cpu`: numba; float32. `gpu`: Triton; float32, float16 and bfloat16 weights.

All are deterministic: same input, same bits. Source of the mathematics: helen.py and sam.py.
"""

# T = tables of a group, F = features, B = samples, n = ids, u = touched rows, C = pooled columns

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from sparta.optim.rows.rounding import signed

BASES = ("sgd", "rowwise_adagrad", "adam", "nadam", "radam")
MOMENTS = BASES[2:]
"""Those that keep Adam's two; the kernels know them by standing last."""


@dataclass(frozen=True)
class Shape:
    """One table of a group, or the shard of one that lives here."""

    rows: int
    dim: int
    """Logical columns here; nothing reads or writes the padding beyond them."""
    stored: int
    """Columns in memory, >= dim."""
    features: int = 1
    """Features that look rows up in it; a group's features are ordered by table."""


@dataclass(frozen=True)
class Group:
    """Tables whose weights lie in one flat buffer, one after another, each row-major with its padding."""

    shapes: tuple[Shape, ...]
    weights: Tensor
    """Flat, at least sum(rows * stored) elements; shared with whoever looks rows up."""
    mean: bool = False
    """Bags are averaged (by max(length, 1)), else summed."""
    keys: tuple[int, ...] = ()
    """One a table, for stochastic rounding of weights below float32: 64 bits that name the table."""
    origins: tuple[tuple[int, int], ...] = ()
    """First row and first column of each shard in its whole table, for the same; (0, 0) if not given."""
    layout: "Layout" = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", Layout.of(self))

    @property
    def rows(self) -> int:
        """Rows of all tables: linear row numbers run from 0 to here, table after table."""
        return sum(shape.rows for shape in self.shapes)

    @property
    def elements(self) -> int:
        """Elements of the weights, padding included; element-wise state has as many."""
        return sum(shape.rows * shape.stored for shape in self.shapes)

    @property
    def columns(self) -> int:
        """C: columns of the pooled output, each feature its table's stored width."""
        return sum(shape.features * shape.stored for shape in self.shapes)


@dataclass(frozen=True)
class Layout:
    """What a group says of its tables, as tensors on the weights' device."""

    first_row: Tensor
    """(T + 1,) int64: linear number of each table's first row."""
    first_element: Tensor
    """(T,) int64: where each table starts in the flat weights."""
    dims: Tensor
    """(T,) int64, logical."""
    stored: Tensor
    """(T,) int64."""
    table_of_feature: Tensor
    """(F,) int64."""
    first_column: Tensor
    """(F,) int64: where each feature starts in the pooled output."""
    keys: Tensor
    """(T,) int64: the bits of each table's key, 0 if not given."""
    origins: Tensor
    """(T, 2) int64."""

    @classmethod
    def of(cls, group: Group) -> "Layout":
        shapes, tables = group.shapes, len(group.shapes)
        first_row, first_element, table_of_feature, first_column = [0], [0], [], [0]
        for table, shape in enumerate(shapes):
            first_row.append(first_row[-1] + shape.rows)
            first_element.append(first_element[-1] + shape.rows * shape.stored)
            for _ in range(shape.features):
                table_of_feature.append(table)
                first_column.append(first_column[-1] + shape.stored)

        def made(values: Sequence[int] | Sequence[tuple[int, int]]) -> Tensor:
            return torch.tensor(values, dtype=torch.int64, device=group.weights.device)

        return cls(
            made(first_row),
            made(first_element[:-1]),
            made([shape.dim for shape in shapes]),
            made([shape.stored for shape in shapes]),
            made(table_of_feature),
            made(first_column[:-1]),
            made([signed(key) for key in group.keys or (0,) * tables]),
            made(group.origins or ((0, 0),) * tables).view(tables, 2),
        )


@dataclass(frozen=True)
class Bags:
    """The ids of one batch for a group: F x B bags, feature-major, as FBGEMM takes them."""

    ids: Tensor
    """(n,) int64, each within its table."""
    offsets: Tensor
    """(F * B + 1,) int64."""
    weights: Tensor | None = None
    """(n,) per-sample weights in float32; they scale gradients and leave counts alone."""


@dataclass(frozen=True)
class Touched:
    """The rows that a batch touches, each once, grouped by table in the order of the group.

    Vectors over u may be longer than the number of touched rows, which a GPU does not tell the host; all
    their entries beyond it are 0. Row values (`Sum.gradient`, what `perturb` saved) are packed without
    padding: row u of table t starts at `packed[t] + (u - bounds[t]) * dims[t]`.
    """

    rows: Tensor
    """(u,) int64: linear row numbers, in an order that depends on the ids alone."""
    tables: Tensor
    """(u,) int64: the table of each."""
    counts: Tensor
    """(u,) int64: occurrences; a repeat within a bag counts again, a weight of 0 counts too."""
    bounds: Tensor
    """(T + 1,) int64: where each table's touched rows start among u."""
    packed: Tensor
    """(T + 1,) int64: where each table's values start in packed buffers."""
    private: Any
    """What the implementation that made it needs to find each row's occurrences."""


@dataclass(frozen=True)
class Sum:
    """Gradients of the touched rows for one pass."""

    gradient: Tensor
    """Packed."""
    squares: Tensor
    """(u,) float64: the square of each row's 2-norm over the columns here; of (|w| + eta) * g where ASAM is."""


@dataclass(frozen=True)
class Slots:
    """State of a group's base optimizers; tables share the buffers, of which each uses what its base needs."""

    first: Tensor | None = None
    """First moment of Adam, NAdam and RAdam: flat float32, laid out as the weights."""
    second: Tensor | None = None
    """Their second moment, likewise."""
    sums: Tensor | None = None
    """Row-wise Adagrad's accumulators: (rows,) float32 by linear row."""


@dataclass(frozen=True)
class Rates:
    """How the tables of a group step; tensors of length T on the host, where a step's few scalars are made."""

    base: Tensor
    """int64: index in BASES."""
    lr: Tensor
    """float64."""
    eps: Tensor
    """float64."""
    betas: Tensor
    """(T, 2) float64."""


class Kernels(Protocol):
    """The signature. An implementation is a module-level object; it keeps nothing between calls but buffers."""

    def touch(self, group: Group, bags: Bags, scratch: Tensor) -> Touched:
        """The touched rows of a batch.

        Args:
            scratch: (rows,) int32, this group's own between calls and never cleared: a persistent stamp per
                row. Its content means nothing to anybody else, and may be anything at first. On a CPU only.
        """

    def catch_up(self, group: Group, touched: Touched, decayed: Tensor, decay: Tensor) -> None:
        """Multiply each touched row by `exp(decayed - decay)` and note that; a row that owes nothing keeps its bits.

        Args:
            decayed: (rows,) float64 by linear row: `decay` when the row was last caught up; changed in place.
            decay: (T,) float64: minus the log of what every row of a table has been multiplied by so far.
        """

    def reduce(
        self,
        group: Group,
        bags: Bags,
        touched: Touched,
        pooled: Tensor,
        eta: Tensor | None,
        l2: Tensor | None = None,
    ) -> Sum:
        """Sum the pooled gradient over each touched row's occurrences, and add `l2 w` of the row as it is now.

        Args:
            pooled: (B, C) float32 gradient of the pooled output.
            l2: (T,) float64; None if no table has any.
            eta: (T,) float64, ASAM's constant for tables that want `squares` of (|w| + eta) * g, negative for
                the others; None if no table does.
        """

    def perturb(
        self,
        group: Group,
        touched: Touched,
        gradient: Tensor,
        scale: Tensor,
        eta: Tensor | None,
        *,
        step: int,
    ) -> Tensor:
        """Add `scale_u * g` (for ASAM `scale_u * (|w| + eta)^2 * g`) to each touched row; the rows before, packed.

        Args:
            scale: (u,) float64; a row of scale 0 keeps its bits.
            step: keys the stochastic rounding of weights below float32; other weights do not depend on it.
        """

    def restore(self, group: Group, touched: Touched, saved: Tensor) -> None:
        """Put the saved rows back, bit for bit."""

    def step(
        self,
        group: Group,
        touched: Touched,
        gradient: Tensor,
        means: Tensor | None,
        saved: Tensor | None,
        rates: Rates,
        slots: Slots,
        *,
        step: int,
    ) -> None:
        """Apply the base optimizer to each touched row, starting from `saved` where there is one.

        sgd: `w -= lr g`. rowwise_adagrad: `s += mean; w -= lr g / (sqrt(s) + eps)`. adam: moments and weights of
        touched rows only, also where g is 0; `w -= lr m_hat / (sqrt(v_hat) + eps)`, bias corrected by `step`; nadam
        and radam likewise, by the formulas of bases.py.

        Args:
            means: (u,) float64: mean over all logical columns of the whole row of g^2; None if no table is
                rowwise_adagrad.
            step: number of this step, from 1.
        """

    def weight_gradient(self, group: Group, bags: Bags, pooled: Tensor) -> Tensor:
        """(n,) gradient of per-sample weights: the pooled gradient of each id's bag times its row as it is now."""
