"""One frozen object that describes the hardware, and how training sees it."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from aimc.algorithms import Algorithm, AnalogSGD, Paired
from aimc.cells import PCM, Cell, Ladder, PulsedCell, SoftBounds
from aimc.config import Config
from aimc.crossbar import Mapping, TileSize
from aimc.hwa import HardwareAware
from aimc.periphery import ADC, DAC, ArrayIO, InputRange, IRDrop, Wires


class Hardware(Config):
    """Cells, tiles, converters, and the noise of a read. Every part has its own switch.

    Fields:
        cell: what a memory cell does.
        tile: largest crossbar.
        mapping: digital scales of the weights.
        dac: input converter, or null for exact inputs (then there is no input range either).
        input_range: how the input range is found.
        adc: output converter, or null for exact outputs.
        output_noise: standard deviation of the noise before the ADC, in units of one fully-on input at a full-scale
            weight, per read and output; 0 is off.
        short_term_noise: standard deviation of the weights' fluctuation within one read, times
            ``sqrt(sum_j |w_j| x_j^2)``; 0 is off.
        ir_drop: voltage lost along the columns' wires in the fast, published form, or null.
        wires: instead of it, resistances of rows, columns and terminals, solved exactly for every array of weights;
            for small tiles, as that takes time. Devices of a pair are on two crossbars.
        training: hardware-aware training, or null for none.
    """

    described: ClassVar[str] = "a Hardware (see aimc.presets)"

    cell: Cell = PCM()
    tile: TileSize = TileSize()
    mapping: Mapping = Mapping()
    dac: DAC | None = DAC()
    input_range: InputRange = InputRange()
    adc: ADC | None = ADC()
    output_noise: float = 0.04
    short_term_noise: float = 0.0175
    ir_drop: IRDrop | None = IRDrop()
    wires: Wires | None = None
    training: HardwareAware | None = HardwareAware()

    def validate(self):
        self.require(self.output_noise >= 0, "output_noise", "must not be negative")
        self.require(self.short_term_noise >= 0, "short_term_noise", "must not be negative")
        self.require(
            self.wires is None or self.ir_drop is None,
            "wires",
            "are the exact form of ir_drop; set ir_drop to null to use them",
        )
        self.require(
            self.dac is not None or self.input_range == InputRange(),
            "input_range",
            "has no meaning without a DAC; leave it at its default or give a dac",
        )


class PulsedMapping(Config):
    """The digital scale s between the weights of a layer and its cells, ``W = s * cells``; one number per layer.

    Fields:
        scale: ``fan_in``: cells at their nominal bound give ``factor / sqrt(fan_in)``, raised where the layer starts
            with a larger weight, so that devices without spread hold every one; ``max``: the largest weight sits at
            the nominal bound; or the scale itself, a number.
        factor: for ``fan_in``. torch starts at most at ``1 / sqrt(fan_in)``, so 1.5 leaves room to grow.
        overflow: what happens where devices cannot hold the weights they are given: ``warn``, ``clip`` and say
            nothing, ``grow`` the scale until every device that is not stuck holds its weight, or ``error``.
        analog_bias: the bias is one more column of the array, whose input is always 1; otherwise it is digital.

    Example:
        >>> PulsedMapping(scale=0.5).scale
        0.5
    """

    scale: Literal["fan_in", "max"] | float = "fan_in"
    factor: float = 1.5
    overflow: Literal["warn", "clip", "grow", "error"] = "warn"
    analog_bias: bool = False

    def validate(self):
        self.require(self.factor > 0, "factor", f"must be positive, got {self.factor}")
        self.require(
            isinstance(self.scale, str) or self.scale > 0, "scale", f"must be positive, got {self.scale}"
        )
        if not isinstance(self.scale, str):
            self.unused("where the scale is given as a number", "factor")

    def scale_of(self, fan_in: int, bound: float, largest: float) -> float:
        """The scale of a layer.

        Args:
            fan_in: inputs of one output.
            bound: what the cells together hold nominally.
            largest: largest magnitude of the weights.

        Example:
            >>> PulsedMapping().scale_of(4, bound=0.1, largest=1.0)
            10.0
        """
        if not isinstance(self.scale, str):
            return self.scale
        usual = self.factor / math.sqrt(max(fan_in, 1)) / bound
        if self.scale == "max":
            return largest / bound if largest > 0 else usual
        return max(usual, largest / bound)


class PulsedHardware(Config):
    """Arrays that are trained in place: cells, the algorithm that pulses them, and how they are read.

    Fields:
        cell: what one pulse does to a device.
        algorithm: how gradients become pulses, on how many arrays.
        tile: largest crossbar; matters where a read is not perfect.
        forward: converters and noise of the forward pass, or null for a perfect one.
        backward: those of the pass back through the transposed array, or null.
        transfer: those of an algorithm's reads from one array to the next, or null.
        mapping: the digital scale.

    Example:
        >>> PulsedHardware().algorithm
        AnalogSGD(...)
    """

    described: ClassVar[str] = "a PulsedHardware (see aimc.presets)"

    cell: PulsedCell = SoftBounds()
    algorithm: Algorithm = AnalogSGD()
    tile: TileSize = TileSize()
    forward: ArrayIO | None = None
    backward: ArrayIO | None = None
    transfer: ArrayIO | None = None
    mapping: PulsedMapping = PulsedMapping()

    def validate(self):
        paired = isinstance(self.algorithm, Paired) and self.algorithm.pair is not None
        self.require(
            paired or self.cell.w_max > 0 > self.cell.w_min,
            "cell",
            "must hold weights of both signs: w_max > 0 > w_min. Cells of one sign, such as pcm_pulsed, work in pairs: "
            "take algorithm MixedPrecision(pair=Pair()) or AnalogSGD(pair=Pair()), or another cell",
        )
        self.require(
            not paired or self.cell.w_min >= 0,
            "algorithm.pair",
            "is for cells of one sign, w_min >= 0; null pulses these cells both ways",
        )
        self.require(
            not isinstance(self.cell, Ladder) or self.algorithm.pulses.kind not in ("none", "none_bounded"),
            "algorithm.pulses.kind",
            f"is {self.algorithm.pulses.kind!r}, which leaves a Ladder's devices between its levels; take pulses",
        )
