"""Random numbers that are a pure function of what they are for, never of who draws them.

Dropout masks and initial table weights must not depend on the number of ranks, so they are not drawn
from a generator but hashed from (seed, step, layer, position, unit) or (seed, table, row, column).
The mixers are the finalisers of SplitMix64 (Steele et al., 2014) and MurmurHash3 (Appleby, 2011).
"""

import math
import zlib

import torch
from torch import Tensor

_CHUNK = 1 << 18  # entries hashed at a time, so that a large table needs no large temporaries
_ALL = (1 << 64) - 1
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # SplitMix64's constants


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number (torch has no uint64 arithmetic)."""
    value &= _ALL
    return value - (1 << 64) if value >> 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix64(x: Tensor) -> Tensor:
    """SplitMix64's step and finaliser on int64 of any shape."""
    x = x + _signed(_STEP)
    x = (x ^ _shift(x, 30)) * _signed(_FIRST)
    x = (x ^ _shift(x, 27)) * _signed(_SECOND)
    return x ^ _shift(x, 31)


def key(*parts: int | str) -> int:
    """One 64-bit key from integers and names; the order matters."""
    state = 0
    for part in parts:
        number = zlib.crc32(part.encode()) if isinstance(part, str) else part
        state = _mix(state ^ number)
    return _signed(state)


def _mix(x: int) -> int:
    """`mix64` of one number, without tensors: a layer asks for a key at every step."""
    x = (x + _STEP) & _ALL
    x = ((x ^ (x >> 30)) * _FIRST) & _ALL
    x = ((x ^ (x >> 27)) * _SECOND) & _ALL
    return x ^ (x >> 31)


def keep_mask(
    probability: float,
    seed_key: int,
    first: int,
    rows: int,
    units: int,
    device: torch.device,
    stride: int = 1,
) -> Tensor:
    """(rows, units) bool, True with `probability`; row r is position first + r * stride of the global batch.

    One 32-bit hash decides two neighbouring units, so the probability is rounded to a multiple of 2^-16.
    """
    position = torch.arange(first, first + rows * stride, stride, device=device)
    row_key = mix64(position ^ seed_key).to(torch.int32)
    unit_key = mix64(torch.arange(-(-units // 2), device=device) ^ ~seed_key).to(torch.int32)
    # MurmurHash3's 32-bit finaliser, in place: a fresh tensor per operation costs more than the arithmetic.
    x = row_key[:, None] ^ unit_key
    shifted = torch.empty_like(x)
    _xor_shift(x, 16, shifted).mul_(-0x7A143595)
    _xor_shift(x, 13, shifted).mul_(-0x3D4D51CB)
    _xor_shift(x, 16, shifted)
    threshold = round(probability * 2**16) - 2**15
    if threshold == 2**15:  # no int16 is above it
        return torch.ones(rows, units, dtype=torch.bool, device=device)
    return x.view(torch.int16)[:, :units] < threshold


def _xor_shift(x: Tensor, bits: int, shifted: Tensor) -> Tensor:
    """x ^= x >> bits in place on int32; the & makes torch's arithmetic shift logical."""
    torch.bitwise_right_shift(x, bits, out=shifted)
    return x.bitwise_xor_(shifted.bitwise_and_((1 << (32 - bits)) - 1))


def fill_normal(
    out: Tensor, seed_key: int, first_row: int, first_column: int, width: int, std: float
) -> None:
    """Fill out (rows, columns) in place with its window of a normal table of `width` columns.

    Entry (r, c) of the whole table is a function of (seed_key, r, c) alone; columns at or beyond `width`
    are padding and become 0. Box-Muller on two hashed uniforms.
    """
    rows, columns = out.shape
    real = max(0, min(columns, width - first_column))
    out[:, real:] = 0
    if real == 0:
        return
    column = torch.arange(first_column, first_column + real, device=out.device)
    step = max(1, _CHUNK // real)
    for start in range(0, rows, step):
        stop = min(start + step, rows)
        row = torch.arange(first_row + start, first_row + stop, device=out.device)
        bits = mix64(mix64(row ^ seed_key)[:, None] ^ column)
        # 53 and 32 independent-enough bits: the high ones give the radius, a second mix the angle.
        u = (_shift(bits, 11).double() + 0.5) * 2.0**-53
        v = _shift(mix64(bits), 32).double() * 2.0**-32
        out[start:stop, :real] = (std * torch.sqrt(-2 * torch.log(u)) * torch.cos(2 * math.pi * v)).to(
            out.dtype
        )
