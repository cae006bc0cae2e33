"""The numba bodies: events one after another, and within an event one cell after another."""

from __future__ import annotations

import numpy as np
from numba import njit

from aimc.ops.pulsed_update.cpu import (
    block,
    fire_all,
    pulse,
    rounded,
    scratch,
    threshold,
    train_of,
    update_range,
)
from aimc.ops.pulsed_update.response import OPTIONS, step
from aimc.random.cpu import _normal, fill_words

_2M32 = 1.0 / 4294967296.0


@njit(inline="always", **OPTIONS)
def word_at(position, key):
    """One clean word of a stream."""
    w0, w1, w2, w3 = block(position >> 2, key)
    k = position & 3
    return w0 if k == 0 else (w1 if k == 1 else (w2 if k == 2 else w3))


@njit(inline="always", **OPTIONS)
def read(value, noise, half, bound, position, key):
    """One output of a one-hot read: noise, then the converter."""
    if noise > 0:
        value = value + noise * _normal(np.uint32(word_at(position, key)))
    if half > 0:
        value = min(max(np.rint(value / bound * half), -half), half) * (bound / half)
    return value


@njit(**OPTIONS)
def direct(
    kind, constants, held, w, p, counts, noisy, write_noise, source, column, columns, number, lr, granularity, length,
    length_management, management, fixed, scale, x_resolution, d_resolution, stride, noise, half, bound, read_key,
    x_key, x_low, d_key, d_low, noise_key, statistics,
):  # fmt: skip
    """Columns of ``source`` as pulses onto the same columns of another tile."""
    rows, width = held.shape
    y = np.empty(rows, np.float32)
    row_limit, column_limit = np.empty(rows, np.int64), np.empty(1, np.int64)
    fired, one = np.empty(rows + 1, np.int64), np.empty(2, np.int64)
    for n in range(number, number + columns):
        c = (column + n - number) % width
        largest = np.float32(0.0)
        for i in range(rows):
            y[i] = read(source[i, c], noise, half, bound, n * rows + i, read_key)
            largest = max(largest, abs(y[i]))
        statistics[0] += 1
        if largest == 0:
            continue
        statistics[1] += 1
        slots, a, b, kappa = train_of(
            1.0, np.float64(largest), lr, granularity, length, length_management, management, fixed, scale
        )
        statistics[4] += kappa > length
        column_limit[0] = threshold(rounded(b, x_resolution))
        for i in range(rows):
            q = rounded(abs(np.float64(y[i])) * a, d_resolution)
            row_limit[i] = threshold(q)
            statistics[5] += q > 0
            statistics[6] += q > 1.0 + 1e-6
        statistics[3] += slots
        for slot in range(slots):
            place = n * stride + slot
            if fire_all(place, 1, column_limit, x_key, x_low, one) == 0:
                continue
            m = fire_all(place, rows, row_limit, d_key, d_low, fired)
            for r in range(m):
                i = fired[r]
                pulse(
                    kind, constants, held, w, p, counts, i, c, y[i] > 0, (place * rows + i) * width + c, noise_key,
                    noisy, write_noise,
                )  # fmt: skip
            statistics[2] += m


