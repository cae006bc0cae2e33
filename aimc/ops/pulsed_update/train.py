"""How an update becomes pulses."""

from __future__ import annotations

import math
from typing import Literal

from aimc.config import Config
from aimc.errors import AimcError

MODES = {"stochastic": 0, "mean_count": 1, "deterministic": 2}
_MOST_SLOTS = 1 << 16


class PulseTrain(Config):
    """Fields:
        kind: ``stochastic``: rows and columns send random trains and a cell is pulsed where they coincide (stochastic
            compressed); ``mean_count``: the rounded mean number of coincidences; ``deterministic``: the rounded
            product (``deterministic implicit``); ``none``: the exact update; ``none_bounded``: the exact update, then
            clipped to each device's bounds.
        length: slots of a train (``desired_bl``).
        length_management: shorten the train where few pulses are expected (``update_bl_management``).
        management: give both sides equal peak probabilities (``update_management``).
        fixed_length: without length management, always ``length`` slots; otherwise longer ones where needed.
        gradient_scale: multiplies the largest gradient in the two managements (``um_grad_scale``).
        x_resolution, d_resolution: grid of the probabilities; 0 is none.

    Source: T. Gokmen and Y. Vlasov, Front. Neurosci. 10, 333 (2016); T. Gokmen et al., Front. Neurosci. 11, 538 (2017).

    Example:
        >>> PulseTrain(length=5).length
        5
    """

    kind: Literal["stochastic", "mean_count", "deterministic", "none", "none_bounded"] = "stochastic"
    length: int = 31
    length_management: bool = True
    management: bool = True
    fixed_length: bool = True
    gradient_scale: float = 1.0
    x_resolution: float = 0.0
    d_resolution: float = 0.0

    def validate(self):
        self.require(1 <= self.length <= 4096, "length", f"is between 1 and 4096 slots, got {self.length}")
        self.require(self.gradient_scale > 0, "gradient_scale", "must be positive")
        for name in ("x_resolution", "d_resolution"):
            self.require(0 <= getattr(self, name) < 1, name, "is 0 (none) or a step below 1")
        self.require(
            self.management or not self.length_management, "management", "is needed by length_management"
        )
        if self.kind in ("none", "none_bounded"):
            names = [n for n in self.field_names() if n != "kind"]
            self.unused(f"with kind {self.kind!r}, which sends no pulses", *names)
        elif self.length_management:
            self.unused("with length_management; set that to false for longer trains", "fixed_length")
        elif not self.management:
            self.unused("without management", "gradient_scale")

    def most_slots(self, lr: float, granularity: float) -> int:
        """Slots of the longest train at this learning rate; draws are laid out that far apart.

        Raises:
            AimcError: more than can be sent.
        """
        if self.fixed_length or self.length_management or lr <= granularity * self.length:
            return self.length
        slots = math.ceil(lr / granularity)
        if slots > _MOST_SLOTS:
            raise AimcError(
                f"asks for trains of {slots:.3g} slots, at most {_MOST_SLOTS} are sent", field="lr"
            )
        return slots
