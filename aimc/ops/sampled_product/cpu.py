"""The numba body: a band of the inner dimension at a time, so that what is picked at random stays in the cache."""

from __future__ import annotations

import torch
from numba import njit
from torch import Tensor

from aimc.random._pool import run_chunks

_BAND = 64  # four cache lines of the left side: long enough for the hardware to fetch ahead
_MINIMUM_CHUNK = 1 << 17


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _sample(left, right, row, column, out, s0, s1):
    inner = right.shape[0]
    for s in range(s0, s1):
        out[s] = 0.0
    for low in range(0, inner, _BAND):
        high = min(low + _BAND, inner)
        fours = low + (high - low) // 4 * 4
        for s in range(s0, s1):
            a, c = left[row[s]], column[s]
            # Four sums, so that no addition waits for the one before.
            t0 = t1 = t2 = t3 = 0.0
            for i in range(low, fours, 4):
                t0 += a[i] * right[i, c]
                t1 += a[i + 1] * right[i + 1, c]
                t2 += a[i + 2] * right[i + 2, c]
                t3 += a[i + 3] * right[i + 3, c]
            for i in range(fours, high):
                t0 += a[i] * right[i, c]
            out[s] += (t0 + t1) + (t2 + t3)


def sampled_product(left: Tensor, right: Tensor, row: Tensor, column: Tensor) -> Tensor:
    out = torch.empty(len(row), dtype=torch.float64)
    arrays = (left.detach().numpy(), right.detach().numpy(), row.numpy(), column.numpy(), out.numpy())
    run_chunks(
        lambda s0, s1: _sample(*arrays, s0, s1), len(row), max(1, _MINIMUM_CHUNK // max(right.shape[0], 1))
    )
    return out.to(left.dtype)
