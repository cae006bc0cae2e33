"""Philox 4x32-10 and its transforms in numba: one thread, vectorised by LLVM, callable from other kernels.

All floating-point steps are single IEEE operations or explicit fused multiply-adds and no fast-math flag is
set, so a result depends on its word alone: not on the position inside a vector, nor on the machine.
"""

# pyright: reportCallIssue=false, reportArgumentType=false, reportInvalidTypeForm=false
# (an intrinsic is called without the typing context that its Python signature begins with)

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from aimc.compiled import njit

if TYPE_CHECKING:
    from aimc.random import Key

_M = np.uint64(0xFFFFFFFF)
_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_U32 = np.uint64(32)
_CHUNK = 1024  # elements per pass; 4 KB stay in the first-level cache between the passes

# LLVM is left to vectorise, but not to reassociate or to assume that there is no NaN
_OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}


@njit(inline="always", **_OPTIONS)
def _philox(block, k0, k1, step, stream):
    """Four words (uint64, the high halves are not clean) of block number ``block``; all arguments uint64."""
    c0, c1, c2, c3 = block & _M, block >> _U32, step, stream
    for _ in range(10):
        p0 = (c0 & _M) * _M0
        p1 = (c2 & _M) * _M1
        c0, c1, c2, c3 = (p1 >> _U32) ^ (c1 ^ k0), p1, (p0 >> _U32) ^ (c3 ^ k1), p0
        k0 = (k0 + _W0) & _M
        k1 = (k1 + _W1) & _M
    return c0, c1, c2, c3


