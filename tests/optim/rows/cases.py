"""Groups, batches and settings to try row kernels on, the same for all implementations, and ways to compare.

Implementations may list touched rows in different orders and pad their vectors, so results are compared
by row: `by_row` for vectors over u, `values_by_row` for packed buffers. `occurrences` is a batch spelled
out in Python, for slow oracles. Dyadic cases hold multiples of 1/64 small enough that float32 sums them exactly
in any order (unless bags are averaged).
"""

# T = tables, F = features, B = samples, n = ids, u = touched rows, C = pooled columns

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from sparta.optim.rows.group import BASES, Bags, Group, Rates, Shape, Slots, Touched


@dataclass(frozen=True)
class Case:
    """A group and one batch for it, with everything else a step needs."""

    group: Group
    bags: Bags
    pooled: Tensor
    """(B, C)"""
    scratch: Tensor
    """(rows,) int32, garbage."""
    eta: Tensor | None
    """(T,) float64: negative or a constant."""
    rates: Rates
    slots: Slots
    """As after some steps: moments and accumulators are not 0."""

    @property
    def samples(self) -> int:
        return len(self.pooled)

    def fresh(self, device: torch.device | str | None = None) -> "Case":
        """A copy that shares no memory, on another device if wanted: kernels write into weights and state."""

        def copied(x: Any) -> Any:
            if isinstance(x, Tensor):
                return x.detach().clone() if device is None else x.detach().clone().to(device)
            return x

        group, bags, slots = (
            replace(
                x, **{name: copied(getattr(x, name)) for name in x.__dataclass_fields__ if name != "layout"}
            )
            for x in (self.group, self.bags, self.slots)
        )
        # Rates are on the host, and nobody writes into them.
        return replace(
            self,
            group=group,
            bags=bags,
            pooled=copied(self.pooled),
            scratch=copied(self.scratch),
            eta=copied(self.eta),
            slots=slots,
        )


