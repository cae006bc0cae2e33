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

    def buffer(self, array: Array, state: State, period: int, lr: float) -> Buffer:
        every = max(math.ceil(1 / self.chop), 2)
        return dataclasses.replace(
            super().buffer(array, state, period, lr), mean=state["mean"], reference=state["reference"],
            beta=min(self.tail_weighting / every, 1.0),
        )  # fmt: skip
