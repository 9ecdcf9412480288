"""Laws of the plain kernels, against Python loops, torch's embedding_bag and torch's SparseAdam."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import embedding_bag

from sparta.optim.rows import kernels_for
from sparta.optim.rows.group import BASES, Bags, Group, Rates, Shape, Slots, Touched
from sparta.optim.rows.plain import PLAIN
from tests.optim.rows.cases import (
    Case,
    by_row,
    cases,
    make,
    occurrences,
    over_rows,
    place_of,
    untouched,
    values_by_row,
)

DOUBLE = (torch.float64,)
FLOATS = (torch.float32, torch.float64)


def touch(case: Case) -> Touched:
    return PLAIN.touch(case.group, case.bags, case.scratch)


def gradient_of(case: Case, touched: Touched) -> Tensor:
    return PLAIN.reduce(case.group, case.bags, touched, case.pooled, None).gradient


def slow_gradients(case: Case) -> dict[int, list[float]]:
    """Row by row, id by id, number by number."""
    pooled, sums = case.pooled.tolist(), dict[int, list[float]]()
    weights = None if case.bags.weights is None else case.bags.weights.tolist()
    for one in occurrences(case):
        factor = 1 / max(one.length, 1) if case.group.mean else 1.0
        factor *= 1.0 if weights is None else weights[one.place]
        dim = case.group.shapes[one.table].dim
        row = sums.setdefault(one.row, [0.0] * dim)
        for d in range(dim):
            row[d] += factor * pooled[one.sample][one.column + d]
    return sums


@settings(deadline=None)
@given(cases())
def test_every_touched_row_stands_once_with_its_occurrences(case: Case) -> None:
    touched = touch(case)
    counts, table_of = dict[int, int](), dict[int, int]()
    for one in occurrences(case):
        counts[one.row] = counts.get(one.row, 0) + 1
        table_of[one.row] = one.table
    assert len(set(touched.rows.tolist())) == len(touched.rows)
    assert by_row(touched, touched.counts) == counts
    assert by_row(touched, touched.tables) == table_of
    assert int(touched.counts.sum()) == len(case.bags.ids)
    sizes = [list(table_of.values()).count(t) for t in range(len(case.group.shapes))]
    assert touched.bounds.diff().tolist() == sizes
    dims = [shape.dim for shape in case.group.shapes]
    assert touched.packed.diff().tolist() == [size * dim for size, dim in zip(sizes, dims, strict=True)]
    assert touched.bounds[0] == touched.packed[0] == 0


@settings(deadline=None)
@given(cases(dtypes=DOUBLE), st.sampled_from([None, 0.3]))
def test_reduce_is_a_loop_over_the_ids(case: Case, penalty: float | None) -> None:
    touched = touch(case)
    l2 = None if penalty is None else torch.full((len(case.group.shapes),), penalty, dtype=torch.float64)
    found = PLAIN.reduce(case.group, case.bags, touched, case.pooled, case.eta, l2)
    expected, table_of = slow_gradients(case), by_row(touched, touched.tables)
    for row, values in expected.items() if penalty else ():
        w = case.group.weights[place_of(case.group, table_of[row], row)].tolist()
        expected[row] = [g + penalty * x for g, x in zip(values, w, strict=True)]
    squares = by_row(touched, found.squares)
    for row, values in values_by_row(case.group, touched, found.gradient).items():
        assert values.tolist() == pytest.approx(expected[row], rel=1e-12, abs=1e-12)
        weights = case.group.weights[place_of(case.group, table_of[row], row)].tolist()
        eta = -1.0 if case.eta is None else float(case.eta[table_of[row]])
        scales = [abs(w) + eta if eta >= 0 else 1.0 for w in weights]
        terms = [(s * g) ** 2 for s, g in zip(scales, expected[row], strict=True)]
        assert squares[row] == pytest.approx(sum(terms), rel=1e-12, abs=1e-12)
    assert set(expected) == set(squares)


@settings(deadline=None)
@given(cases(dtypes=DOUBLE, asam=False))
def test_gradients_are_those_of_embedding_bag(case: Case) -> None:
    group, bags = case.group, case.bags
    touched = touch(case)
    found = values_by_row(group, touched, gradient_of(case, touched))
    by_weight = PLAIN.weight_gradient(group, bags, case.pooled)
    first, column, bag = 0, 0, 0
    for table, shape in enumerate(group.shapes):
        leaf = torch.zeros(shape.rows, shape.dim, dtype=torch.float64)
        for row in range(shape.rows):
            leaf[row] = group.weights[place_of(group, table, first + row)]
        leaf.requires_grad_()
        for _ in range(shape.features):
            offsets = bags.offsets[bag : bag + case.samples + 1]
            span = slice(int(offsets[0]), int(offsets[-1]))
            weights = (torch.ones(len(bags.ids)) if bags.weights is None else bags.weights)[span].double()
            weights.requires_grad_()
            lengths = offsets.diff().repeat_interleave(offsets.diff())
            factor = weights / lengths if group.mean else weights  # torch has no weighted mean
            bag, columns = bag + case.samples, slice(column, column + shape.dim)
            column += shape.stored
            if not shape.dim or not len(lengths):  # torch refuses these; nothing depends on them
                continue
            local = offsets[:-1] - span.start
            out = embedding_bag(bags.ids[span], leaf, local, mode="sum", per_sample_weights=factor)
            out.backward(case.pooled[:, columns])
            torch.testing.assert_close(by_weight[span], weights.grad)
        for row in range(shape.rows):
            if first + row in found and shape.dim:
                assert leaf.grad is not None
                torch.testing.assert_close(found[first + row], leaf.grad[row])
        first += shape.rows


@settings(deadline=None)
@given(cases(dtypes=DOUBLE), st.lists(st.floats(0, 2), min_size=1, max_size=4))
def test_rows_that_catch_up_pay_every_step_once_whenever_they_do(case: Case, steps: list[float]) -> None:
    """Paid after each step or after all of them, the product is the same; untouched rows pay nothing."""
    touched, twin, before = touch(case), case.fresh(), case.group.weights.clone()
    decay = torch.zeros(len(case.group.shapes), dtype=torch.float64)
    often, once = torch.zeros(2, max(case.group.rows, 1), dtype=torch.float64)
    for step in steps:
        decay = decay + step
        PLAIN.catch_up(case.group, touched, often, decay)
    PLAIN.catch_up(twin.group, touched, once, decay)
    torch.testing.assert_close(case.group.weights, twin.group.weights, rtol=1e-12, atol=0)
    assert torch.equal(often, once)
    free = untouched(case.group, touched)
    assert torch.equal(case.group.weights[free], before[free])
    expected = before[~free] * math.exp(-sum(steps))
    torch.testing.assert_close(case.group.weights[~free], expected, rtol=1e-12, atol=0)


@settings(deadline=None)
@given(cases(dtypes=DOUBLE), st.integers(1, 50))
def test_perturb_adds_the_scaled_gradient(case: Case, step: int) -> None:
    touched = touch(case)
    gradient, scale = gradient_of(case, touched), over_rows(case.group, touched, 5)
    before = case.group.weights.clone()
    saved = PLAIN.perturb(case.group, touched, gradient, scale, case.eta, step=step)
    table_of, scales = by_row(touched, touched.tables), by_row(touched, scale)
    kept = values_by_row(case.group, touched, saved)
    for row, g in values_by_row(case.group, touched, gradient).items():
        place = place_of(case.group, table_of[row], row)
        eta = -1.0 if case.eta is None else float(case.eta[table_of[row]])
        size = before[place].abs() + eta if eta >= 0 else torch.ones_like(before[place])
        torch.testing.assert_close(case.group.weights[place], before[place] + scales[row] * size**2 * g)
        assert torch.equal(kept[row], before[place])


@settings(deadline=None)
@given(cases(dtypes=(torch.float32, torch.float64, torch.float16, torch.bfloat16)))
def test_rows_of_scale_zero_and_rows_untouched_keep_their_bits(case: Case) -> None:
    touched = touch(case)
    gradient, scale = gradient_of(case, touched), over_rows(case.group, touched, 5)
    before = case.group.weights.clone()
    PLAIN.perturb(case.group, touched, gradient, scale, case.eta, step=1)
    free, table_of = untouched(case.group, touched), by_row(touched, touched.tables)
    for row, size in by_row(touched, scale).items():
        if size == 0:
            free[place_of(case.group, table_of[row], row)] = True
    assert torch.equal(case.group.weights[free], before[free])


@settings(deadline=None)
@given(cases(dtypes=(torch.float32, torch.float16, torch.bfloat16)))
def test_restore_is_bit_exact(case: Case) -> None:
    touched = touch(case)
    before = case.group.weights.clone()
    scale = over_rows(case.group, touched, 5)
    saved = PLAIN.perturb(case.group, touched, gradient_of(case, touched), scale, case.eta, step=1)
    PLAIN.restore(case.group, touched, saved)
    assert torch.equal(case.group.weights, before)


def everything(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights, both moments and the accumulators."""
    slots = case.slots
    assert slots.first is not None
    assert slots.second is not None
    assert slots.sums is not None
    return case.group.weights, slots.first, slots.second, slots.sums


