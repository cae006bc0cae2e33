"""From one array to the next: columns are read and become pulses, directly or through a digital buffer."""

# pyright: reportCallIssue=false
# (it counts unpacked tuples wrongly in calls of compiled functions)

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import torch
from torch import Tensor

from aimc.cells.pulsed import PulsedCell
from aimc.errors import AimcError
from aimc.ops.pulsed_update import (
    MODES,
    PulseTrain,
    Vectors,
    check_vectors,
    choose_body,
    constants_of,
    no_statistics,
)
from aimc.ops.transfer import cpu, reference
from aimc.ops.transfer.tile import Read, Tile
from aimc.random import Key
from aimc.random.cpu import key_words

__all__ = [
    "LEAST", "Buffer", "Read", "Tile", "buffered_update", "nominal_parameters", "reencode", "transfer", "whole_steps",
]  # fmt: skip

LEAST = 0.04
"""Of a step at weight 0, by which a device has to move to have answered a pulse of :func:`reencode`."""

_NONE = np.empty((0, 0), np.float32)
_NO_SIGNS = np.empty(0, np.float32)
_f = np.float32


@functools.lru_cache(maxsize=4096)
def _words(key: Key, *streams: str) -> tuple:
    return tuple(key_words(key.at(stream)) for stream in streams)


@functools.lru_cache(maxsize=64)
def nominal_parameters(cell: PulsedCell) -> Tensor:
    """Parameters of a device without spread ``[1, 1, P]``."""
    alike = {
        n: 0.0
        for n in cell.field_names()
        if n.endswith("_dtod") or n in ("reference_std", "corrupt_probability")
    }
    return cell.replace(**alike).draw((1, 1), Key(0))


def _cell(cell: PulsedCell) -> tuple:
    return cell.KIND, constants_of(cell)


def _noise(cell: PulsedCell) -> tuple:
    return cell.noisy, _f(cell.write_noise_std * cell.dw_min)


def _tile(tile: Tile) -> tuple:
    return tile.held.numpy(), tile.w.numpy(), tile.parameters.numpy(), tile.counts.numpy()


def _read(how: Read) -> tuple:
    return _f(how.noise), _f(how.half), _f(how.bound)


def transfer(
    tile: Tile,
    source: Tensor,
    column: int,
    columns: int,
    number: int,
    lr: float,
    key: Key,
    how: Read = Read(),  # noqa: B008  (frozen)
    train: PulseTrain = PulseTrain(),  # noqa: B008  (frozen)
    backend: str = "auto",
) -> Tensor:
    """Read columns of ``source`` and send ``lr`` times what was read as pulses to the same columns of ``tile``.

    Source: T. Gokmen and W. Haensch, Front. Neurosci. 14, 103 (2020).

    Args:
        tile: target.
        source: what is read ``[R, C]``.
        column: the first; further ones follow, cyclically.
        columns: how many.
        number: of the first read among all of this key; draws depend on it.
        lr: pulses per unit read, in granularities: a cell gets ``lr |y| / g`` pulses on average.
        key: of the pair of tiles.
        how: noise and converter of the read.
        train: how values become pulses; stochastic.
        backend: ``auto``, ``reference`` or ``cpu``.

    Returns:
        int64 counters in the order of :data:`aimc.ops.pulsed_update.STATISTICS`; a column is a vector.

    Example:
        >>> from aimc.cells import SoftBounds
        >>> cell = SoftBounds.with_states(10, w_max=1.0, w_min=-1.0)
        >>> held = torch.zeros(3, 2)
        >>> tile = Tile(cell, held, held, cell.draw((3, 2), Key(0)), torch.zeros(3, 2, dtype=torch.int32))
        >>> found = transfer(tile, torch.full((3, 2), 0.9), 0, 1, 0, 1.0, Key(1))
        >>> bool((held[:, 0] > 0).all()), bool((held[:, 1] == 0).all())
        (True, True)
    """
    if not (lr > 0 and math.isfinite(lr)):
        raise AimcError(f"must be positive and finite, got {lr}", field="lr")
    if train.kind != "stochastic":
        raise AimcError(f"a direct transfer sends stochastic pulses, not {train.kind!r}", field="kind")
    statistics = no_statistics()
    g = tile.cell.granularity
    stride = train.most_slots(lr, g)
    if choose_body(backend, tile.cell, tile.held, source) == "reference":
        reference.direct(tile, source, column, columns, number, lr, g, how, train, stride, key, statistics)
        return statistics
    cpu.direct(
        *_cell(tile.cell), *_tile(tile), *_noise(tile.cell), source.numpy(), column, columns, number, float(lr),
        float(g), train.length, train.length_management, train.management, train.fixed_length, train.gradient_scale,
        train.x_resolution, train.d_resolution, stride, *_read(how),
        *_words(key, "transfer", "pulses_x", "pulses_x_low", "pulses_d", "pulses_d_low", "pulse_noise"),
        statistics.numpy(),
    )  # fmt: skip
    return statistics


