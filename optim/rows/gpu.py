"""The row kernels in Triton, for float32, float16 and bfloat16 weights; they stand in gpu_sums.py and gpu_loops.py.

Nothing waits for the GPU: how many rows a batch touches is known there alone, so vectors over u and packed
buffers are as long as they could be, and programs beyond the end leave at once. Ids are sorted once a step,
stably. A row with many ids, as one that stands in every sample, is summed in pieces by many programs, and
then the pieces by one: it does not hold up the rest.
"""

# T = tables, F = features, B = samples, n = ids, u = touched rows, D = columns of the widest table

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from sparta.optim.rows import gpu_loops, gpu_sums
from sparta.optim.rows.group import Bags, Group, Rates, Slots, Sum, Touched
from sparta.optim.rows.rates import packed
from sparta.optim.rows.rounding import DROPPED, PERTURB, STEP, mix64

LONGEST = 32
"""Ids of a piece. Fewer cost more pieces; more keep a tile waiting for its longest."""
TILE = 1024
"""Elements that a program holds at a time."""


@dataclass(frozen=True)
class _Found:
    """Ids in the order of their rows, and the pieces they fall into."""

    slots: Tensor
    """(n,) the touched row of each."""
    sources: Tensor
    """(n,) where the pooled gradient of its bag begins."""
    order: Tensor
    """(n,) its place among the ids."""
    starts: Tensor
    """(n,) of each touched row: where its ids begin."""
    begins: Tensor
    """(n + 2,) of each piece; the last ends where the next would begin."""
    pieces: Tensor
    """(1,) how many."""


