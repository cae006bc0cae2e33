"""The numba body: vectors in order, only where a gradient is, only the slots where a row fires."""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import intrinsic

from aimc.compiled import njit
from aimc.ops.pulsed_update.response import OPTIONS, step, step_many, step_slots
from aimc.random.cpu import _M, _normal, _philox, fill_normals_of, fill_words

STATISTICS = ("vectors", "active", "pulses", "slots", "beyond_budget", "probabilities", "clipped")
"""Counters of an update: vectors seen; vectors with an input and a gradient; pulses; slots; vectors that would need
more pulses than the train has slots; probabilities of rows; those of them above 1."""

_2P32 = 4294967296.0
_LEAST = 1e-30
_PULSES = 1024  # made together
_SLOTS = 64  # whose columns are drawn together, at most
_BLOCKS = 512  # of four normals, made together
_VECTORS = 64  # looked at together, at most
_WORDS = 1 << 16  # drawn together for rows, at most
_MAGNITUDE = np.int32(0x7FFFFFFF)  # of a float32; magnitudes have the order of their bits


@intrinsic
def _lowest(typingctx, bits):
    """The number of the lowest bit that is set."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], context.get_constant(types.boolean, True))

    return types.uint64(types.uint64), codegen


@njit(**OPTIONS)
def finite(values):
    """Whether no float32 has an exponent of ones: whole numbers, so that LLVM may look at many at a time."""
    bits, bad = values.view(np.uint32), False
    for k in range(bits.size):
        bad |= (bits[k] & np.uint32(0x7F800000)) == np.uint32(0x7F800000)
    return not bad


@njit(**OPTIONS)
def same(a, b):
    """Whether two rows of whole numbers are equal."""
    differ = a.dtype.type(0)  # a wider one, or a way out, and LLVM would look at one at a time
    for k in range(a.size):
        differ |= a[k] ^ b[k]
    return differ == 0


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
    kind, constants, held, w, p, counts, devices, up, places, xi, xi_write, noise_key, noisy, write_noise
):  # fmt: skip
    """One pulse after another, as :func:`pulse` has it, with their draws made together.

    Args:
        devices, up, places: number of the device, row by row, direction and position of each pulse ``[n]``.
        xi, xi_write: memory for its normals, at least ``[n]``; zeros where the cell has no noise.
    """
    both = write_noise > 0
    if noisy:
        pulse_normals(xi, xi_write, both, places, noise_key)
    step_many(kind, held, p, devices, up, xi, constants)
    if both:
        all_held, all_w = held.reshape(-1), w.reshape(-1)
        for f in range(devices.size):
            all_w[np.uint64(devices[f])] = all_held[np.uint64(devices[f])] + write_noise * xi_write[f]
    if counts.shape[0] > 0:
        all_counts = counts.reshape(-1)
        for f in range(devices.size):
            all_counts[np.uint64(devices[f])] += 1


@njit(**OPTIONS)
def pulse_listed(
    many, listed, ups, normals, kind, constants, held, w, p, counts, noise_key, noisy, write_noise
):  # fmt: skip
    """Send a list's first ``many`` pulses: devices and positions in ``listed`` ``[2, n]``, directions in ``ups``."""
    pulse_many(
        kind, constants, held, w, p, counts, listed[0, :many], ups[:many], listed[1, :many],
        normals[0], normals[1], noise_key, noisy, write_noise,
    )  # fmt: skip


