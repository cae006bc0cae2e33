"""Residual networks of four stages for 32x32 images (He, Zhang, Ren, Sun, arXiv:1512.03385)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

STAGES = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Blocks of each stage, by depth; 18 and 34 are the paper's, 10 is the smallest of their kind."""


class BasicBlock(nn.Module):
    """Post-activation residual block: 3x3, norm, ReLU, 3x3, norm, plus the input, ReLU.

    Where the width or the resolution changes, the shortcut is a 1x1 convolution with a norm.

    Shape:
        x [n, in_channels, h, w] to [n, out_channels, h / stride, w / stride].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.shortcut = None
        if in_channels != out_channels or stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.shortcut is None else self.shortcut(x)
        return torch.relu(skip + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


class ResNet(nn.Module):
    """ResNet-18 and ResNet-34 with a stem that keeps the resolution: a 3x3 convolution and no pooling.

    Four stages of basic blocks with 64, 128, 256 and 512 channels at 32x32, 16x16, 8x8 and 4x4, average pooling, one
    linear layer. No convolution has a bias, a norm follows each. With ten classes ResNet-18 has 11,173,962 parameters,
    ResNet-34 21,282,122. The initial weights are torch's, uniform, so that cells of a given range hold them well.

    Args:
        depth: 10, 18 or 34.
        width: channels of the first stage; each of the others has twice those of the one before.
        num_classes: width of the output.
        in_channels: channels of the image.

    Shape:
        images [n, in_channels, 32, 32] to logits [n, num_classes].

    Example:
        >>> net = ResNet(18, width=4)
        >>> [name for name, _ in net.named_children()], len(net.stages), net.head.in_features
        (['stem', 'stages', 'head'], 4, 32)
    """

    def __init__(self, depth: int = 18, width: int = 64, num_classes: int = 10, in_channels: int = 3):
        super().__init__()
        if depth not in STAGES:
            raise ValueError(f"depth must be one of {', '.join(map(str, STAGES))}, got {depth}")
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        stages, channels = [], width
        for number, count in enumerate(STAGES[depth]):
            blocks = []
            for block in range(count):
                stride = 2 if number > 0 and block == 0 else 1
                blocks.append(BasicBlock(channels, width * 2**number, stride))
                channels = width * 2**number
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stages(self.stem(images))  # [n, 8 width, 4, 4]
        return self.head(x.mean((2, 3)))
