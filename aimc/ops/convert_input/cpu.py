"""The numba body: one pass over the input, tiles written where the next operation wants them."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from aimc.random._pool import run_chunks

_MINIMUM_CHUNK = 1 << 18


@njit(cache=True, nogil=True, error_model="numpy")
def _forward(x, ranges, k, a, b, half, out, start, n0, n1):
    groups, spatial = x.shape[1], x.shape[3]
    length = (b - a) * spatial
    clipped = 0
    bad = 0
    top = np.float32(half)
    for n in range(n0, n1):
        r = ranges[k, n if ranges.shape[1] > 1 else 0]
        for g in range(groups):
            source = x[n, g, a:b].reshape(length)
            target = out[n, g, start : start + b - a].reshape(length)
            if half:
                up, down = top / r, r / top
                for i in range(length):
                    v = source[i]
                    size = abs(v)
                    clipped += size >= r
                    bad += not (size < np.float32(np.inf))
                    q = np.rint(v * up)
                    q = top if q > top else q
                    q = -top if q < -top else q
                    target[i] = q * down
            else:
                for i in range(length):
                    v = source[i]
                    size = abs(v)
                    clipped += size >= r
                    bad += not (size < np.float32(np.inf))
                    v = r if v > r else v
                    target[i] = -r if v < -r else v
    return clipped, bad


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "nsz"})
def _backward(x, grad, ranges, k, a, b, out, n0, n1):
    """Returns the push on the range."""
    groups, spatial = x.shape[1], x.shape[3]
    length = (b - a) * spatial
    push = 0.0
    zero = np.float32(0)
    for n in range(n0, n1):
        r = ranges[k, n if ranges.shape[1] > 1 else 0]
        for g in range(groups):
            source = x[n, g, a:b].reshape(length)
            d = grad[n, g].reshape(length)
            target = out[n, g, a:b].reshape(length)
            row = zero
            for i in range(length):
                v, di = source[i], d[i]
                row += di if v >= r and di < zero else zero
                row -= di if v <= -r and di > zero else zero
                target[i] = zero if abs(v) >= r else di
            push += row
    return push


def convert_input(x: Tensor, ranges: Tensor, splits, half: int, contiguous_tiles: bool):
    source, r = x.detach().numpy(), ranges.detach().numpy()
    parts, clipped, finite = [], [], True
    whole = x if contiguous_tiles else torch.empty_like(x)
    for k, (a, b) in enumerate(splits):
        if contiguous_tiles:
            part = torch.empty((x.shape[0], x.shape[1], b - a, x.shape[3]), dtype=x.dtype)
            target, start = part.numpy(), 0
        else:
            part = whole[:, :, a:b]
            target, start = whole.numpy(), a
        counts = []

        def chunk(n0, n1, k=k, a=a, b=b, target=target, start=start, counts=counts):
            counts.append(_forward(source, r, k, a, b, half, target, start, n0, n1))

        run_chunks(chunk, x.shape[0], _vectors(part), align=1)
        clipped.append(sum(c for c, _ in counts))
        finite = finite and not any(bad for _, bad in counts)
        parts.append(part)
    return parts, clipped, finite


def convert_input_backward(x: Tensor, grads: list[Tensor], ranges: Tensor, splits):
    result = torch.empty_like(x)
    source, r, out = x.detach().numpy(), ranges.detach().numpy(), result.numpy()
    push = [
        _backward(source, grad.contiguous().numpy(), r, k, a, b, out, 0, x.shape[0])
        for k, ((a, b), grad) in enumerate(zip(splits, grads, strict=True))
    ]
    return result, torch.tensor(push, dtype=x.dtype)


def _vectors(part: Tensor) -> int:
    """Vectors that make a chunk worth a thread."""
    return max(1, _MINIMUM_CHUNK * part.shape[0] // max(part.numel(), 1))
