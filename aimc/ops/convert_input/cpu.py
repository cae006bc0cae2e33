"""The numba body: one pass over the input, tiles written where the next operation wants them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from aimc.compiled import njit
from aimc.random._pool import run_chunks

_MINIMUM_CHUNK = 1 << 18


@njit(cache=True, nogil=True, error_model="numpy")
def _run(source, target, r, half):
    """One contiguous run with one range; returns how many clip and how many are not finite."""
    clipped = 0
    bad = 0
    top = np.float32(half)
    if half:
        up, down = top / r, r / top
        for i in range(len(source)):
            v = source[i]
            size = abs(v)
            clipped += size > r
            bad += not (size < np.float32(np.inf))
            q = np.rint(v * up)
            q = top if q > top else q
            q = -top if q < -top else q
            target[i] = q * down
    else:
        for i in range(len(source)):
            v = source[i]
            size = abs(v)
            clipped += size > r
            bad += not (size < np.float32(np.inf))
            v = r if v > r else v
            target[i] = -r if v < -r else v
    return clipped, bad


@njit(cache=True, nogil=True, error_model="numpy")
def _forward(x, ranges, k, a, b, half, out, start, n0, n1):
    length = (b - a) * x.shape[3]
    clipped = 0
    bad = 0
    for n in range(n0, n1):
        r = ranges[k, n if ranges.shape[1] > 1 else 0]
        for g in range(x.shape[1]):
            source = x[n, g, a:b].reshape(length)
            target = out[n, g, start : start + b - a].reshape(length)
            c, f = _run(source, target, r, half)
            clipped += c
            bad += f
    return clipped, bad


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "nsz"})
def _run_backward(source, d, target, r):
    """Returns the push on the range."""
    zero = np.float32(0)
    push = zero
    for i in range(len(source)):
        v, di = source[i], d[i]
        push += di if (v > r) & (di < zero) else zero
        push -= di if (v < -r) & (di > zero) else zero
        target[i] = zero if abs(v) > r else di
    return push


@njit(cache=True, nogil=True, error_model="numpy")
def _backward(x, grad, ranges, k, a, b, out):
    length = (b - a) * x.shape[3]
    push = 0.0
    for n in range(x.shape[0]):
        r = ranges[k, n if ranges.shape[1] > 1 else 0]
        for g in range(x.shape[1]):
            target = out[n, g, a:b].reshape(length)
            push += _run_backward(x[n, g, a:b].reshape(length), grad[n, g].reshape(length), target, r)
    return push


def _alike(splits, ranges) -> bool:
    """One tile and one range: all elements are treated alike, whatever their shape."""
    return len(splits) == 1 and ranges.shape[1] == 1


def convert_input(x: Tensor, ranges: Tensor, splits, half: int, contiguous_tiles: bool):
    source, r = x.detach().numpy(), ranges.detach().numpy()
    if _alike(splits, ranges):
        part = torch.empty_like(x)
        flat, into, counts = source.reshape(-1), part.numpy().reshape(-1), []
        run_chunks(
            lambda i0, i1: counts.append(_run(flat[i0:i1], into[i0:i1], r[0, 0], half)),
            len(flat),
            _MINIMUM_CHUNK,
        )
        return [part], [sum(c for c, _ in counts)], not any(bad for _, bad in counts)
    parts, clipped, finite = [], [], True
    whole = x if contiguous_tiles else torch.empty_like(x)
    for k, (a, b) in enumerate(splits):
        if contiguous_tiles:
            part = torch.empty((x.shape[0], x.shape[1], b - a, x.shape[3]), dtype=x.dtype, device="cpu")
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
    if _alike(splits, ranges):
        d = grads[0].contiguous().numpy().reshape(-1)
        push = [_run_backward(source.reshape(-1), d, out.reshape(-1), r[0, 0])]
    else:
        push = [
            _backward(source, grad.contiguous().numpy(), r, k, a, b, out)
            for k, ((a, b), grad) in enumerate(zip(splits, grads, strict=True))
        ]
    return result, torch.from_numpy(np.array(push, dtype=np.float32))


def _vectors(part: Tensor) -> int:
    """Vectors that make a chunk worth a thread."""
    return max(1, _MINIMUM_CHUNK * part.shape[0] // max(part.numel(), 1))
