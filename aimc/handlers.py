"""Which module types have an analog twin, and who builds it."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Iterable

from torch import nn

from aimc.hardware import Hardware, PulsedHardware
from aimc.nn import (
    AnalogConv1d,
    AnalogConv2d,
    AnalogConv3d,
    AnalogConvTranspose1d,
    AnalogConvTranspose2d,
    AnalogConvTranspose3d,
    AnalogGRU,
    AnalogGRUCell,
    AnalogLinear,
    AnalogLSTM,
    AnalogLSTMCell,
    AnalogMultiheadAttention,
    AnalogRNN,
    AnalogRNNCell,
    PulsedConv1d,
    PulsedConv2d,
    PulsedConv3d,
    PulsedLinear,
)

__all__ = ["Handler", "Registered", "find_handler", "matches", "register"]

Handler = Callable[..., nn.Module]
BOTH = (Hardware, PulsedHardware)


@dataclasses.dataclass(frozen=True)
class Registered:
    """A handler, and name patterns of the parameters that it puts on tiles, and of others that it knows."""

    handler: Handler
    weights: tuple[str, ...]
    others: tuple[str, ...]

    def matrices(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """The module's parameters that go onto tiles, by name."""
        return {n: p for n, p in module.named_parameters() if matches(n, self.weights)}

    def knows(self, module: nn.Module) -> bool:
        """Whether the module multiplies with what the handler expects and with nothing else.

        One that is pruned, normalised or parametrized makes its weight anew, from parameters of other names.
        """
        known = (*self.weights, *self.others)
        strange = any(p.dim() >= 2 and not matches(n, known) for n, p in module.named_parameters())
        return not strange and bool(self.matrices(module))


_HANDLERS: dict[type, dict[type[nn.Module], Registered]] = {Hardware: {}, PulsedHardware: {}}


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns (``fnmatch``) fits.

    Example:
        >>> matches("encoder.0.weight", ("head*", "encoder.*"))
        True
    """
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def register(
    *types: type[nn.Module],
    hardware: type | tuple[type, ...] = BOTH,
    weights: Iterable[str] = ("weight",),
    others: Iterable[str] = (),
) -> Callable[[Handler], Handler]:
    """Decorator: the function builds the analog twin of a module of these types.

    It is called as ``handler(module, hardware, key, name, backend)`` and returns a module that takes the same
    arguments. A subclass is handled as well, unless it has another forward pass.

    Args:
        types: module types.
        hardware: :class:`aimc.Hardware`, :class:`aimc.PulsedHardware` or both.
        weights: name patterns (``fnmatch``) of the module's parameters that are put on tiles.
        others: likewise of parameters with two dimensions or more that are not. A module that has any further one (it
            was pruned, say, or is a subclass with another matrix) is not handed over.
    """

    def add(handler: Handler) -> Handler:
        for half in hardware if isinstance(hardware, tuple) else (hardware,):
            for kind in types:
                _HANDLERS[half][kind] = Registered(handler, tuple(weights), tuple(others))
        return handler

    return add


def find_handler(module: nn.Module, hardware: type) -> Registered | None:
    """The handler of the module's type, or of a base whose forward it has not changed."""
    for kind in type(module).__mro__:
        found = _HANDLERS[hardware].get(kind)
        if found is not None:
            unchanged = type(module).forward is kind.forward and "forward" not in module.__dict__
            return found if unchanged and found.knows(module) else None
    return None


# A class is its own handler.
for _digital, _analog, _pulsed in (
    (nn.Linear, AnalogLinear, PulsedLinear),
    (nn.Conv1d, AnalogConv1d, PulsedConv1d),
    (nn.Conv2d, AnalogConv2d, PulsedConv2d),
    (nn.Conv3d, AnalogConv3d, PulsedConv3d),
):
    register(_digital, hardware=Hardware)(_analog)
    register(_digital, hardware=PulsedHardware)(_pulsed)
for _digital, _twin in (
    (nn.ConvTranspose1d, AnalogConvTranspose1d),
    (nn.ConvTranspose2d, AnalogConvTranspose2d),
    (nn.ConvTranspose3d, AnalogConvTranspose3d),
):
    register(_digital, hardware=Hardware)(_twin)

_OF_A_LAYER = [f"weight_[ih][hr]_l{n}{way}" for n in ("[0-9]", "[0-9][0-9]") for way in ("", "_reverse")]
for _digital, _twin in ((nn.LSTM, AnalogLSTM), (nn.GRU, AnalogGRU), (nn.RNN, AnalogRNN)):
    register(_digital, weights=_OF_A_LAYER)(_twin)
for _digital, _twin in (
    (nn.LSTMCell, AnalogLSTMCell), (nn.GRUCell, AnalogGRUCell), (nn.RNNCell, AnalogRNNCell)
):  # fmt: skip
    register(_digital, weights=("weight_ih", "weight_hh"))(_twin)
register(
    nn.MultiheadAttention, weights=("in_proj_weight", "?_proj_weight", "out_proj.weight"), others=("bias_?",)
)(AnalogMultiheadAttention)
