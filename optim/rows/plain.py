"""The row kernels in plain torch: table by table, on any device and in any precision; the oracle of the others.

What the others must agree with, beyond group.py: gradients are summed in the order of the ids, in float32
(float64 for float64 weights), each bag's gradient first multiplied by its factor 1 / max(length, 1) and
the per-sample weight; `perturb`, l2, sgd and rowwise_adagrad multiply in float64, round the product to float32 and
add it in float32; adam, nadam and radam compute in float32; `catch_up` multiplies in float64; gradients of per-sample
weights are summed in float64. Weights below float32 are stepped in float32 and rounded as rounding.py says.
"""

# T = tables, F = features, B = samples, n = ids, u = touched rows, C = pooled columns, D = logical columns

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sparta.optim.bases import nadam_mu, nadam_product, rectification
from sparta.optim.rows.group import BASES, Bags, Group, Rates, Shape, Slots, Sum, Touched
from sparta.optim.rows.rounding import DROPPED, PERTURB, STEP, random_bits, rounded


@dataclass(frozen=True)
class _Part:
    """The touched rows of one table."""

    table: int
    shape: Shape
    span: slice
    """Among u."""
    local: Tensor
    """Their rows in the table."""
    packed: slice
    """Their values in a packed buffer."""

    def values(self, packed: Tensor) -> Tensor:
        """(rows, D) view of a packed buffer."""
        return packed[self.packed].view(len(self.local), self.shape.dim)


class Plain:
    """See `Kernels`."""

    def touch(self, group: Group, bags: Bags, scratch: Tensor) -> Touched:
        layout = group.layout
        table = layout.table_of_feature[_features(group, bags)]
        rows, slots, counts = torch.unique(
            layout.first_row[table] + bags.ids, return_inverse=True, return_counts=True
        )
        bounds = torch.searchsorted(rows, layout.first_row)
        packed = torch.zeros_like(layout.first_row)
        packed[1:] = (bounds.diff() * layout.dims).cumsum(0)
        tables = torch.searchsorted(layout.first_row, rows, right=True) - 1
        return Touched(rows, tables, counts, bounds, packed, slots)

    def catch_up(self, group: Group, touched: Touched, decayed: Tensor, decay: Tensor) -> None:
        for part in _parts(group, touched):
            rows = touched.rows[part.span]
            owed = decay[part.table] - decayed[rows]
            before = _read(group, part)
            after = (before.double() * (-owed).exp()[:, None]).to(before.dtype)
            _write(group, part, torch.where(owed[:, None] == 0, before, after))
            decayed[rows] = decay[part.table]

    def reduce(
        self,
        group: Group,
        bags: Bags,
        touched: Touched,
        pooled: Tensor,
        eta: Tensor | None,
        l2: Tensor | None = None,
    ) -> Sum:
        # Sorted by row and, as the sort is stable, each row's in the order of the ids.
        order = torch.argsort(touched.private, stable=True)
        feature, sample, factor = (
            _features(group, bags)[order],
            _samples(group, bags)[order],
            _factors(group, bags),
        )
        pooled = pooled.to(_wide(group))
        gradient = pooled.new_zeros(int(touched.packed[-1]))
        squares = torch.zeros(len(touched.rows), dtype=torch.float64, device=pooled.device)
        begin = 0
        for part in _parts(group, touched):
            counts = touched.counts[part.span]
            ours = slice(begin, begin + int(counts.sum()))
            begin = ours.stop
            columns = group.layout.first_column[feature[ours], None] + _columns(part.shape, pooled)
            each = pooled[sample[ours, None], columns] * factor[order][ours, None].to(pooled.dtype)
            if each.numel():
                # Not index_add_, whose order on a GPU differs from run to run.
                part.values(gradient).copy_(torch.segment_reduce(each, "sum", lengths=counts, axis=0))
            if l2 is not None:
                part.values(gradient).add_((l2[part.table] * _read(group, part).double()).to(gradient.dtype))
            values = part.values(gradient).double()
            if eta is not None and eta[part.table] >= 0:
                values = values * (_read(group, part).double().abs() + eta[part.table])
            squares[part.span] = values.square().sum(1)
        return Sum(gradient, squares)

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
        saved = group.weights.new_zeros(len(gradient))
        for part in _parts(group, touched):
            before = _read(group, part)
            part.values(saved).copy_(before)
            each = scale[part.span, None]
            factor = each
            if eta is not None and eta[part.table] >= 0:
                size = before.double().abs() + eta[part.table]
                factor = factor * size * size
            wide = before.to(_wide(group))
            moved = wide + (factor * part.values(gradient).double()).to(wide.dtype)
            _write(group, part, torch.where(each == 0, before, _narrowed(group, part, moved, step, PERTURB)))
        return saved

    def restore(self, group: Group, touched: Touched, saved: Tensor) -> None:
        for part in _parts(group, touched):
            _write(group, part, part.values(saved))

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
        for part in _parts(group, touched):
            g = part.values(gradient)
            before = _read(group, part) if saved is None else part.values(saved)
            lr, eps = float(rates.lr[part.table]), float(rates.eps[part.table])
            match BASES[int(rates.base[part.table])]:
                case "sgd":
                    change = (lr * g.double()).to(g.dtype)
                case "rowwise_adagrad":
                    assert means is not None
                    assert slots.sums is not None
                    rows = touched.rows[part.span]
                    sums = (slots.sums[rows].double() + means[part.span]).to(slots.sums.dtype)
                    slots.sums[rows] = sums
                    rate = lr / (sums.double().sqrt() + eps)
                    change = (rate[:, None] * g.double()).to(g.dtype)
                case base:
                    assert slots.first is not None
                    assert slots.second is not None
                    b1, b2 = rates.betas[part.table].tolist()
                    first = b1 * _read(group, part, slots.first) + (1 - b1) * g
                    second = b2 * _read(group, part, slots.second) + (1 - b2) * g * g
                    _write(group, part, first, slots.first)
                    _write(group, part, second, slots.second)
                    root, of_first = 1 / math.sqrt(1 - b2**step), lr / (1 - b1**step)
                    size = second.sqrt() * root + eps
                    match base:
                        case "adam":
                            change = of_first * first / size
                        case "nadam":
                            of_first = lr * nadam_mu(b1, step + 1) / (1 - nadam_product(b1, step + 1))
                            of_g = lr * (1 - nadam_mu(b1, step)) / (1 - nadam_product(b1, step))
                            change = (of_first * first + of_g * g) / size
                        case _ if r := rectification(b2, step):
                            change = of_first * r * first / (second.sqrt() * root + eps * root)
                        case _:
                            change = of_first * first
            after = before.to(_wide(group)) - change
            _write(group, part, _narrowed(group, part, after, step, STEP))

    def weight_gradient(self, group: Group, bags: Bags, pooled: Tensor) -> Tensor:
        feature, sample = _features(group, bags), _samples(group, bags)
        found = pooled.new_zeros(len(bags.ids))
        table = group.layout.table_of_feature[feature]
        for t, shape in enumerate(group.shapes):
            ours = (table == t).nonzero()[:, 0]
            columns = group.layout.first_column[feature[ours], None] + _columns(shape, pooled)
            rows = _table(group, t, group.weights)[bags.ids[ours]].double()
            found[ours] = (pooled[sample[ours, None], columns].double() * rows).sum(1).to(pooled.dtype)
        return found / _lengths(bags).clamp(min=1) if group.mean else found


