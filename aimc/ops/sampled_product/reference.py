"""The plain torch body."""

from __future__ import annotations

import torch
from torch import Tensor


def sampled_product(left: Tensor, right: Tensor, row: Tensor, column: Tensor) -> Tensor:
    # Columns are picked row by row, which reads the right side once and in order.
    return (left[row].t() * right.index_select(1, column)).sum(0)


def sampled_convolution_gradient(
    grad, weight, image, channel, position, size, stride, padding, dilation, groups
):
    shape = (grad.shape[0], weight.shape[1] * groups, *size)
    whole, _, _ = torch.ops.aten.convolution_backward(
        grad,
        grad.new_empty(shape),
        weight,
        None,
        list(stride),
        list(padding),
        list(dilation),
        False,
        [0] * len(size),
        groups,
        [True, False, False],
    )
    return whole.reshape(shape[0], shape[1], -1)[image, channel, position]
