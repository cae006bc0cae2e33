"""Tiki-Taka with choppers: random signs of rows and columns average the fast tile's offsets out."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from aimc.algorithms.base import Array, State
from aimc.algorithms.tiki_taka_v2 import TikiTakaV2
from aimc.ops.pulsed_update import PulseTrain
from aimc.ops.transfer import Buffer


class TikiTakaV3(TikiTakaV2):
    """As :class:`TikiTakaV2`; a column's pulses, and what is read of it, change their sign from time to time.

    Source: M. J. Rasch, F. Carta, O. Fagbohungbe and T. Gokmen, Nat. Commun. 15, 7133 (2024).

    Fields (see :class:`TikiTakaV2` for the rest):
        chop: probability that a column's chopper flips after a read.
        random_chop: flip at random, or else in every ``ceil(1 / chop)``-th sweep over the columns.
        row_chop: probability that a row's chopper flips after a sweep.

    Example:
        >>> TikiTakaV3().chop
        0.1
    """

    chop: float = 0.1
    random_chop: bool = True
    row_chop: float = 0.0
    momentum: float = 0.0
    auto_scale: bool = True
    fast_lr: float = 0.1
    pulses: PulseTrain = PulseTrain(length=5)

    DIGITAL = ("buffer", "means", "chopper_x", "chopper_d")

    def validate(self):
        super().validate()
        for name in ("chop", "row_chop"):
            self.require(0 <= getattr(self, name) <= 1, name, "is a probability")

    def extra(self, array: Array, device: torch.device) -> State:
        rows, columns = array.shape
        found = super().extra(array, device)
        return found | {
            "chopper_x": torch.ones(columns, device=device, dtype=torch.float32),
            "chopper_d": torch.ones(rows, device=device, dtype=torch.float32),
        }

    def weight(self, array: Array, state: State) -> Tensor:
        if self.gamma == 0:
            return super().weight(array, state)
        fast, slow = state.get("w", state["held"])
        return slow + self.gamma * (state["chopper_d"][:, None] * state["chopper_x"] * fast)

    def buffer(self, array: Array, state: State, period: int, lr: float) -> Buffer:
        return dataclasses.replace(
            super().buffer(array, state, period, lr), x_sign=state["chopper_x"], d_sign=state["chopper_d"],
            chop=self.chop, random_chop=self.random_chop, d_chop=self.row_chop,
        )  # fmt: skip
