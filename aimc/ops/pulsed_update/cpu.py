"""The numba body: vectors in order, only where a gradient is, only the slots where a row fires."""

from __future__ import annotations

import numpy as np

from aimc.compiled import njit
from aimc.ops.pulsed_update.response import OPTIONS, step, step_many
from aimc.random.cpu import _M, _normal, _philox, fill_words

STATISTICS = ("vectors", "active", "pulses", "slots", "beyond_budget", "probabilities", "clipped")
"""Counters of an update: vectors seen; vectors with an input and a gradient; pulses; slots; vectors that would need
more pulses than the train has slots; probabilities of rows; those of them above 1."""

_2P32 = 4294967296.0
_LEAST = 1e-30
_PULSES = 1024  # made together
_VECTORS = 64  # looked at together, at most
_WORDS = 1 << 16  # drawn together for rows, at most
_MAGNITUDE = np.int32(0x7FFFFFFF)  # of a float32; magnitudes have the order of their bits


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
def fire_all(place, n, limits, bounds, key, low_key, fired, words, near):
    """Lines of ``range(n)`` that fire in a slot, into ``fired``; how many. One byte a line, 16 lines a block.

    Args:
        limits, bounds: from :func:`limits_of`.
        words, near: memory from :func:`line_memory`.
    """
    n16 = (n + 15) // 16 * 16
    fill_words(words, key[0], key[1], key[2], key[3], place * (n16 // 4))
    byte = words.view(np.uint8)
    # Most lines are out by their high byte; they are passed over eight at a time.
    for line in range(n):
        near[line] = byte[line] < bounds[line]
    eights = near.view(np.uint64)
    count = 0
    for first in range(0, n, 8):
        if eights[first // 8] != 0:
            for line in range(first, min(first + 8, n)):
                fired[count] = line
                count += fires(np.int64(byte[line]), place, n16, line, limits[line], low_key)
    return count


@njit(**OPTIONS)
def line_memory(n):
    """What :func:`fire_all` needs for ``n`` lines."""
    n16 = (n + 15) // 16 * 16
    return np.empty(n16 // 4, np.uint32), np.zeros(n16, np.uint8)


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


@njit(**OPTIONS)
def list_row(row, up, columns, flips, n, start, listed, ups, many):
    """Put the pulses of a row on a list that holds ``many``; returns how many it then holds.

    Args:
        up: direction, turned where ``flips``.
        columns: the first ``n`` are pulsed.
        start: position of the row's first device.
    """
    for c in range(n):
        j = columns[c]
        listed[0, many + c], listed[1, many + c], listed[2, many + c] = row, j, start + j
        ups[many + c] = up != flips[c]
    return many + n


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
def peaks_of_lines(peaks, bits, first, step, lines, stride):
    """The largest magnitudes at ``first + k step`` and at ``lines - 1`` strides after it, into ``peaks`` ``[n]``."""
    if step != 1:
        for k in range(peaks.size):
            peak = np.int32(0)
            for i in range(lines):
                peak = max(peak, np.int32(bits[first + k * step + i * stride] & _MAGNITUDE))
            peaks[k] = peak
        return
    peaks[:] = 0
    for i in range(lines):
        line = bits[first + i * stride : first + i * stride + peaks.size]
        for k in range(peaks.size):
            peaks[k] = max(peaks[k], np.int32(line[k] & _MAGNITUDE))


@njit(**OPTIONS)
def peaks_of_patches(peaks, bits, first, starts, offsets, window):
    """The largest magnitudes at ``first + starts[k] + offsets``, into ``peaks`` ``[n]``; ``window`` is memory."""
    n = peaks.size
    origin, span = first + starts[0], starts[n - 1] - starts[0] + 1
    if span > window.size:
        for k in range(n):
            peak = np.int32(0)
            for j in range(offsets.size):
                peak = max(peak, np.int32(bits[first + starts[k] + offsets[j]] & _MAGNITUDE))
            peaks[k] = peak
        return
    # Everything between the first and the last patch, too: neighbours in memory are many times faster than a gather.
    window[:span] = 0
    for j in range(offsets.size):
        line = bits[origin + offsets[j] : origin + offsets[j] + span]
        for k in range(span):
            window[k] = max(window[k], np.int32(line[k] & _MAGNITUDE))
    for k in range(n):
        peaks[k] = window[starts[k] - starts[0]]


@njit(inline="always", **OPTIONS)
def byte_bound(limit):
    """A high byte has to be below this for its line to fire."""
    return (limit + 0xFFFFFF) >> 24


@njit(**OPTIONS)
def limits_of(values, factor, resolution, limits, bounds):
    """Limits of lines with these values, and what bounds their high bytes; ``factor`` times a magnitude is its
    probability."""
    for j in range(values.size):
        limits[j] = threshold(rounded(abs(np.float64(values[j])) * factor, resolution))
    for j in range(values.size):
        bounds[j] = byte_bound(limits[j])


@njit(**OPTIONS)
def row_limits(limits, bounds, values, d, first, step, stride, a, resolution, statistics):
    """Limits and bounds of the rows of some successive vectors, ``[rows, n]``; counts of probabilities.

    Args:
        first, step, stride: where the first vector's first gradient lies, and how far away the next vector's and its
            own next one.
        a: factor of each vector's probabilities ``[n]``.
        values: memory, float32 ``[n]``.
    """
    n = a.size
    for i in range(limits.shape[0]):
        at, to, high = first + i * stride, limits[i], bounds[i]
        for k in range(n):
            values[k] = d[at + k * step]
        many, beyond = 0, 0
        for k in range(n):
            q = rounded(abs(np.float64(values[k])) * a[k], resolution)
            to[k] = threshold(q)
            many += q > 0
            beyond += q > 1.0 + 1e-6
        for k in range(n):
            high[k] = byte_bound(to[k])
        statistics[5] += many
        statistics[6] += beyond


@njit(**OPTIONS)
def draw_rows(words, near, n, bounds, number, step, slot, stride, key):
    """Draw a slot's words of successive vectors; ``near`` is where some row may fire.

    Args:
        words: uint32 ``[rows in fours, n]``; the lowest byte is the first row's.
        near: bool ``[n]``.
        number, step: of the first vector, and from one to the next.
    """
    blocks, rows = words.shape[0] // 4, bounds.shape[0]
    k0, k1, k2, k3 = np.uint64(key[0]), np.uint64(key[1]), np.uint64(key[2]), np.uint64(key[3])
    for b in range(blocks):
        for k in range(n):
            place = (number + k * step) * stride + slot
            w0, w1, w2, w3 = _philox(np.uint64(place * blocks + b), k0, k1, k2, k3)
            words[4 * b, k], words[4 * b + 1, k] = np.uint32(w0 & _M), np.uint32(w1 & _M)
            words[4 * b + 2, k], words[4 * b + 3, k] = np.uint32(w2 & _M), np.uint32(w3 & _M)
    near[:n] = False
    for i in range(rows):
        shift = np.uint32(8 * (i & 3))
        for k in range(n):
            near[k] |= ((words[i >> 2, k] >> shift) & np.uint32(255)) < bounds[i, k]


@njit(**OPTIONS)
def update(
    kind, constants, held, w, p, counts, noisy, write_noise,
    x, image_stride, starts, offsets, kernel, plane, group_stride, groups,
    d, d_image, d_row, d_position, images, positions,
    x_sign, d_sign, first, mode, lr, granularity, length, length_management, management, fixed, scale,
    x_resolution, d_resolution, stride, x_key, x_low, d_key, d_low, noise_key, statistics,
):  # fmt: skip
    """All vectors of an update, in order. See ``pulsed_update`` for the meaning of the arguments."""
    memory = scratch(held.shape[0] // groups, len(offsets), kernel, plane, groups, stride)
    update_range(
        kind, constants, held, w, p, counts, noisy, write_noise, x, image_stride, starts, offsets, kernel, plane,
        group_stride, groups, d, d_image, d_row, d_position, positions, x_sign, d_sign, first, mode, lr, granularity,
        length, length_management, management, fixed, scale, x_resolution, d_resolution, stride, x_key, x_low, d_key,
        d_low, noise_key, statistics, 0, images * positions, memory, np.zeros(2), 0.0,
    )  # fmt: skip


@njit(**OPTIONS)
def scratch(rows, columns, kernel, plane, groups, stride):
    """Memory for :func:`update_range`; its calls on successive vectors have to share it."""
    words = (rows + 15) // 16 * 4
    together = max(min(_VECTORS // groups, _WORDS // (words * stride)), 1)
    most = max(_PULSES, columns)  # a row's pulses fit
    n = max(rows, columns) + 1
    return (
        np.empty((groups, plane if columns > kernel else 0), np.int32),
        np.empty(8 * together, np.int32),
        np.empty((2, groups, together), np.int32),
        np.empty((4, together)),
        (
            np.empty((rows, together), np.int64),
            np.empty((rows, together), np.uint32),
            np.empty(together, np.float32),
            np.empty((stride, words, together), np.uint32),
            np.empty((stride, together), np.bool_),
        ),
        (
            np.empty(columns, np.float32),
            np.empty(columns, np.int64),
            np.empty(columns, np.uint16),
            line_memory(columns),
        ),
        (np.empty((2, n), np.int64), np.empty(n, np.bool_), np.empty((2, n))),
        (np.empty((3, most), np.int64), np.empty(most, np.bool_), np.zeros((2, most), np.float32)),
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
    pooled, window, peaks, trains, of_rows, of_columns, fired, pulses = memory
    row_limit, row_bound, row_values, row_words, near = of_rows
    values, limit, bounds, (words, near_columns) = of_columns
    lines, flips, means_of = fired
    fired_rows, fired_columns, mean_rows, mean_columns = lines[0], lines[1], means_of[0], means_of[1]
    listed, ups, normals = pulses
    most, together = ups.size, trains.shape[1]
    waiting = 0  # pulses that are listed
    rates, all_slots, all_a, all_b = trains[0], trains[1], trains[2], trains[3]
    rows16 = (rows + 15) // 16 * 16
    x_bits, d_bits = x.view(np.int32), d.view(np.int32)
    devices = held.shape[0] * columns
    signed = len(x_sign) > 0
    v = begin
    while v < end:
        # Some positions of one image: what is asked of every vector is asked of all of them at once.
        image, position = v // positions, v % positions
        many = min(min(end - v, positions - position), together)
        places = starts[position : position + many]
        for g in range(groups):
            at_group = image * image_stride + g * group_stride
            x_peaks, d_peaks = peaks[0, g, :many], peaks[1, g, :many]
            at_d = image * d_image + g * rows * d_row + position * d_position
            peaks_of_lines(d_peaks, d_bits, at_d, d_position, rows, d_row)
            if columns == kernel:
                peaks_of_patches(x_peaks, x_bits, at_group, places, offsets, window)
                continue
            if position == 0:
                # The largest magnitude over the channels: a patch then needs one look per position of the filter.
                peaks_of_lines(pooled[g], x_bits, at_group, 1, columns // kernel, plane)
            peaks_of_patches(x_peaks, pooled[g], 0, places, offsets[:kernel], window)
        tops = peaks.view(np.float32)
        rates[:many] = lr
        if rate > 0:
            for k in range(many):
                for side in range(2):
                    value = np.float64(tops[side, 0, k])
                    for g in range(1, groups):
                        value = max(value, np.float64(tops[side, g, k]))
                    means[side] = value if means[side] == 0 else means[side] + rate * (value - means[side])
                rates[k] = lr / max(means[0] * means[1], _LEAST)
        for g in range(groups):
            statistics[0] += many
            for k in range(many):
                all_slots[k], all_a[k], all_b[k], kappa = train_of(
                    np.float64(tops[0, g, k]), np.float64(tops[1, g, k]), rates[k], granularity, length,
                    length_management, management, fixed, scale,
                )  # fmt: skip
                statistics[4] += kappa > length
                if tops[0, g, k] == 0 or tops[1, g, k] == 0:
                    all_slots[k] = all_a[k] = 0.0
            first_d = image * d_image + g * rows * d_row + position * d_position
            if mode == 0:
                number = np.int64(first + v) * groups + g
                row_limits(
                    row_limit, row_bound, row_values, d, first_d, d_position, d_row, all_a[:many], d_resolution,
                    statistics,
                )  # fmt: skip
                for slot in range(int(all_slots[:many].max())):
                    draw_rows(
                        row_words[slot], near[slot], many, row_bound, number, groups, slot, stride, d_key
                    )
            for k in range(many):
                slots, b = int(all_slots[k]), all_b[k]
                if slots == 0:
                    continue
                statistics[1] += 1
                statistics[3] += slots
                at_d = first_d + k * d_position
                at_x = image * image_stride + g * group_stride + places[k]
                number = np.int64(first + v + k) * groups + g
                if mode == 0:
                    known = False
                    for slot in range(slots):
                        if not near[slot, k]:
                            continue
                        place, n = number * stride + slot, 0
                        for i in range(rows):
                            byte = np.int64(
                                (row_words[slot, i >> 2, k] >> np.uint32(8 * (i & 3))) & np.uint32(255)
                            )
                            fired_rows[n] = i
                            n += fires(byte, place, rows16, i, row_limit[i, k], d_low)
                        if n == 0:
                            continue
                        if not known:
                            known = True
                            for j in range(columns):
                                values[j] = x[at_x + offsets[j]]
                            limits_of(values, b, x_resolution, limit, bounds)
                        m = fire_all(
                            place, columns, limit, bounds, x_key, x_low, fired_columns, words, near_columns
                        )
                        for c in range(m):
                            j = fired_columns[c]
                            flips[c] = values[j] < 0
                            if signed:
                                flips[c] = flips[c] != (x_sign[j] < 0)
                        for r in range(n):
                            i = fired_rows[r]
                            row = g * rows + i
                            up = d[at_d + i * d_row] < 0
                            if signed:
                                up = up != (d_sign[row] < 0)
                            if waiting + m > most:
                                pulse_listed(
                                    waiting, listed, ups, normals, kind, constants, held, w, p, counts, noise_key,
                                    noisy, write_noise,
                                )  # fmt: skip
                                waiting = 0
                            start = place * devices + row * columns
                            waiting = list_row(row, up, fired_columns, flips, m, start, listed, ups, waiting)
                        statistics[2] += n * m
                else:
                    a = all_a[k]
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
                                if waiting == most:
                                    pulse_listed(
                                        waiting, listed, ups, normals, kind, constants, held, w, p, counts, noise_key,
                                        noisy, write_noise,
                                    )  # fmt: skip
                                    waiting = 0
                                listed[0, waiting], listed[1, waiting], ups[waiting] = row, j, up
                                listed[2, waiting] = place * devices + row * columns + j
                                waiting += 1
        v += many
    pulse_listed(
        waiting, listed, ups, normals, kind, constants, held, w, p, counts, noise_key, noisy, write_noise
    )
