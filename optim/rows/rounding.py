"""Stochastic rounding of float32 to bfloat16 or float16, keyed by what is rounded and never by who does it.

An entry's random bits are a pure function of (table key, step, phase, row, column), the row and column those of
the whole table, so every sharding of it rounds alike. With 64-bit wrap-around and SplitMix64's step and
finaliser as `mix64`:

    state = mix64(key ^ (2 * step + phase))     phase: PERTURB or STEP
    bits  = mix64(mix64(state ^ row) ^ column)

The top bits are added to the float32 pattern below the last bit that is kept, and what is below is cut off:
the result is one of the two neighbours, each with the probability that makes the mean exact. That is 16 bits for
bfloat16 and 13 for float16. Float16 below 2^-14 is subnormal, with a fixed spacing: there 2^-14 is added to
|x| first and taken away after, which aligns the bits; |x| then counts to 2^-38, as a float32 at 2^-14 does.
A carry may reach infinity from the last step below it, and what is not finite is converted as it is.
"""

import torch
from torch import Tensor

PERTURB, STEP = 0, 1

DROPPED = {torch.bfloat16: 16, torch.float16: 13}
"""Bits of a float32's mantissa that the narrow format has no room for."""

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit number (torch has no uint64 arithmetic)."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix64(x: Tensor) -> Tensor:
    """SplitMix64's step and finaliser on int64 of any shape."""
    x = x + signed(_GOLDEN)
    x = (x ^ _shift(x, 30)) * signed(_FIRST)
    x = (x ^ _shift(x, 27)) * signed(_SECOND)
    return x ^ _shift(x, 31)


def random_bits(key: int, step: int, phase: int, rows: Tensor, columns: Tensor) -> Tensor:
    """(u, D) int64 for rows (u,) and columns (D,) of the whole table that `key` names."""
    state = mix64(torch.tensor(signed(key ^ (2 * step + phase)), device=rows.device))
    return mix64(mix64(state ^ rows)[:, None] ^ columns)


def rounded(x: Tensor, bits: Tensor, dtype: torch.dtype) -> Tensor:
    """Float32 x in `dtype`, each entry one of its two neighbours as its `bits` choose."""
    dropped = DROPPED[dtype]
    size = x.abs()
    offset = torch.zeros_like(x)
    if dtype == torch.float16:
        offset = torch.where(size < 2.0**-14, 2.0**-14, offset)
    pattern = (size + offset).view(torch.int32) + _shift(bits, 64 - dropped).to(torch.int32)
    kept = (pattern & ~((1 << dropped) - 1)).view(torch.float32) - offset
    return torch.where(x.isfinite(), kept.copysign(x), x).to(dtype)
