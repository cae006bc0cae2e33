"""Input ranges measured on data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aimc.convert import evaluating, require_analog
from aimc.errors import AimcError

_KEPT = 1 << 17  # magnitudes kept per row tile and batch


@torch.no_grad()
def calibrate(
    net: nn.Module,
    batches: Iterable[Any],
    method: Literal["quantile", "max", "std"] = "quantile",
    quantile: float = 0.99995,
    stds: float = 3.0,
) -> None:
    """Set the input range of every row tile from what the digital network would send it.

    Args:
        net: an analog network.
        batches: inputs; each is passed to the network, a tuple or list as several arguments.
        method: ``quantile`` of the magnitudes, ``max``imum, or ``std``: so many standard deviations.
        quantile: used by ``quantile``.
        stds: used by ``std``.

    Raises:
        AimcError: no batches, a layer that saw no input, or inputs that are not finite.

    Example:
        >>> import aimc
        >>> net = aimc.convert(nn.Linear(4, 2), aimc.presets.pcm())
        >>> calibrate(net, [torch.linspace(-1, 1, 400).view(100, 4)], method="max")
        >>> net.input_range.tolist()
        [1.0]
    """
    layers = {n: m for n, m in require_analog(net).items() if m.input_range is not None}
    if not layers:
        raise AimcError(
            "no layer has an input range to calibrate (no DAC, or dynamic ranges)", field="input_range"
        )
    if method not in ("quantile", "max", "std"):
        raise AimcError(f"is 'quantile', 'max' or 'std', got {method!r}", field="method")
    if not 0 < quantile <= 1:
        raise AimcError(f"is a share between 0 and 1, got {quantile}", field="quantile")
    seen: dict[str, list[list[Tensor]]] = {
        name: [[] for _ in layer.layout.splits] for name, layer in layers.items()
    }

    def observe(name: str, x: Tensor) -> None:
        for k, (a, b) in enumerate(layers[name].layout.splits):
            values = x[:, :, a:b].abs().flatten()
            if not bool(torch.isfinite(values).all()):
                raise AimcError("the input holds NaN or infinite values", layer=name, shape=x.shape)
            if method == "max":
                values = values.max()[None] if values.numel() else values
            elif method == "std":
                values = torch.stack(
                    [
                        values.square().double().sum(),
                        x[:, :, a:b].double().sum(),
                        x.new_tensor(values.numel(), dtype=torch.float64),
                    ]
                )[None]
            elif values.numel() > _KEPT:
                values = values[:: values.numel() // _KEPT + 1]
            seen[name][k].append(values)

    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(net))
        for name, layer in layers.items():
            stack.enter_context(layer.observed(lambda x, name=name: observe(name, x)))
        for batch in batches:
            net(*batch) if isinstance(batch, (tuple, list)) else net(batch)
    result = {}
    for name in layers:
        values = []
        for parts in seen[name]:
            everything = torch.cat(parts) if parts else torch.empty(0)
            if everything.numel() == 0:
                raise AimcError("saw no input during calibration", layer=name, field="batches")
            if method == "quantile":
                rank = min(everything.numel(), max(1, round(quantile * everything.numel())))
                value = everything.kthvalue(rank).values
            elif method == "max":
                value = everything.max()
            else:
                square, total, count = everything.sum(0)
                value = stds * (square / count - (total / count) ** 2).clamp_min(0).sqrt()
            values.append(value if value > 0 else torch.ones_like(value))
        result[name] = torch.stack(values)
    for name, layer in layers.items():
        layer.set_input_range(result[name])