class Gpu:
    """See `Kernels`."""

    def touch(self, group: Group, bags: Bags, scratch: Tensor) -> Touched:
        layout, count = group.layout, len(bags.ids)
        bag = _bag_of_id(bags)
        samples = _samples(group, bags)
        feature = bag // samples
        linear = layout.first_row[layout.table_of_feature[feature]] + bags.ids
        ordered, order = torch.sort(linear.int() if group.rows < 2**31 else linear, stable=True)
        ordered = ordered.long()
        places = torch.arange(count, device=linear.device)
        fresh = torch.ones_like(ordered, dtype=torch.bool)
        fresh[1:] = ordered[1:] != ordered[:-1]
        slots = fresh.cumsum(0) - 1
        # Whatever does not lead a row, or a piece, is written to the dump behind the end.
        starts = _scattered(torch.where(fresh, slots, count + 1), places, count, fill=count)
        within = places - starts[slots]
        leads = within % LONGEST == 0
        piece = leads.cumsum(0)
        begins = _scattered(torch.where(leads, piece - 1, count + 1), places, count, fill=count)
        ends = torch.cat([slots.new_zeros(1), slots + 1])
        bounds = torch.cat([slots, ends[-1:]])[torch.searchsorted(ordered, layout.first_row)]
        real = places < bounds[-1]
        rows = torch.where(real, ordered[starts[:count].clamp(max=max(count - 1, 0))], 0)
        tables = torch.where(real, torch.searchsorted(layout.first_row, rows, right=True) - 1, 0)
        counts = torch.where(real, starts[1 : count + 1] - starts[:count], 0)
        packed = torch.cat([bounds.new_zeros(1), (bounds.diff() * layout.dims).cumsum(0)])
        columns = layout.first_column[feature] + bag % samples * group.columns
        pieces = torch.cat([piece.new_zeros(1), piece])[-1:]
        found = _Found(slots, columns[order], order, starts, begins, pieces)
        return Touched(rows, tables, counts, bounds, packed, found)

    def catch_up(self, group: Group, touched: Touched, decayed: Tensor, decay: Tensor) -> None:
        _over_rows(gpu_loops.catch_up, group, touched, decayed, decay)

    def reduce(
        self,
        group: Group,
        bags: Bags,
        touched: Touched,
        pooled: Tensor,
        eta: Tensor | None,
        l2: Tensor | None = None,
    ) -> Sum:
        found: _Found = touched.private
        count, width = len(bags.ids), _width(group)
        gradient = torch.empty(count * max(_dims(group)), device=pooled.device)
        squares = torch.zeros(count, dtype=torch.float64, device=pooled.device)
        if not count:
            return Sum(gradient, squares)
        factors = _factors(group, bags)
        windows = -(-count // LONGEST)
        partial = torch.empty(2 * windows * width, device=pooled.device)
        hot = torch.zeros(windows, dtype=torch.int64, device=pooled.device)
        at = _at(group, touched)
        rows = max(1, TILE // width)
        common = at, touched.rows, touched.tables, touched.counts, found.starts
        ends = group.weights, eta, l2, gradient, squares, partial, hot
        _launch(
            gpu_sums.reduce_pieces,
            -(-count // rows),
            *common,
            found.pieces,
            found.begins,
            found.slots,
            found.sources,
            None if factors is None else factors[found.order],
            pooled.contiguous(),
            *ends,
            R=rows,
            D=width,
            LONGEST=LONGEST,
            FACTORS=factors is not None,
            ASAM=eta is not None,
            L2=l2 is not None,
        )
        _launch(
            gpu_sums.reduce_hot,
            windows,
            *common,
            *ends,
            P=rows,
            D=width,
            LONGEST=LONGEST,
            ASAM=eta is not None,
            L2=l2 is not None,
        )
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
        saved = torch.empty_like(gradient, dtype=group.weights.dtype)
        narrow = _rounding(group, step, PERTURB)
        operands = gradient, scale, eta, saved, *narrow
        _over_rows(
            gpu_loops.perturb,
            group,
            touched,
            *operands,
            ASAM=eta is not None,
            DROPPED=DROPPED.get(group.weights.dtype, 0),
        )
        return saved

    def restore(self, group: Group, touched: Touched, saved: Tensor) -> None:
        _over_rows(gpu_loops.restore, group, touched, saved)

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
        device = group.weights.device
        _over_rows(
            gpu_loops.step,
            group,
            touched,
            gradient,
            means,
            saved,
            rates.base.to(device, non_blocking=True),
            packed(rates, step).to(device, non_blocking=True),
            slots.first,
            slots.second,
            slots.sums,
            *_rounding(group, step, STEP),
            RESTORES=saved is not None,
            MOMENTS=slots.first is not None,
            ROWWISE=slots.sums is not None and means is not None,
            DROPPED=DROPPED.get(group.weights.dtype, 0),
        )

    def weight_gradient(self, group: Group, bags: Bags, pooled: Tensor) -> Tensor:
        count, width = len(bags.ids), _width(group)
        found = torch.zeros(count, device=pooled.device)
        if not count:
            return found
        bag, rows = _bag_of_id(bags), max(1, TILE // width)
        layout = group.layout
        _launch(
            gpu_loops.weight_gradient,
            -(-count // rows),
            _at(group, None),
            bags.ids,
            bag,
            layout.table_of_feature,
            layout.first_column,
            group.weights,
            pooled.contiguous(),
            found,
            count,
            _samples(group, bags),
            group.columns,
            R=rows,
            D=width,
        )
        return found / bags.offsets.diff()[bag] if group.mean else found


GPU = Gpu()


def _dims(group: Group) -> Sequence[int]:
    return [shape.dim for shape in group.shapes]


def _width(group: Group) -> int:
    """D, a power of 2 as Triton wants it."""
    return int(triton.next_power_of_2(max(1, *_dims(group))))


def _samples(group: Group, bags: Bags) -> int:
    """B, or 1 where there is none."""
    return max((len(bags.offsets) - 1) // max(len(group.layout.table_of_feature), 1), 1)


def _bag_of_id(bags: Bags) -> Tensor:
    """(n,)"""
    bag = torch.arange(len(bags.offsets) - 1, device=bags.ids.device)
    return torch.repeat_interleave(bag, bags.offsets.diff(), output_size=len(bags.ids))


def _factors(group: Group, bags: Bags) -> Tensor | None:
    """(n,) what the pooled gradient is multiplied by for each id; None for 1."""
    if not group.mean:
        return bags.weights
    share = 1 / bags.offsets.diff().clamp(min=1).float()
    share = share[_bag_of_id(bags)]
    return share if bags.weights is None else share * bags.weights


def _scattered(where: Tensor, values: Tensor, count: int, *, fill: int) -> Tensor:
    """(count + 2,) `values` at `where`, `fill` elsewhere; the last entry is a dump and means nothing."""
    return torch.full((count + 2,), fill, dtype=torch.int64, device=values.device).scatter_(0, where, values)


def _at(group: Group, touched: Touched | None) -> Tensor:
    """(T, 6) first row, first element, width, stored width, first touched row, first packed value."""
    layout = group.layout
    rows = layout.first_row[:-1]
    bounds, packed = (touched.bounds[:-1], touched.packed[:-1]) if touched else (rows, rows)
    return torch.stack([rows, layout.first_element, layout.dims, layout.stored, bounds, packed], dim=1)


def _rounding(group: Group, step: int, phase: int) -> tuple[Tensor | None, Tensor | None]:
    """(T,) hashed keys and (T, 2) origins; None for weights that are not rounded."""
    if group.weights.dtype not in DROPPED:
        return None, None
    # Made on the device: a copy from the host would wait for all that is under way there.
    return mix64(group.layout.keys ^ (2 * step + phase)), group.layout.origins


def _over_rows(kernel: Any, group: Group, touched: Touched, *operands: Tensor | None, **flags: Any) -> None:
    """Launch a kernel over the touched rows."""
    width = _width(group)
    rows = max(1, TILE // width)
    if len(touched.rows):
        _launch(
            kernel,
            -(-len(touched.rows) // rows),
            _at(group, touched),
            touched.bounds[-1:],
            touched.rows,
            touched.tables,
            group.weights,
            *operands,
            R=rows,
            D=width,
            **flags,
        )


def _launch(kernel: Any, programs: int, *operands: Any, **flags: Any) -> None:
    """Run so many programs on the device of the operands."""
    device = next(x.device for x in operands if isinstance(x, Tensor))
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        # Without fused multiply-adds the roundings are those of the plain kernels; memory is what bounds the time.
        kernel[(programs,)](*operands, **flags, enable_fp_fusion=False)