def slow_step(
    base: str, w: float, g: float, m: float, v: float, s: float, rates: list[float], step: int
) -> tuple[float, float, float]:
    """One number's step: the weight and both moments after it; s is the accumulator, this step included."""
    lr, eps, b1, b2 = rates
    match base:
        case "sgd":
            return w - lr * g, m, v
        case "rowwise_adagrad":
            return w - lr * g / (math.sqrt(s) + eps), m, v
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    corrected, root = m / (1 - b1**step), math.sqrt(v / (1 - b2**step))
    if base == "nadam":
        mu = [b1 * (1 - 0.5 * 0.96 ** (0.004 * t)) for t in range(1, step + 2)]
        corrected = mu[-1] * m / (1 - math.prod(mu)) + (1 - mu[-2]) * g / (1 - math.prod(mu[:-1]))
    if base == "radam":
        longest = 2 / (1 - b2) - 1
        length = longest - 2 * step * b2**step / (1 - b2**step)
        if length <= 5:
            return w - lr * corrected, m, v
        r = (length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)
        return w - lr * corrected * math.sqrt(r * (1 - b2**step)) / (math.sqrt(v) + eps), m, v
    return w - lr * corrected / (root + eps), m, v


@settings(deadline=None)
@given(cases(dtypes=DOUBLE), st.integers(1, 50), st.booleans())
def test_step_is_a_loop_over_touched_numbers(case: Case, step: int, moved: bool) -> None:
    touched, before = touch(case), case.fresh()
    gradient, means = gradient_of(case, touched), over_rows(case.group, touched, 7)
    saved = None
    if moved:
        scale = over_rows(case.group, touched, 5)
        saved = PLAIN.perturb(case.group, touched, gradient, scale, case.eta, step=step)
    PLAIN.step(case.group, touched, gradient, means, saved, case.rates, case.slots, step=step)
    weights, first, second, sums = everything(before)
    table_of, mean = by_row(touched, touched.tables), by_row(touched, means)
    for row, values in values_by_row(case.group, touched, gradient).items():
        t = table_of[row]
        base = BASES[int(case.rates.base[t])]
        rates = [float(case.rates.lr[t]), float(case.rates.eps[t]), *case.rates.betas[t].tolist()]
        if base == "rowwise_adagrad":
            sums[row] += mean[row]
        place = place_of(case.group, t, row)
        for at, g in zip(range(place.start, place.stop), values.tolist(), strict=True):
            numbers = float(weights[at]), g, float(first[at]), float(second[at])
            weights[at], first[at], second[at] = slow_step(base, *numbers, float(sums[row]), rates, step)
    # Untouched rows and padding are compared too, and what no base of a table uses.
    for found, expected in zip(everything(case), (weights, first, second, sums), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@settings(deadline=None)
@given(cases(dtypes=FLOATS))
def test_rows_untouched_keep_their_bits_and_their_state(case: Case) -> None:
    touched, before = touch(case), case.fresh()
    gradient, means = gradient_of(case, touched), over_rows(case.group, touched, 7)
    PLAIN.step(case.group, touched, gradient, means, None, case.rates, case.slots, step=4)
    free = untouched(case.group, touched)
    rows = torch.ones(case.group.rows, dtype=torch.bool)
    rows[touched.rows] = False
    for kept, after, was in zip(
        (free, free[: case.group.elements], free[: case.group.elements], rows),
        everything(case),
        everything(before),
        strict=True,
    ):
        assert torch.equal(after[kept], was[kept])


def test_adam_is_torchs_sparse_adam() -> None:
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(9, 8, generator=generator)
    twin = torch.nn.Parameter(table.clone())
    optimizer = torch.optim.SparseAdam([twin], lr=0.05, betas=(0.8, 0.95), eps=1e-8)
    group = Group((Shape(9, 8, 8),), table.view(-1))
    slots = Slots(torch.zeros(72), torch.zeros(72))
    rates = Rates(
        torch.tensor([BASES.index("adam")]),
        torch.tensor([0.05], dtype=torch.float64),
        torch.tensor([1e-8], dtype=torch.float64),
        torch.tensor([[0.8, 0.95]], dtype=torch.float64),
    )
    for step in range(1, 12):
        ids = torch.randint(0, 9, (6,), generator=generator)
        offsets = torch.tensor([0, 2, 2, 6])
        pooled = torch.randn(3, 8, generator=generator) * (step != 5)  # zero gradients move rows too
        optimizer.zero_grad()
        embedding_bag(ids, twin, offsets[:-1], mode="sum", sparse=True).backward(pooled)
        optimizer.step()
        bags = Bags(ids, offsets)
        touched = PLAIN.touch(group, bags, torch.zeros(9, dtype=torch.int32))
        found = PLAIN.reduce(group, bags, touched, pooled, None)
        PLAIN.step(group, touched, found.gradient, None, None, rates, slots, step=step)
    torch.testing.assert_close(table, twin.detach(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_weights_round_alike_in_every_sharding(dtype: torch.dtype) -> None:
    """A 6 x 8 table whole, and as two shards by rows and two by columns: the same bits everywhere."""
    rows, columns = 6, 8
    shapes = [Shape(rows, columns, columns)]
    whole = make(shapes, [1] * rows, samples=rows, seed=4, dtype=dtype, bases=["adam"], hot=0.0)
    whole = replace(whole, bags=Bags(torch.arange(rows), torch.arange(rows + 1)))

    def shard(row: int, column: int) -> Case:
        def cut(flat: Tensor | None) -> Tensor:
            assert flat is not None
            return flat[: rows * columns].view(rows, columns)[row : row + 3, column : column + 4].flatten()

        group = Group(
            (Shape(3, 4, 4),), cut(whole.group.weights), keys=whole.group.keys, origins=((row, column),)
        )
        return replace(
            whole,
            group=group,
            bags=Bags(torch.arange(3), torch.arange(4)),
            pooled=whole.pooled[row : row + 3, column : column + 4],
            slots=Slots(cut(whole.slots.first), cut(whole.slots.second)),
        )

    shards = {(row, column): shard(row, column) for row in (0, 3) for column in (0, 4)}

    def run(case: Case) -> tuple[Tensor, Tensor]:
        touched = touch(case)
        gradient, scale = gradient_of(case, touched), torch.full((len(touched.rows),), 0.3).double()
        saved = PLAIN.perturb(case.group, touched, gradient, scale, None, step=2)
        moved = case.group.weights.clone()
        PLAIN.step(case.group, touched, gradient, None, saved, case.rates, case.slots, step=2)
        return moved, case.group.weights

    for full, *parts in zip(run(whole), *(run(case) for case in shards.values()), strict=True):
        table = full[: rows * columns].view(rows, columns)
        for (row, column), part in zip(shards, parts, strict=True):
            assert torch.equal(part.view(3, 4), table[row : row + 3, column : column + 4])


def test_only_cpu_and_cuda_have_kernels() -> None:
    with pytest.raises(ValueError, match="device meta: row kernels run on cpu and cuda"):
        kernels_for(torch.device("meta"))