def make(
    shapes: Sequence[Shape],
    lengths: Sequence[int],
    *,
    samples: int,
    seed: int,
    dtype: torch.dtype = torch.float32,
    mean: bool = False,
    weighted: bool = False,
    dyadic: bool = False,
    etas: Sequence[float] | None = None,
    bases: Sequence[str] | None = None,
    origins: Sequence[tuple[int, int]] = (),
    hot: float = 0.5,
) -> Case:
    """A case of these tables.

    Args:
        lengths: F * B bag lengths, feature-major; bags of a table without rows become empty.
        etas: one a table, for ASAM.
        bases: one a table; cycles through all of them if not given.
        hot: share of the ids that are the first row of their table.
    """
    rng = torch.Generator().manual_seed(seed)
    # Float64 cases keep float64 throughout: the oracle's own precision.
    wide = torch.float64 if dtype == torch.float64 else torch.float32

    def drawn(*size: int) -> Tensor:
        if dyadic:
            return torch.randint(-64, 65, size, generator=rng).to(wide) / 64
        return torch.randn(*size, generator=rng, dtype=wide)

    shapes = tuple(shapes)
    tables, features = len(shapes), [shape for shape in shapes for _ in range(shape.features)]
    assert len(lengths) == len(features) * samples
    ids, offsets = [torch.empty(0, dtype=torch.int64)], [0]
    for bag, length in enumerate(lengths):
        rows = features[bag // samples].rows
        length = length if rows else 0
        drawn_ids = torch.randint(0, max(rows, 1), (length,), generator=rng)
        drawn_ids[torch.rand(length, generator=rng) < hot] = 0
        ids.append(drawn_ids)
        offsets.append(offsets[-1] + length)
    elements = sum(shape.rows * shape.stored for shape in shapes)
    rows = sum(shape.rows for shape in shapes)
    columns = sum(shape.stored for shape in features)
    group = Group(
        shapes,
        drawn(elements + 8).to(dtype),  # buffers may be longer than the tables
        mean=mean,
        keys=tuple(int(k) for k in torch.randint(-(2**62), 2**62, (tables,), generator=rng)),
        origins=tuple(origins) or ((0, 0),) * tables,
    )
    names = bases or [BASES[(seed + table) % len(BASES)] for table in range(tables)]
    return Case(
        group,
        Bags(
            torch.cat(ids),
            torch.tensor(offsets, dtype=torch.int64),
            drawn(offsets[-1]).float() if weighted else None,
        ),
        drawn(samples, columns),
        torch.randint(-(2**31), 2**31 - 1, (rows,), generator=rng).to(torch.int32)
        % (7 if seed % 2 else 2**31 - 1),
        None if etas is None else torch.tensor(list(etas), dtype=torch.float64),
        Rates(
            base=torch.tensor([BASES.index(name) for name in names], dtype=torch.int64),
            lr=torch.rand(tables, generator=rng, dtype=torch.float64) / 10 + 0.01,
            eps=torch.tensor([1e-8, 1e-3, 1e-6] * tables, dtype=torch.float64)[:tables],
            betas=torch.tensor([[0.9, 0.999], [0.0, 0.5], [0.5, 0.99]] * tables, dtype=torch.float64)[
                :tables
            ],
        ),
        Slots(
            first=torch.randn(elements, generator=rng, dtype=wide) / 10,
            second=torch.rand(elements, generator=rng, dtype=wide) / 10,
            sums=torch.rand(rows, generator=rng, dtype=wide),
        ),
    )


@st.composite
def cases(
    draw: st.DrawFn,
    *,
    dtypes: Sequence[torch.dtype] = (torch.float32,),
    dyadic: bool | None = None,
    weighted: bool | None = None,
    mean: bool | None = None,
    asam: bool | None = None,
    tables: int = 4,
    rows: int = 9,
    dim: int = 20,
    samples: int = 5,
    length: int = 3,
) -> Case:
    """Small groups of every kind: empty tables, bags and batches, repeats, padding, shared tables. None = either."""

    def either(given: bool | None) -> bool:
        return draw(st.booleans()) if given is None else given

    shapes = []
    for _ in range(draw(st.integers(1, tables))):
        logical = draw(st.one_of(st.just(1), st.integers(0, dim)))
        padding = 4 * draw(st.integers(0, 1))
        shapes.append(
            Shape(
                draw(st.integers(0, rows)),
                logical,
                max(4, -(-logical // 4) * 4) + padding,
                draw(st.sampled_from([1, 1, 1, 2, 3])),
            )
        )
    count = draw(st.integers(0, samples))
    bags = count * sum(shape.features for shape in shapes)
    low = either(None)
    lengths = draw(st.lists(st.integers(0, 1 if low else length), min_size=bags, max_size=bags))
    eta = draw(st.lists(st.sampled_from([-1.0, 0.0, 0.25]), min_size=len(shapes), max_size=len(shapes)))
    return make(
        shapes,
        lengths,
        samples=count,
        seed=draw(st.integers(0, 2**20)),
        dtype=draw(st.sampled_from(list(dtypes))),
        mean=either(mean),
        weighted=either(weighted),
        dyadic=either(dyadic),
        etas=eta if either(asam) else None,
        bases=draw(st.lists(st.sampled_from(BASES), min_size=len(shapes), max_size=len(shapes))),
        origins=[(draw(st.integers(0, 100)), 4 * draw(st.integers(0, 3))) for _ in shapes],
    )


def zipf(tables: int, rows: int, dim: int, samples: int, *, seed: int = 1, stored: int | None = None) -> Case:
    """One id a bag, P(id) ~ 1 / id: what a click log looks like; for hot rows and for speed."""
    shapes = [Shape(rows, dim, stored or -(-dim // 4) * 4) for _ in range(tables)]
    case = make(shapes, [1] * (tables * samples), samples=samples, seed=seed)
    u = torch.rand(tables * samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    ids = (rows**u - 1).to(torch.int64).clamp(max=rows - 1)
    return replace(case, bags=Bags(ids, case.bags.offsets))


@dataclass(frozen=True)
class Occurrence:
    """One id of a batch."""

    table: int
    row: int
    """Linear."""
    sample: int
    column: int
    """Where its feature starts in the pooled output."""
    length: int
    """Of its bag."""
    place: int
    """In `bags.ids`."""


def occurrences(case: Case) -> Iterator[Occurrence]:
    """Every id in its order."""
    group, ids, offsets = case.group, case.bags.ids.tolist(), case.bags.offsets.tolist()
    first_row, bag, column = 0, 0, 0
    for table, shape in enumerate(group.shapes):
        for _ in range(shape.features):
            for sample in range(case.samples):
                begin, end = offsets[bag], offsets[bag + 1]
                for place in range(begin, end):
                    yield Occurrence(table, first_row + ids[place], sample, column, end - begin, place)
                bag += 1
            column += shape.stored
        first_row += shape.rows


def place_of(group: Group, table: int, row: int) -> slice:
    """Where a row's logical columns lie in the flat weights."""
    shape = group.shapes[table]
    local = row - sum(before.rows for before in group.shapes[:table])
    begin = sum(before.rows * before.stored for before in group.shapes[:table]) + local * shape.stored
    return slice(begin, begin + shape.dim)


def by_row(touched: Touched, values: Tensor) -> dict[int, Any]:
    """A vector over u as {linear row: entry}, without what lies beyond the touched rows."""
    real = int(touched.bounds[-1])
    return dict(zip(touched.rows[:real].tolist(), values[:real].tolist(), strict=True))


def values_by_row(group: Group, touched: Touched, packed: Tensor) -> dict[int, Tensor]:
    """A packed buffer as {linear row: (dim,) values}."""
    bounds, starts, rows = touched.bounds.tolist(), touched.packed.tolist(), touched.rows.tolist()
    return {
        rows[u]: packed[starts[t] + (u - bounds[t]) * shape.dim :][: shape.dim]
        for t, shape in enumerate(group.shapes)
        for u in range(bounds[t], bounds[t + 1])
    }


def over_rows(group: Group, touched: Touched, seed: int, *, zeros: bool = True) -> Tensor:
    """(u,) float64 that depends on the row, not on its place in u: a scale or means for any implementation."""
    rng = torch.Generator().manual_seed(seed)
    values = torch.rand(max(group.rows, 1), generator=rng, dtype=torch.float64)
    if zeros:
        values[torch.rand(len(values), generator=rng) < 0.2] = 0
    found = values.to(touched.rows.device)[touched.rows]
    found[int(touched.bounds[-1]) :] = 0
    return found


def untouched(group: Group, touched: Touched) -> Tensor:
    """(elements of the buffer,) bool: True where no kernel may write, padding included."""
    free = torch.ones(len(group.weights), dtype=torch.bool)
    bounds, rows = touched.bounds.tolist(), touched.rows.tolist()
    for t in range(len(group.shapes)):
        for row in rows[bounds[t] : bounds[t + 1]]:
            free[place_of(group, t, row)] = False
    return free
