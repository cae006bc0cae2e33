"""Which body of an operation runs."""

from __future__ import annotations

import torch
from torch import Tensor

from aimc.errors import AimcError, suggest

BACKENDS = ("auto", "reference", "cpu")


def check_backend(backend: str) -> str:
    """Return the name or raise, suggesting the nearest one."""
    if backend not in BACKENDS:
        hint = suggest(str(backend), BACKENDS)
        if backend in ("gpu", "cuda"):
            hint = "GPUs have no body of their own yet and use 'reference', which 'auto' chooses for their tensors"
        raise AimcError(f"no backend is called {backend!r}; {hint}", field="backend")
    return backend


def choose_backend(backend: str, *tensors: Tensor) -> str:
    """``auto`` takes the compiled body where it applies; an explicit choice never falls back.

    Example:
        >>> choose_backend("auto", torch.zeros(2)), choose_backend("auto", torch.zeros(2, dtype=torch.float64))
        ('cpu', 'reference')
    """
    check_backend(backend)
    if backend == "reference":
        return backend
    fits = True
    for t in tensors:  # a plain loop: this runs several times in every layer
        if t.dtype != torch.float32 or not t.is_cpu:
            fits = False
    if backend == "cpu" and not fits:
        what = ", ".join(sorted({f"{t.dtype} on {t.device}" for t in tensors}))
        raise AimcError(
            f"'cpu' runs float32 tensors on the CPU, got {what}; use 'auto' or 'reference'", field="backend"
        )
    return "cpu" if fits else "reference"