@dataclasses.dataclass(frozen=True)
class Buffer:
    """The digital side of a buffered transfer.

    Attributes:
        h: buffer ``[R, C]``, in whole pulses.
        visits: int64 ``[1 + C]``: column reads so far, and for each column whether its chopper flipped at its last one.
        gain: buffer units per unit read.
        momentum: share of the buffer that stays after its pulses, or with ``forget`` false, of the pulses' worth.
        forget: whether a pulse clears the remainder (but for the momentum) too.
        most: pulses per cell and read, at most.
        x_sign, d_sign: chopper signs ``[C]``, ``[R]``, or None.
        chop: probability that a column's chopper flips after its read; with ``random_chop`` false it flips in every
            ``ceil(1 / chop)``-th sweep.
        d_chop: probability that a row's chopper flips after a sweep.
        mean, reference: running mean of the reads and the value that they are compared with ``[R, C]``, or None. The
            reference becomes the mean at the first read after a flip.
        beta: weight of a new read in the mean.
    """

    h: Tensor
    visits: Tensor
    gain: float
    momentum: float = 0.0
    forget: bool = True
    most: int = 1
    x_sign: Tensor | None = None
    d_sign: Tensor | None = None
    chop: float = 0.0
    random_chop: bool = True
    d_chop: float = 0.0
    mean: Tensor | None = None
    reference: Tensor | None = None
    beta: float = 0.0


def buffered_update(
    fast: Tile,
    slow: Tile,
    vectors: Vectors,
    lr: float,
    key: Key,
    transfer_key: Key,
    buffer: Buffer,
    so_far: int,
    period: int,
    columns: int = 1,
    how: Read = Read(),  # noqa: B008  (frozen)
    train: PulseTrain = PulseTrain(),  # noqa: B008  (frozen)
    means: Tensor | None = None,
    rate: float = 0.0,
    backend: str = "auto",
    statistics: Tensor | None = None,
) -> Tensor:
    """Pulse vectors onto the fast tile; after every ``period``-th vector read columns of it into the buffer.

    What is in the buffer beyond 1 becomes pulses on the same column of the slow tile. Source: T. Gokmen, Front. Artif.
    Intell. 4, 699148 (2021); choppers and dynamic reference: M. J. Rasch et al., Nat. Commun. 15, 7133 (2024).

    Args:
        fast, slow: tiles of the same cell and shape.
        vectors: inputs and gradients.
        lr: learning rate of the fast tile, in units of the cells; where ``rate`` > 0 it is divided by the product of
            the running means.
        key: of the pulses on the fast tile; its step numbers the updates.
        transfer_key: of the transfers, the same in every update.
        buffer: the digital side, changed in place.
        so_far: vectors before this update.
        period: vectors between two reads.
        columns: read at a time.
        how: noise and converter of the reads.
        train: of the fast tile.
        means: float64 [2], running means of the largest input and gradient of a vector.
        rate: weight of a vector in the means; 0 leaves them out.
        backend: ``auto``, ``reference`` or ``cpu``.
        statistics: counters int64 ``[2, 7]`` of the fast and the slow tile so far, added to.

    Returns:
        ``statistics``, or those of this update alone where None.
    """
    check_vectors(vectors, fast.held.shape, lr)
    if train.kind not in MODES:
        raise AimcError(f"the fast tile takes pulses, not {train.kind!r}", field="kind")
    # The compiled body has room for the longest train of this rate.
    if rate > 0 and not (train.length_management or train.fixed_length):
        raise AimcError("a rate that follows the means needs trains that do not grow with it", field="train")
    statistics = statistics if statistics is not None else no_statistics(2)
    if vectors.count == 0:
        return statistics
    means = means if means is not None else torch.from_numpy(np.zeros(2))
    cell, b = fast.cell, buffer
    g = cell.granularity
    stride = train.most_slots(lr, g)
    if choose_body(backend, cell, fast.held, vectors.x, vectors.d) == "reference":
        reference.buffered_update(
            fast, slow, vectors, lr, key, transfer_key, b, so_far, period, columns, how, train, stride, means, rate,
            statistics[0], statistics[1],
        )  # fmt: skip
        return statistics
    of_fast, of_slow = statistics.numpy()
    cpu.buffered_update(
        *_cell(cell), *_noise(cell), *_tile(fast), *_tile(slow), so_far, period, columns,
        b.h.numpy(), b.mean.numpy() if b.mean is not None else _NONE,
        b.reference.numpy() if b.reference is not None else _NONE, b.visits.numpy(), _f(b.gain), _f(b.momentum),
        b.forget, b.most, float(b.chop), b.random_chop, float(b.d_chop), _f(b.beta), *_read(how),
        *_words(transfer_key, "transfer", "algorithm"), *_words(transfer_key.fold("rows"), "algorithm"),
        *_words(transfer_key, "pulse_noise"), of_slow,
        *vectors.arrays(),
        b.x_sign.numpy() if b.x_sign is not None else _NO_SIGNS,
        b.d_sign.numpy() if b.d_sign is not None else _NO_SIGNS,
        0, MODES[train.kind], float(lr), float(g), train.length, train.length_management, train.management,
        train.fixed_length, train.gradient_scale, train.x_resolution, train.d_resolution, stride,
        *(key_words(key.at(s)) for s in ("pulses_x", "pulses_x_low", "pulses_d", "pulses_d_low", "pulse_noise")),
        of_fast, means.numpy(), float(rate),
    )  # fmt: skip
    return statistics


