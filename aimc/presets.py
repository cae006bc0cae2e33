"""Named hardware, each a function that returns one frozen :class:`aimc.Hardware`.

Change any field with ``replace``: ``presets.pcm().replace(**{"adc.bits": 6, "tile.rows": 256})``.
"""

from __future__ import annotations

from typing import Literal

from aimc.cells import Hermes, Ideal, SingleExponentPCM, TabulatedPCM
from aimc.crossbar import Mapping, TileSize
from aimc.hardware import Hardware
from aimc.hwa import GaussianClip, HardwareAware, ProgrammingNoise


def _training() -> HardwareAware:
    return HardwareAware(modifiers=(ProgrammingNoise(scale=3.0),), clip=GaussianClip(sigma=2.5))


def pcm() -> Hardware:
    """The standard model of Rasch et al., Nature Communications 14, 5282 (2023), with phase-change memory.

    8-bit converters, ADC bound 10, output noise 0.04, short-term noise 0.0175, IR drop, tiles of 512 x 512, one scale
    per column, a learned input range and output gain. Training: three times the cell's programming error, and clipping
    at 2.5 standard deviations.

    Example:
        >>> pcm().adc.bits, pcm().tile.rows
        (8, 512)
    """
    return Hardware(training=_training())


def hermes(parallel: Literal[1, 2] = 2) -> Hardware:
    """The standard periphery around cells of the HERMES chip, one or two devices in parallel."""
    return Hardware(
        cell=Hermes(parallel=parallel), tile=TileSize(rows=256, columns=256), training=_training()
    )


def tabulated_pcm(
    conductance: tuple[float, ...], exponent_mean: tuple[float, ...], exponent_std: tuple[float, ...]
) -> Hardware:
    """The standard model with drift exponents from a table: uS, mean and spread."""
    cell = TabulatedPCM(conductance=conductance, exponent_mean=exponent_mean, exponent_std=exponent_std)
    return Hardware(cell=cell, training=_training())


def single_exponent_pcm() -> Hardware:
    """A simplified model used by some published code: one exponent for all devices, no pair, perfect periphery.

    A year costs nothing here once the drift is compensated, by construction; see
    :class:`aimc.cells.SingleExponentPCM`.
    """
    return ideal().replace(cell=SingleExponentPCM(), training=_training())


def ideal() -> Hardware:
    """Perfect cells and periphery: equal to digital, for checks and as a base to switch single effects on."""
    return Hardware(
        cell=Ideal(),
        mapping=Mapping(learned_gain=False),
        dac=None,
        adc=None,
        output_noise=0.0,
        short_term_noise=0.0,
        ir_drop=None,
        training=None,
    )


PRESETS = {"pcm": pcm, "hermes": hermes, "single_exponent_pcm": single_exponent_pcm, "ideal": ideal}
"""Presets that need no argument, by name."""
