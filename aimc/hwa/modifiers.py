"""What disturbs the weights during a training step. Strengths are in units of a column's full scale."""

from __future__ import annotations

import abc

import torch
from torch import Tensor

from aimc.cells import Cell
from aimc.config import Config
from aimc.crossbar import Layout, expand_scale, from_conductance, to_conductance
from aimc.ops import perturb_weights
from aimc.periphery.converter import half_steps
from aimc.random import Key, log_uniform
from aimc.units import seconds


class Modifier(Config):
    """Base of the modifiers. ``changes`` describes an element-wise one; :class:`CellNoise` is the other kind."""

    @abc.abstractmethod
    def changes(self, cell: Cell, strength: float) -> tuple[tuple, ...]:
        """Element-wise changes for :func:`aimc.ops.perturb_weights`; ``strength`` scales noise, not rounding."""


class AddNormal(Modifier):
    """``w + std * N(0, 1)``.

    Example:
        >>> from aimc.cells import PCM
        >>> AddNormal(std=0.1).changes(PCM(), 0.5)
        (('add_normal', 0.05),)
    """

    std: float = 0.1

    def validate(self):
        self.require(self.std >= 0, "std", "must not be negative")

    def changes(self, cell: Cell, strength: float) -> tuple[tuple, ...]:
        return (("add_normal", self.std * strength),)


class MultiplyNormal(Modifier):
    """``w * (1 + std * N(0, 1))``."""

    std: float = 0.1

    def validate(self):
        self.require(self.std >= 0, "std", "must not be negative")

    def changes(self, cell: Cell, strength: float) -> tuple[tuple, ...]:
        return (("multiply_normal", self.std * strength),)


class Polynomial(Modifier):
    """``w + scale * (c0 + c1 |w| + c2 w^2 + c3 |w|^3) * N(0, 1)``.

    Fields:
        scale: multiplies the noise.
        coefficients: in units of full scale; the default is the programming error of phase-change memory over 25 uS.
    """

    scale: float = 1.0
    coefficients: tuple[float, ...] = (0.26348 / 25, 1.9650 / 25, -1.1731 / 25)

    def validate(self):
        self.require(self.scale >= 0, "scale", "must not be negative")
        self.require(0 < len(self.coefficients) <= 4, "coefficients", "takes one to four coefficients")

    def changes(self, cell: Cell, strength: float) -> tuple[tuple, ...]:
        return (("polynomial", self.scale * strength, *_four(self.coefficients)),)


class ProgrammingNoise(Modifier):
    """The cell's own programming error times ``scale``; a weight keeps its sign (it is reflected at zero).

    Fields:
        scale: multiplies the error.

    Example:
        >>> from aimc.cells import PCM
        >>> kind, factor, *c = ProgrammingNoise(scale=3.0).changes(PCM(), 1.0)[0]
        >>> kind, factor, [round(v, 4) for v in c]
        ('polynomial_keep_sign', 3.0, [0.0105, 0.0786, -0.0469, 0.0])
    """

    scale: float = 1.0

    def validate(self):
        self.require(self.scale >= 0, "scale", "must not be negative")

    def changes(self, cell: Cell, strength: float) -> tuple[tuple, ...]:
        return (("polynomial_keep_sign", self.scale * strength, *_four(cell.programming_polynomial)),)


class Discretize(Modifier):
    """Rounds to the ``2^bits - 1`` levels between -1 and 1."""

    bits: int = 8

    def validate(self):
        self.require(2 <= self.bits <= 24, "bits", f"is between 2 and 24, got {self.bits}")

    def changes(self, cell: Cell, strength: float) -> tuple[tuple, ...]:
        return (("discretize", half_steps(self.bits, None)),)


class DoReFa(Modifier):
    """``round(tanh(w) * clip / tanh(1))`` on ``2^bits - 1`` levels (Zhou et al., arXiv:1606.06160)."""

    bits: int = 8
    clip: float = 0.6

    def validate(self):
        self.require(2 <= self.bits <= 24, "bits", f"is between 2 and 24, got {self.bits}")
        self.require(0 < self.clip <= 1, "clip", f"is between 0 and 1, got {self.clip}")

    def changes(self, cell: Cell, strength: float) -> tuple[tuple, ...]:
        return (("dorefa", half_steps(self.bits, None), self.clip),)


class DropConnect(Modifier):
    """Sets a weight to zero with a probability; a dropped weight gets no gradient. The others are not rescaled."""

    probability: float = 0.01

    def validate(self):
        self.require(0 <= self.probability < 1, "probability", f"is in [0, 1), got {self.probability}")

    def changes(self, cell: Cell, strength: float) -> tuple[tuple, ...]:
        return (("drop", self.probability),) if self.probability else ()


