"""A stack of linear layers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MLP(nn.Module):
    """Linear layers with ReLU between them; everything behind the first dimension is flattened.

    Args:
        sizes: input width, hidden widths, output width.
        bias: whether the layers add one.

    Shape:
        inputs [n, ...] with ``sizes[0]`` values each, to logits [n, sizes[-1]].

    Example:
        >>> MLP((784, 256, 10))(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, sizes: Sequence[int] = (784, 256, 128, 10), bias: bool = True):
        super().__init__()
        if len(sizes) < 2:
            raise ValueError(f"sizes needs at least an input and an output width, got {tuple(sizes)}")
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=bias) for a, b in zip(sizes[:-1], sizes[1:]))

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs.flatten(1)
        for layer in self.layers[:-1]:
            x = torch.relu(layer(x))
        return self.layers[-1](x)
