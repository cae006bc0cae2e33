"""Inputs through the digital-to-analog converters: ``x_q = r * DAC(x / r)``, per row tile."""

from __future__ import annotations

from torch import Tensor

from aimc.ops.backend import choose_backend
from aimc.ops.convert_input import cpu, reference

Splits = tuple[tuple[int, int], ...]


def convert_input(
    x: Tensor, ranges: Tensor, splits: Splits, half: int, contiguous_tiles: bool = True, backend: str = "auto"
) -> tuple[list[Tensor], list[int], bool]:
    """Clip to the input range and round to the converter's grid.

    Args:
        x: ``[vectors, groups, channels, positions]``, contiguous.
        ranges: input range of each row tile, ``[row_tiles, 1]`` or ``[row_tiles, vectors]``, > 0.
        splits: channel boundaries of the row tiles.
        half: levels on one side of zero; 0 clips without rounding.
        contiguous_tiles: each tile its own contiguous tensor, instead of views of one tensor shaped like x.
        backend: see :func:`aimc.ops.choose_backend`.

    Returns:
        One tensor per row tile ``[vectors, groups, channels of the tile, positions]`` in the units of x, the number of
        inputs beyond the range per row tile, and whether all inputs are finite.

    Example:
        >>> import torch
        >>> parts, clipped, finite = convert_input(
        ...     torch.tensor([0.1, 0.6, -2.0]).view(1, 1, 3, 1), torch.ones(1, 1), ((0, 3),), half=3)
        >>> parts[0].flatten(), clipped, finite
        (tensor([ 0.0000,  0.6667, -1.0000]), [1], True)
    """
    body = cpu if choose_backend(backend, x, ranges) == "cpu" else reference
    return body.convert_input(x, ranges, splits, half, contiguous_tiles)


def convert_input_backward(
    x: Tensor, grads: list[Tensor], ranges: Tensor, splits: Splits, backend: str = "auto"
) -> tuple[Tensor, Tensor]:
    """Straight-through gradient of the rounding, zero where the input clips; and what widens the range.

    Args:
        x, ranges, splits: as in :func:`convert_input`.
        grads: gradients with respect to the converted inputs, one per row tile.

    Returns:
        Gradient with respect to x, and per row tile ``sum_{x > r} min(grad, 0) - sum_{x < -r} max(grad, 0)``: the
        push of the clipped inputs that only widens the range, ``[row_tiles]``.

    Example:
        >>> import torch
        >>> g, push = convert_input_backward(
        ...     torch.tensor([0.1, 2.0]).view(1, 1, 2, 1), [torch.tensor([1.0, -1.0]).view(1, 1, 2, 1)],
        ...     torch.ones(1, 1), ((0, 2),))
        >>> g.flatten(), push
        (tensor([1., 0.]), tensor([-1.]))
    """
    body = cpu if choose_backend(backend, x, ranges, *grads) == "cpu" else reference
    return body.convert_input_backward(x, grads, ranges, splits)
