"""Digital-to-analog and analog-to-digital converters."""

from __future__ import annotations

import torch
from torch import Tensor

from aimc.config import Config


def half_steps(bits: int | None, steps: int | None) -> int:
    """Levels on one side of zero: ``2^(n-1) - 1`` for n bits, ``steps / 2`` for a number of steps, 0 for none.

    n bits mean ``2^n - 1`` levels, symmetric, zero included, everywhere in aimc.

    Example:
        >>> half_steps(8, None), half_steps(None, 64), half_steps(None, None)
        (127, 32, 0)
    """
    if bits is not None:
        return 2 ** (bits - 1) - 1
    return steps // 2 if steps is not None else 0


def round_to_grid(x: Tensor, bound: float | Tensor, half: int) -> Tensor:
    """Nearest of ``2 half + 1`` equidistant levels over ±bound; ``half`` 0 only clips.

    Example:
        >>> round_to_grid(torch.tensor([0.1, 0.2, 0.9, -3.0]), 1.0, 3)
        tensor([ 0.0000,  0.3333,  1.0000, -1.0000])
    """
    bound = torch.as_tensor(bound, dtype=x.dtype, device=x.device)
    if half == 0:
        return torch.minimum(torch.maximum(x, -bound), bound)
    return torch.round(x / bound * half).clamp(-half, half) * (bound / half)


class _Converter(Config):
    bits: int | None = 8
    steps: int | None = None

    def validate(self):
        if self.steps is not None:
            self.require(
                self.bits is None, "steps", "give either bits or steps; set bits to null to use steps"
            )
            self.require(
                self.steps >= 2 and self.steps % 2 == 0, "steps", f"is even, at least 2, got {self.steps}"
            )
        if self.bits is not None:
            self.require(2 <= self.bits <= 24, "bits", f"is between 2 and 24, got {self.bits}")

    @property
    def half(self) -> int:
        """Levels on one side of zero; 0 where the converter only clips."""
        return half_steps(self.bits, self.steps)


class DAC(_Converter):
    """Converts inputs to row voltages: clips to the input range, rounds to the grid.

    Fields:
        bits: n bits are ``2^n - 1`` levels over ±range; null leaves only the clipping.
        steps: instead of bits, the number of steps over ±range (an even number, so that zero is a level).

    Example:
        >>> DAC(bits=3).half
        3
    """


class ADC(_Converter):
    """Converts column currents to numbers: rounds to the grid and saturates at the bound.

    Fields:
        bits: n bits are ``2^n - 1`` levels; null leaves only the saturation.
        steps: instead of bits, the number of steps over ±bound (an even number, so that zero is a level).
        bound: full scale, in units of one fully-on input at a full-scale weight (10: ten such inputs saturate it).
    """

    bound: float = 10.0

    def validate(self):
        super().validate()
        self.require(self.bound > 0, "bound", f"must be positive, got {self.bound}")