@njit(**OPTIONS)
def buffered(
    kind, constants, held, w, p, counts, noisy, write_noise, source, buffer, x_sign, d_sign, mean, reference, visits,
    gain, momentum, forget, most, chop, random_chop, d_chop, beta, noise, half, bound, read_key, chop_key, d_chop_key,
    noise_key, statistics,
):  # fmt: skip
    """One column of ``source`` into a digital buffer, whose whole parts become pulses. See ``transfer_buffered``."""
    rows, width = held.shape
    number = visits[0]
    c, sweep = number % width, number // width
    every = max(int(np.ceil(1.0 / chop)), 2) if chop > 0 else 0
    compared = len(mean) > 0
    signed = len(x_sign) > 0
    writes = not (compared and every > 0 and sweep <= every)
    fresh = compared and visits[1 + c] != 0
    for i in range(rows):
        y = read(source[i, c], noise, half, bound, number * rows + i, read_key)
        gained = y
        if compared:
            if fresh:
                reference[i, c] = mean[i, c]
            gained = y - reference[i, c]
            mean[i, c] = (np.float32(1.0) - beta) * mean[i, c] + beta * y
        if signed:
            gained = gained * (x_sign[c] * d_sign[i])
        total = buffer[i, c] + gained * gain
        if abs(total) >= 1 and writes:
            count = min(max(np.trunc(total), -np.float32(most)), np.float32(most))
            total = total * momentum if forget else total - (np.float32(1.0) - momentum) * count
            for k in range(int(abs(count))):
                pulse(
                    kind, constants, held, w, p, counts, i, c, count > 0, ((number * most + k) * rows + i) * width + c,
                    noise_key, noisy, write_noise,
                )  # fmt: skip
            statistics[2] += int(abs(count))
        buffer[i, c] = total
    statistics[0] += 1
    statistics[1] += 1
    if signed:
        flips = False
        if every > 0:
            flips = word_at(number, chop_key) * _2M32 < chop if random_chop else sweep % every == every - 1
        if flips:
            x_sign[c] = -x_sign[c]
        visits[1 + c] = flips
        if d_chop > 0 and c == width - 1:
            for i in range(rows):
                if word_at(sweep * rows + i, d_chop_key) * _2M32 < d_chop:
                    d_sign[i] = -d_sign[i]
    visits[0] = number + 1


