"""The numba kernels against the plain ones, and what is theirs alone: threads, garbage scratch, the cache."""

import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparta.optim.rows import kernels_for, loops
from sparta.optim.rows.cpu import CPU
from sparta.optim.rows.group import Bags, Touched
from sparta.optim.rows.plain import PLAIN
from tests.optim.rows.cases import Case, by_row, cases, make, over_rows, untouched, values_by_row, zipf
from tests.optim.rows.contest import closely, compare, exactly, whole_step

KERNELS = ("touch", "close_up", "catch_up", "reduce", "perturb", "restore", "step", "weight_gradient")


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@settings(deadline=None)
@given(cases())
def test_equals_the_plain_kernels(case: Case) -> None:
    compare(CPU, case, closely)


@settings(deadline=None)
@given(cases(dyadic=True, mean=False))
def test_reduces_exactly_what_float32_sums_exactly(case: Case) -> None:
    touched, expected = (kernels.touch(case.group, case.bags, case.scratch) for kernels in (CPU, PLAIN))
    found, plain = (
        kernels.reduce(case.group, case.bags, rows, case.pooled, case.eta)
        for kernels, rows in ((CPU, touched), (PLAIN, expected))
    )
    assert by_row(touched, found.squares) == by_row(expected, plain.squares)
    ours, theirs = (
        values_by_row(case.group, touched, found.gradient),
        values_by_row(case.group, expected, plain.gradient),
    )
    for row, values in ours.items():
        exactly(values, theirs[row])


@settings(deadline=None)
@given(cases())
def test_only_the_touched_rows_columns_are_written(case: Case) -> None:
    before = case.fresh()
    list(whole_step(CPU, case))
    touched = PLAIN.touch(before.group, before.bags, before.scratch)
    free = untouched(before.group, touched)
    exactly(case.group.weights[free], before.group.weights[free])
    for name in ("first", "second"):
        kept = free[: case.group.elements]
        exactly(getattr(case.slots, name)[kept], getattr(before.slots, name)[kept])
    rows = torch.ones(case.group.rows, dtype=torch.bool)
    rows[touched.rows] = False
    assert case.slots.sums is not None
    assert before.slots.sums is not None
    exactly(case.slots.sums[rows], before.slots.sums[rows])


@settings(deadline=None)
@given(cases())
def test_restore_is_bit_exact_and_scale_zero_keeps_bits(case: Case) -> None:
    case.group.weights[::3] = -0.0  # adding 0 would change its bits
    before = case.group.weights.clone().view(torch.int32)
    touched = CPU.touch(case.group, case.bags, case.scratch)
    found = CPU.reduce(case.group, case.bags, touched, case.pooled, None)
    scale = over_rows(case.group, touched, 5)
    still = CPU.perturb(case.group, touched, found.gradient * torch.nan, scale * 0, case.eta, step=1)
    assert torch.equal(case.group.weights.view(torch.int32), before)
    saved = CPU.perturb(case.group, touched, found.gradient, scale, case.eta, step=1)
    assert torch.equal(saved.view(torch.int32), still.view(torch.int32))
    CPU.restore(case.group, touched, saved)
    assert torch.equal(case.group.weights.view(torch.int32), before)


@settings(deadline=None)
@given(cases(), st.integers(0, 2**20))
def test_any_scratch_will_do(case: Case, seed: int) -> None:
    """Also the one a former batch left, and one of places that exist."""
    expected = CPU.touch(case.group, case.bags, torch.zeros_like(case.scratch))
    rng = torch.Generator().manual_seed(seed)
    for low, high in ((-(2**31), 2**31), (-3, 12), (0, 2)):
        garbage = torch.randint(low, high, case.scratch.shape, generator=rng).to(torch.int32)
        for _ in range(2):
            found = CPU.touch(case.group, case.bags, garbage)
            assert torch.equal(found.rows, expected.rows)
            assert torch.equal(found.counts, expected.counts)


@settings(deadline=None)
@given(cases())
def test_rows_stand_in_the_order_of_the_ids(case: Case) -> None:
    touched = CPU.touch(case.group, case.bags, case.scratch)
    plain = PLAIN.touch(case.group, case.bags, case.scratch)
    seen = list(dict.fromkeys(plain.rows[plain.private].tolist()))
    assert touched.rows.tolist() == seen


