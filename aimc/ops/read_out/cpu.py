"""The numba body: noise, rounding, saturation, gain and sum in one pass."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from aimc.random._pool import run_chunks
from aimc.random.cpu import fill_normals, key_words

_BLOCK = 1024
_MINIMUM_CHUNK = 1 << 17
_EMPTY1 = np.zeros(0, dtype=np.float32)
_EMPTY3 = np.zeros((0, 0, 0), dtype=np.float32)


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _segment(
    total, partial, z, variance, saturated, up, down, limit, noise, short, gain, bias, r, half, noisy, first, shared
):
    """One run of elements; ``shared`` means that they belong to one column, else each has its own."""
    top = np.float32(half)
    count = 0
    one = np.float32(1)
    inverse = one / r
    length = len(total)
    if shared:
        up0, down0, limit0, gain0 = up[0] * inverse, down[0] * r * gain[0], limit[0] * r, gain[0]
        noise0, short0, bias0 = noise[0] * r, short[0], bias[0] if first else np.float32(0)
        if noisy == 2:
            for i in range(length):
                z[i] *= np.sqrt(noise0 * noise0 + short0 * variance[i])
        elif noisy == 1:
            for i in range(length):
                z[i] *= noise0
        for i in range(length):
            v = partial[i] + z[i] if noisy else partial[i]
            if half:
                count += abs(v) > limit0
                q = np.rint(v * up0)
                q = top if q > top else q
                q = -top if q < -top else q
                v = q * down0
            else:
                v = v * gain0
            total[i] = v + bias0 if first else total[i] + v
        if half and count:
            for i in range(length):
                v = partial[i] + z[i] if noisy else partial[i]
                saturated[i] = abs(v) > limit0
    else:
        if noisy == 2:
            for i in range(length):
                s = noise[i] * r
                z[i] *= np.sqrt(s * s + short[i] * variance[i])
        elif noisy == 1:
            for i in range(length):
                z[i] *= noise[i] * r
        for i in range(length):
            v = partial[i] + z[i] if noisy else partial[i]
            if half:
                count += abs(v) > limit[i] * r
                q = np.rint(v * (up[i] * inverse))
                q = top if q > top else q
                q = -top if q < -top else q
                v = q * (down[i] * r) * gain[i]
            else:
                v = v * gain[i]
            total[i] = v + bias[i] if first else total[i] + v
        if half and count:
            for i in range(length):
                v = partial[i] + z[i] if noisy else partial[i]
                saturated[i] = abs(v) > limit[i] * r
    return count


@njit(cache=True, nogil=True, error_model="numpy")
def _read_out(
    total,
    partial,
    scale,
    ranges,
    variance,
    gain,
    bias,
    saturated,
    half,
    bound,
    output_noise,
    short_term,
    tile,
    tiles,
    offset,
    first,
    k0,
    k1,
    step,
    stream,
    n0,
    n1,
):
    outputs, positions = partial.shape[1], partial.shape[2]
    noisy = 2 if short_term > 0 else (1 if output_noise > 0 else 0)
    noise = scale * np.float32(output_noise)
    short = scale * np.float32(short_term * short_term)
    limit = scale * np.float32(bound)
    down = limit / np.float32(max(half, 1))
    up = np.zeros_like(down)
    for c in range(outputs):
        if down[c] > 0:
            up[c] = np.float32(1) / down[c]
    z = np.empty(1024, dtype=np.float32)
    count = 0
    shared = positions > 1
    lines = outputs if shared else 1
    length = positions if shared else outputs
    for n in range(n0, n1):
        r = ranges[n if len(ranges) > 1 else 0]
        base = ((offset + n) * tiles + tile) * outputs * positions
        flat_total = total[n].reshape(outputs * positions)
        flat_partial = partial[n].reshape(outputs * positions)
        flat_variance = variance[n].reshape(outputs * positions) if noisy == 2 else z
        flat_saturated = saturated[n].reshape(outputs * positions) if half else np.zeros(0, dtype=np.bool_)
        for line in range(lines):
            for low in range(0, length, 1024):
                size = min(1024, length - low)
                start = line * length + low
                end = start + size
                if noisy:
                    fill_normals(z, size, k0, k1, step, stream, base + start)
                c0 = line if shared else low
                c1 = line + 1 if shared else low + size
                count += _segment(
                    flat_total[start:end],
                    flat_partial[start:end],
                    z,
                    flat_variance[start:end] if noisy == 2 else z,
                    flat_saturated[start:end] if half else flat_saturated,
                    up[c0:c1],
                    down[c0:c1],
                    limit[c0:c1],
                    noise[c0:c1],
                    short[c0:c1],
                    gain[c0:c1],
                    bias[c0:c1],
                    r,
                    half,
                    noisy,
                    first,
                    shared,
                )
    return count


def read_out(total, partial, scale, ranges, setting, key, variance, gain, bias):
    first = total is None
    if total is None:
        total = torch.empty_like(partial)
    outputs = partial.shape[1]
    saturated = torch.zeros(partial.shape, dtype=torch.bool) if setting.half else None
    arrays = (
        total.numpy(),
        partial.numpy(),
        scale.numpy(),
        ranges.numpy(),
        variance.numpy() if variance is not None else _EMPTY3,
        gain.numpy() if gain is not None else np.ones(outputs, dtype=np.float32),
        bias.numpy() if bias is not None else np.zeros(outputs, dtype=np.float32),
        saturated.numpy() if saturated is not None else np.zeros((0, 0, 0), dtype=np.bool_),
    )
    numbers = (
        setting.half,
        float(setting.bound),
        float(setting.output_noise),
        float(setting.short_term),
        setting.tile,
        setting.tiles,
        setting.offset,
        first,
        *key_words(key),
    )
    counts = []

    def chunk(n0, n1):
        counts.append(_read_out(*arrays, *numbers, n0, n1))

    vectors = partial.shape[0]
    run_chunks(chunk, vectors, max(1, _MINIMUM_CHUNK * vectors // max(partial.numel(), 1)))
    return total, saturated if any(counts) else None