def whole_steps(
    tile: Tile, chi: Tensor, size: float, number: int, key: Key, most: int = 31, backend: str = "auto"
) -> Tensor:
    """Whole multiples of ``size`` leave the matrix ``chi`` ``[R, C]`` and become as many pulses, up for positive ones.

    Args:
        tile: target.
        chi: changed in place; keeps the remainder.
        size: worth of a pulse.
        number: of this call among all of this key.
        key: of the pulses.
        most: pulses per cell and call, at most; the rest waits in ``chi``.
        backend: ``auto``, ``reference`` or ``cpu``.

    Returns:
        int64 counters in the order of :data:`aimc.ops.pulsed_update.STATISTICS`.
    """
    statistics = no_statistics()
    if choose_body(backend, tile.cell, tile.held, chi) == "reference":
        reference.whole_steps(tile, chi, size, most, number, key, statistics)
    else:
        cpu.whole_steps(
            *_cell(tile.cell), *_tile(tile), *_noise(tile.cell), chi.numpy(), _f(size), most, number,
            *_words(key, "pulse_noise"), statistics.numpy(),
        )  # fmt: skip
    return statistics


def reencode(
    cell: PulsedCell,
    held: Tensor,
    w: Tensor,
    parameters: Tensor,
    counts: Tensor,
    shares: Tensor,
    column: int,
    columns: int,
    number: int,
    key: Key,
    *,
    gradient: Tensor | None = None,
    rate: float = 0.0,
    decay: float = 0.0,
    threshold: float = 0.6,
    tries: int = 2,
    last_tries: int = 1,
    floor: float = 1.0,
    stochastic: bool = True,
    how: Read = Read(),  # noqa: B008  (frozen)
    statistics: Tensor | None = None,
    reads: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Write what the visited columns of all tiles amount to anew, from the most significant tile down.

    The columns are read on all T tiles; what the composite is to be is their sum, less ``decay`` times it and less
    ``rate * gradient``. From tile T-1 down, a cell gets a pulse while what is missing, with everything below it
    counted as missing, exceeds ``threshold`` of its nominal step there; after each pulse it is read again and the true
    change is taken off. Tile 0 rounds stochastically. What it cannot do, because its device is at its bound, is
    carried: a more significant tile steps, and those below take back what it did too much.

    Args:
        cell: of all tiles.
        held, w, parameters, counts: ``[T, R, C]`` and ``[T, R, C, P]`` (or ``[T, 1, 1, P]``).
        shares: float32 ``[T]``, > 0: factor of each tile in the composite.
        column: the first; further ones follow, cyclically.
        columns: how many, at most C.
        number: of the first visit among all of this key.
        key: of the layer.
        gradient: ``[R, columns]`` of the visited columns, or None where pulses on tile 0 have brought it already.
        rate: learning rate in units of the composite.
        decay: share of what was read that is taken off.
        threshold: of a step.
        tries: pulses per cell and visit at most, on every tile but the last one.
        last_tries: the same on tile 0.
        floor: least step that is assumed above tile 0, in nominal steps at weight 0.
        stochastic: whether tile 0 rounds stochastically; otherwise with the threshold.
        how: noise and converter of the reads.
        statistics, reads: counters int64 ``[T, 7]`` and columns read ``[T]`` so far, added to.
        backend: ``auto``, ``reference`` or ``cpu``.

    Returns:
        ``statistics`` and ``reads``, or those of this visit alone where None; reads with read-backs.
    """
    tiles, _rows, width = held.shape
    if not 1 <= columns <= width:
        raise AimcError(f"is between 1 and {width}, got {columns}", field="columns")
    statistics = statistics if statistics is not None else no_statistics(tiles)
    reads = reads if reads is not None else torch.from_numpy(np.zeros(tiles, np.int64))
    g = cell.granularity
    least, unit = LEAST * g, float(shares[0]) * g
    nominal = nominal_parameters(cell).to(held.device)
    if choose_body(backend, cell, held) == "reference":
        reference.reencode(
            cell, held, w, parameters, counts, nominal, shares, gradient, rate, decay, column, columns, number,
            threshold, tries, last_tries, floor * g, least, unit, stochastic, how, key, statistics, reads,
        )  # fmt: skip
        return statistics, reads
    cpu.reencode(
        *_cell(cell), held.numpy(), w.numpy(), parameters.numpy(), counts.numpy(), *_noise(cell), nominal.numpy(),
        shares.numpy(), gradient.contiguous().numpy() if gradient is not None else _NONE, _f(rate), _f(decay),
        column, columns, number, _f(threshold), tries, last_tries, _f(floor * g), _f(least), _f(unit), stochastic,
        *_read(how), *_words(key, "transfer", "algorithm"), *_words(key.fold("carry"), "algorithm"),
        *_words(key.fold("return"), "algorithm"), *_words(key, "pulse_noise"), statistics.numpy(), reads.numpy(),
    )  # fmt: skip
    return statistics, reads
