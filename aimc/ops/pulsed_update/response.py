"""The response of every pulsed cell to one pulse, compiled; the torch twins are the ``step`` methods in ``aimc.cells``.

The two are equal bit for bit: float32 throughout, the same operations in the same order, no fused multiply-adds.
Where a transcendental function is needed it is taken in float64 and rounded once.

To add a cell: its function here, a new ``KIND = (number, 0)`` with one line in :func:`_other`; or, if speed matters, a
tuple of a length of its own and one line in :func:`_respond_by_type`.
"""

from __future__ import annotations

import math

import numpy as np
from numba import types
from numba.extending import overload

from aimc.cells.ladder import Ladder
from aimc.compiled import njit

OPTIONS = {"cache": True, "nogil": True, "error_model": "numpy"}
_f = np.float32
_ZERO, _ONE = _f(0.0), _f(1.0)
_NOMINAL = _f(Ladder.NOMINAL)
_HALF_ROOT = math.sqrt(0.5)


@njit(inline="always", **OPTIONS)
def _clip(w, low, high):
    return min(max(w, low), high)


@njit(inline="always", **OPTIONS)
def _moved(w, p, i, j, up, change):
    return _clip(w + change if up else w - change, p[i, j, 3], p[i, j, 2])


@njit(inline="always", **OPTIONS)
def _constant(w, p, i, j, up, xi, c):
    return _moved(w, p, i, j, up, (p[i, j, 0] if up else p[i, j, 1]) * (_ONE + xi * c[0]))


@njit(inline="always", **OPTIONS)
def _linear(w, p, i, j, up, xi, c):
    slope, size = (p[i, j, 4], p[i, j, 0]) if up else (p[i, j, 5], p[i, j, 1])
    z = _ONE + xi * c[0]
    return _moved(w, p, i, j, up, slope * w + size * z if c[1] != 0 else (slope * w + size) * z)


@njit(inline="always", **OPTIONS)
def _soft_bounds_reference(w, p, i, j, up, xi, c):
    mean = p[i, j, 4] * w + p[i, j, 0] if up else p[i, j, 5] * w + p[i, j, 1]
    z = xi * c[0]
    if c[1] != 0:
        return _moved(w, p, i, j, up, mean + (p[i, j, 6] if up else p[i, j, 7]) * z)
    return _moved(w, p, i, j, up, mean * (_ONE + z))


@njit(inline="always", **OPTIONS)
def _exponential(w, p, i, j, up, xi, c):
    z = np.float64(w * p[i, j, 4] + c[5])
    if up:
        factor = 1.0 - np.float64(c[1]) * math.exp(np.float64(c[3]) * z)
    else:
        factor = 1.0 - np.float64(c[2]) * math.exp(-np.float64(c[4]) * z)
    size = (p[i, j, 0] if up else p[i, j, 1]) * _f(max(factor, 0.0))
    return _moved(w, p, i, j, up, size + (size + c[6] + c[7] * abs(w)) * (xi * c[0]))


@njit(inline="always", **OPTIONS)
def _power(w, p, i, j, up, xi, c):
    distance = max((p[i, j, 2] - w if up else w - p[i, j, 3]) * p[i, j, 6], _ZERO)
    factor = _f(math.pow(np.float64(distance), np.float64(p[i, j, 4] if up else p[i, j, 5])))
    return _moved(w, p, i, j, up, (p[i, j, 0] if up else p[i, j, 1]) * factor * (_ONE + xi * c[0]))


@njit(inline="always", **OPTIONS)
def _piecewise(w, p, i, j, up, xi, c):
    n = int(c[1])
    at = min(max((w - p[i, j, 3]) * p[i, j, 4], _ZERO), _f(n - 1))
    k = min(int(at), n - 2)
    q = at - _f(k)
    first = k + (2 if up else 2 + n)
    factor = (_ONE - q) * c[first] + q * c[first + 1]
    return _moved(w, p, i, j, up, (p[i, j, 0] if up else p[i, j, 1]) * factor * (_ONE + xi * c[0]))


@njit(inline="always", **OPTIONS)
def _ladder(w, p, i, j, up, xi, c):
    low, high = p[i, j, 3], p[i, j, 2]
    n = int(c[1])
    at = (w - low) * p[i, j, 4]
    level = 0
    while level < n - 1 and c[2 + n + level] < at:
        level += 1
    if level == (n - 1 if up else 0):
        return _clip(w, low, high)
    # Tables: n positions, n - 1 middles, n - 1 probabilities up, n - 1 down.
    chance = p[i, j, 0] * c[1 + 2 * n + level] if up else p[i, j, 1] * c[3 * n + level - 1]
    if chance > 0 and _f(0.5 * math.erfc(np.float64(xi) * _HALF_ROOT)) <= chance:
        w = low + (high - low) * c[2 + level + (1 if up else -1)]
    return _clip(w, low, high)


