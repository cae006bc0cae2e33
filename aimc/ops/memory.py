"""Large buffers on large pages."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_LARGE = 1 << 20  # elements; numpy asks the system for large pages above 4 MiB, torch does not


def empty(shape: tuple[int, ...]) -> Tensor:
    """Uninitialised float32 on the CPU; a large one costs far fewer page faults than ``torch.empty``.

    Example:
        >>> empty((2, 3)).shape
        torch.Size([2, 3])
    """
    if math.prod(shape) < _LARGE:
        return torch.empty(shape)
    return torch.from_numpy(np.empty(shape, dtype=np.float32))
