"""Thin residual network for 32x32 images (He, Zhang, Ren, Sun, arXiv:1512.03385, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .resnet import BasicBlock


class ThinResNet(nn.Module):
    """Three groups of basic blocks at 32x32, 16x16 and 8x8, average pooling, one linear layer.

    Depth 32 with widths 16, 28 and 56 is the network that Joshi et al. (Nature Communications 11, 2473, 2020) put on
    phase-change memory: 361,722 weights and biases, norms apart.

    Args:
        depth: 6 n + 2 for n blocks a group.
        widths: channels of the three groups.
        num_classes: width of the output.
        in_channels: channels of the image.

    Shape:
        images [n, in_channels, 32, 32] to logits [n, num_classes].

    Example:
        >>> net = ThinResNet(32, (16, 28, 56))
        >>> sum(p.numel() for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear)) for p in m.parameters())
        361722
    """

    def __init__(
        self,
        depth: int = 32,
        widths: Sequence[int] = (16, 32, 64),
        num_classes: int = 10,
        in_channels: int = 3,
    ):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(
                f"depth must be 6 n + 2 with n of at least 1 (8, 14, 20, 26, 32, ...), got {depth}"
            )
        if len(widths) != 3:
            raise ValueError(f"widths needs three numbers of channels, got {tuple(widths)}")
        channels = widths[0]
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        groups = []
        for group, out_channels in enumerate(widths):
            members = []
            for block in range((depth - 2) // 6):
                members.append(
                    BasicBlock(channels, out_channels, stride=2 if group > 0 and block == 0 else 1)
                )
                channels = out_channels
            groups.append(nn.Sequential(*members))
        self.groups = nn.Sequential(*groups)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(images)))
        return self.fc(self.groups(x).mean((2, 3)))
