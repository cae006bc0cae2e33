"""The networks a recipe can name, as configurations: input and output sizes come from the data."""

from __future__ import annotations

import abc
import math
from typing import ClassVar, Literal

from torch import nn

from aimc.config import Config
from aimc.errors import AimcError
from aimc.models import MODELS
from aimc.models.resnet import STAGES


class Network(Config):
    """Base of the network configurations.

    To add one, copy a sibling; its class name is the ``type`` in YAML and on the command line.
    """

    @abc.abstractmethod
    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        """The torch network for inputs of a shape, ``[channels, height, width]`` of images and ``[]`` of tokens.

        ``classes`` counts what the network chooses from, classes or words. Draws from torch's generator.
        """


class LeNet5(Network):
    """LeNet-5 with 16 and 32 channels, for 28x28 images.

    Fields:
        activation: ``relu``, or ``tanh`` as in the papers on in-memory training, twice after the second convolution.

    Example:
        >>> LeNet5().build((1, 28, 28), 10).fc2.out_features
        10
    """

    activation: Literal["relu", "tanh"] = "relu"

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        self.require(
            tuple(shape[1:]) == (28, 28), "type", f"takes images of 28x28, the data has {list(shape)}"
        )
        kind = MODELS["lenet5_tanh" if self.activation == "tanh" else "lenet5"]
        return kind(num_classes=classes, in_channels=shape[0])


class MLP(Network):
    """Linear layers with ReLU between them.

    Fields:
        hidden: widths of the hidden layers.
    """

    hidden: tuple[int, ...] = (256, 128)

    def validate(self):
        self.require(all(w >= 1 for w in self.hidden), "hidden", "must be positive")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        inputs = 1
        for size in shape:
            inputs *= size
        return MODELS["mlp"]((inputs, *self.hidden, classes))


class WideResNet(Network):
    """Wide residual network for 32x32 images.

    Fields:
        depth: 6 n + 4.
        width: factor on the channels 16, 32 and 64.
    """

    depth: int = 16
    width: int = 4

    def validate(self):
        self.require(
            self.depth >= 10 and (self.depth - 4) % 6 == 0, "depth", f"is 10, 16, 22, ..., got {self.depth}"
        )
        self.require(self.width >= 1, "width", f"must be at least 1, got {self.width}")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        _need_images(shape)
        return MODELS["wideresnet"](self.depth, self.width, num_classes=classes, in_channels=shape[0])


class ResNet(Network):
    """Residual network of four stages for 32x32 images, such as ResNet-18.

    Its parts are called ``stem``, ``stages.0`` to ``stages.3`` and ``head``.

    Fields:
        depth: 10, 18 or 34.
        width: channels of the first stage.

    Example:
        >>> sum(p.numel() for p in ResNet(depth=18).build((3, 32, 32), 10).parameters())
        11173962
    """

    depth: int = 18
    width: int = 64

    PARTS: ClassVar[tuple[str, ...]] = ("stem", "stages.0", "stages.1", "stages.2", "stages.3", "head")

    def validate(self):
        self.require(
            self.depth in STAGES, "depth", f"is one of {', '.join(map(str, STAGES))}, got {self.depth}"
        )
        self.require(self.width >= 1, "width", f"must be at least 1, got {self.width}")

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        _need_images(shape)
        return MODELS["resnet"](self.depth, self.width, num_classes=classes, in_channels=shape[0])


class LSTM(Network):
    """Language model of LSTM layers.

    Fields:
        width: of the embedding and the layers.
        layers: of LSTM.
        dropout: probability.
        tied: the softmax shares the embedding's matrix.
        cutoffs: of an adaptive softmax: ranks by frequency, below the first a word is common; none is a full softmax.
    """

    width: int = 200
    layers: int = 2
    dropout: float = 0.2
    tied: bool = False
    cutoffs: tuple[int, ...] = ()

    def validate(self):
        for name in ("width", "layers"):
            self.require(getattr(self, name) >= 1, name, f"must be at least 1, got {getattr(self, name)}")
        self.require(0 <= self.dropout < 1, "dropout", f"is in [0, 1), got {self.dropout}")
        self.require(
            not (self.tied and self.cutoffs),
            "tied",
            "needs a full softmax; leave cutoffs empty, or do not tie",
        )
        self.require(
            all(0 < a < b for a, b in zip(self.cutoffs, (*self.cutoffs[1:], math.inf))),
            "cutoffs",
            f"must be positive and rise, got {self.cutoffs}",
        )

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        if shape:
            raise AimcError(f"takes tokens, the data has shape {list(shape)}", field="network")
        self.require(
            all(c < classes for c in self.cutoffs),
            "cutoffs",
            f"must be below the {classes} words of the vocabulary, got {self.cutoffs}",
        )
        return MODELS["lstm"](classes, self.width, self.layers, self.dropout, self.tied, self.cutoffs)


class ThinResNet(Network):
    """Thin residual network for 32x32 images, such as ResNet-32.

    Fields:
        depth: 6 n + 2.
        widths: channels at 32x32, 16x16 and 8x8; 16, 28, 56 is what Joshi et al. put on hardware.
    """

    depth: int = 32
    widths: tuple[int, ...] = (16, 32, 64)

    def validate(self):
        self.require(
            self.depth >= 8 and (self.depth - 2) % 6 == 0, "depth", f"is 8, 14, 20, ..., got {self.depth}"
        )
        self.require(
            len(self.widths) == 3 and all(w >= 1 for w in self.widths),
            "widths",
            f"are three numbers of channels, got {self.widths}",
        )

    def build(self, shape: tuple[int, ...], classes: int) -> nn.Module:
        _need_images(shape)
        return MODELS["thin_resnet"](self.depth, self.widths, num_classes=classes, in_channels=shape[0])


def _need_images(shape: tuple[int, ...]) -> None:
    if len(shape) != 3:
        raise AimcError(f"takes images, the data has shape {list(shape)}", field="network")
