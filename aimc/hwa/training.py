"""The configuration of hardware-aware training."""

from __future__ import annotations

from aimc.config import Config
from aimc.hwa.clipping import FixedClip, GaussianClip
from aimc.hwa.modifiers import Modifier


class HardwareAware(Config):
    """What the weights feel in training mode. Belongs to the model: any optimizer and any loop get it.

    Fields:
        modifiers: applied in order, drawn once per forward pass in training mode; the gradient uses the same disturbed
            weights, the update goes to the clean ones. In evaluation mode the clean weights are used.
        clip: applied after every optimizer step, and before a forward pass if the weights changed in another way.
        ramp_steps: the strength of the noise rises linearly from 0 to 1 over so many forward passes.
        remap_every: the digital scale follows the weights at every forward pass (1), every n-th (n), or only when
            :func:`aimc.remap` is called (0); in between, weights beyond the scale are clipped and get no gradient.

    Example:
        >>> from aimc import hwa
        >>> HardwareAware(modifiers=(hwa.AddNormal(std=0.1), hwa.DropConnect(probability=0.01))).strength(0)
        1.0
    """

    modifiers: tuple[Modifier, ...] = ()
    clip: FixedClip | GaussianClip | None = None
    ramp_steps: int = 0
    remap_every: int = 1

    def validate(self):
        self.require(self.ramp_steps >= 0, "ramp_steps", "must not be negative")
        self.require(self.remap_every >= 0, "remap_every", "must not be negative")

    def strength(self, step: int) -> float:
        """Noise strength at a forward pass, 0 to 1."""
        return min(1.0, step / self.ramp_steps) if self.ramp_steps else 1.0
