"""Residual networks for 32x32 images (He et al.: "Deep Residual Learning for Image Recognition", CVPR 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FOUR_STAGES = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Blocks of each stage of the networks that the paper has for ImageNet, by depth; 10 is the smallest of their kind."""


class BasicBlock(nn.Module):
    """Residual block: 3x3, norm, ReLU, 3x3, norm, plus the input, ReLU.

    Shape:
        x [n, in_channels, h, w] to [n, out_channels, h / stride, w / stride].

    Args:
        in_channels, out_channels: of the images.
        stride: of the first convolution.
        projection: where the width or the resolution changes, the shortcut is a 1x1 convolution with norm (option B
            of the paper); otherwise it takes every ``stride``-th pixel and adds channels of zeros (option A).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, projection: bool = True):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.stride, self.missing = stride, out_channels - in_channels
        self.shortcut = None
        if projection and (stride > 1 or self.missing):
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        if self.shortcut is not None:
            skip = self.shortcut(x)
        else:
            skip = x[:, :, :: self.stride, :: self.stride]
            skip = nn.functional.pad(skip, (0, 0, 0, 0, self.missing // 2, self.missing - self.missing // 2))
        return torch.relu(self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))) + skip)


class ResNet(nn.Module):
    """A 3x3 convolution with norm, three or four stages of basic blocks, average pooling, one linear layer.

    Two families for small images share it. ResNet-18 and ResNet-34 are those of the paper's ImageNet experiments with
    a stem that keeps the resolution, 3x3 and no pooling: stages of 64, 128, 256 and 512 channels at 32x32, 16x16, 8x8
    and 4x4, projections as shortcuts; 11,173,962 and 21,282,122 parameters with ten classes. Depths 6 n + 2 (20, 32,
    44, 56, ...) are those of the paper's CIFAR-10 experiments: three stages of n blocks with 16, 32 and 64 channels,
    shortcuts without parameters; ResNet-32 has 464,154. No convolution has a bias: a norm follows each.

    The initial weights are torch's, uniform, so that the largest is not far from the others.

    Args:
        depth: 10, 18 or 34 for four stages, 6 n + 2 for three.
        width: channels of the first stage; None takes 64 with four stages and 16 with three. The next stages double it.
        num_classes: width of the output.
        in_channels: channels of the image.

    Shape:
        images [n, in_channels, 32, 32] to logits [n, num_classes].

    Example:
        >>> net = ResNet(18, width=4)
        >>> [name for name, _ in net.named_children()], len(net.stages), net.head.in_features
        (['stem', 'stages', 'head'], 4, 32)
    """

    def __init__(
        self, depth: int = 18, width: int | None = None, num_classes: int = 10, in_channels: int = 3
    ):
        super().__init__()
        four = depth in FOUR_STAGES
        if not four and (depth < 8 or (depth - 2) % 6):
            raise ValueError(
                f"depth must be {', '.join(map(str, FOUR_STAGES))}, or 6 n + 2 (8, 14, 20, ..., 32, ...), got {depth}"
            )
        counts = FOUR_STAGES[depth] if four else ((depth - 2) // 6,) * 3
        channels = width if width is not None else 64 if four else 16
        if channels < 1:
            raise ValueError(f"width must be at least 1, got {width}")
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()
        )
        stages, before = [], channels
        for number, count in enumerate(counts):
            after = channels * 2**number
            blocks = []
            for block in range(count):
                stride = 2 if number > 0 and block == 0 else 1
                blocks.append(BasicBlock(before, after, stride, projection=four))
                before = after
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(before, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stages(self.stem(images))  # [n, 8 width, 4, 4], or [n, 4 width, 8, 8]
        return self.head(x.mean((2, 3)))