PLAIN = Plain()


def _parts(group: Group, touched: Touched) -> Iterator[_Part]:
    bounds, starts, first = (x.tolist() for x in (touched.bounds, touched.packed, group.layout.first_row))
    for t, shape in enumerate(group.shapes):
        span = slice(bounds[t], bounds[t + 1])
        yield _Part(t, shape, span, touched.rows[span] - first[t], slice(starts[t], starts[t + 1]))


def _bags(bags: Bags) -> Tensor:
    """(n,) the bag of each id."""
    return torch.repeat_interleave(bags.offsets.diff())


def _lengths(bags: Bags) -> Tensor:
    """(n,) the length of each id's bag."""
    return bags.offsets.diff()[_bags(bags)]


def _count(group: Group, bags: Bags) -> int:
    """B."""
    return (len(bags.offsets) - 1) // max(len(group.layout.table_of_feature), 1)


def _features(group: Group, bags: Bags) -> Tensor:
    """(n,) the feature of each id."""
    return _bags(bags) // max(_count(group, bags), 1)


def _samples(group: Group, bags: Bags) -> Tensor:
    """(n,) the sample of each id."""
    return _bags(bags) % max(_count(group, bags), 1)


def _factors(group: Group, bags: Bags) -> Tensor:
    """(n,) what the pooled gradient is multiplied by for each id."""
    factors = torch.ones(len(bags.ids), dtype=_wide(group), device=bags.ids.device)
    if group.mean:
        factors = factors / _lengths(bags).clamp(min=1)
    return factors if bags.weights is None else factors * bags.weights


def _columns(shape: Shape, like: Tensor) -> Tensor:
    return torch.arange(shape.dim, device=like.device)


def _wide(group: Group) -> torch.dtype:
    """What weights are computed in."""
    return torch.promote_types(group.weights.dtype, torch.float32)


def _table(group: Group, table: int, flat: Tensor) -> Tensor:
    """(rows, D) view of a table, or of its part of element-wise state."""
    shape, begin = group.shapes[table], int(group.layout.first_element[table])
    return flat[begin : begin + shape.rows * shape.stored].view(shape.rows, shape.stored)[:, : shape.dim]


def _read(group: Group, part: _Part, flat: Tensor | None = None) -> Tensor:
    return _table(group, part.table, group.weights if flat is None else flat)[part.local]


def _write(group: Group, part: _Part, values: Tensor, flat: Tensor | None = None) -> None:
    _table(group, part.table, group.weights if flat is None else flat)[part.local] = values


def _narrowed(group: Group, part: _Part, values: Tensor, step: int, phase: int) -> Tensor:
    """Values in the weights' precision."""
    if group.weights.dtype not in DROPPED:
        return values
    key = group.keys[part.table] if group.keys else 0
    row, column = group.origins[part.table] if group.origins else (0, 0)
    bits = random_bits(key, step, phase, part.local + row, _columns(part.shape, values) + column)
    return rounded(values, bits, group.weights.dtype)
