"""A few elements of a matrix product or of a convolution's input gradient, each a sum of its own."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from aimc.errors import AimcError
from aimc.ops.backend import choose_backend
from aimc.ops.sampled_product import cpu, reference


def sampled_product(
    left: Tensor, right: Tensor, row: Tensor, column: Tensor, backend: str = "auto"
) -> Tensor:
    """``(left @ right)[row, column]`` without the rest of the product.

    Args:
        left: ``[n, inner]``, any strides.
        right: ``[inner, m]``, any strides.
        row, column: int64 ``[samples]``, within n and m.
        backend: see :func:`aimc.ops.choose_backend`.

    Returns:
        ``[samples]``.

    Raises:
        AimcError: shapes that do not fit.

    Example:
        >>> import torch
        >>> sampled_product(torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([1]), torch.tensor([0]))
        tensor([3.])
    """
    if left.shape[1] != right.shape[0] or row.shape != column.shape:
        raise AimcError(
            f"shapes do not fit: {list(left.shape)} times {list(right.shape)}, rows {list(row.shape)}, "
            f"columns {list(column.shape)}"
        )
    body = cpu if choose_backend(backend, left, right) == "cpu" else reference
    return body.sampled_product(left, right, row, column)


def sampled_convolution_gradient(
    grad: Tensor,
    weight: Tensor,
    image: Tensor,
    channel: Tensor,
    position: Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    backend: str = "auto",
) -> Tensor:
    """A few elements of a convolution's gradient with respect to its input.

    Args:
        grad: ``[images, outputs, *out]``, any strides, with one, two or three spatial dimensions.
        weight: ``[outputs, channels / groups, *kernel]``.
        image, channel, position: int64 ``[samples]``; a position is an index into the flattened ``size``.
        size: the input's spatial size.
        stride, padding, dilation: of the convolution, a number per spatial dimension.
        groups: of the convolution.
        backend: see :func:`aimc.ops.choose_backend`.

    Returns:
        ``[samples]``.

    Raises:
        AimcError: shapes that do not fit.

    Example:
        >>> import torch
        >>> grad, weight, at = torch.ones(1, 1, 3), torch.tensor([[[1.0, 2.0]]]), torch.tensor([0])
        >>> sampled_convolution_gradient(grad, weight, at, at, torch.tensor([1]), [4], [1], [0], [1])
        tensor([3.])
    """
    spatial = {len(size), len(stride), len(padding), len(dilation), grad.dim() - 2, weight.dim() - 2}
    if (
        len(spatial) != 1
        or grad.shape[1] != weight.shape[0]
        or not image.shape == channel.shape == position.shape
    ):
        raise AimcError(
            f"shapes do not fit: gradient {list(grad.shape)}, weight {list(weight.shape)}, size {list(size)}, "
            f"images {list(image.shape)}, channels {list(channel.shape)}, positions {list(position.shape)}"
        )
    body = cpu if choose_backend(backend, grad, weight) == "cpu" else reference
    return body.sampled_convolution_gradient(
        grad, weight, image, channel, position, size, stride, padding, dilation, groups
    )
