"""Column currents through noise and the analog-to-digital converters, added to the digital sum."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from aimc.ops.backend import choose_backend
from aimc.ops.read_out import cpu, reference
from aimc.random import Key


@dataclasses.dataclass(frozen=True)
class ReadOut:
    """Plain numbers of one tile's read-out.

    Attributes:
        half: levels of the ADC on one side of zero; 0 does not round.
        bound: full scale of the ADC in normalised units, where it saturates; 0 for no converter.
        output_noise: standard deviation before the ADC, normalised units.
        short_term: standard deviation of the weights' noise within one read, normalised units.
        wire_load: IR drop: load of a column per unit of ``sum_j |w_j| |x_j|`` in normalised units; 0 for none.
        offset: number of the first vector, for the position of the draws.
    """

    half: int = 0
    bound: float = 0.0
    output_noise: float = 0.0
    short_term: float = 0.0
    wire_load: float = 0.0
    offset: int = 0


def read_out(
    total: Tensor | None,
    partial: Tensor,
    scale: Tensor,
    ranges: Tensor,
    setting: ReadOut,
    key: Key,
    variance: Tensor | None = None,
    magnitude: Tensor | None = None,
    lost: Tensor | None = None,
    gain: Tensor | None = None,
    bias: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None, int]:
    """``total + gain * ADC(partial + noise)`` for one row tile.

    Args:
        total: digital sum so far ``[vectors, outputs, positions]``, added to in place, or None for the first tile,
            which starts from the bias.
        partial: the tile's dot products in the units of weight times input, same shape, contiguous; may be
            overwritten.
        scale: weight scale of each column, ``[outputs]``, >= 0.
        ranges: input range, ``[1]`` or ``[vectors]``; full scale of a column is scale times range.
        setting: the tile's numbers.
        key: key of the tile's output noise. A draw's position is that of its element in memory, plus the offset.
        variance: ``sum_j |w_ij| x_j^2``, same shape; needed if ``short_term`` is not 0.
        magnitude: ``sum_j |w_ij| |x_j|``, same shape; needed if ``wire_load`` is not 0.
        lost: ``sum_j w_ij x_j profile_j``, what a fully loaded wire would take away, same shape; needed likewise.
        gain: digital factor per output, ``[outputs]``.
        bias: ``[outputs]``, used where ``total`` is None.
        backend: see :func:`aimc.ops.choose_backend`.

    Returns:
        The new total; a boolean tensor that is True where the converter saturated, or None where it did nowhere; and
        the number of those places.

    Example:
        >>> import torch
        >>> y, saturated, count = read_out(None, torch.tensor([[[0.2], [9.0]]]), torch.ones(2), torch.ones(1),
        ...                         ReadOut(half=3, bound=3.0), Key(0))
        >>> y.flatten(), saturated.flatten(), count
        (tensor([0., 3.]), tensor([False,  True]), 1)
    """
    tensors = [
        t for t in (partial, scale, ranges, variance, magnitude, lost, gain, bias, total) if t is not None
    ]
    body = cpu if choose_backend(backend, *tensors) == "cpu" else reference
    return body.read_out(total, partial, scale, ranges, setting, key, variance, magnitude, lost, gain, bias)


def read_out_backward(
    grad: Tensor, saturated: Tensor | None, gain: Tensor | None, backend: str = "auto"
) -> Tensor:
    """Gradient with respect to a tile's dot products: times the gain, zero where the converter saturated.

    Args:
        grad: ``[vectors, outputs, positions]``, contiguous.
        saturated: as :func:`read_out` returned it.
        gain: ``[outputs]``, or None for 1.

    Example:
        >>> import torch
        >>> saturated = torch.tensor([[[True], [False]]])
        >>> read_out_backward(torch.ones(1, 2, 1), saturated, torch.tensor([2.0, 3.0])).flatten()
        tensor([0., 3.])
    """
    if saturated is None and gain is None:
        return grad
    tensors = (grad,) if gain is None else (grad, gain)
    body = cpu if choose_backend(backend, *tensors) == "cpu" else reference
    return body.read_out_backward(grad, saturated, gain)


__all__ = ["ReadOut", "read_out", "read_out_backward"]
