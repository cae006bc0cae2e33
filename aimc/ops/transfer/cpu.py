"""The numba bodies: events one after another, and within an event one cell after another."""

from __future__ import annotations

import numpy as np

from aimc.compiled import njit
from aimc.ops.pulsed_update.cpu import (
    block,
    byte_bound,
    fire_all,
    line_memory,
    pulse,
    pulse_many,
    rounded,
    scratch,
    threshold,
    train_of,
    update_range,
)
from aimc.ops.pulsed_update.response import OPTIONS, step_sizes
from aimc.random.cpu import _normal, fill_words

_2M32 = 1.0 / 4294967296.0
_f = np.float32


@njit(inline="always", **OPTIONS)
def word_at(position, key):
    """One clean word of a stream."""
    w0, w1, w2, w3 = block(position >> 2, key)
    k = position & 3
    return w0 if k == 0 else (w1 if k == 1 else (w2 if k == 2 else w3))


@njit(inline="always", **OPTIONS)
def uniform_at(position, key):
    return _f((word_at(position, key) + 0.5) * _2M32)


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
    row_bound, column_bound = np.empty(rows, np.uint16), np.empty(1, np.uint16)
    fired, one = np.empty(rows + 1, np.int64), np.empty(2, np.int64)
    words, near = line_memory(rows)
    one_words, one_near = line_memory(1)
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
        column_bound[0] = byte_bound(column_limit[0])
        for i in range(rows):
            q = rounded(abs(np.float64(y[i])) * a, d_resolution)
            row_limit[i] = threshold(q)
            row_bound[i] = byte_bound(row_limit[i])
            statistics[5] += q > 0
            statistics[6] += q > 1.0 + 1e-6
        statistics[3] += slots
        for slot in range(slots):
            place = n * stride + slot
            if fire_all(place, 1, column_limit, column_bound, x_key, x_low, one, one_words, one_near) == 0:
                continue
            m = fire_all(place, rows, row_limit, row_bound, d_key, d_low, fired, words, near)
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
    memory = scratch(held.shape[0] // groups, len(offsets), kernel, plane, groups, stride)
    total = images * positions
    v = 0
    while v < total:
        end = min(v + period - (vectors_so_far + v) % period, total)
        update_range(
            kind, constants, held, w, p, counts, noisy, write_noise, x, image_stride, starts, offsets, kernel, plane,
            group_stride, groups, d, d_image, d_row, d_position, positions, x_sign, d_sign, first, mode, lr,
            granularity, length, length_management, management, fixed, scale, x_resolution, d_resolution, stride, x_key,
            x_low, d_key, d_low, noise_key, statistics, v, end, memory, means, rate,
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


_CELLS = 2048


@njit(**OPTIONS)
def _fire(
    count, fired, ups, kind, constants, held, w, p, counts, noisy, write_noise, noise, half, bound, read_key, noise_key,
    pulse_first, read_first, top, place, y, moved, share, change, memory, seen,
):  # fmt: skip
    """One pulse and one read of the cells ``fired[:count]`` of one tile; what they moved by goes to ``change``."""
    visit_of, device_of, reads_from, pulses_from, devices, places = place
    xi, xi_write = memory
    first, all_w = top * held.shape[1], w.reshape(-1)
    for f in range(count):
        q = fired[f]
        places[f] = pulse_first + pulses_from[q]
        devices[f] = first + device_of[q]
    pulse_many(
        kind, constants, held, w, p, counts, devices[:count], ups[:count], places[:count], xi, xi_write, noise_key,
        noisy, write_noise,
    )  # fmt: skip
    exact = noise == 0 and half == 0
    for f in range(count):
        q = fired[f]
        seen[np.uint64(visit_of[q])] = True
        value = all_w[np.uint64(devices[f])]
        if not exact:
            value = read(value, noise, half, bound, read_first + reads_from[q], read_key)
        change[f] = value - y[q]
        moved[q] -= share * change[f]
        y[q] = value


@njit(**OPTIONS)
def _settle(
    many, waiting, everyone, tries, rounds, uniforms, threshold_, floor, least, nominal, prefix, kind, constants, held,
    w, p, counts, noisy, write_noise, noise, half, bound, read_key, noise_key, pulse_first, read_first, apart, top,
    place, y, moved, share, work, memory, seen, stuck,
):  # fmt: skip
    """Pulses on one tile while what is missing asks for them; ``waiting[:many]`` are the cells, in order.

    Returns:
        How many cells still miss something that they cannot do, listed in ``stuck``; and how many pulses there were.
    """
    rest, now, size, change, up, ups, goes, fired, origin = work
    left, pulses = 0, 0
    for k in range(tries):
        if everyone and k == 0:
            for q in range(many):  # all cells, where they lie
                rest[q] = (prefix[q] + moved[q]) / share
                up[q] = rest[q] > 0
                now[q] = y[q]
        else:
            for f in range(many):
                q = waiting[f]
                rest[f], now[f] = (prefix[q] + moved[q]) / share, y[q]
                up[f] = rest[f] > 0
        step_sizes(kind, size[:many], now, up, nominal, constants)
        if not rounds:
            for f in range(many):
                goes[f] = (abs(rest[f]) > threshold_ * max(size[f], floor)) & (size[f] > least)
        else:
            if everyone and k == 0:
                for q in range(many):
                    goes[q] = (uniforms[q] * size[q] < abs(rest[q])) & (size[q] > least)
            else:
                for f in range(many):
                    goes[f] = (uniforms[waiting[f]] * size[f] < abs(rest[f])) & (size[f] > least)
            for f in range(many):
                stuck[left] = waiting[f]
                left += (size[f] <= least) & (rest[f] != 0)
        count = 0
        for f in range(many):
            origin[count] = f
            count += goes[f]
        many = 0
        if count == 0:
            break
        pulses += count
        for f in range(count):
            fired[f], ups[f] = waiting[origin[f]], up[origin[f]]
        if rounds:
            # Rounded up to a step: what the pulse misses of it, or does too much, is rounded next.
            for f in range(count):
                step, need = size[origin[f]], abs(rest[origin[f]])
                if need < step:
                    q, more = fired[f], (step - need) * share
                    prefix[q] += more if ups[f] else -more
                    uniforms[q] = uniforms[q] * step / need
        _fire(
            count, fired, ups, kind, constants, held, w, p, counts, noisy, write_noise, noise, half, bound, read_key,
            noise_key, pulse_first + k * apart[0], read_first + k * apart[1], top, place, y, moved, share, change,
            memory, seen[k],
        )  # fmt: skip
        if not rounds:
            for f in range(count):
                waiting[many] = fired[f]
                many += abs(change[f]) > least
            continue
        for f in range(count):
            stuck[left] = fired[f]
            left += abs(change[f]) <= least
        for f in range(count):
            waiting[many] = fired[f]
            many += abs(change[f]) > least
    if rounds:
        for f in range(many):
            stuck[left] = waiting[f]
            left += 1
    return left, pulses


@njit(**OPTIONS)
def reencode(
    kind, constants, held, w, p, counts, noisy, write_noise, nominal, shares, gradient, rate, decay, column, columns,
    number, threshold_, tries, last_tries, floor, least, unit, stochastic, noise, half, bound, read_key, round_key,
    carry_key, return_key, noise_key, statistics, reads,
):  # fmt: skip
    """Visited columns written anew from the most significant tile down. See ``ops.transfer.reencode``.

    Some rows at a time, tile by tile: the cells that get a pulse are listed first, their draws are made together, and
    only then are the devices touched. That is several times faster than one device after another, and the same to the
    bit, as draws are by position.
    """
    tiles, rows, width = held.shape
    most = max(tries, last_tries)
    # Pulses of a cell, tile and visit: on the way down, the carry, on the way down from there.
    slots = 2 * most + 1
    visited = np.zeros((tiles, slots, columns), np.bool_)
    together = max(min(_CELLS // columns, rows), 1)  # rows
    cells = together * columns
    exact = noise == 0 and half == 0
    first_part = min(columns, width - column)
    # Of a cell of these rows: row, visited column, device's distance from the first of the first row, and that of its
    # draws from the first's.
    row_of, visit_of, device_of = (
        np.empty(cells, np.int64),
        np.empty(cells, np.int64),
        np.empty(cells, np.int64),
    )
    reads_from, pulses_from = np.empty(cells, np.int64), np.empty(cells, np.int64)
    for r in range(together):
        for n in range(columns):
            q, c = r * columns + n, column + n if n < first_part else column + n - width
            row_of[q], visit_of[q], device_of[q] = r, n, r * width + c
            reads_from[q] = n * tiles * (slots + 1) * rows + r
            pulses_from[q] = (n * tiles * slots * rows + r) * width + c
    y, prefix = np.empty((tiles, cells), np.float32), np.zeros((tiles, cells), np.float32)
    all_y, all_w, most_cells = y.reshape(-1), w.reshape(-1), cells
    moved, words, uniforms = (
        np.empty(cells, np.float32),
        np.empty(columns, np.uint32),
        np.empty(cells, np.float32),
    )
    content, size, change = (
        np.empty(cells, np.float32),
        np.empty(cells, np.float32),
        np.empty(cells, np.float32),
    )
    up, ups, goes = np.empty(cells, np.bool_), np.empty(cells, np.bool_), np.empty(cells, np.bool_)
    # Numbers of cells: unsigned, or each is asked whether it counts from the end.
    waiting, fired, stuck, origin, carried = (
        np.empty(cells + 1, np.uint64),
        np.empty(cells, np.uint64),
        np.empty(cells + 1, np.uint64),
        np.empty(cells + 1, np.uint64),
        np.empty(cells, np.uint64),
    )
    level = np.empty(cells, np.int64)
    place = visit_of, device_of, reads_from, pulses_from, np.empty(cells, np.int64), np.empty(cells, np.int64)
    memory = np.zeros(cells, np.float32), np.zeros(cells, np.float32)
    rest, now = np.empty(cells, np.float32), np.empty(cells, np.float32)
    work = rest, now, size, change, up, ups, goes, fired, origin
    apart = rows * width, rows
    for top in range(0, rows, together):
        here = min(together, rows - top)
        cells = here * columns
        for t in range(tiles):
            for r in range(here):
                # Not slices: each is counted as a reference, and copied one number at a time.
                line, start = (t * most_cells + r * columns), ((t * rows + top + r) * width)
                for n in range(first_part):
                    all_y[np.uint64(line + n)] = all_w[np.uint64(start + column + n)]
                for n in range(first_part, columns):
                    all_y[np.uint64(line + n)] = all_w[np.uint64(start + n - first_part)]
            if not exact:
                first = (number * tiles + t) * (slots + 1) * rows + top
                for q in range(cells):
                    y[t, q] = read(y[t, q], noise, half, bound, first + reads_from[q], read_key)
        if gradient.shape[0] > 0:
            for r in range(here):
                for n in range(columns):
                    prefix[0, r * columns + n] = -(rate * gradient[top + r, n])
        else:
            prefix[0] = 0
        if decay > 0:
            content[:] = 0
            for t in range(tiles):
                share = shares[t]
                for q in range(cells):
                    content[q] += share * y[t, q]
            for q in range(cells):
                prefix[0, q] -= decay * content[q]
        for t in range(1, tiles):
            share = shares[t - 1]
            for q in range(cells):
                prefix[t, q] = prefix[t - 1, q] + share * y[t - 1, q]
        if stochastic:
            for r in range(here):
                fill_words(
                    words, round_key[0], round_key[1], round_key[2], round_key[3], ((top + r) << 40) + number
                )
                for n in range(columns):
                    uniforms[r * columns + n] = (words[n] + 0.5) * _2M32
        moved[:] = 0
        many = 0
        for t in range(tiles - 1, -1, -1):
            for q in range(cells):
                waiting[q] = q
            rounds = stochastic and t == 0
            at_most, least_step = (tries, floor) if t > 0 else (last_tries, _f(0))
            many, pulses = _settle(
                cells, waiting, True, at_most, rounds, uniforms, threshold_, least_step, least, nominal, prefix[t],
                kind, constants, held[t], w[t], p[t], counts[t], noisy, write_noise, noise, half, bound, read_key,
                noise_key, (number * tiles + t) * slots * rows * width + top * width,
                ((number * tiles + t) * (slots + 1) + 1) * rows + top, apart, top, place, y[t], moved, shares[t], work,
                memory, visited[t], stuck,
            )  # fmt: skip
            statistics[t, 2] += pulses
        # What tile 0 could not do, a more significant tile does with a whole step of tile 0 and the chance that makes
        # it right in the mean; those below then take back what it did too much.
        carrying = 0
        for f in range(many):
            q = stuck[f]
            missing = prefix[0, q] + moved[q]
            uniform = uniform_at(((top + row_of[q]) << 40) + number + visit_of[q], carry_key)
            if uniform * unit < abs(missing):
                whole = max(abs(missing), unit)
                prefix[0, q] = (whole if missing > 0 else -whole) - moved[q]
                level[q] = 0
                carried[carrying] = q
                waiting[carrying] = q
                carrying += 1
        if carrying == 0:
            continue
        many = carrying
        for t in range(1, tiles):
            for f in range(many):
                q = waiting[f]
                rest[f], now[f] = prefix[0, q] + moved[q], y[t, q]
                up[f] = rest[f] > 0
            step_sizes(kind, size[:many], now, up, nominal, constants)
            count, others = 0, 0
            for f in range(many):
                q = waiting[f]
                if size[f] > least:
                    fired[count], ups[count] = q, up[f]
                    count += 1
                else:
                    waiting[others] = q
                    others += 1
            many = others
            if count > 0:
                _fire(
                    count, fired, ups, kind, constants, held[t], w[t], p[t], counts[t], noisy, write_noise, noise, half,
                    bound, read_key, noise_key, ((number * tiles + t) * slots + most) * rows * width + top * width,
                    ((number * tiles + t) * (slots + 1) + 1 + most) * rows + top, top, place, y[t], moved, shares[t],
                    change, memory, visited[t, most],
                )  # fmt: skip
                statistics[t, 2] += count
                for f in range(count):
                    if abs(change[f]) > least:
                        level[fired[f]] = t
                    else:
                        waiting[many] = fired[f]
                        many += 1
            if many == 0:
                break
        for t in range(1, tiles):
            share = shares[t - 1]
            for f in range(carrying):
                q = carried[f]
                prefix[t, q] = prefix[t - 1, q] + share * y[t - 1, q]
        for f in range(carrying):
            q = carried[f]
            uniforms[q] = uniform_at(((top + row_of[q]) << 40) + number + visit_of[q], return_key)
        for t in range(tiles - 2, -1, -1):
            many = 0
            for f in range(carrying):
                waiting[many] = carried[f]
                many += level[carried[f]] > t
            if many == 0:
                continue
            rounds = t == 0
            at_most = tries if t > 0 else last_tries
            _left, pulses = _settle(
                many, waiting, False, at_most, rounds, uniforms, threshold_, floor, least,
                nominal, prefix[t], kind, constants, held[t], w[t], p[t], counts[t], noisy, write_noise, noise, half,
                bound, read_key, noise_key,
                ((number * tiles + t) * slots + most + 1) * rows * width + top * width,
                ((number * tiles + t) * (slots + 1) + 2 + most) * rows + top, apart, top, place, y[t], moved, shares[t],
                work, memory, visited[t, most + 1 :], stuck,
            )  # fmt: skip
            statistics[t, 2] += pulses
    for t in range(tiles):
        statistics[t, 0] += columns
        statistics[t, 1] += columns
        reads[t] += columns + visited[t].sum()
