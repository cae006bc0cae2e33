"""Weight updates by voltage pulses: a batch of vectors onto one array of cells."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

from aimc.cells.pulsed import PulsedCell
from aimc.errors import AimcError
from aimc.ops.backend import choose_backend
from aimc.ops.pulsed_update import cpu, reference
from aimc.ops.pulsed_update.cpu import STATISTICS, same
from aimc.ops.pulsed_update.train import MODES, PulseTrain
from aimc.ops.pulsed_update.vectors import Patches, Vectors, channels_last, padded
from aimc.random import STREAMS, Key
from aimc.random.cpu import key_words

__all__ = [
    "MODES",
    "STATISTICS",
    "Patches",
    "PulseTrain",
    "Vectors",
    "channels_last",
    "check_vectors",
    "choose_body",
    "constants_of",
    "has_compiled_response",
    "no_statistics",
    "padded",
    "pulsed_update",
    "same",
]

_NO_COUNTS = np.empty((0, 0), np.int32)
_NO_SIGN = np.empty(0, np.float32)
_STREAMS = [
    np.uint32(STREAMS[s]) for s in ("pulses_x", "pulses_x_low", "pulses_d", "pulses_d_low", "pulse_noise")
]


def pulsed_update(
    held: Tensor,
    w: Tensor,
    parameters: Tensor,
    cell: PulsedCell,
    vectors: Vectors,
    lr: float,
    key: Key,
    train: PulseTrain = PulseTrain(),  # noqa: B008  (frozen)
    *,
    granularity: float | None = None,
    counts: Tensor | None = None,
    statistics: Tensor | None = None,
    x_sign: Tensor | None = None,
    d_sign: Tensor | None = None,
    first: int = 0,
    backend: str = "auto",
) -> Tensor:
    """Move ``w`` by ``-lr sum_v d_v x_v^T`` in expectation, in place, by pulses; vectors act one after another.

    With g the granularity, ``kappa = lr max|x| max|d| / g`` and BL slots, row i fires in a slot with probability
    ``|d_i| A``, column j with ``|x_j| B``, and a cell is pulsed where both do; ``A B = lr / (g BL)``, so that a cell
    gets ``lr |x_j d_i| / g`` pulses on average while no probability exceeds 1. The direction is ``-sign(d_i x_j)``.

    Args:
        held: what the cells hold, float32 ``[R, C]``, contiguous.
        w: what is read from them, same shape; the same tensor where the cell has no write noise.
        parameters: from ``cell.draw``.
        cell: the cell.
        vectors: inputs and gradients.
        lr: learning rate in the units of the cells, > 0.
        key: key of the update; its ``step`` numbers the updates. A draw depends on vector, slot and line alone.
        train: how the update becomes pulses.
        granularity: size of a step that the trains are scaled with; the cell's where None.
        counts: int32 ``[R, C]``, pulses of each device so far, added to.
        statistics: counters so far, added to; in the order of :data:`STATISTICS`, int64, on the CPU.
        x_sign, d_sign: chopper signs ``[C]``, ``[R]``; a negative one flips the direction of the pulses of its line.
        first: number of the first vector.
        backend: ``auto``, ``reference`` or ``cpu``.

    Returns:
        ``statistics``, or those of this update alone where None.

    Raises:
        AimcError: a shape does not fit, ``lr`` is not positive and finite, or a gradient is NaN or infinite.

    Example:
        >>> from aimc.cells import SoftBounds
        >>> cell = SoftBounds.with_states(10, w_max=1.0, w_min=-1.0)
        >>> p, w = cell.draw((3, 2), Key(0)), torch.zeros(3, 2)
        >>> found = pulsed_update(w, w, p, cell, Vectors(torch.ones(8, 2), torch.ones(8, 3)), 0.1, Key(1))
        >>> bool((w < 0).all())
        True
    """
    _check_cells(held, w, parameters, cell, counts, x_sign, d_sign)
    check_vectors(vectors, held.shape, lr)
    if statistics is None:
        statistics = no_statistics()
    elif statistics.shape != (len(STATISTICS),) or statistics.dtype != torch.int64:
        raise AimcError(f"are not {len(STATISTICS)} of int64", field="statistics", shape=statistics.shape)
    if vectors.count == 0:
        return statistics
    if train.kind in ("none", "none_bounded"):
        gradient = vectors.gradient()
        if x_sign is not None and d_sign is not None:
            gradient = gradient * d_sign[:, None] * x_sign
        held.sub_(gradient, alpha=lr)
        if train.kind == "none_bounded":
            torch.minimum(torch.maximum(held, parameters[..., 3], out=held), parameters[..., 2], out=held)
        if w is not held:  # every device is touched, and reads anew
            w.copy_(cell.shown(held, key.at("pulse_noise")))
        return statistics
    g = cell.granularity if granularity is None else granularity
    stride = train.most_slots(lr, g)
    if choose_body(backend, cell, held, vectors.x, vectors.d) == "reference":
        reference.update(
            cell, held, w, parameters, counts, vectors, x_sign, d_sign, first, lr, g, train, stride, key, statistics,
        )  # fmt: skip
        return statistics
    k0, k1, step, _ = key_words(key)
    x_key, x_low, d_key, d_low, noise_key = [(k0, k1, step, stream) for stream in _STREAMS]
    held_array = held.numpy()
    cpu.update(
        cell.KIND, constants_of(cell), held_array, w.numpy() if w is not held else held_array, parameters.numpy(),
        counts.numpy() if counts is not None else _NO_COUNTS, cell.noisy,
        np.float32(cell.write_noise_std * cell.dw_min), *vectors.arrays(),
        x_sign.numpy() if x_sign is not None else _NO_SIGN, d_sign.numpy() if d_sign is not None else _NO_SIGN,
        first, MODES[train.kind], float(lr), float(g), train.length, train.length_management, train.management,
        train.fixed_length, train.gradient_scale, train.x_resolution, train.d_resolution, stride,
        x_key, x_low, d_key, d_low, noise_key, statistics.numpy(),
    )  # fmt: skip
    return statistics


@functools.cache
def has_compiled_response(cell: type[PulsedCell]) -> bool:
    """Whether the compiled bodies know what a pulse does to such a cell: to one of aimc, changed in nothing of that.

    Example:
        >>> from aimc.cells import ConstantStep
        >>> class Sluggish(ConstantStep):
        ...     def change(self, w, parameters, up, noise):
        ...         return super().change(w, parameters, up, noise) / 2
        >>> has_compiled_response(ConstantStep), has_compiled_response(Sluggish)
        (True, False)
    """
    owner = next((kind for kind in cell.__mro__ if "KIND" in kind.__dict__), None)
    if owner is None or not owner.__module__.startswith("aimc.cells."):
        return False
    return all(getattr(cell, n) is getattr(owner, n) for n in ("change", "step", "constants", "PARAMETERS"))


def choose_body(backend: str, cell: PulsedCell, *tensors: Tensor) -> str:
    """:func:`aimc.ops.choose_backend` for pulses on such cells."""
    if has_compiled_response(type(cell)):
        return choose_backend(backend, *tensors)
    if backend == "cpu":
        raise AimcError(
            f"'cpu' has no compiled response of {type(cell).__name__}; take 'auto' or 'reference'",
            field="backend",
        )
    return choose_backend("reference" if backend == "auto" else backend, *tensors)


def no_statistics(*shape: int) -> Tensor:
    """Counters at zero, ``[*shape, 7]``."""
    return torch.from_numpy(np.zeros((*shape, len(STATISTICS)), np.int64))  # half the time of torch.zeros


@functools.lru_cache(64)
def constants_of(cell: PulsedCell) -> np.ndarray:
    """``cell.constants()`` for the compiled bodies."""
    return cell.constants().numpy()


def _check_cells(
    held: Tensor,
    w: Tensor,
    parameters: Tensor,
    cell: PulsedCell,
    counts: Tensor | None,
    x_sign: Tensor | None,
    d_sign: Tensor | None,
) -> None:
    """The compiled body looks where it is told to: nothing may be smaller than the cells."""
    shape = held.shape
    if w is not held and w.shape != shape:
        raise AimcError("is not the shape of the cells", field="w", shape=w.shape)
    if counts is not None and counts.shape != shape:
        raise AimcError("is not the shape of the cells", field="counts", shape=counts.shape)
    columns = len(cell.PARAMETERS)
    if parameters.shape != (*shape, columns) and parameters.shape != (1, 1, columns):
        raise AimcError("are not those of the cells", field="parameters", shape=parameters.shape)
    if x_sign is None and d_sign is None:
        return
    if x_sign is None or d_sign is None or (len(d_sign), len(x_sign)) != shape:
        raise AimcError("are both given, one per column and one per row, or none", field="x_sign, d_sign")


def check_vectors(vectors: Vectors, shape: tuple[int, ...], lr: float) -> None:
    """Raise unless vectors and learning rate can become pulses on cells of this shape."""
    if shape != (vectors.rows, vectors.columns):
        raise AimcError(
            f"vectors of {vectors.rows} rows and {vectors.columns} columns do not fit cells", shape=shape
        )
    if not (lr > 0 and math.isfinite(lr)):
        raise AimcError(f"must be positive and finite, got {lr}", field="lr")
    if vectors.odd is not None:
        value = vectors.x if vectors.odd == "input" else vectors.d
        raise AimcError(f"the {vectors.odd} holds NaN or infinite values", shape=value.shape)
