"""Plain torch networks that the recipes train: nothing here knows of analog hardware.

To add one: a file beside its siblings, and one line in :data:`MODELS`.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .cifar_resnet import ThinResNet
from .language import AdaptiveSoftmax, LSTMLanguageModel
from .lenet import LeNet5, TanhLeNet5
from .mlp import MLP
from .resnet import ResNet
from .sentence import SentenceClassifier
from .wideresnet import WideResNet

MODELS: dict[str, Callable[..., nn.Module]] = {
    "lenet5": LeNet5,
    "lenet5_tanh": TanhLeNet5,
    "lstm": LSTMLanguageModel,
    "mlp": MLP,
    "resnet": ResNet,
    "thin_resnet": ThinResNet,
    "wideresnet": WideResNet,
}
"""Name to builder; a recipe names a network and gives its keyword arguments."""

__all__ = [
    "MLP",
    "MODELS",
    "AdaptiveSoftmax",
    "LSTMLanguageModel",
    "LeNet5",
    "ResNet",
    "SentenceClassifier",
    "TanhLeNet5",
    "ThinResNet",
    "WideResNet",
]
