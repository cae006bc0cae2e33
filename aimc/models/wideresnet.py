"""Wide residual network for 32x32 images (Zagoruyko, Komodakis: "Wide Residual Networks", BMVC 2016)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Pre-activation residual block: norm, ReLU, 3x3, norm, ReLU, 3x3, plus the input.

    Where the width or the resolution changes, the shortcut is a 1x1 convolution of the activated input.

    Shape:
        x [n, in_channels, h, w] to [n, out_channels, h / stride, w / stride].
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        same = in_channels == out_channels and stride == 1
        self.shortcut = None if same else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu(self.norm1(x))
        skip = x if self.shortcut is None else self.shortcut(active)
        return skip + self.conv2(torch.relu(self.norm2(self.conv1(active))))


class WideResNet(nn.Module):
    """Three groups of pre-activation blocks at 32x32, 16x16 and 8x8, average pooling, one linear layer.

    WideResNet-16-4 with 100 classes has 2,772,036 parameters (2,772,020 in implementations whose first convolution
    has no bias).

    Args:
        depth: 6 n + 4 for n blocks a group.
        width: factor on the base widths 16, 32 and 64.
        num_classes: width of the output.
        in_channels: channels of the image.

    Shape:
        images [n, in_channels, 32, 32] to logits [n, num_classes].
    """

    def __init__(self, depth: int = 16, width: int = 4, num_classes: int = 100, in_channels: int = 3):
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6 n + 4 with n of at least 1 (10, 16, 22, 28, ...), got {depth}")
        blocks = (depth - 4) // 6
        widths = (16 * width, 32 * width, 64 * width)
        self.conv = nn.Conv2d(in_channels, 16, 3, padding=1)
        groups, channels = [], 16
        for group, out_channels in enumerate(widths):
            members = []
            for block in range(blocks):
                members.append(Block(channels, out_channels, stride=2 if group > 0 and block == 0 else 1))
                channels = out_channels
            groups.append(nn.Sequential(*members))
        self.groups = nn.Sequential(*groups)
        self.norm = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.zeros_(self.fc.bias)

    def forward(self, images: Tensor) -> Tensor:
        x = self.groups(self.conv(images))  # [n, 64 width, 8, 8]
        x = torch.relu(self.norm(x)).mean((2, 3))  # [n, 64 width]
        return self.fc(x)
