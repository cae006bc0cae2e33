"""LeNet-5 in the shape that in-memory training papers use: two wide 5x5 convolutions, two linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LeNet5(nn.Module):
    """Convolutions 5x5 to 16 and 32 channels, each with ReLU and 2x2 max-pooling, then 512-128-classes.

    Unpadded convolutions, so that a 28x28 image leaves 32 maps of 4x4: the 512 inputs of the first linear layer.
    With ten classes and one channel it has 80,202 parameters. No normalisation: what the crossbars compute is all
    there is.

    Args:
        num_classes: width of the output.
        in_channels: channels of the image.

    Shape:
        images [n, in_channels, 28, 28] to logits [n, num_classes].

    Example:
        >>> sum(p.numel() for p in LeNet5().parameters())
        80202
    """

    def __init__(self, num_classes: int = 10, in_channels: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 5)
        self.conv2 = nn.Conv2d(16, 32, 5)
        self.fc1 = nn.Linear(512, 128)
        self.fc2 = nn.Linear(128, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(nn.functional.max_pool2d(self.conv1(images), 2))  # [n, 16, 12, 12]
        x = torch.relu(nn.functional.max_pool2d(self.conv2(x), 2))  # [n, 32, 4, 4]
        x = torch.relu(self.fc1(x.flatten(1)))  # [n, 128]
        return self.fc2(x)


class TanhLeNet5(LeNet5):
    """The same layers with tanh, twice after the second convolution, as in the papers on training in memory.

    Pooling comes before tanh: the largest value is the same, and there are fewer to take.

    Shape:
        images [n, in_channels, 28, 28] to logits [n, num_classes].
    """

    def forward(self, images: Tensor) -> Tensor:
        x = torch.tanh(nn.functional.max_pool2d(self.conv1(images), 2))
        x = torch.tanh(torch.tanh(nn.functional.max_pool2d(self.conv2(x), 2)))
        return self.fc2(torch.tanh(self.fc1(x.flatten(1))))
