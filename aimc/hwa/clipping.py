"""Weight clipping: keeps outliers from stretching the scale of a column."""

from __future__ import annotations

import torch
from torch import Tensor

from aimc.config import Config


class FixedClip(Config):
    """Clips weights to ±value, in the units of the weight.

    Example:
        >>> w = torch.tensor([0.5, -2.0])
        >>> clip_(w, FixedClip(value=1.0)); w
        tensor([ 0.5000, -1.0000])
    """

    value: float = 1.0

    def validate(self):
        self.require(self.value > 0, "value", f"must be positive, got {self.value}")


class GaussianClip(Config):
    """Clips a layer's weights to ±sigma standard deviations of the layer's weights.

    Fields:
        sigma: 2.0 to 2.5 is usual.
    """

    sigma: float = 2.5

    def validate(self):
        self.require(self.sigma > 0, "sigma", f"must be positive, got {self.sigma}")


@torch.no_grad()
def clip_bound(weight: Tensor, clip: FixedClip | GaussianClip) -> float | None:
    """The magnitude at which a layer's weights are clipped; None where nothing is.

    Example:
        >>> clip_bound(torch.ones(3), GaussianClip()) is None
        True
    """
    if isinstance(clip, FixedClip):
        bound = clip.value
    else:
        bound = clip.sigma * float(weight.std()) if weight.numel() > 1 else 0.0
    return bound if 0 < bound <= torch.finfo(weight.dtype).max else None


@torch.no_grad()
def clip_(weight: Tensor, clip: FixedClip | GaussianClip) -> None:
    """Clip in place."""
    bound = clip_bound(weight, clip)
    if bound is not None:
        weight.clamp_(-bound, bound)
