"""Recipes: functions that return a complete configuration of a run.

To add one: copy a sibling file, keep the ``Expected``, ``Machine`` and ``Time`` lines of its docstring true, and add
one line to :data:`RECIPES`.
"""

from aimc.recipes.demo import demo
from aimc.recipes.experiment import (
    Calibration,
    Dataset,
    Evaluation,
    HwaExperiment,
    evaluate_run,
    run_experiment,
)
from aimc.recipes.lenet_mnist import lenet_mnist_hwa
from aimc.recipes.networks import MLP, LeNet5, Network, WideResNet
from aimc.recipes.recipe import Recipe

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(demo),
        Recipe(lenet_mnist_hwa),
    )
}
"""Every recipe by name."""

__all__ = [
    "MLP",
    "RECIPES",
    "Calibration",
    "Dataset",
    "Evaluation",
    "HwaExperiment",
    "LeNet5",
    "Network",
    "Recipe",
    "WideResNet",
    "evaluate_run",
    "run_experiment",
]
