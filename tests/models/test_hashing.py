"""Laws of the hashed random numbers: they look random, and depend on nothing but their arguments."""

import math
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sparta.models.hashing import fill_normal, keep_mask, key, mix64

CPU = torch.device("cpu")
ROW, COLUMN = torch.triu_indices(200, 200, offset=1)


def mask(keep: float, seed_key: int, *, first: int = 0, rows: int = 512, units: int = 200) -> torch.Tensor:
    return keep_mask(keep, seed_key, first, rows, units, CPU)


def chi_square(counts: torch.Tensor, trials: int, keep: float) -> float:
    """Standard scores of the sum of squared standardised counts: about normal when they are binomial."""
    z = (counts.double() - trials * keep) / math.sqrt(trials * keep * (1 - keep))
    return float((z.square().sum() - z.numel()) / math.sqrt(2 * z.numel()))


def normal(
    rows: int, width: int, seed_key: int, *, std: float = 1.0, columns: int | None = None
) -> torch.Tensor:
    out = torch.full((rows, columns or width), float("nan"))
    fill_normal(out, seed_key, 0, 0, width, std)
    return out


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.text(max_size=9), max_size=5))
def test_a_key_is_a_fold_of_mix64(parts: list[int | str]) -> None:
    state = torch.zeros((), dtype=torch.int64)
    for part in parts:
        state = mix64(state ^ (zlib.crc32(part.encode()) if isinstance(part, str) else part))
    assert key(*parts) == int(state)


def test_keys_tell_their_parts_and_the_order_apart() -> None:
    keys = {key(seed, step, "dropout", layer) for seed in range(5) for step in range(50) for layer in "abc"}
    assert len(keys) == 750
    assert key(1, 2) != key(2, 1)


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8, 0.9])
def test_masks_are_uniform_over_rows_and_units(keep: float) -> None:
    drawn = mask(keep, key(1, "uniform"), rows=2048, units=401)
    assert abs(chi_square(drawn.sum(0), 2048, keep)) < 4
    assert abs(chi_square(drawn.sum(1), 401, keep)) < 4
    assert abs(float(drawn.float().mean()) - keep) < 4 * math.sqrt(keep * (1 - keep) / drawn.numel())


@pytest.mark.parametrize(
    "other",
    [
        ("next row", lambda m: (m[:-1], m[1:])),
        ("far row", lambda m: (m[:-256], m[256:])),
        ("next unit", lambda m: (m[:, :-1], m[:, 1:])),
        ("half of one hash", lambda m: (m[:, ::2], m[:, 1::2])),
        ("next hash", lambda m: (m[:, :-2], m[:, 2:])),
        ("transposed", lambda m: (m[ROW, COLUMN], m[COLUMN, ROW])),
        ("next step", lambda m: (m, mask(0.7, key(7, 2, "dropout", "a")))),
        ("other layer", lambda m: (m, mask(0.7, key(7, 1, "dropout", "b")))),
        ("other seed", lambda m: (m, mask(0.7, key(8, 1, "dropout", "a")))),
        ("two bits of four", lambda m: (m[:-1, :-1] ^ m[1:, 1:], m[1:, :-1] ^ m[:-1, 1:])),
    ],
    ids=lambda case: case[0],
)
def test_masks_are_independent(other: tuple[str, object]) -> None:
    one, two = other[1](mask(0.7, key(7, 1, "dropout", "a")))  # type: ignore[operator]
    one, two = one.double().flatten(), two.double().flatten()
    correlation = ((one - one.mean()) * (two - two.mean())).mean() / (one.std() * two.std())
    assert abs(float(correlation)) * math.sqrt(one.numel()) < 4


def test_sums_over_any_four_corners_are_even_as_often_as_chance_has_it() -> None:
    # Rows and units enter through an xor: without a good finaliser the four corners of a rectangle cancel.
    drawn = mask(0.5, key(3, "corners"), rows=1024, units=300)
    odd = drawn[:-1, :-1] ^ drawn[1:, :-1] ^ drawn[:-1, 1:] ^ drawn[1:, 1:]
    assert abs(float(odd.double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(odd.numel())


@settings(max_examples=40, deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 10**9), st.integers(1, 40), st.integers(1, 30))
def test_a_mask_is_a_window_of_one_endless_mask(seed_key: int, first: int, rows: int, units: int) -> None:
    whole = keep_mask(0.6, seed_key, first, 60, 31, CPU)
    start = 60 - rows
    assert torch.equal(keep_mask(0.6, seed_key, first + start, rows, units, CPU), whole[start:, :units])


def test_probabilities_zero_and_one_are_certain() -> None:
    assert mask(1.0, 5).all()
    assert mask(1 - 1e-9, 5).all()
    assert not mask(0.0, 5).any()


def test_normals_have_the_moments_of_a_normal_distribution() -> None:
    x = normal(20_000, 16, key(1, "table", "C1"), std=2.0).double() / 2
    n = x.numel()
    for power, moment, variance in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)]:
        assert abs(float((x**power).mean()) - moment) < 4 * math.sqrt(variance / n), power
    counts = torch.histc(torch.special.ndtr(x).float(), bins=100, min=0, max=1)
    assert abs(chi_square(counts, n, 0.01)) < 4
    assert float(x.abs().max()) > 4


@pytest.mark.parametrize(
    "pair",
    [
        lambda x: (x[:-1], x[1:]),
        lambda x: (x[:, :-1], x[:, 1:]),
        lambda x: (x, normal(4000, 16, key(1, "C2"))),
    ],
)
def test_normals_of_different_rows_columns_and_tables_are_independent(pair: object) -> None:
    one, two = pair(normal(4000, 16, key(1, "C1")))  # type: ignore[operator]
    bound = 4 / math.sqrt(one.numel())
    assert abs(float((one * two).mean())) < bound
    assert abs(float((one.square() * two.square()).mean()) - 1) < 8 * bound


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_filling_a_window_gives_the_window_of_the_filled_table(data: st.DataObject) -> None:
    rows, width, columns = 40, 10, 12
    whole = normal(rows, width, 99, std=0.1, columns=columns)
    top, left = data.draw(st.integers(0, rows - 1)), data.draw(st.integers(0, columns - 1))
    bottom, right = data.draw(st.integers(top + 1, rows)), data.draw(st.integers(left + 1, columns))
    window = torch.full((bottom - top, right - left), float("nan"))
    fill_normal(window, 99, top, left, width, 0.1)
    assert torch.equal(window, whole[top:bottom, left:right])


def test_padding_columns_are_zero_and_real_ones_are_not() -> None:
    whole = normal(50, 5, 1, columns=8)
    assert not whole[:, 5:].any()
    assert whole[:, :5].all()


def test_large_tables_are_filled_in_chunks_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = normal(100, 7, 3)
    monkeypatch.setattr("sparta.models.hashing._CHUNK", 30)
    assert torch.equal(normal(100, 7, 3), whole)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_draws_the_same_numbers() -> None:
    gpu = torch.device("cuda")
    assert torch.equal(keep_mask(0.7, 3, 5, 100, 33, gpu).cpu(), keep_mask(0.7, 3, 5, 100, 33, CPU))
    out = torch.empty(100, 7, device=gpu)
    fill_normal(out, 3, 0, 0, 7, 1.0)
    torch.testing.assert_close(out.cpu(), normal(100, 7, 3), rtol=1e-6, atol=1e-7)
