"""The numba body: noise, rounding, saturation, gain and sum in one pass."""

from __future__ import annotations

import numpy as np
import torch
from numba import njit

from aimc.random._pool import run_chunks
from aimc.random.cpu import fill_normals, key_words

_BLOCK = 1024
_MINIMUM_CHUNK = 1 << 17
_EMPTY3 = np.zeros((0, 0, 0), dtype=np.float32)


# Sums of ones may be reassociated, which lets LLVM vectorise the count; NaN and infinity keep their meaning.
_FAST = {"contract", "reassoc", "nsz"}


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _drop(y, magnitude, lost, load):
    """Subtract the IR drop; load is per element, or of length one for elements of one column."""
    a, b, c = np.float32(0.05), np.float32(0.2), np.float32(0.5)
    if len(load) == 1:
        k = load[0]
        for i in range(len(y)):
            v = magnitude[i] * k
            y[i] -= v * (a * v * v - b * v + c) * lost[i]
    else:
        for i in range(len(y)):
            v = magnitude[i] * load[i]
            y[i] -= v * (a * v * v - b * v + c) * lost[i]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=_FAST)
def _disturb_shared(z, partial, variance, noise, short, noisy):
    """z becomes the analog value of elements of one column."""
    if noisy == 2:
        for i in range(len(z)):
            z[i] = partial[i] + z[i] * np.sqrt(noise * noise + short * variance[i])
    elif noisy == 1:
        for i in range(len(z)):
            z[i] = partial[i] + z[i] * noise
    else:
        for i in range(len(z)):
            z[i] = partial[i]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=_FAST)
def _disturb_each(z, partial, variance, noise, short, noisy, r):
    """The same where every element is its own column."""
    if noisy == 2:
        for i in range(len(z)):
            s = noise[i] * r
            z[i] = partial[i] + z[i] * np.sqrt(s * s + short[i] * variance[i])
    elif noisy == 1:
        for i in range(len(z)):
            z[i] = partial[i] + z[i] * (noise[i] * r)
    else:
        for i in range(len(z)):
            z[i] = partial[i]


@njit(cache=True, nogil=True, error_model="numpy", fastmath=_FAST)
def _count_shared(z, limit):
    """How many saturate; a sum of ones vectorises where an integer count would not."""
    zero, one = np.float32(0), np.float32(1)
    count = zero
    for i in range(len(z)):
        count += one if abs(z[i]) > limit else zero
    return count


@njit(cache=True, nogil=True, error_model="numpy", fastmath=_FAST)
def _count_each(z, limit, r):
    zero, one = np.float32(0), np.float32(1)
    count = zero
    for i in range(len(z)):
        count += one if abs(z[i]) > limit[i] * r else zero
    return count


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _add_shared(t, z, half, up, down, gain, bias, first):
    """Convert and add to the total; down includes the gain."""
    top = np.float32(half)
    if half:
        for i in range(len(z)):
            q = np.rint(z[i] * up)
            q = top if q > top else q
            q = -top if q < -top else q
            z[i] = q
    factor = down if half else gain
    if first:
        for i in range(len(z)):
            t[i] = z[i] * factor + bias
    else:
        for i in range(len(z)):
            t[i] += z[i] * factor


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _add_each(t, z, half, up, down, gain, bias, r, first):
    top, inverse = np.float32(half), np.float32(1) / r
    if half:
        for i in range(len(z)):
            q = np.rint(z[i] * (up[i] * inverse))
            q = top if q > top else q
            q = -top if q < -top else q
            z[i] = q
    factor, scale = (down, r) if half else (gain, np.float32(1))
    if first:
        for i in range(len(z)):
            t[i] = z[i] * (factor[i] * scale) + bias[i]
    else:
        for i in range(len(z)):
            t[i] += z[i] * (factor[i] * scale)


@njit(cache=True, nogil=True, error_model="numpy")
def _repeated(values, times):
    result = np.empty(len(values) * times, dtype=np.float32)
    for t in range(times):
        result[t * len(values) : (t + 1) * len(values)] = values
    return result


