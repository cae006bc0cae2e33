"""Drift compensation: a digital factor per tile, measured by reading probe vectors through the noisy converters.

An estimator sees two readings of a tile, one from the end of programming and one from now. It knows neither the time
nor any drift exponent.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Literal

import torch
from torch import Tensor

from aimc.config import Config
from aimc.nn.extremes import exponents, far_scales, times
from aimc.nn.linear import LinearGeometry
from aimc.nn.product import Periphery, read_tile
from aimc.ops import convert_input
from aimc.ops.read_out import ReadOut
from aimc.periphery import ADC
from aimc.random import Key, uniform

_GEOMETRY = LinearGeometry()


@dataclasses.dataclass(frozen=True)
class TileReader:
    """Reads one row tile's matrix with probe vectors, through its own converters and noise.

    Attributes:
        scale: weight scale per output, ``[outputs]``.
        periphery: the layer's periphery.
        backend: see :func:`aimc.ops.choose_backend`.
    """

    scale: Tensor
    periphery: Periphery
    backend: str = "auto"

    def read(self, weight: Tensor, probes: Tensor, key: Key) -> Tensor:
        """Outputs in normalised units, ``[probes, outputs]``.

        Args:
            weight: ``[outputs, rows]``, in the units that ``scale`` refers to.
            probes: ``[probes, rows]``, in [-1, 1] of the input range.
            key: key of this reading's noise.
        """
        part = probes.reshape(len(probes), 1, probes.shape[1], 1)
        ranges = torch.ones(1, 1, dtype=probes.dtype, device=probes.device)
        if self.periphery.dac is not None:
            parts, _, _ = convert_input(
                part, ranges, ((0, probes.shape[1]),), self.periphery.dac.half, backend=self.backend
            )
            part = parts[0]
        adc = self.periphery.adc
        setting = ReadOut(
            half=adc.half if adc is not None else 0,
            bound=adc.bound if adc is not None else 0.0,
            output_noise=self.periphery.output_noise,
            short_term=self.periphery.short_term_noise,
        )
        scale = self.scale
        if far_scales(scale):  # the result has no units of the weight
            away = -exponents(scale)
            weight, scale = times(weight, away[:, None]), times(scale, away)
        y, _, _ = read_tile(
            part, weight, scale, ranges[0], _GEOMETRY, self.periphery, setting, key.at("output_noise"),
            backend=self.backend,
        )  # fmt: skip
        y = y[:, :, 0]
        return torch.where(scale > 0, y / scale, 0)


class Compensation(Config):
    """Base of the estimators.

    A measurement is what the estimator keeps of one reading; :meth:`factor` compares two of them.
    """

    averages: int = 1

    def validate(self):
        self.require(self.averages >= 1, "averages", f"must be at least 1, got {self.averages}")

    @abc.abstractmethod
    def measure(self, reader: TileReader, weight: Tensor, key: Key, noise: Key) -> Tensor:
        """Read a tile. ``key`` rules the probes (the same at every time), ``noise`` the noise of this reading."""

    def settle(self, reader: TileReader, weight: Tensor, key: Key, noise: Key) -> Compensation:
        """The estimator to use for a freshly programmed tile; override to choose settings from a reading."""
        return self

    def reference(
        self, reader: TileReader, programmed: Tensor, target: Tensor, key: Key, noise: Key
    ) -> Tensor:
        """The measurement at the end of programming."""
        return self.measure(reader, programmed, key, noise)

    @abc.abstractmethod
    def factor(self, baseline: Tensor, now: Tensor, tile: Tensor) -> Tensor:
        """Digital factor per output; ``tile`` tells which physical tile an output belongs to, ``[outputs]``."""


def _one_hot(rows: int, like: Tensor) -> Tensor:
    return torch.eye(rows, dtype=like.dtype, device=like.device)


def _mean_abs(averages: int, reader: TileReader, weight: Tensor, noise: Key) -> Tensor:
    probes = _one_hot(weight.shape[1], weight)
    total = sum(reader.read(weight, probes, noise.fold(i)) for i in range(averages))
    assert isinstance(total, Tensor)
    return (total / averages).abs().mean(0)


def _tile_mean(values: Tensor, tile: Tensor) -> Tensor:
    """Mean over the outputs of each physical tile, spread back to the outputs."""
    tile = tile.to(values.device)
    count = torch.bincount(tile).to(values.dtype)
    return (torch.zeros_like(count).scatter_add_(0, tile, values) / count)[tile]


def _ratio(before: Tensor, after: Tensor, floor: float) -> Tensor:
    """``before / after``; NaN where either is too small to be a reading."""
    return torch.where((before > floor) & (after > floor), before / after, torch.nan)


_FEWEST_STEPS = 8


class MeanAbs(Compensation):
    """Ratio of the mean magnitude of all one-hot reads of a tile, as published and as other tools have it.

    Every weight is read alone, near or below one step of the ADC, so noise biases it low for small weights; averages
    help. Costs one read per row. Reads that add up to fewer than 8 steps of the ADC count as none.

    Fields:
        averages: reads of each vector.
        floor: smallest mean magnitude that counts as a reading, in units of the column's full scale; below it the chip
            stays uncompensated there and says so.
    """

    floor: float = 1e-4

    def measure(self, reader: TileReader, weight: Tensor, key: Key, noise: Key) -> Tensor:
        reading = _mean_abs(self.averages, reader, weight, noise)
        steps = self._steps(reading, reader.periphery.adc, weight.shape[1])
        return reading if steps is None else torch.where(steps < _FEWEST_STEPS, 0, reading)

    def _steps(self, reading: Tensor, adc: ADC | None, rows: int) -> Tensor | None:
        """Steps of the ADC that a reading is made of, broadcast over the outputs; None without steps."""
        if adc is None or not adc.half:
            return None
        return self._together(reading) * (rows * self.averages * adc.half / adc.bound)

    def _together(self, reading: Tensor) -> Tensor:
        """What one factor is made of."""
        return reading.sum()

    def factor(self, baseline: Tensor, now: Tensor, tile: Tensor) -> Tensor:
        before, after = _tile_mean(baseline, tile), _tile_mean(now, tile)
        return _ratio(before, after, self.floor)


class ExactReference(MeanAbs):
    """As :class:`MeanAbs`, but the baseline is computed digitally from the target weights, free of noise.

    The later readings are not free of it. Where noise is most of what a column reads they are too large, and the
    factor is too small, below 1 even; :class:`MeanAbs` has the same noise on both sides.
    """

    def reference(
        self, reader: TileReader, programmed: Tensor, target: Tensor, key: Key, noise: Key
    ) -> Tensor:
        return torch.where(reader.scale > 0, target.abs().mean(1) / reader.scale, 0)


class PerColumn(MeanAbs):
    """As :class:`MeanAbs`, one factor per output."""

    def _together(self, reading: Tensor) -> Tensor:
        return reading

    def factor(self, baseline: Tensor, now: Tensor, tile: Tensor) -> Tensor:
        return _ratio(baseline, now, self.floor)


class LeastSquares(Compensation):
    """Slope of the first readings on the present ones, ``<y0, yt> / <yt, yt>``, for random ±amplitude probes.

    Outputs are tens of ADC steps, so noise hardly biases it; close to the factor with the least squared error of the
    weights. Readings with no more in common than chance gives (a correlation below ``4 / sqrt(readings)``) count as
    none. 64 reads a tile, where :class:`MeanAbs` makes one a row, and up to twelve times that once, at programming,
    for the amplitude. The default.

    Fields:
        averages: repetitions of the whole set, averaged before the fit.
        probes: how many random vectors are read.
        amplitude: of the input range; null takes the largest of 1, 0.7, 0.49, ... for which at most 0.1 % of the
            baseline's outputs saturate. What is smaller than a step of the DAC is made of single steps on so many fewer
            rows that the outputs are as large.
        per: one factor per physical ``tile`` or per ``column``.
    """

    probes: int = 64
    amplitude: float | None = None
    per: Literal["tile", "column"] = "tile"

    def validate(self):
        super().validate()
        self.require(self.probes >= 1, "probes", f"must be at least 1, got {self.probes}")
        self.require(self.amplitude is None or 0 < self.amplitude <= 1, "amplitude", "is between 0 and 1")

    def _vectors(self, reader: TileReader, weight: Tensor, key: Key, amplitude: float) -> Tensor:
        """Random signs times the amplitude, or times one step of the DAC on a share of the rows: ``[probes, rows]``."""
        shape, dac = (self.probes, weight.shape[1]), reader.periphery.dac
        signs = torch.where(uniform(key.at("probe"), shape, device=weight.device) < 0.5, -1.0, 1.0)
        least = 1 / dac.half if dac is not None and dac.half else 0.0
        if amplitude < least:
            share = (amplitude / least) ** 2
            signs[uniform(key.at("probe", step=1), shape, device=weight.device) >= share] = 0.0
        return signs.to(weight.dtype) * max(amplitude, least)

    def measure(self, reader: TileReader, weight: Tensor, key: Key, noise: Key) -> Tensor:
        amplitude = self.amplitude if self.amplitude is not None else 1.0
        return self._read(reader, weight, key, noise, amplitude)

    def _read(self, reader: TileReader, weight: Tensor, key: Key, noise: Key, amplitude: float) -> Tensor:
        vectors = self._vectors(reader, weight, key, amplitude)
        total = sum(reader.read(weight, vectors, noise.fold(i)) for i in range(self.averages))
        assert isinstance(total, Tensor)
        return total / self.averages

    def settle(self, reader: TileReader, weight: Tensor, key: Key, noise: Key) -> LeastSquares:
        """This estimator with the amplitude chosen for a freshly programmed tile."""
        if self.amplitude is not None:
            return self
        amplitude, adc = 1.0, reader.periphery.adc
        if adc is not None:
            for _ in range(12):
                y = self._read(reader, weight, key, noise, amplitude)
                if (
                    float(
                        (y.abs() >= adc.bound * (1 - 0.5 / max(adc.half, 1000 if not adc.half else 1)))
                        .float()
                        .mean()
                    )
                    <= 1e-3
                ):
                    break
                amplitude *= 0.7
        return self.replace(amplitude=amplitude)

    def factor(self, baseline: Tensor, now: Tensor, tile: Tensor) -> Tensor:
        across, before, power = (baseline * now).sum(0), baseline.square().sum(0), now.square().sum(0)
        readings = torch.full_like(power, self.probes)
        if self.per == "tile":
            across, before, power = (_tile_mean(values, tile) for values in (across, before, power))
            readings = readings * torch.bincount(tile)[tile].to(readings)
        by_chance = (4 / readings.sqrt()).clamp_max(0.9)
        return torch.where(across > by_chance * (before * power).sqrt(), across / power, torch.nan)
