"""aimc: train, program and age neural networks on simulated analog in-memory hardware."""

from aimc import env as _env  # noqa: F401  (before numba is imported)

# isort: split
from aimc import algorithms, cells, chip, crossbar, data, hwa, optim, periphery, presets, recipes, report
from aimc.chip import Accuracy, Chip, DriftResult, Perplexity, calibrate, evaluate_over_time, program
from aimc.convert import (
    convert,
    coverage,
    remap,
    set_backend,
    set_check_finite,
    set_hardware,
    set_noise_strength,
    summary,
    to_digital,
)
from aimc.errors import AimcError
from aimc.handlers import register, register_products
from aimc.hardware import Hardware, PulsedHardware, PulsedMapping
from aimc.nn import analog_layers, pulsed_layers

__all__ = [
    "Accuracy",
    "AimcError",
    "Chip",
    "DriftResult",
    "Hardware",
    "Perplexity",
    "PulsedHardware",
    "PulsedMapping",
    "algorithms",
    "analog_layers",
    "calibrate",
    "cells",
    "chip",
    "convert",
    "coverage",
    "crossbar",
    "data",
    "evaluate_over_time",
    "hwa",
    "optim",
    "periphery",
    "presets",
    "program",
    "pulsed_layers",
    "recipes",
    "register",
    "register_products",
    "remap",
    "report",
    "set_backend",
    "set_check_finite",
    "set_hardware",
    "set_noise_strength",
    "summary",
    "to_digital",
]