@njit(**OPTIONS)
def pulse_slots(
    many, waiting, kind, constants, held, w, p, counts, apart, noise_key, noisy, write_noise
):  # fmt: skip
    """Send the pulses of the first ``many`` parts of slots in ``waiting``, memory from :func:`slot_memory`.

    In a part some rows meet some columns of a slot, each pair once.

    Args:
        apart: blocks from the noise of a slot's steps to its write noise.
    """
    parts, rows, row_ups, columns, flips, numbers, normals, logarithms = waiting
    last = many - 1
    if noisy and many > 0:
        blocks = numbers[: parts[last, 4] + parts[last, 5]]
        fill_normals_of(normals[0], logarithms, blocks, 0, *noise_key)
        if write_noise > 0:
            fill_normals_of(normals[1], logarithms, blocks, apart, *noise_key)
    step_slots(kind, held, p, parts, many, rows, row_ups, columns, flips, normals, constants)
    if write_noise == 0 and counts.shape[0] == 0:
        return
    width = held.shape[1]
    all_held, all_w, all_counts = held.reshape(-1), w.reshape(-1), counts.reshape(-1)
    for s in range(many):
        first_row, n, first_column, m = parts[s, 0], parts[s, 1], parts[s, 2], parts[s, 3]
        for r in range(n):
            start, first = rows[first_row + r] * width, 4 * parts[s, 4] + parts[s, 6] + r * m
            if write_noise > 0:
                for c in range(m):
                    at = np.uint64(start + columns[first_column + c])
                    all_w[at] = all_held[at] + write_noise * normals[1, first + c]
            if counts.shape[0] > 0:
                for c in range(m):
                    all_counts[np.uint64(start + columns[first_column + c])] += 1