@njit(**OPTIONS)
def buffered_update(
    kind, constants, noisy, write_noise, held, w, p, counts, slow_held, slow_w, slow_p, slow_counts, vectors_so_far,
    period, columns, buffer, mean, reference, visits, gain, momentum, forget, most, chop, random_chop, d_chop, beta,
    noise, half, bound, read_key, chop_key, d_chop_key, slow_noise_key, slow_statistics,
    x, image_stride, starts, offsets, kernel, plane, group_stride, groups, d, d_image, d_row, d_position, images,
    positions, x_sign, d_sign, first, mode, lr, granularity, length, length_management, management, fixed, scale,
    x_resolution, d_resolution, stride, x_key, x_low, d_key, d_low, noise_key, statistics, means, rate,
):  # fmt: skip
    """Vectors onto the fast tile; after every ``period``-th of them, columns of it into the buffer of the slow one."""
    integers, reals, largest = scratch(held.shape[0] // groups, len(offsets), kernel, plane)
    total = images * positions
    v = 0
    while v < total:
        end = min(v + period - (vectors_so_far + v) % period, total)
        update_range(
            kind, constants, held, w, p, counts, noisy, write_noise, x, image_stride, starts, offsets, kernel, plane,
            group_stride, groups, d, d_image, d_row, d_position, positions, x_sign, d_sign, first, mode, lr,
            granularity, length, length_management, management, fixed, scale, x_resolution, d_resolution, stride, x_key,
            x_low, d_key, d_low, noise_key, statistics, v, end, integers, reals, largest, means, rate,
        )  # fmt: skip
        v = end
        if (vectors_so_far + v) % period == 0:
            for _ in range(columns):
                buffered(
                    kind, constants, slow_held, slow_w, slow_p, slow_counts, noisy, write_noise, w, buffer, x_sign,
                    d_sign, mean, reference, visits, gain, momentum, forget, most, chop, random_chop, d_chop, beta,
                    noise, half, bound, read_key, chop_key, d_chop_key, slow_noise_key, slow_statistics,
                )  # fmt: skip


@njit(**OPTIONS)
def whole_steps(
    kind, constants, held, w, p, counts, noisy, write_noise, chi, size, most, number, noise_key, statistics
):
    """Whole multiples of ``size`` leave ``chi`` as pulses."""
    rows, columns = held.shape
    statistics[0] += 1
    for i in range(rows):
        for j in range(columns):
            if abs(chi[i, j]) < size:
                continue
            count = min(max(np.trunc(chi[i, j] / size), -np.float32(most)), np.float32(most))
            chi[i, j] -= count * size
            for k in range(int(abs(count))):
                pulse(
                    kind, constants, held, w, p, counts, i, j, count > 0,
                    ((number * most + k) * rows + i) * columns + j, noise_key, noisy, write_noise,
                )  # fmt: skip
            statistics[2] += int(abs(count))


@njit(**OPTIONS)
def reencode(
    kind, constants, held, w, p, counts, noisy, write_noise, nominal, shares, gradient, rate, column, columns, number,
    threshold_, tries, last_tries, floor, least, stochastic, noise, half, bound, read_key, round_key, noise_key,
    statistics, reads,
):  # fmt: skip
    """Visited columns written anew from the most significant tile down. See ``ops.transfer.reencode``."""
    tiles, rows, width = held.shape
    most = max(tries, last_tries)
    visited = np.zeros((columns, tiles, most), np.bool_)
    y, prefix = np.empty((tiles, columns), np.float32), np.zeros((tiles, columns), np.float32)
    words, busy = np.empty(columns, np.uint32), np.empty(columns, np.bool_)
    # Below these nothing above tile 0 can fire, so that most cells need one look.
    limits = (threshold_ * floor * np.float32(1 - 1e-5)) * shares
    quiet = np.float32(0.0)
    exact = noise == 0 and half == 0
    first_part = min(columns, width - column)
    for i in range(rows):
        for t in range(tiles):
            if exact:
                for n in range(first_part):
                    y[t, n] = w[t, i, column + n]
                for n in range(first_part, columns):
                    y[t, n] = w[t, i, column + n - width]
            else:
                for n in range(columns):
                    place = ((number + n) * tiles + t) * (most + 1)
                    y[t, n] = read(
                        w[t, i, (column + n) % width], noise, half, bound, place * rows + i, read_key
                    )
        if gradient.shape[0] > 0:
            for n in range(columns):
                prefix[0, n] = -(rate * gradient[i, n])
        busy[:] = False
        for t in range(1, tiles):
            share, limit = shares[t - 1], limits[t]
            for n in range(columns):
                prefix[t, n] = prefix[t - 1, n] + share * y[t - 1, n]
                busy[n] |= abs(prefix[t, n]) > limit
        if stochastic:
            fill_words(words, round_key[0], round_key[1], round_key[2], round_key[3], (i << 40) + number)
        for n in range(columns):
            top = tiles - 1 if busy[n] else 0
            c, visit = (column + n) % width, (number + n) * tiles
            moved = np.float32(0.0)
            for t in range(top, -1, -1):
                missing = (prefix[t, n] + moved) / shares[t]
                now = y[t, n]
                last = False
                for k in range(tries if t > 0 else last_tries):
                    up = missing > 0
                    after = step(kind, now, nominal, 0, 0, up, quiet, constants)
                    size = after - now if up else now - after
                    if size <= least:
                        break
                    if t > 0:
                        if not abs(missing) > threshold_ * max(size, floor):
                            break
                    elif stochastic:
                        if abs(missing) < size:
                            last = True
                            if not np.float32((words[n] + 0.5) * _2M32) * size < abs(missing):
                                break
                    elif not abs(missing) > threshold_ * size:
                        break
                    place = (visit + t) * most + k
                    pulse(
                        kind, constants, held[t], w[t], p[t], counts[t], i, c, up,
                        (place * rows + i) * width + c, noise_key, noisy, write_noise,
                    )  # fmt: skip
                    statistics[t, 2] += 1
                    visited[n, t, k] = True
                    before = now
                    now = read(
                        w[t, i, c],
                        noise,
                        half,
                        bound,
                        ((visit + t) * (most + 1) + 1 + k) * rows + i,
                        read_key,
                    )
                    moved -= shares[t] * (now - before)
                    if last:
                        break
                    missing = (prefix[t, n] + moved) / shares[t]
    for t in range(tiles):
        statistics[t, 0] += columns
        statistics[t, 1] += columns
        reads[t] += columns
        for n in range(columns):
            for k in range(most):
                reads[t] += visited[n, t, k]
