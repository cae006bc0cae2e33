"""The numba body: vectors in order, only where a gradient is, only the slots where a row fires."""

from __future__ import annotations

import numpy as np

from aimc.compiled import njit
from aimc.ops.pulsed_update.response import OPTIONS, step, step_many
from aimc.random.cpu import _M, _normal, _philox

STATISTICS = ("vectors", "active", "pulses", "slots", "beyond_budget", "probabilities", "clipped")
"""Counters of an update: vectors seen; vectors with an input and a gradient; pulses; slots; vectors that would need
more pulses than the train has slots; probabilities of rows; those of them above 1."""

_2P32 = 4294967296.0
_LEAST = 1e-30
_PULSES = 1024  # made together


@njit(**OPTIONS)
def finite(values):
    """Whether no float32 has an exponent of ones: whole numbers, so that LLVM may look at many at a time."""
    bits, bad = values.view(np.uint32), False
    for k in range(bits.size):
        bad |= (bits[k] & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
    return not bad


@njit(inline="always", **OPTIONS)
def threshold(p):
    """A number of 32 bits below this is a pulse of probability p."""
    return np.int64(1 << 32) if p >= 1.0 else np.int64(p * _2P32)


@njit(inline="always", **OPTIONS)
def block(number, key):
    """Four clean words of a Philox block; ``key`` as from ``key_words``."""
    w0, w1, w2, w3 = _philox(
        np.uint64(number), np.uint64(key[0]), np.uint64(key[1]), np.uint64(key[2]), np.uint64(key[3])
    )
    return np.int64(w0 & _M), np.int64(w1 & _M), np.int64(w2 & _M), np.int64(w3 & _M)


@njit(inline="always", **OPTIONS)
def low_bits(place, n16, line, key):
    """The low 24 bits of a line's number, drawn only where the high 8 do not decide."""
    position = place * n16 + line
    w0, w1, w2, w3 = block(position >> 2, key)
    k = position & 3
    word = w0 if k == 0 else (w1 if k == 1 else (w2 if k == 2 else w3))
    return word >> 8


@njit(inline="always", **OPTIONS)
def fires(byte, place, n16, line, limit, low_key):
    high = limit >> 24
    if byte != high:
        return byte < high
    rest = limit & 0xFFFFFF
    return rest != 0 and low_bits(place, n16, line, low_key) < rest


@njit(**OPTIONS)
def fire_all(place, n, limits, key, low_key, fired):
    """Lines of ``range(n)`` that fire in a slot, into ``fired``; how many. One byte a line, 16 lines a block."""
    n16 = (n + 15) // 16 * 16
    count = 0
    for first in range(0, n, 16):
        words = block(place * (n16 // 16) + first // 16, key)
        for k in range(4):
            word = words[k]
            start = first + 4 * k
            for line in range(start, min(start + 4, n)):
                fired[count] = line
                count += fires(word & 255, place, n16, line, limits[line], low_key)
                word >>= 8
    return count


@njit(**OPTIONS)
def fire_some(place, n, lines, many, limits, key, low_key, fired):
    """The same for the ``many`` ascending ``lines`` alone, whose limits are in order of the lines."""
    n16 = (n + 15) // 16 * 16
    count, held = 0, -1
    words = (np.int64(0), np.int64(0), np.int64(0), np.int64(0))
    for k in range(many):
        line = lines[k]
        if line // 16 != held:
            held = line // 16
            words = block(place * (n16 // 16) + held, key)
        quarter = (line >> 2) & 3
        word = (
            words[0]
            if quarter == 0
            else (words[1] if quarter == 1 else (words[2] if quarter == 2 else words[3]))
        )
        fired[count] = line
        count += fires((word >> (8 * (line & 3))) & 255, place, n16, line, limits[k], low_key)
    return count


@njit(inline="always", **OPTIONS)
def pulse(kind, constants, held, w, p, counts, i, j, up, position, noise_key, noisy, write_noise):
    """One pulse on device (i, j). Its two normals are words 2 position and 2 position + 1."""
    a, b = (i if p.shape[0] > 1 else 0), (j if p.shape[1] > 1 else 0)
    xi = np.float32(0.0)
    xi_write = np.float32(0.0)
    if noisy:
        w0, w1, w2, w3 = block(position >> 1, noise_key)
        if position & 1:
            w0, w1 = w2, w3
        xi = _normal(np.uint32(w0))
        if write_noise > 0:
            xi_write = _normal(np.uint32(w1))
    now = step(kind, held[i, j], p, a, b, up, xi, constants)
    held[i, j] = now
    if write_noise > 0:
        w[i, j] = now + write_noise * xi_write
    if counts.shape[0] > 0:
        counts[i, j] += 1


@njit(**OPTIONS)
def pulse_normals(xi, xi_write, both, places, noise_key):
    """Normals of the pulses at ``places`` ``[n]``, as :func:`pulse` draws them; the second ones if ``both``."""
    k0, k1, k2, k3 = (
        np.uint64(noise_key[0]), np.uint64(noise_key[1]), np.uint64(noise_key[2]), np.uint64(noise_key[3])
    )  # fmt: skip
    words, others = xi.view(np.uint32), xi_write.view(np.uint32)
    for f in range(places.size):
        place = np.uint64(places[f])
        w0, w1, w2, w3 = _philox(place >> np.uint64(1), k0, k1, k2, k3)
        odd = (place & np.uint64(1)) != 0
        words[f] = np.uint32((w2 if odd else w0) & _M)
        if both:
            others[f] = np.uint32((w3 if odd else w1) & _M)
    for f in range(places.size):
        xi[f] = _normal(words[f])
    if both:
        for f in range(places.size):
            xi_write[f] = _normal(others[f])


@njit(**OPTIONS)
def pulse_many(
    kind, constants, held, w, p, counts, at_row, at_column, up, places, xi, xi_write, noise_key, noisy, write_noise
):  # fmt: skip
    """One pulse after another, as :func:`pulse` has it, with their draws made together.

    Args:
        at_row, at_column, up, places: device, direction and position of each pulse ``[n]``.
        xi, xi_write: memory for its normals, at least ``[n]``; zeros where the cell has no noise.
    """
    both = write_noise > 0
    if noisy:
        pulse_normals(xi, xi_write, both, places, noise_key)
    step_many(kind, held, p, at_row, at_column, up, xi, constants)
    if both:
        for f in range(at_row.size):
            w[at_row[f], at_column[f]] = held[at_row[f], at_column[f]] + write_noise * xi_write[f]
    if counts.shape[0] > 0:
        for f in range(at_row.size):
            counts[at_row[f], at_column[f]] += 1


@njit(**OPTIONS)
def pulse_listed(
    many, listed, ups, normals, kind, constants, held, w, p, counts, noise_key, noisy, write_noise
):  # fmt: skip
    """Send a list's first ``many`` pulses: rows, columns, positions in ``listed`` ``[3, n]``, directions in ``ups``."""
    pulse_many(
        kind, constants, held, w, p, counts, listed[0, :many], listed[1, :many], ups[:many], listed[2, :many],
        normals[0], normals[1], noise_key, noisy, write_noise,
    )  # fmt: skip


@njit(inline="always", **OPTIONS)
def list_pulse(
    row, column, up, position, many, listed, ups, normals, kind, constants, held, w, p, counts, noise_key, noisy,
    write_noise,
):  # fmt: skip
    """Put a pulse on a list of ``many``, which is sent first where it is full; returns how many it then holds."""
    if many == _PULSES:
        pulse_listed(
            many, listed, ups, normals, kind, constants, held, w, p, counts, noise_key, noisy, write_noise
        )
        many = 0
    listed[0, many], listed[1, many], listed[2, many], ups[many] = row, column, position, up
    return many + 1


@njit(**OPTIONS)
def train_of(largest_x, largest_d, lr, granularity, length, length_management, management, fixed, scale):
    """Slots, and the factors of the probabilities: ``BL, A (for d), B (for x), kappa``."""
    dm = scale * largest_d
    kappa = lr * largest_x * dm / granularity
    slots = length
    if length_management:
        slots = int(min(np.ceil(kappa), float(length)))
    elif not fixed and granularity * length < lr:
        slots = int(np.ceil(lr / granularity))
        return slots, 1.0, 1.0, kappa
    slots = max(slots, 1)
    a = np.sqrt(lr / (granularity * slots))
    b = a
    if management:
        top = dm if kappa <= length else dm * length / kappa
        a *= np.sqrt(largest_x / top)
        b *= np.sqrt(top / largest_x)
    return slots, a, b, kappa


@njit(inline="always", **OPTIONS)
def rounded(p, resolution):
    return np.rint(p / resolution) * resolution if resolution > 0 else p


@njit(**OPTIONS)
def update(
    kind, constants, held, w, p, counts, noisy, write_noise,
    x, image_stride, starts, offsets, kernel, plane, group_stride, groups,
    d, d_image, d_row, d_position, images, positions,
    x_sign, d_sign, first, mode, lr, granularity, length, length_management, management, fixed, scale,
    x_resolution, d_resolution, stride, x_key, x_low, d_key, d_low, noise_key, statistics,
):  # fmt: skip
    """All vectors of an update, in order. See ``pulsed_update`` for the meaning of the arguments."""
    memory = scratch(held.shape[0] // groups, len(offsets), kernel, plane)
    update_range(
        kind, constants, held, w, p, counts, noisy, write_noise, x, image_stride, starts, offsets, kernel, plane,
        group_stride, groups, d, d_image, d_row, d_position, positions, x_sign, d_sign, first, mode, lr, granularity,
        length, length_management, management, fixed, scale, x_resolution, d_resolution, stride, x_key, x_low, d_key,
        d_low, noise_key, statistics, 0, images * positions, memory, np.zeros(2), 0.0,
    )  # fmt: skip


@njit(**OPTIONS)
def scratch(rows, columns, kernel, plane):
    """Memory for :func:`update_range`; its calls on successive vectors have to share it."""
    n = max(rows, columns) + 1
    return (
        np.empty((5, n), np.int64),
        np.empty((2, n)),
        np.empty(plane if columns > kernel else 0, np.float32),
        np.empty((3, _PULSES), np.int64),
        np.empty(_PULSES, np.bool_),
        np.zeros((2, _PULSES), np.float32),
    )


@njit(**OPTIONS)
def update_range(
    kind, constants, held, w, p, counts, noisy, write_noise,
    x, image_stride, starts, offsets, kernel, plane, group_stride, groups,
    d, d_image, d_row, d_position, positions,
    x_sign, d_sign, first, mode, lr, granularity, length, length_management, management, fixed, scale,
    x_resolution, d_resolution, stride, x_key, x_low, d_key, d_low, noise_key, statistics,
    begin, end, memory, means, rate,
):  # fmt: skip
    """Vectors ``begin`` to ``end - 1``, for calls in order from vector 0.

    Args:
        memory: from :func:`scratch`.
        means: float64 [2], running means of the largest input and gradient of a vector, kept up where ``rate`` > 0; the
            learning rate is then ``lr / (means[0] * means[1])``.
        rate: weight of a new vector in the means.
    """
    columns = len(offsets)
    rows = held.shape[0] // groups
    integers, reals, largest, listed, ups, normals = memory
    waiting = 0  # pulses that are listed
    row_limit, column_limit, active_rows, fired_rows, fired_columns = (
        integers[0], integers[1], integers[2], integers[3], integers[4],
    )  # fmt: skip
    mean_rows, mean_columns = reals[0], reals[1]
    base_lr = lr
    channels = columns // kernel
    pooled = channels > 1 and groups == 1
    devices = held.shape[0] * columns
    signed = len(x_sign) > 0
    for v in range(begin, end):
        image, position = v // positions, v % positions
        if rate > 0:
            top_x, top_d = np.float32(0.0), np.float32(0.0)
            for g in range(groups):
                for j in range(columns):
                    top_x = max(
                        top_x, abs(x[image * image_stride + g * group_stride + starts[position] + offsets[j]])
                    )
            for i in range(groups * rows):
                top_d = max(top_d, abs(d[image * d_image + i * d_row + position * d_position]))
            for side, value in ((0, np.float64(top_x)), (1, np.float64(top_d))):
                means[side] = value if means[side] == 0 else means[side] + rate * (value - means[side])
            lr = base_lr / max(means[0] * means[1], _LEAST)
        for g in range(groups):
            statistics[0] += 1
            at_d = image * d_image + g * rows * d_row + position * d_position
            largest_d = np.float32(0.0)
            active = 0
            for i in range(rows):
                value = abs(d[at_d + i * d_row])
                active_rows[active] = i
                active += value > 0
                largest_d = max(largest_d, value)
            at_group = image * image_stride + g * group_stride
            if pooled and position == 0:
                # The largest magnitude over the channels: a patch then needs one look per position of the filter.
                for k in range(plane):
                    largest[k] = abs(x[at_group + k])
                for c in range(1, channels):
                    for k in range(plane):
                        largest[k] = max(largest[k], abs(x[at_group + c * plane + k]))
            if largest_d == 0:
                continue
            at_x = at_group + starts[position]
            largest_x = np.float32(0.0)
            if pooled:
                for j in range(kernel):
                    largest_x = max(largest_x, largest[starts[position] + offsets[j]])
            else:
                for j in range(columns):
                    largest_x = max(largest_x, abs(x[at_x + offsets[j]]))
            if largest_x == 0:
                continue
            statistics[1] += 1
            slots, a, b, kappa = train_of(
                np.float64(largest_x), np.float64(largest_d), lr, granularity, length, length_management, management,
                fixed, scale,
            )  # fmt: skip
            if kappa > length:
                statistics[4] += 1
            number = np.int64(first + v) * groups + g
            if mode == 0:
                for k in range(active):
                    q = rounded(abs(np.float64(d[at_d + active_rows[k] * d_row])) * a, d_resolution)
                    row_limit[k] = threshold(q)
                    statistics[5] += q > 0
                    statistics[6] += q > 1.0 + 1e-6
                statistics[3] += slots
                known = False
                for slot in range(slots):
                    place = number * stride + slot
                    n = fire_some(place, rows, active_rows, active, row_limit, d_key, d_low, fired_rows)
                    if n == 0:
                        continue
                    if not known:
                        known = True
                        for j in range(columns):
                            q = rounded(abs(np.float64(x[at_x + offsets[j]])) * b, x_resolution)
                            column_limit[j] = threshold(q)
                    m = fire_all(place, columns, column_limit, x_key, x_low, fired_columns)
                    for r in range(n):
                        i = fired_rows[r]
                        row = g * rows + i
                        d_up = d[at_d + i * d_row] < 0
                        if signed:
                            d_up = d_up != (d_sign[row] < 0)
                        for c in range(m):
                            j = fired_columns[c]
                            up = d_up != (x[at_x + offsets[j]] < 0)
                            if signed:
                                up = up != (x_sign[j] < 0)
                            waiting = list_pulse(
                                row, j, up, place * devices + row * columns + j, waiting, listed, ups, normals, kind,
                                constants, held, w, p, counts, noise_key, noisy, write_noise,
                            )  # fmt: skip
                    statistics[2] += n * m
            else:
                for i in range(rows):
                    q = rounded(abs(np.float64(d[at_d + i * d_row])) * a, d_resolution)
                    if q > 0:
                        statistics[5] += 1
                        if q > 1.0 + 1e-6:
                            statistics[6] += 1
                    q = min(q, 1.0)
                    mean_rows[i] = np.rint(slots * q) if mode == 1 else q
                for j in range(columns):
                    q = min(rounded(abs(np.float64(x[at_x + offsets[j]])) * b, x_resolution), 1.0)
                    mean_columns[j] = np.rint(slots * q) if mode == 1 else q
                statistics[3] += slots
                for i in range(rows):
                    if mean_rows[i] == 0:
                        continue
                    row = g * rows + i
                    d_up = d[at_d + i * d_row] < 0
                    if signed:
                        d_up = d_up != (d_sign[row] < 0)
                    for j in range(columns):
                        if mode == 1:
                            count = int(np.rint(mean_rows[i] * mean_columns[j] / slots))
                        else:
                            count = int(np.rint(slots * mean_rows[i] * mean_columns[j]))
                        if count == 0:
                            continue
                        up = d_up != (x[at_x + offsets[j]] < 0)
                        if signed:
                            up = up != (x_sign[j] < 0)
                        statistics[2] += count
                        for slot in range(count):
                            place = number * stride + slot
                            waiting = list_pulse(
                                row, j, up, place * devices + row * columns + j, waiting, listed, ups, normals, kind,
                                constants, held, w, p, counts, noise_key, noisy, write_noise,
                            )  # fmt: skip
    pulse_listed(
        waiting, listed, ups, normals, kind, constants, held, w, p, counts, noise_key, noisy, write_noise
    )