def block(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """The four output words of one Philox block, from the compiled rounds; arguments as in the reference.

    Example:
        >>> [f"{word:08x}" for word in block((0, 0, 0, 0), (0, 0))]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    number = np.uint64(counter[0] | counter[1] << 32)
    out = _block(number, np.uint64(key[0]), np.uint64(key[1]), np.uint64(counter[2]), np.uint64(counter[3]))
    w0, w1, w2, w3 = (int(word) & 0xFFFFFFFF for word in out)
    return w0, w1, w2, w3


@njit(**_OPTIONS)
def _block(number, k0, k1, step, stream):
    return _philox(number, k0, k1, step, stream)


@njit(**_OPTIONS)
def fill_words(out, k0, k1, step, stream, start):
    """Words at positions ``start`` to ``start + out.size - 1`` into ``out``.

    Args:
        out: contiguous uint32 (or int64) array [n].
        k0, k1, step, stream: as :func:`key_words` gives them (uint32).
        start: first position, below 2**63, any alignment.
    """
    n = out.size
    start = np.uint64(start)
    k0, k1, step, stream = np.uint64(k0), np.uint64(k1), np.uint64(step), np.uint64(stream)
    block = start >> np.uint64(2)
    skip = np.int64(start & np.uint64(3))
    i = 0
    if skip:
        w = _philox(block, k0, k1, step, stream)
        for j in range(4):
            if j >= skip and i < n:
                out[i] = np.uint32(w[j] & _M)
                i += 1
        block += np.uint64(1)
    whole = (n - i) >> 2
    body = out[i : i + 4 * whole]
    for b in range(whole):
        w0, w1, w2, w3 = _philox(block + np.uint64(b), k0, k1, step, stream)
        body[4 * b] = np.uint32(w0 & _M)
        body[4 * b + 1] = np.uint32(w1 & _M)
        body[4 * b + 2] = np.uint32(w2 & _M)
        body[4 * b + 3] = np.uint32(w3 & _M)
    i += 4 * whole
    if i < n:
        w = _philox(block + np.uint64(whole), k0, k1, step, stream)
        for j in range(4):
            if i < n:
                out[i] = np.uint32(w[j] & _M)
                i += 1


def key_words(key: Key) -> tuple[np.uint32, np.uint32, np.uint32, np.uint32]:
    """The arguments ``k0, k1, step, stream`` of the fill functions for a key.

    Example:
        >>> from aimc.random import Key
        >>> [int(word) for word in key_words(Key(2**32 + 5, stream=4, step=9))]
        [5, 1, 9, 4]
    """
    low, high = key.seed & 0xFFFFFFFF, key.seed >> 32
    return np.uint32(low), np.uint32(high), np.uint32(key.step), np.uint32(key.stream)


@intrinsic
def _fma(typingctx, a, b, c):
    """Float32 a * b + c, rounded once."""

    def codegen(context, builder, signature, args):
        kind = ir.FloatType()
        function = builder.module.declare_intrinsic("llvm.fma", (kind,), ir.FunctionType(kind, [kind] * 3))
        return builder.call(function, args)

    return types.float32(types.float32, types.float32, types.float32), codegen


@intrinsic
def _bits(typingctx, a):
    """The bit pattern of a float32 as int32."""
    return types.int32(types.float32), lambda context, builder, signature, args: builder.bitcast(
        args[0], ir.IntType(32)
    )


@intrinsic
def _float(typingctx, a):
    """The float32 with a bit pattern given as int32."""
    return types.float32(types.int32), lambda context, builder, signature, args: builder.bitcast(
        args[0], ir.FloatType()
    )


_f = np.float32
_ONE, _TWO, _HALF = _f(1.0), _f(2.0), _f(0.5)
_2M23, _2M31, _2M32 = _f(2.0**-23), _f(2.0**-31), _f(2.0**-32)
_TOP = np.int32(0x7FFFFFFF)
_SQRT_HALF = np.int32(0x3F3504F3)  # bit pattern of sqrt(1/2)

# log2(1 + r) for sqrt(1/2) <= 1 + r < sqrt(2), absolute error 5e-8: coefficients of r, r**2, ...
_L1, _L2, _L3, _L4 = _f(1.4426947724), _f(-0.7213571489), _f(0.4809394448), _f(-0.3600872156)
_L5, _L6, _L7, _L8 = _f(0.2867074571), _f(-0.2500690469), _f(0.2368903668), _f(-0.1457444421)

# sqrt(2) erfinv(x) / x as a rational function of log2(1 - x**2), error 1.1e-7 * max(1, z) down to -31
_P0, _P1, _P2 = _f(1.253314954457704), _f(-0.31577616160361305), _f(0.0436673940496399)
_P3, _P4, _P5 = _f(-0.004020204989036982), _f(0.0002374780415807542), _f(-4.689368124177305e-06)
_Q1, _Q2, _Q3 = _f(-0.07049197616744914), _f(0.01577948700680844), _f(-0.0007878368114647616)
_Q4, _Q5 = _f(3.9677419632185384e-05), _f(-1.6008739647046574e-07)


@njit(inline="always", **_OPTIONS)
def _inside(word):
    """``1 - x**2`` for the x in (-1, 1) that a word stands for."""
    i = np.int32(word)
    sign = np.int32(i >> np.int32(31))
    j = np.int32(i ^ np.int32(sign ^ _TOP))
    t = _fma(_f(j), _2M31, _2M32)  # 1 - |x|, from the integer so that the tail keeps its relative precision
    return t * (_TWO - t)


@njit(inline="always", **_OPTIONS)
def _log2(v):
    """Logarithm of a positive normal number."""
    u = _bits(v)
    e = np.int32(np.int32(u - _SQRT_HALF) >> np.int32(23))
    r = _float(np.int32(u - np.int32(e << np.int32(23)))) - _ONE
    # Estrin's scheme: the loop is bound by the length of this chain, not by the number of operations
    r2 = r * r
    low = _fma(_fma(_L4, r, _L3), r2, _fma(_L2, r, _L1))
    high = _fma(_fma(_L8, r, _L7), r2, _fma(_L6, r, _L5))
    return _fma(_fma(high, r2 * r2, low), r, _f(e))


@njit(inline="always", **_OPTIONS)
def _quantile(word, g):
    """The normal of a word, g the logarithm of its ``1 - x**2``."""
    x = _fma(_f(np.int32(word)), _2M31, _2M32)
    g2 = g * g
    g4 = g2 * g2
    p = _fma(_fma(_P5, g, _P4), g4, _fma(_fma(_P3, g, _P2), g2, _fma(_P1, g, _P0)))
    q = _fma(_fma(_Q5, g, _Q4), g4, _fma(_fma(_Q3, g, _Q2), g2, _fma(_Q1, g, _ONE)))
    return x * p / q


@njit(inline="always", **_OPTIONS)
def _normal(word):
    """Standard normal from one uint32 word, |error| <= 1e-6 * max(1, |z|); see README.md."""
    return _quantile(word, _log2(_inside(word)))


@njit(**_OPTIONS)
def fill_normals(out, n, k0, k1, step, stream, start):
    """Standard normals at positions ``start`` to ``start + n - 1`` into ``out[:n]``.

    Args:
        out: contiguous float32 array [at least n].
        n: how many.
        k0, k1, step, stream: as :func:`key_words` gives them (uint32).
        start: first position, below 2**63, any alignment.
    """
    start = np.uint64(start)
    logarithms = np.empty(min(n, _CHUNK), np.float32)
    for a in range(0, n, _CHUNK):
        part = out[a : min(a + _CHUNK, n)]
        g = logarithms[: part.size]
        raw = part.view(np.uint32)  # the words lie where the normals will
        fill_words(raw, k0, k1, step, stream, start + np.uint64(a))
        # _normal in three loops: a short chain of operations lets more elements be under way at a time
        for i in range(part.size):
            g[i] = _inside(raw[i])
        for i in range(part.size):
            g[i] = _log2(g[i])
        for i in range(part.size):
            part[i] = _quantile(raw[i], g[i])


@njit(**_OPTIONS)
def fill_normals_of(out, logarithms, blocks, after, k0, k1, step, stream):
    """The four standard normals of each of some blocks, one after another into ``out``.

    Args:
        out, logarithms: float32 arrays [at least 4 n]; the second is memory.
        blocks: uint64 numbers of the blocks [n].
        after: is added to the numbers.
        k0, k1, step, stream: as :func:`key_words` gives them (uint32).
    """
    k0, k1, step, stream, after = (
        np.uint64(k0),
        np.uint64(k1),
        np.uint64(step),
        np.uint64(stream),
        np.uint64(after),
    )
    raw = out.view(np.uint32)
    for b in range(blocks.size):
        w0, w1, w2, w3 = _philox(blocks[b] + after, k0, k1, step, stream)
        raw[4 * b], raw[4 * b + 1] = np.uint32(w0 & _M), np.uint32(w1 & _M)
        raw[4 * b + 2], raw[4 * b + 3] = np.uint32(w2 & _M), np.uint32(w3 & _M)
    for i in range(4 * blocks.size):
        logarithms[i] = _inside(raw[i])
    for i in range(4 * blocks.size):
        logarithms[i] = _log2(logarithms[i])
    for i in range(4 * blocks.size):
        out[i] = _quantile(raw[i], logarithms[i])


@njit(**_OPTIONS)
def fill_uniforms(out, n, k0, k1, step, stream, start):
    """Uniforms in the open interval (0, 1) at positions ``start`` to ``start + n - 1`` into ``out[:n]``.

    Args:
        out: contiguous float32 array [at least n].
        n: how many.
        k0, k1, step, stream: as :func:`key_words` gives them (uint32).
        start: first position, below 2**63, any alignment.
    """
    start = np.uint64(start)
    for a in range(0, n, _CHUNK):
        part = out[a : min(a + _CHUNK, n)]
        raw = part.view(np.uint32)
        fill_words(raw, k0, k1, step, stream, start + np.uint64(a))
        for i in range(part.size):
            part[i] = (_f(np.int32(raw[i] >> np.uint32(9))) + _HALF) * _2M23


@njit(**_OPTIONS)
def fill_bernoulli(out, threshold, k0, k1, step, stream, start):
    """``word < threshold`` at positions ``start`` to ``start + out.size - 1`` into ``out``.

    Args:
        out: bool array [n].
        threshold: probability * 2**32, 0 to 2**32.
        k0, k1, step, stream: as :func:`key_words` gives them (uint32).
        start: first position, below 2**63, any alignment.
    """
    n = out.size
    start, threshold = np.uint64(start), np.uint64(threshold)
    raw = np.empty(min(n, _CHUNK), np.uint32)
    for a in range(0, n, _CHUNK):
        part = out[a : min(a + _CHUNK, n)]
        fill_words(raw[: part.size], k0, k1, step, stream, start + np.uint64(a))
        for i in range(part.size):
            part[i] = np.uint64(raw[i]) < threshold
