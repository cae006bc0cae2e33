"""aimc: train, program and age neural networks on simulated analog in-memory hardware."""

from aimc import cells, hwa, periphery, presets
from aimc.convert import convert, remap, set_backend, set_hardware, set_noise_strength, to_digital
from aimc.errors import AimcError
from aimc.hardware import Hardware

__all__ = [
    "AimcError",
    "Hardware",
    "cells",
    "convert",
    "hwa",
    "periphery",
    "presets",
    "remap",
    "set_backend",
    "set_hardware",
    "set_noise_strength",
    "to_digital",
]
