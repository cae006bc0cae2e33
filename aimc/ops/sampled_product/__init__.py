"""A few elements of a matrix product, each a dot product of its own."""

from __future__ import annotations

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
