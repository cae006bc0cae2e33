"""Large buffers on large pages."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_LARGE = 1 << 20  # elements; numpy asks the system for large pages above 4 MiB, torch does not


def empty(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Uninitialised, of the type and on the device of ``like``; on the CPU a large one costs far fewer page faults.

    Example:
        >>> empty((2, 3), torch.zeros(1)).shape
        torch.Size([2, 3])
    """
    if math.prod(shape) < _LARGE or like.dtype != torch.float32 or not like.is_cpu:
        return like.new_empty(shape)
    return torch.from_numpy(np.empty(shape, dtype=np.float32))
