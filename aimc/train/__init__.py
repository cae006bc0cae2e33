"""Training stages, run directories and checkpoints."""

from aimc.train.checkpoint import load_checkpoint, save_checkpoint
from aimc.train.config import Optimizer, Schedule, Stage
from aimc.train.in_memory import fit_in_memory, schedule_table, schedule_warnings
from aimc.train.loop import Batches, Fitted, build_optimizer, fit, load_weights, noisy
from aimc.train.objective import Classification, LanguageModelling, Objective, Outcome
from aimc.train.progress import Bars, Lines, Progress, choose_progress
from aimc.train.run import Run, environment

__all__ = [
    "Bars",
    "Batches",
    "Classification",
    "Fitted",
    "LanguageModelling",
    "Lines",
    "Objective",
    "Optimizer",
    "Outcome",
    "Progress",
    "Run",
    "Schedule",
    "Stage",
    "build_optimizer",
    "choose_progress",
    "environment",
    "fit",
    "fit_in_memory",
    "load_checkpoint",
    "load_weights",
    "noisy",
    "save_checkpoint",
    "schedule_table",
    "schedule_warnings",
]
