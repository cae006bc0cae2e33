"""What several tests share. Lists of siblings (cells, layers, ...) that every test of a kind runs over go here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aimc.files import read_records
from aimc.train import Progress, load_checkpoint


def assert_close(
    name: str,
    actual: Tensor | np.ndarray,
    expected: Tensor | np.ndarray,
    atol: float = 0.0,
    rtol: float = 0.0,
) -> None:
    """Fail unless ``|actual - expected| <= atol + rtol * |expected|`` everywhere.

    The message holds the tensor's name, the largest error, where it is and how many elements are off. Shape and
    floating type must agree; NaN is never close to anything; with both tolerances zero the values must be equal.
    """
    a, e = (torch.as_tensor(x).detach().cpu() for x in (actual, expected))
    assert a.shape == e.shape, f"{name}: shape {list(a.shape)}, expected {list(e.shape)}"
    assert a.dtype == e.dtype, f"{name}: type {a.dtype}, expected {e.dtype}"
    if a.numel() == 0:
        return
    a, e = a.to(torch.float64), e.to(torch.float64)
    error = (a - e).abs()
    off = (a != e) & ~(error <= atol + rtol * e.abs())  # so written, NaN is off and equal infinities are not
    if not off.any():
        return
    excess = torch.where(off, torch.nan_to_num(error, nan=math.inf), -1.0)
    flat = int(excess.argmax())
    position = [int(i) for i in np.unravel_index(flat, tuple(a.shape))] if a.dim() else []
    raise AssertionError(
        f"{name}: {int(off.sum())} of {a.numel()} elements are off; largest error {error.flatten()[flat]:.3g} "
        f"at {position}: {a.flatten()[flat]:.9g}, expected {e.flatten()[flat]:.9g} (atol {atol:g}, rtol {rtol:g})"
    )


class Watch(Progress):
    """Keeps the lines; Ctrl-C when one begins in some way."""

    def __init__(self, stop: str | None = None):
        self.stop, self.lines = stop, []

    def line(self, text):
        self.lines.append(text)
        if self.stop is not None and text.startswith(self.stop):
            raise KeyboardInterrupt


def timeless(value: Any) -> Any:
    """Records without their clocks."""
    if isinstance(value, dict):
        return {k: timeless(v) for k, v in value.items() if k != "seconds"}
    return [timeless(v) for v in value] if isinstance(value, list) else value


def assert_same_run(place: Path, expected: Path) -> None:
    """Fail unless two run directories hold the same records, but for clocks, and to the bit the same checkpoints."""
    records, wanted = (timeless(read_records(d)) for d in (place, expected))
    assert records == wanted, f"records: {records}, expected {wanted}"
    ours, truth = (
        {p.name: load_checkpoint(p)[0] for p in (d / "checkpoints").iterdir()} for d in (place, expected)
    )
    assert ours.keys() == truth.keys(), f"checkpoints: {sorted(ours)}, expected {sorted(truth)}"
    for file, tensors in truth.items():
        assert ours[file].keys() == tensors.keys(), file
        off = [n for n, t in tensors.items() if not torch.equal(ours[file][n], t)]
        assert off == [], f"{file}: {off}"
