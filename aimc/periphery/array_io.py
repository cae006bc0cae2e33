"""One direction of reading an array that trains in place."""

from __future__ import annotations

from aimc.config import Config
from aimc.periphery.converter import ADC, DAC


class ArrayIO(Config):
    """Converters and noise of one direction of an in-memory trained array.

    Inputs are divided by their largest magnitude first, vector by vector (of a convolution every patch is one), and the
    result is multiplied with it again; a vector of zeros is not read and gives zero. Column reads of a transfer are
    one-hot and need no such scale. Forwards and backwards the tiles of an algorithm are read together, as the array of
    the composite weights: one noise and one ADC, however many tiles there are. A transfer reads its tile alone.

    Fields:
        dac: input converter, or null for exact inputs.
        adc: output converter, or null for exact outputs. Its bound is in units of the cell's weight times a full input.
        output_noise: standard deviation before the ADC, same units.
        bound_management: halve the inputs of a vector until no output of it saturates (at most 10 times).

    The defaults are those of IBM's simulator: 7 and 9 bits, bound 12, noise 0.06.

    Example:
        >>> ArrayIO().adc.bound
        12.0
    """

    dac: DAC | None = DAC(bits=7)
    adc: ADC | None = ADC(bits=9, bound=12.0)
    output_noise: float = 0.06
    bound_management: bool = True

    def validate(self):
        self.require(self.output_noise >= 0, "output_noise", "must not be negative")
        if self.adc is None:
            self.unused("without an ADC, as nothing saturates", "bound_management")