@njit(**OPTIONS)
def slot_memory(columns):
    """Where parts of slots wait for :func:`pulse_slots`.

    Returns:
        parts: ``[n, 7]``: first row and how many, first column and how many, first block of normals and how many,
            and the first normal in it.
        rows, row_ups, columns, flips: rows and whether their pulses go up; columns and whether they turn them.
        numbers: of the blocks of normals.
        normals, logarithms: memory.
    """
    blocks = max(_BLOCKS, columns // 4 + 2)  # those of one row fit
    lines = 4 * blocks  # a part has no more lines of a kind than normals
    return (
        np.empty((blocks, 7), np.int64),
        np.empty(lines, np.int64),
        np.empty(lines, np.bool_),
        np.empty(lines, np.int64),
        np.empty(lines, np.bool_),
        np.empty(blocks, np.uint64),
        np.zeros((2, 4 * blocks), np.float32),
        np.empty(4 * blocks, np.float32),
    )


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


@njit(**OPTIONS)
def trains_of(
    all_slots, all_a, all_b, tops_x, tops_d, rates, granularity, length, length_management, management, fixed, scale
):  # fmt: skip
    """:func:`train_of` for several vectors; how many are beyond the budget. One without input or gradient has no slots.

    The common options have a loop of their own, without calls and branches: LLVM takes several vectors at a time.
    """
    n, beyond = tops_x.size, 0
    if length_management and management:
        most = np.float64(length)
        for k in range(n):
            x, dm, lr = np.float64(tops_x[k]), scale * np.float64(tops_d[k]), rates[k]
            kappa = lr * x * dm / granularity
            slots = max(min(np.ceil(kappa), most), 1.0)
            a = np.sqrt(lr / (granularity * slots))
            top = dm if kappa <= most else dm * most / kappa
            some = (x != 0) & (dm != 0)
            all_slots[k] = slots if some else 0.0
            all_a[k] = a * np.sqrt(x / top) if some else 0.0
            all_b[k] = a * np.sqrt(top / x) if some else 0.0
            beyond += some & (kappa > most)
        return beyond
    for k in range(n):
        all_slots[k] = all_a[k] = all_b[k] = 0.0
        if tops_x[k] == 0 or tops_d[k] == 0:
            continue
        slots, all_a[k], all_b[k], kappa = train_of(
            np.float64(tops_x[k]), np.float64(tops_d[k]), rates[k], granularity, length, length_management, management,
            fixed, scale,
        )  # fmt: skip
        all_slots[k] = slots
        beyond += kappa > length
    return beyond


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
                peak = max(peak, np.int32(bits[np.uint64(first + k * step + i * stride)] & _MAGNITUDE))
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


# A line's number of 32 bits is compared with 2^32 times its probability in three steps. An edge, 256 times the
# probability in single precision and a little more, tells most lines that do not fire from their high byte alone, and
# most that do; only what lies in between asks for the exact limit.
_ABOVE = 1.0 + 1e-6
_BELOW = np.float32(1.0 - 4e-6)


@njit(inline="always", **OPTIONS)
def fires_at(byte, edge, value, factor, resolution, place, n16, line, low_key):
    """Whether a line fires whose high byte is below its edge; ``factor`` times a magnitude is its probability."""
    if np.float32(byte + 1) <= edge * _BELOW:
        return True
    limit = threshold(rounded(abs(np.float64(value)) * factor, resolution))
    return fires(byte, place, n16, line, limit, low_key)


@njit(**OPTIONS)
def row_edges(edges, at, d, stride, a, by, peaks, resolution, statistics):
    """Edges of the rows of some vectors, ``[rows, n]``; counts of probabilities above 0, and above 1.

    Args:
        at: where the vectors' first gradients lie ``[n]``; their next ones are ``stride`` further.
        a: factor of each vector's probabilities ``[n]``, > 0.
        by: memory, float32 ``[n]``.
        peaks: largest magnitudes of their gradients ``[n]``.
    """
    n, rows, some, beyond = at.size, edges.shape[0], 0, 0
    if resolution > 0:
        for i in range(rows):
            for q in range(n):
                p = rounded(abs(np.float64(d[at[q] + i * stride])) * a[q], resolution)
                edges[i, q] = p * (256 * _ABOVE)
                some += p > 0
                beyond += p > 1.0 + 1e-6
    else:
        for q in range(n):
            by[q] = a[q] * (256 * _ABOVE)
        for i in range(rows):
            line, first, found = edges[i], i * stride, np.int32(0)
            for q in range(n):
                line[q] = abs(d[np.uint64(at[q] + first)])
            for q in range(n):
                found += np.int32(line[q] > 0)
                line[q] *= by[q]
            some += found
        for q in range(n):
            if np.float64(peaks[q]) * a[q] > 1.0 + 1e-6:
                for i in range(rows):
                    beyond += abs(np.float64(d[at[q] + i * stride])) * a[q] > 1.0 + 1e-6
    statistics[5] += some
    statistics[6] += beyond


@njit(**OPTIONS)
def draw_rows(words, near, edges, places, key):
    """Draw a slot's words of some vectors; bit ``i % 32`` of ``near[i // 32]`` says whether row i may fire.

    Args:
        words: uint32 ``[rows in fours, n]``; the lowest byte is the first row's.
        near: uint32 ``[rows in 32s, n]``.
        edges: float32 ``[rows, n]``.
        places: of the slot in each vector ``[n]``.
    """
    blocks, rows, n = words.shape[0] // 4, edges.shape[0], places.size
    k0, k1, k2, k3 = np.uint64(key[0]), np.uint64(key[1]), np.uint64(key[2]), np.uint64(key[3])
    for b in range(blocks):
        first, second, third, fourth = words[4 * b], words[4 * b + 1], words[4 * b + 2], words[4 * b + 3]
        for q in range(n):
            w0, w1, w2, w3 = _philox(np.uint64(places[q] * blocks + b), k0, k1, k2, k3)
            first[q], second[q] = np.uint32(w0 & _M), np.uint32(w1 & _M)
            third[q], fourth[q] = np.uint32(w2 & _M), np.uint32(w3 & _M)
    for part in range(near.shape[0]):
        near[part, :n] = 0
    for i in range(rows):
        shift, bit = np.uint32(8 * (i & 3)), np.uint32(i & 31)
        bits, line, edge = near[i >> 5], words[i >> 2], edges[i]
        for q in range(n):
            byte = np.int32((line[q] >> shift) & np.uint32(255))
            bits[q] |= np.uint32(np.float32(byte) < edge[q]) << bit


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
    blocks = (columns + 15) // 16
    slots = max(min(_SLOTS, 4 * _WORDS // (16 * blocks)), 1)
    most = max(_PULSES, columns)
    n = max(rows, columns) + 1
    return (
        np.empty((groups, plane if columns > kernel else 0), np.int32),
        np.empty(8 * together, np.int32),
        np.empty((2, groups, together), np.int32),
        np.empty((4, together)),
        (
            np.empty((rows, together), np.float32),
            np.empty((stride, words, together), np.uint32),
            np.empty((stride, (rows + 31) // 32, together), np.uint32),
            np.empty((4, together), np.int64),
            np.empty(together),
            np.empty(together, np.float32),
            np.empty(together, np.float32),
            np.empty(stride, np.int64),
        ),
        (
            np.empty((4, slots), np.int64),
            np.empty(slots),
            np.empty(max(_PULSES, rows), np.int64),
            np.empty(max(_PULSES, rows), np.bool_),
        ),
        (
            np.empty(columns, np.float32),
            np.empty(columns, np.float32),
            np.empty(16 * blocks, np.uint8),
            np.empty(columns + 1, np.int64),
            np.empty(slots * blocks, np.uint64),
            np.empty(slots * blocks * 4, np.uint32),
        ),
        slot_memory(columns),
        np.empty((2, n)),
        (np.empty((2, most), np.int64), np.empty(most, np.bool_), np.zeros((2, most), np.float32)),
    )


@njit(**OPTIONS)
def meet(
    count, slots, of_columns, many, waiting, x, offsets, x_sign, x_resolution, x_key, x_low,
    kind, constants, held, w, p, counts, noise_key, noisy, write_noise, statistics,
):  # fmt: skip
    """Draw the columns of ``count`` slots in which rows fire, and let the pulses wait; how many parts then wait.

    Args:
        slots: place, vector's first input, first row and number of rows of each slot; its factor for columns; rows, and
            whether their pulses go up.
        many: parts that wait already.
    """
    of_slot, factors, slot_rows, slot_ups = slots
    values, edges, near, fired, numbers, words = of_columns
    parts, rows, row_ups, columns, flips, noise_numbers, _normals, _logarithms = waiting
    n, n16, signed = offsets.size, near.size, len(x_sign) > 0
    blocks, apart, cap = n16 // 16, (held.size + 3) // 4, noise_numbers.size
    k0, k1, k2, k3 = np.uint64(x_key[0]), np.uint64(x_key[1]), np.uint64(x_key[2]), np.uint64(x_key[3])
    for e in range(count):
        for b in range(blocks):
            numbers[e * blocks + b] = of_slot[0, e] * blocks + b
    for q in range(count * blocks):
        w0, w1, w2, w3 = _philox(numbers[q], k0, k1, k2, k3)
        words[4 * q], words[4 * q + 1] = np.uint32(w0 & _M), np.uint32(w1 & _M)
        words[4 * q + 2], words[4 * q + 3] = np.uint32(w2 & _M), np.uint32(w3 & _M)
    byte = words.view(np.uint8)
    for e in range(count):
        place, at_x, first, lines, factor = (
            of_slot[0, e],
            of_slot[1, e],
            of_slot[2, e],
            of_slot[3, e],
            factors[e],
        )
        if e == 0 or at_x != of_slot[1, e - 1]:
            for j in range(n):
                values[j] = x[np.uint64(at_x + offsets[j])]
            if x_resolution > 0:
                for j in range(n):
                    edges[j] = rounded(abs(np.float64(values[j])) * factor, x_resolution) * (256 * _ABOVE)
            else:
                by = np.float32(factor * (256 * _ABOVE))
                for j in range(n):
                    edges[j] = abs(values[j]) * by
        start = e * n16
        for j in range(n):
            high = np.float32(np.int32(byte[np.uint64(start + j)]))
            near[j] = np.int32(high < edges[j]) + np.int32(high + np.float32(1.0) <= edges[j] * _BELOW)
        # Whether a line is taken moves an end, not a branch: which ones are is a coin toss.
        m = may = 0
        for j in range(n):
            fired[np.uint64(may)] = j
            may += near[j] != 0
        for c in range(may):
            j = fired[c]
            takes = True
            if near[j] == 1:
                limit = threshold(rounded(abs(np.float64(values[j])) * factor, x_resolution))
                takes = fires(np.int64(byte[start + j]), place, n16, j, limit, x_low)
            fired[m] = j
            m += takes
        statistics[2] += lines * m
        begin = 0  # a part may hold but some of the rows
        while m > 0 and begin < lines:
            some, skip = min(lines - begin, max((4 * cap - 3) // m, 1)), begin * m & 3
            needed = (skip + some * m + 3) // 4
            row, column, block = 0, 0, 0
            if many > 0:
                row, column = parts[many - 1, 0] + parts[many - 1, 1], parts[many - 1, 2] + parts[many - 1, 3]
                block = parts[many - 1, 4] + parts[many - 1, 5]
            if block + needed > cap or row + some > rows.size or column + m > columns.size:
                pulse_slots(
                    many, waiting, kind, constants, held, w, p, counts, apart, noise_key, noisy, write_noise
                )
                many, row, column, block = 0, 0, 0, 0
            for r in range(some):
                rows[row + r], row_ups[row + r] = slot_rows[first + begin + r], slot_ups[first + begin + r]
            for c in range(m):
                j = fired[c]
                columns[column + c], flips[column + c] = j, values[j] < 0
                if signed:
                    flips[column + c] = flips[column + c] != (x_sign[j] < 0)
            number = place * 2 * apart + begin * m // 4
            for b in range(needed):
                noise_numbers[block + b] = number + b
            parts[many, 0], parts[many, 1], parts[many, 2], parts[many, 3] = row, some, column, m
            parts[many, 4], parts[many, 5], parts[many, 6] = block, needed, skip
            many += 1
            begin += some
    return many


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
    pooled, window, peaks, trains, of_rows, slots_met, of_columns, waiting, means_of, pulses = memory
    edges, row_words, near, of_vectors, factors, row_by, row_peaks, with_slot = of_rows
    order, where, at_row, places = of_vectors[0], of_vectors[1], of_vectors[2], of_vectors[3]
    of_slot, slot_factors, slot_rows, slot_ups = slots_met
    mean_rows, mean_columns = means_of[0], means_of[1]
    listed, ups, normals = pulses
    most, together = ups.size, trains.shape[1]
    count = filled = parts = 0  # slots with rows, these rows, and parts of slots that wait
    in_list = 0  # pulses that are listed
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
        patches = starts[position : position + many]
        for g in range(groups):
            at_group = image * image_stride + g * group_stride
            x_peaks, d_peaks = peaks[0, g, :many], peaks[1, g, :many]
            at_d = image * d_image + g * rows * d_row + position * d_position
            peaks_of_lines(d_peaks, d_bits, at_d, d_position, rows, d_row)
            if columns == kernel:
                peaks_of_patches(x_peaks, x_bits, at_group, patches, offsets, window)
                continue
            if position == 0:
                # The largest magnitude over the channels: a patch then needs one look per position of the filter.
                peaks_of_lines(pooled[g], x_bits, at_group, 1, columns // kernel, plane)
            peaks_of_patches(x_peaks, pooled[g], 0, patches, offsets[:kernel], window)
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
            statistics[4] += trains_of(
                all_slots[:many], all_a[:many], all_b[:many], tops[0, g, :many], tops[1, g, :many], rates[:many],
                granularity, length, length_management, management, fixed, scale,
            )  # fmt: skip
            first_d = image * d_image + g * rows * d_row + position * d_position
            first_x = image * image_stride + g * group_stride
            number = np.int64(first + v) * groups + g
            active, most_slots = 0, int(all_slots[:many].max())
            # By their slots: the vectors that have a certain slot are the first ones.
            for slot in range(most_slots - 1, -1, -1):
                for k in range(many):
                    if all_slots[k] == slot + 1:
                        order[active], where[k] = k, active
                        active += 1
                        statistics[3] += slot + 1
                with_slot[slot] = active
            statistics[1] += active
            if active == 0:
                continue
            if mode == 0:
                for q in range(active):
                    k = order[q]
                    at_row[q], factors[q], row_peaks[q] = first_d + k * d_position, all_a[k], tops[1, g, k]
                row_edges(
                    edges, at_row[:active], d, d_row, factors, row_by, row_peaks, d_resolution, statistics
                )
                for slot in range(most_slots):
                    n = with_slot[slot]
                    for q in range(n):
                        places[q] = (number + order[q] * groups) * stride + slot
                    draw_rows(row_words[slot], near[slot], edges, places[:n], d_key)
                for k in range(many):
                    q = where[k]
                    for slot in range(int(all_slots[k])):
                        place, n = (number + k * groups) * stride + slot, 0
                        for part in range(near.shape[1]):
                            bits = np.uint64(near[slot, part, q])
                            while bits != 0:
                                lowest = _lowest(bits)  # pyright: ignore[reportCallIssue]  (an intrinsic)
                                i = 32 * part + np.int64(lowest)
                                bits &= bits - np.uint64(1)
                                value = d[at_row[q] + i * d_row]
                                byte = np.int64(
                                    (row_words[slot, i >> 2, q] >> np.uint32(8 * (i & 3))) & np.uint32(255)
                                )
                                if not fires_at(
                                    byte,
                                    edges[i, q],
                                    value,
                                    factors[q],
                                    d_resolution,
                                    place,
                                    rows16,
                                    i,
                                    d_low,
                                ):
                                    continue
                                row, up = g * rows + i, value < 0
                                if signed:
                                    up = up != (d_sign[row] < 0)
                                slot_rows[filled + n], slot_ups[filled + n] = row, up
                                n += 1
                        if n == 0:
                            continue
                        of_slot[0, count], of_slot[1, count] = place, first_x + patches[k]
                        of_slot[2, count], of_slot[3, count], slot_factors[count] = filled, n, all_b[k]
                        count += 1
                        filled += n
                        if count == slot_factors.size or filled + rows > slot_rows.size:
                            parts = meet(
                                count, slots_met, of_columns, parts, waiting, x, offsets, x_sign, x_resolution, x_key,
                                x_low, kind, constants, held, w, p, counts, noise_key, noisy, write_noise, statistics,
                            )  # fmt: skip
                            count = filled = 0
                continue
            for k in range(many):
                slots, a, b = int(all_slots[k]), all_a[k], all_b[k]
                if slots == 0:
                    continue
                at_d, at_x = first_d + k * d_position, first_x + patches[k]
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
                            n = int(np.rint(mean_rows[i] * mean_columns[j] / slots))
                        else:
                            n = int(np.rint(slots * mean_rows[i] * mean_columns[j]))
                        if n == 0:
                            continue
                        up = d_up != (x[at_x + offsets[j]] < 0)
                        if signed:
                            up = up != (x_sign[j] < 0)
                        statistics[2] += n
                        for slot in range(n):
                            place = (number + k * groups) * stride + slot
                            if in_list == most:
                                pulse_listed(
                                    in_list, listed, ups, normals, kind, constants, held, w, p, counts, noise_key,
                                    noisy, write_noise,
                                )  # fmt: skip
                                in_list = 0
                            device = row * columns + j
                            listed[0, in_list], listed[1, in_list] = device, place * devices + device
                            ups[in_list] = up
                            in_list += 1
        v += many
    parts = meet(
        count, slots_met, of_columns, parts, waiting, x, offsets, x_sign, x_resolution, x_key, x_low, kind, constants,
        held, w, p, counts, noise_key, noisy, write_noise, statistics,
    )  # fmt: skip
    pulse_slots(
        parts,
        waiting,
        kind,
        constants,
        held,
        w,
        p,
        counts,
        (held.size + 3) // 4,
        noise_key,
        noisy,
        write_noise,
    )
    pulse_listed(
        in_list, listed, ups, normals, kind, constants, held, w, p, counts, noise_key, noisy, write_noise
    )
