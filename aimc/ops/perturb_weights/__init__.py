"""Weights as the array holds them during one training step: scaled, disturbed, and back in their own units."""

from __future__ import annotations

from torch import Tensor

from aimc.errors import AimcError
from aimc.ops.backend import choose_backend
from aimc.ops.perturb_weights import cpu, reference
from aimc.random import Key

Change = tuple  # (kind, number, ...); the kinds are below
KINDS = {
    "add_normal": 1,  # standard deviation
    "multiply_normal": 1,  # standard deviation
    "polynomial": 5,  # factor, then four coefficients in powers of |w|
    "polynomial_keep_sign": 5,
    "discretize": 1,  # levels on one side of zero
    "dorefa": 2,  # levels on one side of zero, clip
    "drop": 1,  # probability
}


def perturb_weights(
    weight: Tensor,
    splits: tuple[tuple[int, int], ...],
    scale: Tensor | None,
    changes: tuple[Change, ...],
    key: Key,
    contiguous_tiles: bool = False,
    clips: bool = True,
    backend: str = "auto",
) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """Apply a chain of changes to normalised weights ``w / scale``.

    Args:
        weight: ``[outputs, rows]``, contiguous.
        splits: row boundaries of the row tiles.
        scale: ``[row_tiles, outputs]``, or None for the largest magnitude of every column of every tile.
        changes: in order; each is a kind from :data:`KINDS` with its numbers. The draws of change m at weight (i, j)
            sit at position ``i * rows + j`` of ``key.fold(m)``.
        contiguous_tiles: each tile its own contiguous tensor, instead of views of one ``[outputs, rows]``.
        clips: whether weights beyond a given scale are clipped, and get no gradient.
        backend: see :func:`aimc.ops.choose_backend`.

    Returns:
        The tiles' weights ``[outputs, rows of the tile]`` in the units of ``weight``; the scale; and the factor by
        which a gradient at the disturbed weight reaches the clean one ``[outputs, rows]``, or None for 1 everywhere.

    Example:
        >>> import torch
        >>> tiles, scale, factor = perturb_weights(
        ...     torch.tensor([[0.1, -0.4]]), ((0, 2),), None, (("discretize", 1),), Key(0))
        >>> tiles[0], scale, factor
        (tensor([[ 0.0000, -0.4000]]), tensor([[0.4000]]), tensor([[1., 1.]]))
    """
    for change in changes:
        if change[0] not in KINDS or len(change) != KINDS[change[0]] + 1:
            raise AimcError(f"not a change of weights: {change!r}")
    tensors = (weight,) if scale is None else (weight, scale)
    body = cpu if choose_backend(backend, *tensors) == "cpu" else reference
    clips = clips and scale is not None
    with_factor = clips or any(kind in ("drop", "dorefa", "discretize") for kind, *_ in changes)
    return body.perturb_weights(weight, splits, scale, changes, key, contiguous_tiles, clips, with_factor)
