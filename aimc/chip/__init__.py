"""A network on a chip: calibrate, program, age, compensate, evaluate."""

from aimc.chip.calibration import calibrate
from aimc.chip.chip import Chip, program
from aimc.chip.compensation import Compensation, ExactReference, LeastSquares, MeanAbs, PerColumn, TileReader
from aimc.chip.evaluation import Accuracy, DriftResult, Perplexity, evaluate_over_time

__all__ = [
    "Accuracy",
    "Chip",
    "Compensation",
    "DriftResult",
    "ExactReference",
    "LeastSquares",
    "MeanAbs",
    "PerColumn",
    "Perplexity",
    "TileReader",
    "calibrate",
    "evaluate_over_time",
    "program",
]
