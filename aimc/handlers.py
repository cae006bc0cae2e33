"""Which module types have an analog twin, and who builds it."""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
from collections.abc import Callable, Iterable

from torch import nn

from aimc.arguments import checked
from aimc.errors import AimcError
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
    PulsedConvTranspose1d,
    PulsedConvTranspose2d,
    PulsedConvTranspose3d,
    PulsedLinear,
    own_forward,
    reached,
)
from aimc.nn.base import made_by_hooks

__all__ = ["Handler", "Registered", "find_handler", "matches", "register", "register_products"]

Handler = Callable[..., nn.Module]
BOTH = (Hardware, PulsedHardware)


@dataclasses.dataclass(frozen=True)
class Registered:
    """A handler, and name patterns of the parameters that it puts on tiles, and of others that it knows."""

    handler: Handler
    weights: tuple[str, ...]
    others: tuple[str, ...]
    whole: bool
    needed: tuple[str, ...] = ()  # patterns that have to name something in every such module

    def matrices(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """The module's parameters that go onto tiles, by name."""
        if not self.whole:
            return reached(module, self.weights)
        return {n: p for n, p in self._parameters(module).items() if matches(n, self.weights)}

    def refuse_idle(self, module: nn.Module) -> None:
        """An error for a pattern that names nothing, for then nothing would come of it."""
        for pattern in self.needed:
            path, _, own = pattern.rpartition(".")
            absent = not path and any(matches(n, (own,)) for n in module._parameters)  # it may be None
            if not absent and not reached(module, (pattern,)):
                raise AimcError(
                    f"aimc.register_products was told that a {type(module).__name__} multiplies by {pattern!r}, and it "
                    f"has no such parameter; it has {', '.join(n for n, _ in module.named_parameters()) or 'none'}"
                )

    def _parameters(self, module: nn.Module) -> dict[str, nn.Parameter]:
        return dict(module.named_parameters(recurse=self.whole))

    def knows(self, module: nn.Module) -> bool:
        """Whether the module multiplies with what the handler expects and with nothing else.

        One that is pruned, normalised or parametrized makes its weight anew, from parameters of other names.
        """
        known = (*self.weights, *self.others)
        strange = any(p.dim() >= 2 and not matches(n, known) for n, p in self._parameters(module).items())
        strange = strange or _made_anew(module)
        return not strange and bool(self.matrices(module))


def _made_anew(module: nn.Module) -> bool:
    """Whether a hook or a parametrization computes a weight or bias at every step, so that a copy would stay behind."""
    return bool(made_by_hooks(module)) or hasattr(module, "parametrizations")


_HANDLERS: dict[type, dict[type[nn.Module], Registered]] = {Hardware: {}, PulsedHardware: {}}
_BY_NAME: dict[type, dict[str, Registered]] = {Hardware: {}, PulsedHardware: {}}


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns (``fnmatch``) fits.

    Example:
        >>> matches("encoder.0.weight", ("head*", "encoder.*"))
        True
    """
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@checked
def register(
    *types: type[nn.Module] | str,
    hardware: type | tuple[type, ...] = BOTH,
    weights: Iterable[str] = ("weight",),
    others: Iterable[str] = (),
    whole: bool = True,
) -> Callable[[Handler], Handler]:
    """Decorator: :func:`aimc.convert` lets the function build the analog twin of a module of these types.

    It is called as ``handler(module, hardware, key, name, backend)`` and returns a module that takes the same
    arguments, made of layers that ``aimc.nn`` has. A subclass is handled as well, unless it has another forward pass.
    Where the forward pass can stay as it is, :func:`register_products` needs no handler.

    Args:
        types: module types, or patterns (``fnmatch``) of dotted names of types that need not be imported for it.
        hardware: :class:`aimc.Hardware`, :class:`aimc.PulsedHardware` or both.
        weights: name patterns (``fnmatch``) of the module's parameters that are put on tiles.
        others: likewise of parameters with two dimensions or more that are not. A module that has any further one (it
            was pruned, say, or is a subclass with another matrix) is not handed over.
        whole: whether the handler also converts what is inside the module; otherwise children are converted beside it.

    Example:
        >>> import torch, aimc
        >>> class Scaled(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.matrix = nn.Parameter(torch.ones(2, 3))
        ...     def forward(self, x):
        ...         return 3 * x @ self.matrix.t()
        >>> @aimc.register(Scaled, weights=["matrix"])
        ... def on_tiles(module, hardware, key, name, backend):
        ...     layer = nn.Linear(3, 2, bias=False)
        ...     layer.weight = nn.Parameter(3 * module.matrix)
        ...     return aimc.nn.AnalogLinear(layer, hardware, key, name, backend)
        >>> aimc.convert(nn.Sequential(Scaled()), aimc.presets.ideal())(torch.ones(1, 3)).tolist()
        [[9.0, 9.0]]
    """

    return _registering(types, hardware, weights, others, whole)


def _registering(
    types: Iterable[type[nn.Module] | str],
    hardware: type | tuple[type, ...],
    weights: Iterable[str],
    others: Iterable[str],
    whole: bool,
    needed: Iterable[str] = (),
) -> Callable[[Handler], Handler]:
    made_of = tuple(weights), tuple(others), whole, tuple(needed)

    def add(handler: Handler) -> Handler:
        made = Registered(handler, *made_of)
        for half in hardware if isinstance(hardware, tuple) else (hardware,):
            for kind in types:
                if isinstance(kind, str):
                    _BY_NAME[half][kind] = made
                else:
                    _HANDLERS[half][kind] = made
        return handler

    return add


@checked
def register_products(
    *types: type[nn.Module] | str,
    weights: Iterable[str],
    transposed: Iterable[str] = (),
    others: Iterable[str] = (),
    hardware: type | tuple[type, ...] = BOTH,
) -> None:
    """Put matrices on tiles that modules of these types multiply by in their own forward pass.

    The forward pass stays as it is; its products by the parameters (``F.linear``, ``matmul``, ``mm``, ``mv``, ``bmm``,
    ``addmm``) are made on tiles, and anything else that it does with them is an error when it runs.

    Args:
        types: module types, or patterns (``fnmatch``) of dotted names of types that need not be imported for it.
        weights: name patterns (``fnmatch``) of the parameters: matrices, or stacks of them ``[matrices, ., .]``; those
            of children by their path, such as ``"table.weight"`` (look-ups in the table stay digital and read the same
            parameter) or ``"matrices.*"`` in an ``nn.ParameterList``. One that names nothing is an error of
            :func:`aimc.convert`.
        transposed: likewise of those among them that lie as ``[in, out]``, as in ``x @ self.matrix``.
        others: of parameters with two dimensions or more that the forward pass does not multiply by.
        hardware: :class:`aimc.Hardware`, :class:`aimc.PulsedHardware` or both.

    Example:
        >>> import torch, aimc
        >>> class Bare(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.matrix = nn.Parameter(torch.ones(3, 2))
        ...     def forward(self, x):
        ...         return x @ self.matrix
        >>> aimc.register_products(Bare, weights=["matrix"], transposed=["matrix"])
        >>> net = aimc.convert(nn.Sequential(Bare()), aimc.presets.pcm())
        >>> list(aimc.analog_layers(net))
        ['0.tiles_matrix']
    """
    weights, transposed = tuple(weights), tuple(transposed)
    handler = functools.partial(own_forward, weights=weights, transposed=transposed)
    _registering(types, hardware, weights, others, False, (*weights, *transposed))(handler)


def find_handler(module: nn.Module, hardware: type) -> Registered | None:
    """The handler of the module's type, or of a base whose forward it has not changed."""
    for kind in type(module).__mro__:
        found = _HANDLERS[hardware].get(kind)
        if found is None and kind.__module__.split(".")[0] != "torch":
            dotted = f"{kind.__module__}.{kind.__qualname__}"
            found = next(
                (r for pattern, r in _BY_NAME[hardware].items() if matches(dotted, (pattern,))), None
            )
        if found is not None:
            unchanged = type(module).forward is kind.forward and "forward" not in module.__dict__
            if unchanged:
                found.refuse_idle(module)
            return found if unchanged and found.knows(module) else None
    return None


# A class is its own handler.
for _digital, _analog, _pulsed in (
    (nn.Linear, AnalogLinear, PulsedLinear),
    (nn.Conv1d, AnalogConv1d, PulsedConv1d),
    (nn.Conv2d, AnalogConv2d, PulsedConv2d),
    (nn.Conv3d, AnalogConv3d, PulsedConv3d),
    (nn.ConvTranspose1d, AnalogConvTranspose1d, PulsedConvTranspose1d),
    (nn.ConvTranspose2d, AnalogConvTranspose2d, PulsedConvTranspose2d),
    (nn.ConvTranspose3d, AnalogConvTranspose3d, PulsedConvTranspose3d),
):
    register(_digital, hardware=Hardware)(_analog)
    register(_digital, hardware=PulsedHardware)(_pulsed)
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


# Hugging Face transformers, which need not be installed.

register_products("transformers.pytorch_utils.Conv1D", weights=("weight",), transposed=("weight",))
register_products("transformers.models.*ParallelExperts", weights=("weight",))
# Some routers hold the matrix in a child, which is converted by itself.
register("transformers.models.*Router", whole=False)(functools.partial(own_forward, weights=("weight",)))
_EXPERTS = ("gate_up_proj", "up_proj", "down_proj")


@register("transformers.models.*Experts", weights=_EXPERTS, others=("*_bias",), whole=False)
def _experts(module: nn.Module, hardware, key, name: str, backend: str) -> nn.Module:
    """Weights of all experts in one tensor; decorators that would multiply all of them at once are taken off."""
    return own_forward(
        module,
        hardware,
        key,
        name,
        backend,
        weights=_EXPERTS,
        transposed=_EXPERTS if _inputs_first(module) else (),
        unwrap=True,
    )


def _inputs_first(experts: nn.Module) -> bool:
    """Whether stacks of experts lie as ``[matrices, in, out]``."""
    both, down = (experts._parameters.get(name) for name in ("gate_up_proj", "down_proj"))
    if both is None or down is None:
        return getattr(experts, "is_transposed", False)
    return both.shape[2] == 2 * down.shape[1]  # gate and up have as many outputs each as down has inputs