@njit(inline="always", **OPTIONS)
def _common(kind, w, p, i, j, up, xi, c):
    if kind == 1:
        return _linear(w, p, i, j, up, xi, c)
    return _constant(w, p, i, j, up, xi, c)


@njit(inline="always", **OPTIONS)
def _other(kind, w, p, i, j, up, xi, c):
    if kind == 3:
        return _exponential(w, p, i, j, up, xi, c)
    if kind == 4:
        return _power(w, p, i, j, up, xi, c)
    if kind == 5:
        return _piecewise(w, p, i, j, up, xi, c)
    return _ladder(w, p, i, j, up, xi, c)


def _respond(kind, w, p, i, j, up, xi, c):
    raise NotImplementedError  # compiled code only


@overload(_respond)
def _respond_by_type(kind, w, p, i, j, up, xi, c):
    """The type of ``kind`` picks the kernel: a number, a tuple of one, a tuple of two.

    In one kernel with the others the common kinds take twice as long: their loop is no longer simple enough.
    """
    if not isinstance(kind, types.BaseTuple):
        return lambda kind, w, p, i, j, up, xi, c: _common(kind, w, p, i, j, up, xi, c)
    if len(kind) == 1:
        return lambda kind, w, p, i, j, up, xi, c: _soft_bounds_reference(w, p, i, j, up, xi, c)
    return lambda kind, w, p, i, j, up, xi, c: _other(kind[0], w, p, i, j, up, xi, c)


@njit(**OPTIONS)
def step(kind, w, p, i, j, up, xi, c):
    """The weight after one pulse.

    Args:
        kind: ``KIND`` of the cell.
        w: float32 weight of the device.
        p: parameters ``[R, C, P]``; ``i, j`` pick the device (0, 0 where all are alike).
        up: direction.
        xi: float32 standard normal.
        c: ``constants()`` of the cell.
    """
    return _respond(kind, w, p, i, j, up, xi, c)


def _sizes(kind, size, w, up, p, c):
    raise NotImplementedError  # compiled code only


@overload(_sizes)
def _sizes_by_type(kind, size, w, up, p, c):
    if isinstance(kind, types.BaseTuple):

        def one_by_one(kind, size, w, up, p, c):
            for k in range(size.size):
                after = step(kind, w[k], p, 0, 0, up[k], _NOMINAL if kind[0] == 6 else _ZERO, c)
                size[k] = after - w[k] if up[k] else w[k] - after

        return one_by_one

    def lines(kind, size, w, up, p, c):
        slope_up, slope_down = (p[0, 0, 4], p[0, 0, 5]) if kind == 1 else (_ZERO, _ZERO)
        size_up, size_down, high, low = p[0, 0, 0], p[0, 0, 1], p[0, 0, 2], p[0, 0, 3]
        for k in range(size.size):
            rise = _clip(w[k] + (slope_up * w[k] + size_up), low, high) - w[k]
            fall = w[k] - _clip(w[k] - (slope_down * w[k] + size_down), low, high)
            size[k] = rise if up[k] else fall

    return lines


@njit(**OPTIONS)
def step_sizes(kind, size, w, up, p, c):
    """How far a nominal pulse (no noise, a ladder moves) takes weights ``w`` ``[n]`` its own way, into ``size``.

    Without noise the common responses are straight lines: neither calls nor branches, and LLVM takes many at a time.

    Args:
        kind, c: as for :func:`step`.
        up: directions, bool ``[n]``.
        p: parameters ``[1, 1, P]``, the same for all.
    """
    _sizes(kind, size, w, up, p, c)


def _many(kind, held, p, devices, up, xi, c):
    raise NotImplementedError  # compiled code only


