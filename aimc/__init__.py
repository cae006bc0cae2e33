"""aimc: train, program and age neural networks on simulated analog in-memory hardware."""

from aimc import cells, chip, crossbar, hwa, periphery, presets
from aimc.chip import Accuracy, Chip, DriftResult, calibrate, evaluate_over_time, program
from aimc.convert import (
    convert,
    coverage,
    remap,
    set_backend,
    set_hardware,
    set_noise_strength,
    summary,
    to_digital,
)
from aimc.errors import AimcError
from aimc.hardware import Hardware
from aimc.nn import analog_layers

__all__ = [
    "Accuracy",
    "AimcError",
    "Chip",
    "DriftResult",
    "Hardware",
    "analog_layers",
    "calibrate",
    "cells",
    "chip",
    "convert",
    "coverage",
    "crossbar",
    "evaluate_over_time",
    "hwa",
    "periphery",
    "presets",
    "program",
    "remap",
    "set_backend",
    "set_hardware",
    "set_noise_strength",
    "summary",
    "to_digital",
]
