"""Named hardware, each a function that returns one frozen :class:`aimc.Hardware` or :class:`aimc.PulsedHardware`.

Change any field with ``replace``: ``presets.pcm().replace(**{"adc.bits": 6, "tile.rows": 256})``.
"""

from __future__ import annotations

from typing import Any, Literal

from aimc import cells
from aimc.algorithms import Algorithm, AnalogSGD, MixedPrecision, Pair, Paired
from aimc.cells import Hermes, Ideal, PulsedCell, SingleExponentPCM, TabulatedPCM, measured
from aimc.crossbar import Mapping, TileSize
from aimc.errors import AimcError
from aimc.hardware import Hardware, PulsedHardware
from aimc.hwa import GaussianClip, HardwareAware, ProgrammingNoise
from aimc.periphery import ArrayIO

IO = Literal["perfect", "noisy"]


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


# In-memory training ------------------------------------------------------------------------------------------------


def _in_place(cell: PulsedCell, algorithm: Algorithm | None, io: IO) -> PulsedHardware:
    if io not in ("perfect", "noisy"):
        raise AimcError(f"is 'perfect' or 'noisy', got {io!r}", field="io")
    periphery = ArrayIO() if io == "noisy" else None
    return PulsedHardware(
        cell=cell,
        algorithm=algorithm if algorithm is not None else AnalogSGD(),
        forward=periphery,
        backward=periphery,
        transfer=periphery,
    )


def reram(
    states: float = 4, algorithm: Algorithm | None = None, io: IO = "perfect", **cell: Any
) -> PulsedHardware:
    """Resistive memory with few states: soft bounds at ±1, as in the papers on residual learning.

    Args:
        states: nominal number of states between the bounds.
        algorithm: how the cells are trained.
        io: converters and noise of every read: ``perfect`` is none, ``noisy`` the defaults of :class:`ArrayIO`.
        cell: further fields of :class:`aimc.cells.SoftBounds`, but for ``dw_min``, which follows from the states.

    Example:
        >>> reram(states=10).cell.dw_min
        0.2
    """
    return _in_place(cells.reram(states, **cell), algorithm, io)


def reram_om(algorithm: Algorithm | None = None, io: IO = "perfect", **cell: Any) -> PulsedHardware:
    """Cells of :func:`aimc.cells.measured.reram_om`; arguments as for :func:`reram`."""
    return _in_place(measured.reram_om(**cell), algorithm, io)


def reram_hfo2(algorithm: Algorithm | None = None, io: IO = "perfect", **cell: Any) -> PulsedHardware:
    """Cells of :func:`aimc.cells.measured.reram_hfo2`; arguments as for :func:`reram`."""
    return _in_place(measured.reram_hfo2(**cell), algorithm, io)


def reram_es(algorithm: Algorithm | None = None, io: IO = "perfect", **cell: Any) -> PulsedHardware:
    """Cells of :func:`aimc.cells.measured.reram_es`; arguments as for :func:`reram`."""
    return _in_place(measured.reram_es(**cell), algorithm, io)


def reram_sb(algorithm: Algorithm | None = None, io: IO = "perfect", **cell: Any) -> PulsedHardware:
    """Cells of :func:`aimc.cells.measured.reram_sb`; arguments as for :func:`reram`."""
    return _in_place(measured.reram_sb(**cell), algorithm, io)


def capacitor(algorithm: Algorithm | None = None, io: IO = "perfect", **cell: Any) -> PulsedHardware:
    """Cells of :func:`aimc.cells.measured.capacitor`; arguments as for :func:`reram`."""
    return _in_place(measured.capacitor(**cell), algorithm, io)


def ecram(algorithm: Algorithm | None = None, io: IO = "perfect", **cell: Any) -> PulsedHardware:
    """Cells of :func:`aimc.cells.measured.ecram`; arguments as for :func:`reram`."""
    return _in_place(measured.ecram(**cell), algorithm, io)


def ecram_mo(algorithm: Algorithm | None = None, io: IO = "perfect", **cell: Any) -> PulsedHardware:
    """Cells of :func:`aimc.cells.measured.ecram_mo`; arguments as for :func:`reram`."""
    return _in_place(measured.ecram_mo(**cell), algorithm, io)


def pcm_pulsed(algorithm: Algorithm | None = None, io: IO = "perfect", **cell: Any) -> PulsedHardware:
    """Pairs of cells of :func:`aimc.cells.measured.pcm_pulsed`, which take up pulses alone.

    Trained with mixed precision unless told otherwise; an algorithm that can have pairs gets them. Arguments as for
    :func:`reram`.

    Example:
        >>> pcm_pulsed().algorithm.tile_count
        2
    """
    algorithm = algorithm if algorithm is not None else MixedPrecision()
    if isinstance(algorithm, Paired) and algorithm.pair is None:
        algorithm = algorithm.replace(pair=Pair())
    return _in_place(measured.pcm_pulsed(**cell), algorithm, io)


def idealized(algorithm: Algorithm | None = None, io: IO = "perfect", **cell: Any) -> PulsedHardware:
    """Cells of :func:`aimc.cells.measured.idealized`; arguments as for :func:`reram`."""
    return _in_place(measured.idealized(**cell), algorithm, io)


def gokmen_vlasov(algorithm: Algorithm | None = None, io: IO = "perfect", **cell: Any) -> PulsedHardware:
    """Cells of :func:`aimc.cells.measured.gokmen_vlasov`; arguments as for :func:`reram`."""
    return _in_place(measured.gokmen_vlasov(**cell), algorithm, io)


PRESETS = {"pcm": pcm, "hermes": hermes, "single_exponent_pcm": single_exponent_pcm, "ideal": ideal}
"""Presets of the inference half that need no argument, by name."""

PULSED_PRESETS = {
    "reram": reram, "reram_om": reram_om, "reram_hfo2": reram_hfo2, "reram_es": reram_es, "reram_sb": reram_sb,
    "capacitor": capacitor, "ecram": ecram, "ecram_mo": ecram_mo, "pcm_pulsed": pcm_pulsed,
    "idealized": idealized, "gokmen_vlasov": gokmen_vlasov,
}  # fmt: skip
"""Presets of the training half, by name."""
