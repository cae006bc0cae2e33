"""LSTM language model on WikiText-2."""

from aimc.recipes.chips import Calibration, Evaluation
from aimc.recipes.hwa import HwaExperiment
from aimc.recipes.networks import LSTM
from aimc.recipes.texts import Text
from aimc.recipes.wideresnet_cifar100 import hardware_with_drop_connect
from aimc.train import Optimizer, Stage


def lstm_wikitext2(width: int = 200, tied: bool = False) -> HwaExperiment:
    """x"""
    return HwaExperiment(
        dataset=Text(name="wikitext-2"),
        network=LSTM(width=width, tied=tied),
        teacher=Stage(epochs=6, batch_size=20, optimizer=Optimizer(kind="adamw", lr=2e-3)),
        student=Stage(),
        hardware=hardware_with_drop_connect(),
        calibration=Calibration(images=7000),
        evaluation=Evaluation(chips=25),
    )