@njit(cache=True, nogil=True, error_model="numpy")
def _read_out(
    total, partial, scale, ranges, variance, magnitude, lost, gain, bias, saturated,
    half, bound, output_noise, short_term, wire_load, offset, first, k0, k1, step, stream, n0, n1,
):  # fmt: skip
    outputs, positions = partial.shape[1], partial.shape[2]
    size = outputs * positions
    noisy = 2 if short_term > 0 else (1 if output_noise > 0 else 0)
    shared = positions > 1
    if not shared and len(ranges) == 1 and outputs < _BLOCK:
        # Short vectors with one column each: a block holds several, and the columns' numbers repeat with them.
        times = _BLOCK // outputs
        scale, gain, bias = _repeated(scale, times), _repeated(gain, times), _repeated(bias, times)
    period = len(scale)
    noise = scale * np.float32(output_noise)
    short = scale * np.float32(short_term * short_term)
    limit = scale * np.float32(bound)
    down = limit / np.float32(max(half, 1))
    up = np.zeros_like(down)
    load = np.zeros_like(down)
    for c in range(period):
        if down[c] > 0:
            up[c] = np.float32(1) / down[c]
        if scale[c] > 0:
            load[c] = np.float32(wire_load) / scale[c]
    for c in range(period):
        down[c] *= gain[c]
    block = np.empty(_BLOCK, dtype=np.float32)
    everywhere = 0.0
    lines = n1 - n0
    if period > outputs:
        lines = 1
    for line in range(lines):
        n = n0 + line
        length = size if period == outputs else (n1 - n0) * size
        into = total[n : n + length // size].reshape(length)
        source = partial[n : n + length // size].reshape(length)
        spread = variance[n : n + length // size].reshape(length) if noisy == 2 else source
        wires = wire_load > 0
        amount = magnitude[n : n + length // size].reshape(length) if wires else source
        taken = lost[n : n + length // size].reshape(length) if wires else source
        r = ranges[n if len(ranges) > 1 else 0]
        base = (offset + n) * size
        stride = _BLOCK if period == outputs else period
        for low in range(0, length, stride):
            high = min(low + stride, length)
            if noisy:
                fill_normals(block, high - low, k0, k1, step, stream, base + low)
            a = low
            while a < high:  # runs of one column, or the whole block
                c = a // positions if period == outputs else 0
                b = min((c + 1) * positions, high) if shared else high
                d = c + 1 if shared else c + b - a
                z = block[a - low : b - low]
                if wires:
                    _drop(source[a:b], amount[a:b], taken[a:b], load[c:d] / r)
                if shared:
                    _disturb_shared(z, source[a:b], spread[a:b], noise[c] * r, short[c], noisy)
                else:
                    _disturb_each(z, source[a:b], spread[a:b], noise[c:d], short[c:d], noisy, r)
                if bound > 0:
                    count = _count_shared(z, limit[c] * r) if shared else _count_each(z, limit[c:d], r)
                    if count > 0:
                        everywhere += count
                        flags = saturated[n : n + length // size].reshape(length)[a:b]
                        for i in range(b - a):
                            flags[i] = abs(z[i]) > limit[c if shared else c + i] * r
                        if half == 0:
                            for i in range(b - a):
                                top = limit[c if shared else c + i] * r
                                z[i] = top if z[i] > top else (-top if z[i] < -top else z[i])
                if shared:
                    _add_shared(into[a:b], z, half, up[c] / r, down[c] * r, gain[c], bias[c], first)
                else:
                    _add_each(into[a:b], z, half, up[c:d], down[c:d], gain[c:d], bias[c:d], r, first)
                a = b
    return everywhere


def read_out(total, partial, scale, ranges, setting, key, variance, magnitude, lost, gain, bias):
    first = total is None
    if total is None:
        total = partial  # written in place: an element is read before it is written, and fresh pages are slow
    outputs = partial.shape[1]
    saturated = torch.zeros(partial.shape, dtype=torch.bool) if setting.bound else None
    arrays = (
        total.numpy(),
        partial.numpy(),
        scale.numpy(),
        ranges.numpy(),
        variance.numpy() if variance is not None else _EMPTY3,
        magnitude.numpy() if magnitude is not None else _EMPTY3,
        lost.numpy() if lost is not None else _EMPTY3,
        gain.numpy() if gain is not None else np.ones(outputs, dtype=np.float32),
        bias.numpy() if bias is not None else np.zeros(outputs, dtype=np.float32),
        saturated.numpy() if saturated is not None else np.zeros((0, 0, 0), dtype=np.bool_),
    )
    numbers = (
        setting.half,
        float(setting.bound),
        float(setting.output_noise),
        float(setting.short_term),
        float(setting.wire_load),
        setting.offset,
        first,
        *key_words(key),
    )
    counts = []

    def chunk(n0, n1):
        counts.append(_read_out(*arrays, *numbers, n0, n1))

    vectors = partial.shape[0]
    run_chunks(chunk, vectors, max(1, _MINIMUM_CHUNK * vectors // max(partial.numel(), 1)), align=1)
    count = round(sum(counts))
    return total, saturated if count else None, count


@njit(cache=True, nogil=True, error_model="numpy")
def _backward(grad, saturated, gain, out, n0, n1):
    outputs, positions = grad.shape[1], grad.shape[2]
    zero = np.float32(0)
    masked = saturated.size > 0
    for n in range(n0, n1):
        if positions == 1:
            d, t = grad[n].reshape(outputs), out[n].reshape(outputs)
            if masked:
                flags = saturated[n].reshape(outputs)
                for c in range(outputs):
                    t[c] = zero if flags[c] else d[c] * gain[c]
            else:
                for c in range(outputs):
                    t[c] = d[c] * gain[c]
        else:
            for c in range(outputs):
                d, t, factor = grad[n, c], out[n, c], gain[c]
                if masked:
                    flags = saturated[n, c]
                    for p in range(positions):
                        t[p] = zero if flags[p] else d[p] * factor
                else:
                    for p in range(positions):
                        t[p] = d[p] * factor


@njit(cache=True, nogil=True, error_model="numpy")
def _mask(grad, saturated, out, i0, i1):
    zero = np.float32(0)
    for i in range(i0, i1):
        g = grad[i]  # loaded in any case, so that the choice is a blend and not a branch
        out[i] = zero if saturated[i] else g


def read_out_backward(grad, saturated, gain):
    out = torch.empty_like(grad)
    if gain is None:
        flat = grad.view(-1).numpy(), saturated.view(-1).numpy(), out.view(-1).numpy()
        run_chunks(lambda i0, i1: _mask(*flat, i0, i1), grad.numel(), _MINIMUM_CHUNK)
        return out
    arrays = (
        grad.numpy(),
        saturated.numpy() if saturated is not None else np.zeros((0, 0, 0), dtype=np.bool_),
        gain.numpy(),
        out.numpy(),
    )

    def chunk(n0, n1):
        _backward(*arrays, n0, n1)

    vectors = grad.shape[0]
    run_chunks(chunk, vectors, max(1, _MINIMUM_CHUNK * vectors // max(grad.numel(), 1)), align=1)
    return out
