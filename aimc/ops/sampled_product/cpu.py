"""The numba body: a band of the inner dimension at a time, so that what is picked at random stays in the cache."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from aimc.compiled import njit
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
    out = torch.empty(len(row), dtype=torch.float64, device="cpu")
    arrays = (left.detach().numpy(), right.detach().numpy(), row.numpy(), column.numpy(), out.numpy())
    run_chunks(
        lambda s0, s1: _sample(*arrays, s0, s1), len(row), max(1, _MINIMUM_CHUNK // max(right.shape[0], 1))
    )
    return out.to(left.dtype)


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _sample_convolution(grad, weight, image, channel, position, geometry, out, s0, s1):
    """Everything with three spatial dimensions; geometry has rows of size, stride, padding, dilation and groups."""
    outputs, per_group = weight.shape[0], weight.shape[1]
    kernel, reach = weight.shape[2:], grad.shape[2:]
    height, width = geometry[0, 1], geometry[0, 2]
    stride, padding, dilation = geometry[1], geometry[2], geometry[3]
    shares = outputs // (geometry[4, 0])
    for s in range(s0, s1):
        group, c = channel[s] // per_group, channel[s] % per_group
        first = group * shares
        z, y, x = position[s] // (height * width), position[s] // width % height, position[s] % width
        d, total = grad[image[s]], 0.0
        for i in range(kernel[0]):
            # The output that reads this input through this weight, if there is one.
            a = z + padding[0] - i * dilation[0]
            if a < 0 or a % stride[0] != 0 or a // stride[0] >= reach[0]:
                continue
            for j in range(kernel[1]):
                b = y + padding[1] - j * dilation[1]
                if b < 0 or b % stride[1] != 0 or b // stride[1] >= reach[1]:
                    continue
                for k in range(kernel[2]):
                    e = x + padding[2] - k * dilation[2]
                    if e < 0 or e % stride[2] != 0 or e // stride[2] >= reach[2]:
                        continue
                    for o in range(first, first + shares):
                        total += d[o, a // stride[0], b // stride[1], e // stride[2]] * weight[o, c, i, j, k]
        out[s] = total


def sampled_convolution_gradient(
    grad, weight, image, channel, position, size, stride, padding, dilation, groups
):
    lead = (1,) * (3 - len(size))
    unit, none = list(lead), [0] * len(lead)
    geometry = np.array(
        [[*unit, *size], [*unit, *stride], [*none, *padding], [*unit, *dilation], [groups, 0, 0]],
        dtype=np.int64,
    )
    out = torch.empty(len(image), dtype=torch.float64, device="cpu")
    arrays = (
        grad.detach().view(*grad.shape[:2], *lead, *grad.shape[2:]).numpy(),
        weight.detach().view(*weight.shape[:2], *lead, *weight.shape[2:]).numpy(),
        image.numpy(),
        channel.numpy(),
        position.numpy(),
        geometry,
        out.numpy(),
    )
    work = max(weight.numel() // max(weight.shape[1] * groups, 1), 1)
    run_chunks(
        lambda s0, s1: _sample_convolution(*arrays, s0, s1), len(image), max(1, _MINIMUM_CHUNK // work)
    )
    return out.to(grad.dtype)