@overload(_many)
def _many_by_type(kind, held, p, devices, up, xi, c):
    if isinstance(kind, types.BaseTuple):

        def one_by_one(kind, held, p, devices, up, xi, c):
            for k in range(len(devices)):
                i, j = devices[k] // held.shape[1], devices[k] % held.shape[1]
                a, b = i if p.shape[0] > 1 else 0, j if p.shape[1] > 1 else 0
                held[i, j] = step(kind, held[i, j], p, a, b, up[k], xi[k], c)

        return one_by_one

    def lines(kind, held, p, devices, up, xi, c):
        # The direction picks a place, not a branch: which it is, is a coin toss that no branch predictor wins. Flat and
        # unsigned places need no check for negative ones.
        additive = kind == 0 or c[1] != 0
        all_held, all_p = held.reshape(-1), p.reshape(-1)
        each = p.shape[2] if p.shape[0] * p.shape[1] > 1 else 0
        for k in range(len(devices)):
            device = devices[k]
            at, first = np.uint64(device), np.uint64(device * each)
            side = np.uint64(0) if up[k] else np.uint64(1)
            w, z, size, slope = all_held[at], _ONE + xi[k] * c[0], all_p[first + side], _ZERO
            if kind == 1:
                slope = all_p[first + np.uint64(4) + side]
            change = slope * w + size * z if additive else (slope * w + size) * z
            low, high = all_p[first + np.uint64(3)], all_p[first + np.uint64(2)]
            all_held[at] = _clip(w + change if up[k] else w - change, low, high)

    return lines


@njit(**OPTIONS)
def step_many(kind, held, p, devices, up, xi, c):
    """One pulse on each of some devices of ``held`` ``[R, C]``, as :func:`step` has it.

    Args:
        kind, c: as for :func:`step`.
        p: parameters ``[R, C, P]`` or ``[1, 1, P]``.
        devices: their numbers, row by row ``[n]``, in order: a device may come again.
        up, xi: directions, bool, and normals, ``[n]``.
    """
    _many(kind, held, p, devices, up, xi, c)


def _slots(kind, held, p, parts, many, rows, row_ups, columns, flips, normals, c):
    raise NotImplementedError  # compiled code only


@overload(_slots)
def _slots_by_type(kind, held, p, parts, many, rows, row_ups, columns, flips, normals, c):
    if isinstance(kind, types.BaseTuple):

        def one_by_one(kind, held, p, parts, many, rows, row_ups, columns, flips, normals, c):
            for s in range(many):
                first_row, n, first_column, m = parts[s, 0], parts[s, 1], parts[s, 2], parts[s, 3]
                for r in range(first_row, first_row + n):
                    i, xi = rows[r], 4 * parts[s, 4] + parts[s, 6] + (r - first_row) * m
                    for k in range(m):
                        j, up = columns[first_column + k], row_ups[r] != flips[first_column + k]
                        a, b = i if p.shape[0] > 1 else 0, j if p.shape[1] > 1 else 0
                        held[i, j] = step(kind, held[i, j], p, a, b, up, normals[0, xi + k], c)

        return one_by_one

    def lines(kind, held, p, parts, many, rows, row_ups, columns, flips, normals, c):
        # As in step_many.
        additive, noise = kind == 0 or c[1] != 0, c[0]
        all_held, all_p, width = held.reshape(-1), p.reshape(-1), held.shape[1]
        each = p.shape[2] if p.shape[0] * p.shape[1] > 1 else 0
        xi = normals[0]
        for s in range(many):
            first_row, n, first_column, m = parts[s, 0], parts[s, 1], parts[s, 2], parts[s, 3]
            place = 4 * parts[s, 4] + parts[s, 6]
            for r in range(first_row, first_row + n):
                start, row_up = rows[r] * width, row_ups[r]
                for k in range(m):
                    device = start + columns[np.uint64(first_column + k)]
                    at, first = np.uint64(device), np.uint64(device * each)
                    up = row_up != flips[np.uint64(first_column + k)]
                    side = np.uint64(0) if up else np.uint64(1)
                    z = _ONE + xi[np.uint64(place + k)] * noise
                    w, size, slope = all_held[at], all_p[first + side], _ZERO
                    if kind == 1:
                        slope = all_p[first + np.uint64(4) + side]
                    change = slope * w + size * z if additive else (slope * w + size) * z
                    low, high = all_p[first + np.uint64(3)], all_p[first + np.uint64(2)]
                    all_held[at] = _clip(w + change if up else w - change, low, high)
                place += m

    return lines


@njit(**OPTIONS)
def step_slots(kind, held, p, parts, many, rows, row_ups, columns, flips, normals, c):
    """One pulse wherever a row meets a column of its part of a slot, as :func:`step` has it.

    Args:
        kind, p, c: as for :func:`step_many`.
        parts, rows, row_ups, columns, flips, normals: the first ``many`` parts, see ``cpu.slot_memory``.
    """
    _slots(kind, held, p, parts, many, rows, row_ups, columns, flips, normals, c)
