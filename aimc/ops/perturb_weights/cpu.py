"""The numba body: each row of a tile stays in the cache while the whole chain runs over it."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from aimc.compiled import njit
from aimc.ops.memory import empty
from aimc.random import Key
from aimc.random._pool import run_chunks
from aimc.random.cpu import _float, fill_normals, fill_uniforms

_CODES = {
    "add_normal": 0,
    "multiply_normal": 1,
    "polynomial": 2,
    "polynomial_keep_sign": 3,
    "discretize": 4,
    "dorefa": 5,
    "drop": 6,
}
_MINIMUM_CHUNK = 1 << 17
_EMPTY = np.zeros((0, 0), dtype=np.float32)
_TANH_ONE = math.tanh(1.0)
_LEAST, _MOST = np.float32(2.0**-126), np.float32(2.0**126)
_BEYOND = np.float32(1 + 1e-6)  # as in the reference body


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract"})
def _change(w, z, factor, with_factor, code, p):
    """One change of one row, w normalised, z its draws."""
    n = len(w)
    zero, one = np.float32(0), np.float32(1)
    if code == 0:
        for i in range(n):
            w[i] += p[0] * z[i]
    elif code == 1:
        for i in range(n):
            w[i] *= one + p[0] * z[i]
    elif code == 2 or code == 3:
        for i in range(n):
            v = w[i]
            r = abs(v)
            std = p[0] * (p[1] + r * (p[2] + r * (p[3] + r * p[4])))
            std = std if std > zero else zero
            moved = v + std * z[i]
            if code == 3:
                size = abs(moved)
                moved = -size if v < zero else (size if v > zero else moved)
            w[i] = moved
    elif code == 4:
        half = p[0]
        if with_factor:
            for i in range(n):
                factor[i] = zero if abs(w[i]) > _BEYOND else factor[i]
        for i in range(n):
            v = w[i]
            v = one if v > one else v
            v = -one if v < -one else v
            w[i] = np.rint(v * half) / half
    elif code == 5:
        half, gain = p[0], np.float32(p[1] / np.float32(_TANH_ONE))
        for i in range(n):
            bent = np.tanh(w[i])
            if with_factor:
                factor[i] *= (one - bent * bent) * gain
            w[i] = np.rint(bent * gain * half) / half
    else:
        for i in range(n):
            kept = one if z[i] >= p[0] else zero
            w[i] *= kept
            if with_factor:
                factor[i] *= kept


@njit(cache=True, nogil=True, error_model="numpy")
def _largest(row):
    # Bit patterns of floats that are not negative are ordered as the floats are, and LLVM vectorises their maximum.
    bits, top = row.view(np.int32), np.int32(0)
    for i in range(len(bits)):
        v = np.int32(bits[i] & np.int32(0x7FFFFFFF))
        top = v if v > top else top
    return _float(top)  # pyright: ignore[reportCallIssue]  (an intrinsic)


@njit(cache=True, nogil=True, error_model="numpy")
def _perturb(
    weight,
    out,
    starts,
    strides,
    scale,
    given,
    clips,
    factor,
    with_factor,
    splits,
    codes,
    numbers,
    keys,
    o0,
    o1,
):
    rows = weight.shape[1]
    longest = 0
    for k in range(len(splits)):
        longest = max(longest, splits[k, 1] - splits[k, 0])
    buffer = np.empty(max(longest, 1), dtype=np.float32)
    draws = np.empty(max(longest, 1), dtype=np.float32)
    one, zero = np.float32(1), np.float32(0)
    for o in range(o0, o1):
        for k in range(len(splits)):
            a, b = splits[k, 0], splits[k, 1]
            n = b - a
            source = weight[o, a:b]
            target_start = starts[k] + o * strides[k]
            target = out[target_start : target_start + n]
            if given:
                s = scale[k, o]
            else:
                s = _largest(source)
                scale[k, o] = s
            inverse = one / s if s > zero else zero
            if len(codes) == 1 and codes[0] == 0 and not with_factor:
                # The common case in one pass less: additive noise and nothing else.
                z = draws[:n]
                fill_normals(z, n, keys[0, 0], keys[0, 1], keys[0, 2], keys[0, 3], o * rows + a)
                amount = numbers[0, 0] * s
                for i in range(n):
                    target[i] = source[i] + amount * z[i]
                continue
            w = buffer[:n]
            f = factor[o, a:b] if with_factor else buffer
            if s < _LEAST or s > _MOST:  # the inverse is not an ordinary number
                for i in range(n):
                    w[i] = source[i] / s if s > zero else zero
            else:
                for i in range(n):
                    w[i] = source[i] * inverse
            if with_factor:
                for i in range(n):
                    f[i] = one
            if clips:
                for i in range(n):
                    v = w[i]
                    if abs(v) > one:
                        f[i] = zero
                        w[i] = one if v > zero else -one
            for m in range(len(codes)):
                z = draws[:n]
                code = codes[m]
                if code < 4:
                    fill_normals(z, n, keys[m, 0], keys[m, 1], keys[m, 2], keys[m, 3], o * rows + a)
                elif code == 6:
                    fill_uniforms(z, n, keys[m, 0], keys[m, 1], keys[m, 2], keys[m, 3], o * rows + a)
                _change(w, z, f, with_factor, code, numbers[m])
            for i in range(n):
                target[i] = w[i] * s


@functools.lru_cache(256)
def _plan(shape: tuple[int, int], splits, changes, contiguous_tiles: bool):
    """What the kernel is told about the tiles and the changes; the same at every step of a layer.

    Returns starts and strides of the tiles' rows in the result, splits, codes and numbers, as arrays.
    """
    outputs, rows = shape
    if contiguous_tiles:
        starts, strides = [outputs * a for a, _ in splits], [b - a for a, b in splits]
    else:
        starts, strides = [a for a, _ in splits], [rows for _ in splits]
    numbers = np.zeros((len(changes), 5), dtype=np.float32)
    for m, (_, *values) in enumerate(changes):
        numbers[m, : len(values)] = values
    codes = [_CODES[kind] for kind, *_ in changes]
    return *(np.array(v, dtype=np.int64) for v in (starts, strides, splits, codes)), numbers


def _words(key: Key) -> tuple[int, int, int, int]:
    """As :func:`aimc.random.cpu.key_words`, in plain numbers for an array of several keys."""
    return key.seed & 0xFFFFFFFF, key.seed >> 32, key.step, key.stream


def perturb_weights(
    weight: Tensor, splits, scale, changes, key: Key, contiguous_tiles: bool, clips: bool, with_factor: bool
):
    outputs, rows = weight.shape
    given = scale is not None
    if scale is None:
        scale = torch.empty(len(splits), outputs, dtype=weight.dtype, device="cpu")
    factor = torch.empty_like(weight) if with_factor else None
    whole = empty((outputs, rows), weight)
    flat = whole.view(-1)
    if len(splits) == 1:
        tiles = [whole]
    elif contiguous_tiles:
        tiles = [flat[outputs * a : outputs * b].view(outputs, b - a) for a, b in splits]
    else:
        tiles = [whole[:, a:b] for a, b in splits]
    starts, strides, bounds, codes, numbers = _plan((outputs, rows), splits, changes, contiguous_tiles)
    keys = np.array([_words(key.fold(m)) for m in range(len(changes))], dtype=np.uint32).reshape(-1, 4)
    arrays = (
        weight.detach().numpy(),
        flat.numpy(),
        starts,
        strides,
        scale.numpy(),
        given,
        clips,
        factor.numpy() if factor is not None else _EMPTY,
        with_factor,
        bounds,
        codes,
        numbers,
        keys,
    )

    def chunk(o0, o1):
        _perturb(*arrays, o0, o1)

    run_chunks(chunk, outputs, max(1, _MINIMUM_CHUNK // max(rows, 1)), align=1)
    return tiles, scale, factor
