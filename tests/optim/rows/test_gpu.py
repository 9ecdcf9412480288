"""The Triton kernels against the plain ones: on a GPU where there is one, else in Triton's interpreter.

Triton reads TRITON_INTERPRET when it is imported, so the interpreted tests run in a process of their own. What
only a compiler can find is found by compiling every kernel for a GPU that need not be there.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparta.optim.rows import kernels_for
from sparta.optim.rows.group import Kernels, Shape
from sparta.optim.rows.plain import PLAIN
from tests.optim.rows.cases import Case, cases, make, over_rows, untouched, zipf
from tests.optim.rows.contest import closely, compare, exactly, whole_step

GPU = torch.cuda.is_available()
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cuda" if GPU else "cpu")
NARROW = (torch.bfloat16, torch.float16)

somewhere = pytest.mark.skipif(not (GPU or INTERPRETED), reason="neither a GPU nor Triton's interpreter")
few = settings(
    max_examples=200 if GPU else 12,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    from sparta.optim.rows import gpu

    return gpu.GPU


def test_in_the_interpreter() -> None:
    if GPU or INTERPRETED:
        pytest.skip("they run here")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]


def signature(
    operands: tuple[Any, ...], kernel: Any, flags: dict[str, Any]
) -> tuple[dict[str, str], dict[str, Any]]:
    """Types of a kernel's operands as Triton writes them, and what is constant."""
    types = {
        torch.float32: "fp32",
        torch.float64: "fp64",
        torch.float16: "fp16",
        torch.bfloat16: "bf16",
        torch.int64: "i64",
    }
    kinds, constants = {}, {}
    for name, operand in (dict(zip(kernel.arg_names, operands, strict=False)) | flags).items():
        if isinstance(operand, torch.Tensor):
            kinds[name] = "*" + types[operand.dtype]
        elif name in flags or operand is None:
            kinds[name], constants[name] = "constexpr", operand
        else:
            kinds[name] = "i64" if name == "count" else "i32"
    return kinds, constants


@pytest.mark.parametrize("shape", [Shape(9, 10, 12), Shape(9, 1, 4), Shape(9, 128, 128)], ids=lambda s: s.dim)
@pytest.mark.parametrize("dtype", [torch.float32, *NARROW])
def test_compiles_for_a_gpu_that_need_not_be_here(
    dtype: torch.dtype, shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    if INTERPRETED:
        pytest.skip("the interpreter compiles nothing")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from sparta.optim.rows import gpu

    launched: dict[str, tuple[Any, Any, Any]] = {}

    def launch(kernel: Any, programs: int, *operands: Any, **flags: Any) -> None:
        launched[kernel.__name__] = kernel, operands, flags

    monkeypatch.setattr(gpu, "_launch", launch)
    case = make([shape], [2] * 8, samples=8, seed=1, mean=True, weighted=True, etas=[0.1], dtype=dtype)
    touched = gpu.GPU.touch(case.group, case.bags, case.scratch)
    ones = torch.ones(len(case.group.shapes), dtype=torch.float64)
    gpu.GPU.catch_up(case.group, touched, torch.zeros(case.group.rows, dtype=torch.float64), ones)
    found = gpu.GPU.reduce(case.group, case.bags, touched, case.pooled, case.eta, ones)
    saved = gpu.GPU.perturb(case.group, touched, found.gradient, found.squares, case.eta, step=1)
    gpu.GPU.restore(case.group, touched, saved)
    gpu.GPU.step(case.group, touched, found.gradient, found.squares, saved, case.rates, case.slots, step=1)
    gpu.GPU.weight_gradient(case.group, case.bags, case.pooled)
    assert len(launched) == 7
    for kernel, operands, flags in launched.values():
        kinds, constants = signature(operands, kernel, flags)
        source = ASTSource(
            kernel, kinds, {(kernel.arg_names.index(name),): x for name, x in constants.items()}
        )
        made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"enable_fp_fusion": False})
        assert "cubin" in made.asm


@somewhere
@few
@given(case=cases(samples=4))
def test_equals_the_plain_kernels(kernels: Kernels, case: Case) -> None:
    compare(kernels, case.fresh(DEVICE), closely)


