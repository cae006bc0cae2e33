"""Weights and inputs far from one: squares of them leave the numbers of a floating type long before they do.

Powers of two change no digit. Where a scale or an input range is so large or small that the noise of a read could not
be computed, the read is that of weights and inputs near one, and its result is brought back.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Half of the exponents that a product of a scale and a range may have, so that squares of it, of noise a hundredth of
# it, and sums of many such squares are ordinary numbers.
_SCALES = {torch.float32: 36, torch.bfloat16: 36, torch.float64: 300}
_RANGES = {torch.float32: 20, torch.bfloat16: 20, torch.float64: 150}
_STEP = {torch.float32: 126, torch.bfloat16: 126, torch.float64: 1022, torch.float16: 14}


def far_scales(scale: Tensor) -> bool:
    """Whether some scale of a column is far from one, or is no number; a scale of zero belongs to no weights.

    Example:
        >>> far_scales(torch.tensor([0.0, 1e-3, 10.0])), far_scales(torch.tensor([1e-20, 1.0]))
        (False, True)
    """
    return _far(scale, _SCALES.get(scale.dtype))


def far_ranges(ranges: Tensor) -> bool:
    """Whether some input range is far from one, or is no number.

    Example:
        >>> far_ranges(torch.tensor([3.0])), far_ranges(torch.tensor([3e30]))
        (False, True)
    """
    return _far(ranges, _RANGES.get(ranges.dtype))


def _far(values: Tensor, exponent: int | None) -> bool:
    if exponent is None or values.numel() == 0:
        return False
    least, most = (float(v) for v in values.aminmax())
    if least == 0 and most > 0:
        least = float(values[values > 0].min())
    return not (least >= 2.0**-exponent or least == 0 == most) or not most <= 2.0**exponent


def exponents(values: Tensor) -> Tensor:
    """Of positive numbers, so that ``times(values, -exponents(values))`` is between a half and one; 0 for zero.

    Example:
        >>> exponents(torch.tensor([0.75, 8.0, 0.0]))
        tensor([0, 4, 0])
    """
    return torch.frexp(values.double())[1].long()


def times(values: Tensor, exponent: Tensor) -> Tensor:
    """Numbers times powers of two, exact where the result is an ordinary number.

    Args:
        exponent: int64, of a shape that broadcasts.

    Example:
        >>> times(torch.tensor([3.0, 1e-40]), torch.tensor([-1, 130]))
        tensor([1.5000, 0.1361])
    """
    most, rest = _STEP[values.dtype], exponent
    while True:  # a power beyond the type is two
        step = rest.clamp(-most, most)
        values = values * ((step + 1023) << 52).view(torch.float64).to(values.dtype)
        rest = rest - step
        if not bool(rest.any()):
            return values
