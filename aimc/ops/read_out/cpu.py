"""The numba body: noise, rounding, saturation, gain and sum in one pass."""

from __future__ import annotations

import functools

import numpy as np
import torch

from aimc.compiled import njit
from aimc.random._pool import run_chunks
from aimc.random.cpu import fill_normals, key_words

_BLOCK = 1024
_MINIMUM_CHUNK = 1 << 17
_EMPTY3 = np.zeros((0, 0, 0), dtype=np.float32)


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _drop(y, magnitude, lost, load):
    """Subtract the IR drop; load is per element, or of length one for elements of one column."""
    a, b, c, most = np.float32(0.05), np.float32(0.2), np.float32(0.5), np.float32(1.0)
    if len(load) == 1:
        k = load[0]
        for i in range(len(y)):
            v = magnitude[i] * k
            share = v * (a * v * v - b * v + c)
            y[i] -= (share if share < most else most) * lost[i]
    else:
        for i in range(len(y)):
            v = magnitude[i] * load[i]
            share = v * (a * v * v - b * v + c)
            y[i] -= (share if share < most else most) * lost[i]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
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


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _disturb_each(z, partial, variance, noise, short, noisy, r):
    """The same where every element is its own column."""
    if noisy == 2:
        for i in range(len(z)):
            s = noise[i] * r
            z[i] = partial[i] + z[i] * np.sqrt(s * s + short[i] * variance[i])
    elif noisy == 1:
        for i in range(len(z)):
            z[i] = partial[i] + z[i] * r * noise[i]
    else:
        for i in range(len(z)):
            z[i] = partial[i]


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _add_shared(t, z, half, up, factor, bias, limit, first):
    """Convert and add to the total; returns how many saturate."""
    count, one, zero, top = np.int32(0), np.int32(1), np.int32(0), np.float32(half)
    if half:
        for i in range(len(z)):
            v = z[i]
            count = np.int32(count + (one if abs(v) > limit else zero))
            q = np.rint(v * up)
            q = top if q > top else q
            q = -top if q < -top else q
            t[i] = q * factor + (bias if first else t[i])
    else:
        for i in range(len(z)):
            v = z[i]
            count = np.int32(count + (one if abs(v) > limit else zero))
            v = limit if v > limit else v
            v = -limit if v < -limit else v
            t[i] = v * factor + (bias if first else t[i])
    return count


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _add_each(t, z, half, up, factor, bias, limit, first):
    count, one, zero, top = np.int32(0), np.int32(1), np.int32(0), np.float32(half)
    if half:
        for i in range(len(z)):
            v = z[i]
            count = np.int32(count + (one if abs(v) > limit[i] else zero))
            q = np.rint(v * up[i])
            q = top if q > top else q
            q = -top if q < -top else q
            t[i] = q * factor[i] + (bias[i] if first else t[i])
    else:
        for i in range(len(z)):
            v, end = z[i], limit[i]
            count = np.int32(count + (one if abs(v) > end else zero))
            v = end if v > end else v
            v = -end if v < -end else v
            t[i] = v * factor[i] + (bias[i] if first else t[i])
    return count


@njit(cache=True, nogil=True, error_model="numpy")
def _repeated(values, times):
    result = np.empty(len(values) * times, dtype=np.float32)
    for t in range(times):
        result[t * len(values) : (t + 1) * len(values)] = values
    return result


