"""Input ranges measured on data."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aimc.arguments import checked
from aimc.convert import evaluating, require_analog
from aimc.errors import AimcError
from aimc.periphery.input_range import SMALLEST_RANGE

_KEPT = 1 << 17  # largest magnitudes kept per row tile: enough for the default quantile of 2.6e9 values
Method = Literal["quantile", "max", "std", "moving_quantile", "moving_std"]
QUANTILE, STDS = 0.99995, 3.0


@checked
@torch.no_grad()
def calibrate(
    net: nn.Module,
    batches: Iterable[Any],
    method: Method = "quantile",
    quantile: float = QUANTILE,
    stds: float = STDS,
) -> None:
    """Set the input range of every row tile from what the digital network would send it.

    Args:
        net: an analog network.
        batches: inputs; each is passed to the network, a tuple or list as several arguments, a dict by names.
        method: ``quantile`` of the magnitudes, ``max``imum, or ``std``: so many standard deviations; all over the whole
            of the data. ``moving_quantile`` and ``moving_std`` take them of every batch and average these, so that
            memory does not grow with the data and one odd batch counts for less.
        quantile: for the quantiles; another method refuses to be given one.
        stds: for the standard deviations; likewise.

    Raises:
        AimcError: no batches, a setting that the method does not use, a layer that saw no input, or inputs that are
            not finite.

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
    if not 0 < quantile <= 1:
        raise AimcError(f"is a share between 0 and 1, got {quantile}", field="quantile")
    if not 0 < stds < math.inf:
        raise AimcError(f"must be positive, got {stds}", field="stds")
    if field := unused_setting(method, quantile, stds):
        raise AimcError(f"does nothing with the method {method!r}; leave it out", field=field)
    seen: dict[str, list[list[Tensor]]] = {
        name: [[] for _ in layer.layout.splits] for name, layer in layers.items()
    }

    counts = {name: [0 for _ in layer.layout.splits] for name, layer in layers.items()}

    def observe(name: str, x: Tensor) -> None:
        for k, (a, b) in enumerate(layers[name].layout.splits):
            values = x[:, :, a:b].abs().flatten()
            if not bool(torch.isfinite(values).all()):
                raise AimcError("the input holds NaN or infinite values", layer=name, shape=x.shape)
            if values.numel() == 0:
                continue
            if method == "max":
                values = values.max()[None]
            elif method == "moving_quantile":
                values = _quantile(values, quantile)[None]
            elif method == "moving_std":
                values = stds * x[:, :, a:b].double().std(correction=0)[None]
            elif method == "std":
                values = torch.stack(
                    [
                        values.square().double().sum(),
                        x[:, :, a:b].double().sum(),
                        x.new_tensor(values.numel(), dtype=torch.float64),
                    ]
                )[None]
            elif method == "quantile":
                counts[name][k] += values.numel()
                values = torch.cat([*seen[name][k], values])
                if values.numel() > _KEPT:
                    values = values.topk(_KEPT).values
                seen[name][k] = []
            seen[name][k].append(values)

    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(net))
        for name, layer in layers.items():
            stack.enter_context(layer.observed(lambda x, name=name: observe(name, x)))
        for batch in batches:
            if isinstance(batch, Mapping):
                net(**batch)
            elif isinstance(batch, (tuple, list)):
                net(*batch)
            else:
                net(batch)
    result = {}
    for name in layers:
        values: list[Tensor] = []
        for k, parts in enumerate(seen[name]):
            everything = torch.cat(parts) if parts else torch.empty(0, dtype=torch.float32, device="cpu")
            if everything.numel() == 0:
                raise AimcError("saw no input during calibration", layer=name, field="batches")
            if method == "quantile":
                from_above = counts[name][k] - _rank(counts[name][k], quantile)
                if from_above >= everything.numel():
                    raise AimcError(
                        f"only the {_KEPT} largest of {counts[name][k]} inputs are kept, and the quantile "
                        f"{quantile:g} lies below them; use 'moving_quantile', or fewer inputs",
                        layer=name,
                        field="quantile",
                    )
                value = everything.kthvalue(everything.numel() - from_above).values
            elif method == "max":
                value = everything.max()
            elif method in ("moving_quantile", "moving_std"):
                value = everything.mean()
            else:
                square, total, count = everything.sum(0)
                value = stds * (square / count - (total / count) ** 2).clamp_min(0).sqrt()
            values.append(value if value > SMALLEST_RANGE else torch.ones_like(value))
        result[name] = torch.stack(values)
    for name, layer in layers.items():
        layer.set_input_range(result[name])


def unused_setting(method: str, quantile: float, stds: float) -> str | None:
    """The setting that was changed although the method has no use for it, or None."""
    if quantile != QUANTILE and "quantile" not in method:
        return "quantile"
    return "stds" if stds != STDS and "std" not in method else None


def _rank(count: int, quantile: float) -> int:
    return min(count, max(1, round(quantile * count)))


def _quantile(values: Tensor, quantile: float) -> Tensor:
    return values.kthvalue(_rank(values.numel(), quantile)).values
