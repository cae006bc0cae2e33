"""The networks a recipe can name, as configurations: input and output sizes come from the data."""

from __future__ import annotations

import abc
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
        """The torch network for inputs of a shape ``[channels, height, width]``; draws from torch's generator."""


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
