"""Hardware-aware training: what the weights feel in the forward pass, and what keeps them mappable."""

from aimc.hwa.clipping import FixedClip, GaussianClip, clip_, clip_bound
from aimc.hwa.distillation import distillation_loss
from aimc.hwa.modifiers import (
    AddNormal,
    CellNoise,
    Discretize,
    DoReFa,
    DropConnect,
    Modifier,
    MultiplyNormal,
    Polynomial,
    ProgrammingNoise,
    modify_weights,
)
from aimc.hwa.training import HardwareAware

__all__ = [
    "AddNormal",
    "CellNoise",
    "Discretize",
    "DoReFa",
    "DropConnect",
    "FixedClip",
    "GaussianClip",
    "HardwareAware",
    "Modifier",
    "MultiplyNormal",
    "Polynomial",
    "ProgrammingNoise",
    "clip_",
    "clip_bound",
    "distillation_loss",
    "modify_weights",
]
