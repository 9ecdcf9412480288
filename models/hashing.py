"""Random numbers that are a pure function of what they are for, never of who draws them.

Dropout masks and initial table weights must not depend on the number of ranks, so they are not drawn
from a generator but hashed from (seed, step, layer, position, unit) or (seed, table, row, column).
The mixers are the finalisers of SplitMix64 (Steele et al., 2014) and MurmurHash3 (Appleby, 2011).
"""

import math
import zlib

import torch
from torch import Tensor

_CHUNK = 1 << 20  # entries hashed at a time, so that a large table needs no large temporaries


def _signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number (torch has no uint64 arithmetic)."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix64(x: Tensor) -> Tensor:
    """SplitMix64's step and finaliser on int64 of any shape."""
    x = x + _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def key(*parts: int | str) -> int:
    """One 64-bit key from integers and names; the order matters."""
    state = torch.zeros((), dtype=torch.int64)
    for part in parts:
        number = zlib.crc32(part.encode()) if isinstance(part, str) else part
        state = mix64(state ^ _signed(number))
    return int(state)


def keep_mask(
    probability: float, seed_key: int, first: int, rows: int, units: int, device: torch.device
) -> Tensor:
    """(rows, units) bool, True with `probability`; row r is position first + r of the global batch."""
    position = torch.arange(first, first + rows, device=device)
    row_key = mix64(position ^ seed_key).to(torch.int32)
    unit_key = mix64(torch.arange(units, device=device) ^ ~seed_key).to(torch.int32)
    x = row_key[:, None] ^ unit_key
    # MurmurHash3's 32-bit finaliser; & makes the arithmetic shift logical.
    x = (x ^ ((x >> 16) & 0xFFFF)) * -0x7A143595
    x = (x ^ ((x >> 13) & 0x7FFFF)) * -0x3D4D51CB
    x = x ^ ((x >> 16) & 0xFFFF)
    return x < round(probability * 2**32) - 2**31


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