class CellNoise(Modifier):
    """The whole life of the cell: program the pair, age it to a random time, read it, compensate the mean.

    Each training step draws one age of the chip, log-uniform between two times and the same for all layers, programs
    fresh devices with the hardware's own cell (programming error, drift exponents with their spread, read noise,
    faults), and scales each physical tile by the least-squares slope of the programmed on the aged weights, as an ideal
    drift compensation would. ``scale`` multiplies the
    whole error. The most faithful modifier and the slowest: about a dozen draws per weight.

    Fields:
        scale: multiplies the deviation from the clean weight.
        earliest, latest: bounds of the time, seconds or text such as ``"1y"``.
    """

    scale: float = 1.0
    earliest: float | str = "1s"
    latest: float | str = "1y"

    def validate(self):
        self.require(self.scale >= 0, "scale", "must not be negative")
        self.require(
            0 < seconds(self.earliest) <= seconds(self.latest),
            "earliest",
            "must be positive and not beyond latest",
        )

    def changes(self, cell: Cell, strength: float) -> tuple[tuple, ...]:
        return ()

    def disturb(
        self, normalised: Tensor, layout: Layout, cell: Cell, key: Key, strength: float, network: Key
    ) -> Tensor:
        """Normalised weights ``[outputs, rows]`` as an aged chip would hold them.

        A chip has one age: it follows the network's key and the step, so that all layers are as old.
        """
        age = network.fold("age").at("time", step=key.step)
        time = log_uniform(age, seconds(self.earliest), seconds(self.latest))
        # Cells number their own draws by step, a new chip for each of ours.
        key = Key(key.fold("chip", key.step).seed)
        cells = cell.program(to_conductance(normalised, cell), key)
        fresh = from_conductance(cells.conductance, cell)
        aged = from_conductance(cell.read(cells, time if cell.drifts else 0.0, key), cell)
        for (a, b), tile in zip(layout.row_splits, layout.column_tile.to(aged.device), strict=True):
            now = aged[:, a:b]
            count = int(tile.max()) + 1 if len(tile) else 0
            power, overlap = now.new_zeros(count), now.new_zeros(count)
            power.index_add_(0, tile, (now * now).sum(1))
            overlap.index_add_(0, tile, (fresh[:, a:b] * now).sum(1))
            now *= torch.where(power > 0, overlap / power, 1)[tile, None]
        return torch.lerp(normalised, aged, self.scale * strength)


def _four(coefficients: tuple[float, ...]) -> tuple[float, ...]:
    return (*coefficients, *(0.0,) * (4 - len(coefficients)))


def modify_weights(
    weight: Tensor,
    layout: Layout,
    modifiers: tuple[Modifier, ...],
    cell: Cell,
    scale: Tensor | None,
    key: Key,
    strength: float = 1.0,
    contiguous_tiles: bool = False,
    backend: str = "auto",
    network: Key = Key(0),
) -> tuple[list[Tensor], Tensor, Tensor | None]:
    """Apply modifiers in order to a weight matrix ``[outputs, rows]``; returns what ``perturb_weights`` returns.

    ``key`` is the layer's, ``network`` rules what all layers have in common.
    """
    stages: list = [[]]
    for modifier in modifiers:
        if isinstance(modifier, CellNoise):
            stages += [modifier, []]
        else:
            stages[-1] += modifier.changes(cell, strength)
    splits, factor, result = layout.row_splits, None, None
    for index, stage in enumerate(stages):
        draw = key if index == 0 else key.fold("stage", index)
        if isinstance(stage, CellNoise):
            assert result is not None and scale is not None
            full = expand_scale(scale, layout)
            normalised = torch.where(full > 0, torch.cat(result, 1) / full, 0)
            weight = stage.disturb(normalised.clamp(-1, 1), layout, cell, draw, strength, network) * full
            result = [weight[:, a:b] for a, b in splits]
        elif index == 0 or stage:
            result, scale, more = perturb_weights(
                weight,
                splits,
                scale,
                tuple(stage),
                draw,
                contiguous_tiles and len(stages) == 1,
                index == 0,
                backend,
            )
            factor = more if factor is None else (factor if more is None else factor * more)
            weight = torch.cat(result, 1) if len(stages) > 1 else weight
    assert result is not None and scale is not None
    return [t.contiguous() for t in result] if contiguous_tiles else result, scale, factor