@somewhere
@few
@given(case=cases(dtypes=NARROW, asam=False, samples=4, tables=3))
def test_rounds_narrow_weights_as_the_plain_kernels_do(kernels: Kernels, case: Case) -> None:
    """One in many thousands may fall on the other side, where the last bit of a float32 differs."""

    def nearly(found: torch.Tensor, expected: torch.Tensor) -> None:
        if found.dtype in NARROW:
            differ = (found != expected) & ~(found.isnan() & expected.isnan())
            assert differ.sum() <= 1
            torch.testing.assert_close(found, expected, rtol=0.02, atol=1e-6, equal_nan=True)
        else:
            closely(found, expected)

    compare(kernels, case.fresh(DEVICE), nearly)


@somewhere
@few
@given(case=cases(dyadic=True, mean=False, samples=4))
def test_reduces_exactly_what_float32_sums_exactly(kernels: Kernels, case: Case) -> None:
    case = case.fresh(DEVICE)
    for (name, found), (_, expected) in zip(
        whole_step(kernels, case.fresh()), whole_step(PLAIN, case.fresh()), strict=True
    ):
        if name == "gradient":
            assert isinstance(found, dict)
            assert isinstance(expected, dict)
            for row, values in found.items():
                exactly(values, expected[row])


@somewhere
@few
@given(case=cases(samples=3), seed=st.integers(0, 9))
def test_only_the_touched_rows_columns_are_written(kernels: Kernels, case: Case, seed: int) -> None:
    case = case.fresh(DEVICE)
    before = case.fresh("cpu")
    list(whole_step(kernels, case))
    free = untouched(before.group, PLAIN.touch(before.group, before.bags, before.scratch))
    exactly(case.group.weights.cpu()[free], before.group.weights[free])
    for name in ("first", "second"):
        kept = free[: case.group.elements]
        exactly(getattr(case.slots, name).cpu()[kept], getattr(before.slots, name)[kept])


@somewhere
@few
@given(case=cases(asam=False, samples=3))
def test_scale_zero_and_restoring_keep_bits(kernels: Kernels, case: Case) -> None:
    case = case.fresh(DEVICE)
    case.group.weights[::3] = -0.0  # adding 0 would change its bits
    before = case.group.weights.clone().view(torch.int32)
    touched = kernels.touch(case.group, case.bags, case.scratch)
    gradient = kernels.reduce(case.group, case.bags, touched, case.pooled, None).gradient
    scale = over_rows(case.group, touched, 5)
    kernels.perturb(case.group, touched, gradient * torch.nan, scale * 0, None, step=1)
    assert torch.equal(case.group.weights.view(torch.int32), before)
    saved = kernels.perturb(case.group, touched, gradient, scale, None, step=1)
    kernels.restore(case.group, touched, saved)
    assert torch.equal(case.group.weights.view(torch.int32), before)


@somewhere
@pytest.mark.parametrize("mean", [False, True])
def test_a_row_in_every_sample_is_summed_in_pieces(kernels: Kernels, mean: bool) -> None:
    case = make(
        zipf(2, 40, 6, 2).group.shapes,
        [1] * 600,
        samples=300,
        seed=3,
        mean=mean,
        weighted=mean,
        etas=[0.1, -1.0],
        hot=0.7,
    ).fresh(DEVICE)
    largest = int(kernels.touch(case.group, case.bags, case.scratch).counts.max())
    assert largest > 5 * 32
    compare(
        kernels,
        case,
        lambda found, expected: torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5),
    )


@somewhere
def test_many_neighbours_that_fall_into_pieces(kernels: Kernels) -> None:
    """Every row has a few ids more than a piece: windows of partial sums must not meet."""
    rows = 7
    ids = torch.arange(rows).repeat_interleave(torch.tensor([33, 64, 65, 1, 40, 97, 32]))
    ids = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(2))]
    case = make(zipf(1, rows, 8, 2).group.shapes, [1] * len(ids), samples=len(ids), seed=1, dyadic=True)
    case = replace(case, bags=replace(case.bags, ids=ids)).fresh(DEVICE)
    compare(kernels, case, exactly)


@somewhere
def test_same_input_same_bits(kernels: Kernels) -> None:
    start = zipf(3, 200, 12, 150)
    runs = [list(whole_step(kernels, start.fresh(DEVICE))) for _ in range(2)]
    for (_, found), (_, expected) in zip(*runs, strict=True):
        pairs = (
            [(found[row], expected[row]) for row in found]
            if isinstance(found, dict) and isinstance(expected, dict)
            else [(found, expected)]
        )
        for one, other in pairs:
            assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="no GPU")
def test_a_gpu_has_these_kernels(kernels: Kernels) -> None:
    assert kernels_for(torch.device("cuda")) is kernels
