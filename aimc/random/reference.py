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
