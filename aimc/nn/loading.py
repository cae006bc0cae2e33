"""What a state may hold, looked at before anything of it is written into a layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aimc.config import Config
from aimc.errors import AimcError

LARGEST = torch.iinfo(torch.int64).max
Bound = float | Tensor


def misfit(value: Any, here: Tensor, least: Bound | None = None, most: Bound | None = None) -> str | None:
    """Why a saved value cannot take the place of a tensor, or None.

    Floating types may differ, and so may integers, as long as the place can hold every number; one kind is never taken
    for the other.

    Args:
        value: what a state has; anything.
        here: what it is loaded into.
        least, most: smallest and largest number, one for all or one for each.

    Example:
        >>> misfit(torch.tensor([1.0, float("nan")]), torch.zeros(2))
        'holds NaN or infinite values'
        >>> misfit(torch.ones(3), torch.zeros(2))
        'shape [3] does not fit [2]'
    """
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}, no tensor"
    if value.shape != here.shape:
        return f"shape {list(value.shape)} does not fit {list(here.shape)}"
    floating = here.is_floating_point()
    if value.is_floating_point() != floating or value.is_complex() or (value.dtype == torch.bool):
        kind = "floating-point numbers" if floating else "integers"
        way_out = "" if floating else "; an average is of the floating-point entries alone"
        return f"is {value.dtype}, expected {kind} such as {here.dtype}{way_out}"
    local: Tensor = value.to_local() if hasattr(value, "to_local") else value  # type: ignore[operator]  (a shard)
    if local.is_meta or local.numel() == 0:
        return None
    if floating:
        if not bool(torch.isfinite(local.to(here.dtype)).all()):
            return "holds NaN or infinite values"
    else:
        info = torch.iinfo(here.dtype)
        if bool(((local < info.min) | (local > info.max)).any()):
            return f"holds numbers beyond {here.dtype}"
    for bound, beyond, word in ((least, torch.lt, "below"), (most, torch.gt, "above")):
        if bound is None:
            continue
        limit = bound.to(local.device) if isinstance(bound, Tensor) else bound
        if bool(beyond(local, limit).any()):
            return f"holds numbers {word} {limit.tolist() if isinstance(limit, Tensor) else f'{limit:g}'}"
    return None


def misfits(module: nn.Module, state: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    """Parameters and buffers of a module itself that a state has something else for: name, and why it does not fit."""
    for name, here in (*module._parameters.items(), *module._buffers.items()):
        if here is not None and prefix + name in state:
            least = 0.0 if name in ("input_range", "column_scale") else None
            value = state[prefix + name]
            if name == "input_range" and isinstance(value, Tensor):
                value = started(value)
            why = misfit(value, here, least)
            if why is not None:
                yield name, why


def before_gains(name: str) -> str:
    """Where a file whose weights have their output gains multiplied in keeps the weight before that.

    Example:
        >>> before_gains("classifier.weight")
        'classifier.analog_weight'
    """
    module, dot, parameter = name.rpartition(".")
    return f"{module}{dot}analog_{parameter}"


def take_before_gains(state: dict[str, Any], prefix: str, names: Iterable[str], gains: bool) -> None:
    """Put the weights before their gains in place, in a copy of a state, where the gains are taken; else drop them."""
    for name in names:
        own = state.pop(before_gains(prefix + name), None)
        if own is not None and gains:
            state[prefix + name] = own


def started(ranges: Tensor) -> Tensor:
    """Input ranges where one that is not set is 0; earlier files have NaN."""
    if not ranges.is_floating_point() or not bool(torch.isnan(ranges).any()):
        return ranges
    return torch.where(torch.isnan(ranges), 0, ranges)


def misfit_counters(value: Any, numbers: range, most: int) -> str | None:
    """Why a saved seed with counters behind it cannot be taken, or None.

    Args:
        value: what a state has.
        numbers: how many there may be.
        most: largest count.
    """
    if not isinstance(value, Tensor) or value.dim() != 1:
        return "is no row of numbers"
    if len(value) not in numbers:
        return f"has {len(value)} numbers, expected {numbers[-1]}"
    why = misfit(value, torch.empty(len(value), dtype=torch.int64, device="cpu"))
    counts = value[1:4]  # what follows in some is another seed
    return why or misfit(counts, torch.empty(len(counts), dtype=torch.int64, device="cpu"), 0, most)


def described(value: Any, layer: str) -> Config:
    """The hardware that bytes describe.

    Raises:
        AimcError: they do not; names the layer.
    """
    try:
        why = misfit(value, torch.empty(getattr(value, "shape", ()), dtype=torch.uint8, device="cpu"))
        if why is None and value.dim() != 1:
            why = "is no row of bytes"
        if why is not None:
            raise AimcError(why)
        try:
            return Config.from_json(bytes(value.cpu().tolist()).decode())
        except AimcError:
            raise
        except (ValueError, RecursionError) as error:  # no text, or no numbers that Python reads
            raise AimcError(f"describes no hardware: {error}") from None
    except AimcError as error:
        raise error.at(layer=layer, field="analog_hardware") from None
