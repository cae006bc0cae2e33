"""Tiki-Taka with a dynamic reference (AGAD): reads are compared with the mean before the last flip of the chopper."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from aimc.algorithms.base import Array, State
from aimc.algorithms.tiki_taka_v3 import TikiTakaV3
from aimc.ops.transfer import Buffer


class TikiTakaV4(TikiTakaV3):
    """As :class:`TikiTakaV3`; a running mean of the reads becomes the reference whenever a chopper flips.

    So no symmetry point has to be known. Nothing is written to the weight during the first period of the choppers.
    Source: M. J. Rasch, F. Carta, O. Fagbohungbe and T. Gokmen, Nat. Commun. 15, 7133 (2024).

    Fields (see :class:`TikiTakaV3` for the rest):
        tail_weighting: the mean's weight of a new read, in reads per flip.

    Example:
        >>> TikiTakaV4().random_chop
        False
    """

    random_chop: bool = False
    tail_weighting: float = 5.0

    DIGITAL = ("buffer", "means", "chopper_x", "chopper_d", "mean", "reference")

    def validate(self):
        super().validate()
        self.require(self.tail_weighting > 0, "tail_weighting", "must be positive")
        self.require(self.chop > 0, "chop", "must be positive, the reference changes when a chopper flips")

    def extra(self, array: Array, device: torch.device) -> State:
        blank = torch.zeros(array.shape, device=device, dtype=torch.float32)
        return super().extra(array, device) | {"mean": blank, "reference": blank.clone()}

    def program(self, array: Array, state: State, weight: Tensor) -> None:
        super().program(array, state, weight)
        state["mean"].zero_()
        state["reference"].zero_()

    def check(self, array: Array, updates_per_epoch: int, vectors_per_update: int, lr: float) -> list[str]:
        found = super().check(array, updates_per_epoch, vectors_per_update, lr)
        for t in self.schedule(array, updates_per_epoch, vectors_per_update, lr):
            passes = self._sweeps_of_a_chopper() + 1  # then there is a reference for every column
            if passes > t.passes_per_epoch and 0 not in array.shape:
                found.append(
                    f"nothing is written to tile {t.target} in the first {passes / max(t.passes_per_epoch, 1e-9):.3g} "
                    f"epochs, {passes} passes, which is when every chopper has flipped; a larger chop, more columns "
                    "per event or a shorter period"
                )
        return found

    def _sweeps_of_a_chopper(self) -> int:
        return max(math.ceil(1 / self.chop), 2)

    def buffer(self, array: Array, state: State, period: int, lr: float) -> Buffer:
        return dataclasses.replace(
            super().buffer(array, state, period, lr), mean=state["mean"], reference=state["reference"],
            beta=min(self.tail_weighting / self._sweeps_of_a_chopper(), 1.0),
        )  # fmt: skip