@settings(deadline=None)
@given(cases(asam=False), st.booleans())
def test_rows_found_by_others_can_be_stepped(case: Case, restores: bool) -> None:
    """What was not touched here has nothing private, and may be in any order."""
    twin = case.fresh()
    touched = PLAIN.touch(case.group, case.bags, case.scratch)
    foreign = replace(touched, private=None)
    gradient = PLAIN.reduce(case.group, case.bags, touched, case.pooled, None).gradient
    means = over_rows(case.group, touched, 7)
    for kernels, one in ((CPU, case), (PLAIN, twin)):
        saved = kernels.perturb(one.group, foreign, gradient, means, None, step=1)
        kernels.step(
            one.group, foreign, gradient, means, saved if restores else None, one.rates, one.slots, step=1
        )
    closely(case.group.weights, twin.group.weights)


def bits_of(case: Case) -> list[Tensor]:
    flat: list[Tensor] = []
    for _, value in whole_step(CPU, case):
        flat += [x for x in (value.values() if isinstance(value, dict) else [value]) if isinstance(x, Tensor)]
    return [x.clone() for x in flat]


@pytest.mark.parametrize("mean", [False, True])
def test_same_input_same_bits_on_any_number_of_threads(mean: bool) -> None:
    start = zipf(7, 400, 12, 500)
    start = replace(
        start, group=replace(start.group, mean=mean), eta=torch.tensor([0.1, -1.0] * 3 + [0.0]).double()
    )
    runs = []
    for threads in (1, 1, 2, 3):
        torch.set_num_threads(threads)
        runs.append(bits_of(start.fresh()))
    for run in runs[1:]:
        for found, expected in zip(run, runs[0], strict=True):
            exactly(found, expected)


def test_many_threads_may_call_at_once() -> None:
    torch.set_num_threads(2)
    starts = [zipf(3, 300, 8, 900, seed=seed) for seed in range(4)]
    alone = [bits_of(start.fresh()) for start in starts]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(bits_of, [start.fresh() for start in starts]))
    for ours, theirs in zip(together, alone, strict=True):
        for found, expected in zip(ours, theirs, strict=True):
            exactly(found, expected)


def test_a_fork_has_threads_of_its_own() -> None:
    torch.set_num_threads(2)
    start = zipf(3, 300, 8, 900)
    expected = bits_of(start.fresh())
    child = os.fork()
    if child == 0:
        same = all(torch.equal(a, b) for a, b in zip(bits_of(start.fresh()), expected, strict=True))
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_pooled_gradients_may_be_strided() -> None:
    """Autograd hands over expanded tensors, such as the gradient of a sum."""
    case = zipf(2, 50, 4, 20)
    pooled = torch.ones(1, 1).expand(20, case.group.columns)
    touched: Touched = CPU.touch(case.group, case.bags, case.scratch)
    found = CPU.reduce(case.group, case.bags, touched, pooled, None)
    exactly(found.gradient.view(-1, 4)[:, 0], touched.counts.float())


def test_weights_below_float32_are_refused() -> None:
    case = zipf(1, 5, 4, 2)
    narrow = replace(case.group, weights=case.group.weights.bfloat16())
    with pytest.raises(ValueError, match=r"weights of torch.bfloat16: .* steps torch.float32 only"):
        CPU.touch(narrow, case.bags, case.scratch)


def test_every_loop_is_compiled_once() -> None:
    """One signature each: processes that fill the cache at the same time then write the same files."""
    for mean in (False, True):
        for weighted in (False, True):
            case = make(
                [*zipf(1, 5, 3, 2).group.shapes] * 2,
                [1, 0, 2, 3],
                samples=2,
                seed=1,
                mean=mean,
                weighted=weighted,
                etas=[0.1, -1] if mean else None,
            )
            list(whole_step(CPU, case))
    empty = replace(case, bags=Bags(torch.empty(0, dtype=torch.int64), torch.zeros(5, dtype=torch.int64)))
    list(whole_step(CPU, empty))
    assert {name: len(getattr(loops, name).signatures) for name in KERNELS} == dict.fromkeys(KERNELS, 1)


def test_works_where_no_folder_can_be_written(tmp_path: Path) -> None:
    """As in a pod with a read-only root: numba would refuse to cache."""
    code = (
        "import numba.core.caching as caching\n"
        "def refuse(self): raise OSError('Read-only file system')\n"
        "caching._CacheLocator.ensure_cache_path = refuse\n"
        "from tests.optim.rows.cases import zipf\n"
        "from sparta.optim.rows.cpu import CPU\n"
        "from sparta.optim.rows import loops\n"
        "case = zipf(2, 9, 4, 3)\n"
        "touched = CPU.touch(case.group, case.bags, case.scratch)\n"
        "print(int(touched.counts.sum()), type(loops.touch._cache).__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.stdout == "6 NullCache\n"


def test_the_cpu_has_these_kernels() -> None:
    assert kernels_for(torch.device("cpu")) is CPU
