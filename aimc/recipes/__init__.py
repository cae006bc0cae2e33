"""Recipes: functions that return a complete configuration of a run.

To add one: copy a sibling file, keep the ``Expected``, ``Machine`` and ``Time`` lines of its docstring true, and add
one line to :data:`RECIPES`.
"""

from aimc.recipes.bert_sst2 import bert_sst2, bert_sst2_small
from aimc.recipes.chips import Calibration, Evaluation
from aimc.recipes.demo import demo
from aimc.recipes.demo_insitu import demo_insitu
from aimc.recipes.encoders import Encoder
from aimc.recipes.hwa import HwaExperiment
from aimc.recipes.in_memory import InSituExperiment, OntoChips
from aimc.recipes.lenet_insitu import lenet_mnist_insitu
from aimc.recipes.lenet_mnist import lenet_mnist_hwa
from aimc.recipes.lstm_wikitext2 import lstm_wikitext2, lstm_wikitext2_small
from aimc.recipes.networks import LSTM, MLP, LeNet5, Network, ResNet, ThinResNet, WideResNet
from aimc.recipes.parts import Data, Dataset, Task
from aimc.recipes.recipe import Recipe
from aimc.recipes.reproduce import Reproduction, reproduce_run
from aimc.recipes.resnet32_cifar10 import resnet32_cifar10, resnet32_cifar10_small
from aimc.recipes.resnet_insitu import (
    resnet18_insitu,
    resnet18_insitu_small,
    resnet34_insitu,
    resnet34_insitu_small,
)
from aimc.recipes.running import evaluate_run, run_experiment
from aimc.recipes.sentences import Sentences
from aimc.recipes.texts import Text
from aimc.recipes.wideresnet_cifar100 import wideresnet_cifar100, wideresnet_cifar100_small

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(demo),
        Recipe(demo_insitu),
        Recipe(lenet_mnist_hwa),
        Recipe(lenet_mnist_insitu),
        Recipe(wideresnet_cifar100),
        Recipe(wideresnet_cifar100_small),
        Recipe(resnet32_cifar10),
        Recipe(resnet32_cifar10_small),
        Recipe(resnet18_insitu),
        Recipe(resnet18_insitu_small),
        Recipe(resnet34_insitu),
        Recipe(resnet34_insitu_small),
        Recipe(lstm_wikitext2),
        Recipe(lstm_wikitext2_small),
        Recipe(bert_sst2),
        Recipe(bert_sst2_small),
    )
}
"""Every recipe by name."""

__all__ = [
    "LSTM",
    "MLP",
    "RECIPES",
    "Calibration",
    "Data",
    "Dataset",
    "Encoder",
    "Evaluation",
    "HwaExperiment",
    "InSituExperiment",
    "LeNet5",
    "Network",
    "OntoChips",
    "Recipe",
    "Reproduction",
    "ResNet",
    "Sentences",
    "Task",
    "Text",
    "ThinResNet",
    "WideResNet",
    "evaluate_run",
    "reproduce_run",
    "run_experiment",
]
