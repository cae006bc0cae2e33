"""The plain torch body."""

from __future__ import annotations

from torch import Tensor


def sampled_product(left: Tensor, right: Tensor, row: Tensor, column: Tensor) -> Tensor:
    # Columns are picked row by row, which reads the right side once and in order.
    return (left[row].t() * right.index_select(1, column)).sum(0)