@njit(cache=True, nogil=True, error_model="numpy")
def _read_out(
    total, partial, scale, ranges, variance, magnitude, lost, gain, bias,
    half, bound, output_noise, short_term, wire_load, offset, first, k0, k1, step, stream, n0, n1,
):  # fmt: skip
    """Vectors n0 to n1; returns how many elements saturate and, only if any do, which."""
    outputs, positions = partial.shape[1], partial.shape[2]
    size = outputs * positions
    noisy = 2 if short_term > 0 else (1 if output_noise > 0 else 0)
    shared = positions > 1
    if not shared and len(ranges) == 1 and outputs < _BLOCK:
        # Short vectors with one column each: a block holds several, and the columns' numbers repeat with them.
        times = min(_BLOCK // outputs, n1 - n0)
        scale, gain, bias = _repeated(scale, times), _repeated(gain, times), _repeated(bias, times)
    period = len(scale)
    noise, short, limit = np.empty_like(scale), np.empty_like(scale), np.empty_like(scale)
    up, factor, load = np.empty_like(scale), np.empty_like(scale), np.empty_like(scale)
    one, zero = np.float32(1), np.float32(0)
    block = np.empty(_BLOCK, dtype=np.float32)
    everywhere, saturated = 0, np.empty(0, dtype=np.bool_)
    lines = n1 - n0
    if period > outputs:
        lines = 1
    for line in range(lines):
        n = n0 + line
        r = ranges[n if len(ranges) > 1 else 0]
        if line == 0 or len(ranges) > 1:
            # The columns' numbers for this range.
            inverse = one / r
            for c in range(period):
                s = scale[c]
                noise[c] = s * np.float32(output_noise)
                short[c] = s * np.float32(short_term * short_term)
                full = s * np.float32(bound)
                limit[c] = full * r if bound > 0 else np.float32(np.inf)
                down = full / np.float32(max(half, 1))
                rise = one / down if down > zero else zero
                up[c] = rise / r if shared else rise * inverse
                factor[c] = down * gain[c] * r if half else gain[c]
                load[c] = (np.float32(wire_load) / s if s > zero else zero) / r
        length = size if period == outputs else (n1 - n0) * size
        into = total[n : n + length // size].reshape(length)
        source = partial[n : n + length // size].reshape(length)
        spread = variance[n : n + length // size].reshape(length) if noisy == 2 else source
        wires = wire_load > 0
        amount = magnitude[n : n + length // size].reshape(length) if wires else source
        taken = lost[n : n + length // size].reshape(length) if wires else source
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
                    _drop(source[a:b], amount[a:b], taken[a:b], load[c:d])
                if shared:
                    _disturb_shared(z, source[a:b], spread[a:b], noise[c] * r, short[c], noisy)
                    count = _add_shared(into[a:b], z, half, up[c], factor[c], bias[c], limit[c], first)
                else:
                    _disturb_each(z, source[a:b], spread[a:b], noise[c:d], short[c:d], noisy, r)
                    count = _add_each(into[a:b], z, half, up[c:d], factor[c:d], bias[c:d], limit[c:d], first)
                if count > 0:
                    if everywhere == 0:
                        saturated = np.zeros((n1 - n0) * size, dtype=np.bool_)
                    everywhere += count
                    flags = saturated[line * size + a : line * size + b]
                    for i in range(b - a):
                        flags[i] = abs(z[i]) > limit[c if shared else c + i]
                a = b
    return everywhere, saturated


@functools.lru_cache(256)
def _constant(value, size):
    """Not to be written to."""
    return np.full(size, value, dtype=np.float32)


def read_out(total, partial, scale, ranges, setting, key, variance, magnitude, lost, gain, bias):
    first = total is None
    if total is None:
        total = partial  # written in place: an element is read before it is written, and fresh pages are slow
    vectors, outputs, _ = partial.shape
    values = partial.numpy()
    arrays = (
        values if first else total.numpy(),
        values,
        scale.numpy(),
        ranges.numpy(),
        variance.numpy() if variance is not None else _EMPTY3,
        magnitude.numpy() if magnitude is not None else _EMPTY3,
        lost.numpy() if lost is not None else _EMPTY3,
        gain.numpy() if gain is not None else _constant(1.0, outputs),
        bias.numpy() if bias is not None else _constant(0.0, outputs),
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
    found = []

    def chunk(n0, n1):
        found.append((n0, n1, *_read_out(*arrays, *numbers, n0, n1)))

    run_chunks(chunk, vectors, max(1, _MINIMUM_CHUNK * vectors // max(values.size, 1)), align=1)
    count = sum(c for _, _, c, _ in found)
    if count == 0:
        return total, None, 0  # the usual case costs no memory
    saturated = np.zeros(partial.shape, dtype=np.bool_)
    for n0, n1, c, flags in found:
        if c:
            saturated[n0:n1] = flags.reshape(n1 - n0, *partial.shape[1:])
    return total, torch.from_numpy(saturated), count


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
def _mask(grad, saturated, out):
    zero = np.float32(0)
    for i in range(len(grad)):
        g = grad[i]  # loaded in any case, so that the choice is a blend and not a branch
        out[i] = zero if saturated[i] else g


def read_out_backward(grad, saturated, gain):
    out = torch.empty_like(grad)
    if gain is None:
        flat = [t.numpy().reshape(-1) for t in (grad, saturated, out)]
        run_chunks(lambda i0, i1: _mask(*(a[i0:i1] for a in flat)), len(flat[0]), _MINIMUM_CHUNK)
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
