"""Laws of stochastic rounding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparta.optim.rows.rounding import PERTURB, STEP, mix64, random_bits, rounded

NARROW = [torch.float16, torch.bfloat16]


def bits_of(n: int, key: int = 1) -> Tensor:
    return random_bits(key, 1, STEP, torch.arange(n), torch.arange(1))[:, 0]


def neighbours(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The largest narrow number at or below, and the smallest at or above."""
    near = x.to(dtype)
    infinity = torch.full_like(near, torch.inf)
    low = torch.where(near.float() > x, torch.nextafter(near, -infinity), near)
    high = torch.where(near.float() < x, torch.nextafter(near, infinity), near)
    return low, high


@pytest.mark.parametrize("dtype", NARROW)
@settings(deadline=None)
@given(
    st.lists(
        st.floats(-6e4, 6e4, width=32) | st.floats(-(2.0**-13), 2.0**-13, width=32), min_size=1, max_size=20
    )
)
def test_the_result_is_a_neighbour(dtype: torch.dtype, values: list[float]) -> None:
    x = torch.tensor(values)
    low, high = neighbours(x, dtype)
    found = rounded(x, bits_of(len(x), key=len(values)), dtype)
    assert ((found == low) | (found == high)).all()
    assert torch.equal(found.signbit(), x.signbit())


@pytest.mark.parametrize("dtype", NARROW)
def test_what_fits_stays(dtype: torch.dtype) -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    every = every[every.isfinite()]
    if dtype == torch.bfloat16:
        every = every[every.float().abs() >= 2.0**-126]  # machines may flush float32's own subnormals
    assert torch.equal(rounded(every.float(), bits_of(len(every)), dtype), every)


@pytest.mark.parametrize("dtype", NARROW)
def test_what_is_not_finite_stays(dtype: torch.dtype) -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan])
    torch.testing.assert_close(rounded(x, bits_of(3), dtype), x.to(dtype), equal_nan=True)


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("value", [1.001, -3.14159, 1e-4, 2.0**-15 * 1.0001, -7e-6, 3e-8, 123.456])
def test_it_is_unbiased(dtype: torch.dtype, value: float) -> None:
    n = 40_000
    x = torch.full((n,), value)
    low, high = neighbours(x[:1], dtype)
    found = rounded(x, bits_of(n), dtype).double().mean()
    gap = float(high.double() - low.double())
    # Five standard errors of a mean of n draws that are at most half a gap from theirs.
    assert abs(float(found) - float(x[0])) < 5 * gap / 2 / n**0.5


def test_bits_depend_on_all_of_the_key_and_nothing_else() -> None:
    key, rows, columns = 0x7261_6E64_6F6D_2121, torch.arange(5), torch.arange(4)
    base = random_bits(key, 3, STEP, rows, columns)
    assert torch.equal(base[2:, 1:], random_bits(key, 3, STEP, rows[2:], columns[1:]))
    others = [
        random_bits(key ^ 2**40, 3, STEP, rows, columns),
        random_bits(key, 4, STEP, rows, columns),
        random_bits(key, 3, PERTURB, rows, columns),
        random_bits(key, 3, STEP, rows + 5, columns),
        random_bits(key, 3, STEP, rows, columns + 4),
    ]
    everything = torch.cat([x.flatten() for x in (base, *others)])
    assert len(everything.unique()) == len(everything)


def test_the_mixer_is_splitmix64() -> None:
    """The generator's first numbers from seed 0, as its reference code prints them."""
    state, found = 0, []
    for _ in range(3):
        found.append(int(mix64(torch.tensor(state))) % 2**64)
        state += 0x9E3779B97F4A7C15
        state = state - 2**64 if state >= 2**63 else state
    assert found == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
