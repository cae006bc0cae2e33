"""Philox 4x32-10 and its transforms in plain torch: slow, obviously right, the same on every device.

Source: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC'11.
"""

from __future__ import annotations

from typing import Any

import torch

MASK = 0xFFFFFFFF
M0, M1 = 0xD2511F53, 0xCD9E8D57  # round multipliers
W0, W1 = 0x9E3779B9, 0xBB67AE85  # key increments (golden ratio, sqrt(3) - 1)


def rounds(c0: Any, c1: Any, c2: Any, c3: Any, k0: int, k1: int) -> tuple[Any, Any, Any, Any]:
    """Ten Philox rounds on Python ints or on int64 tensors that hold 32-bit words.

    A product of two 32-bit words overflows a signed int64, but only its bit pattern matters: the arithmetic
    shift is masked afterwards, so both halves come out right.
    """
    for _ in range(10):
        p0, p1 = c0 * M0, c2 * M1
        c0, c1, c2, c3 = ((p1 >> 32) & MASK) ^ c1 ^ k0, p1 & MASK, ((p0 >> 32) & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + W0) & MASK, (k1 + W1) & MASK
    return c0, c1, c2, c3


def block(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """The four output words of one Philox block.

    Args:
        counter: four 32-bit words.
        key: two 32-bit words.

    Example:
        >>> [f"{word:08x}" for word in block((0, 0, 0, 0), (0, 0))]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    return rounds(*counter, *key)


def words(seed: int, stream: int, step: int, start: int, n: int, device: torch.device) -> torch.Tensor:
    """Words at positions ``start`` to ``start + n - 1``: int64 tensor of shape [n], values 0 to 2**32 - 1."""
    first = start // 4
    # the last block of a range that ends at position 2**63 is 2**61 - 1, so int64 is enough
    index = torch.arange(first, (start + n + 3) // 4, dtype=torch.int64, device=device)
    low, high = index & MASK, index >> 32
    out = rounds(low, high, torch.full_like(low, step), torch.full_like(low, stream), seed & MASK, seed >> 32)
    return torch.stack(out, dim=1).reshape(-1)[start - 4 * first :][:n]


def to_uniform(word: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Map words to the open interval (0, 1): 2**23 midpoints, each exact in float32."""
    return ((word >> 9).to(dtype) + 0.5) * 2.0**-23


def to_normal(word: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Map words to the standard normal by the inverse distribution function, in float64, cast at the end.

    With ``i`` the word read as a signed number and ``x = (i + 1/2) 2**-31`` this is ``sqrt(2) erfinv(x)``. It
    is evaluated at the tail probability ``(1 - |x|) / 2 = (j + 1/2) 2**-32``, which is exact, so that the
    tails (out to |z| = 6.34) keep their relative precision.
    """
    upper = word < 2**31
    j = torch.where(upper, word, MASK - word) ^ 0x7FFFFFFF
    z = torch.special.ndtri((j.to(torch.float64) + 0.5) * 2.0**-32)  # <= 0
    return torch.where(upper, -z, z).to(dtype)


def words_at(seed: int, stream: int, step: int, positions: torch.Tensor) -> torch.Tensor:
    """Words at any positions: int64, shape of ``positions``."""
    index = positions >> 2
    low, high = index & MASK, index >> 32
    out = rounds(low, high, torch.full_like(low, step), torch.full_like(low, stream), seed & MASK, seed >> 32)
    return torch.stack(out, dim=-1).gather(-1, (positions & 3)[..., None])[..., 0]


def _fma(a: torch.Tensor, b: torch.Tensor | float, c: torch.Tensor | float) -> torch.Tensor:
    """Float32 a * b + c, rounded once: the product is exact in float64."""
    b = b.double() if isinstance(b, torch.Tensor) else b
    c = c.double() if isinstance(c, torch.Tensor) else c
    return (a.double() * b + c).float()


def compiled_normal(word: torch.Tensor) -> torch.Tensor:
    """Map words to the standard normal in the very operations of ``random/cpu.py``: float32, equal bit for bit.

    For where two bodies have to agree to the last bit; :func:`to_normal` is the more accurate definition.
    """
    i = torch.where(word < 2**31, word, word - 2**32).to(torch.int32)
    sign = i >> 31
    j = i ^ (sign ^ 0x7FFFFFFF)
    t = _fma(j.float(), 2.0**-31, 2.0**-32)
    x = _fma(i.float(), 2.0**-31, 2.0**-32)
    u = (t * (2 - t)).view(torch.int32)
    e = (u - 0x3F3504F3) >> 23
    r = (u - (e << 23)).view(torch.float32) - 1
    r2 = r * r
    low = _fma(_fma(r, _L[3], _L[2]), r2, _fma(r, _L[1], _L[0]))
    high = _fma(_fma(r, _L[7], _L[6]), r2, _fma(r, _L[5], _L[4]))
    g = _fma(_fma(high, r2 * r2, low), r, e.float())
    g2 = g * g
    g4 = g2 * g2
    p = _fma(_fma(g, _P[5], _P[4]), g4, _fma(_fma(g, _P[3], _P[2]), g2, _fma(g, _P[1], _P[0])))
    q = _fma(_fma(g, _Q[5], _Q[4]), g4, _fma(_fma(g, _Q[3], _Q[2]), g2, _fma(g, _Q[1], 1.0)))
    return x * p / q


def _float32(*values: float) -> tuple[float, ...]:
    return tuple(torch.tensor(values, dtype=torch.float32, device="cpu").double().tolist())


# The coefficients of random/cpu.py.
_L = _float32(
    1.4426947724,
    -0.7213571489,
    0.4809394448,
    -0.3600872156,
    0.2867074571,
    -0.2500690469,
    0.2368903668,
    -0.1457444421,
)
_P = _float32(
    1.253314954457704, -0.31577616160361305, 0.0436673940496399, -0.004020204989036982, 0.0002374780415807542,
    -4.689368124177305e-06,
)  # fmt: skip
_Q = _float32(
    1.0, -0.07049197616744914, 0.01577948700680844, -0.0007878368114647616, 3.9677419632185384e-05,
    -1.6008739647046574e-07,
)  # fmt: skip
