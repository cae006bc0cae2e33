"""One operation of torch for a whole analog layer, for whoever follows what a network does instead of running it.

``torch.compile``, ``torch.export``, ``torch.func`` and ``torch.jit.trace`` follow a forward pass with tensors that hold
no numbers. A layer that counts its steps, starts its input range and draws noise cannot be followed, and need not be:
to them it is the operation ``aimc::layer``, which knows the shape of its output and how to make its gradient, and runs
the layer itself when numbers come.

The gradient is that of a second forward pass with the same noise, as under activation checkpointing: what the first one
would have to keep has no place in the graphs of those tools.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import secrets
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack

from aimc.errors import AimcError
from aimc.nn.once import made_once
from aimc.nn.replay import fingerprint, inside_backward
from aimc.nn.watching import unwatched

# From anywhere: a program that was saved in another process must not find a layer of this one.
_HANDLES = itertools.count(secrets.randbits(40) << 20)
_LAYERS: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_C: Any = torch._C
_NAMES = ("weight", "bias", "input_range", "output_gain")
_LIBRARY = torch.library.Library("aimc", "DEF")
# Drawing noise, no two calls are alike: nobody may merge, drop or repeat them.
_TAGS = (torch.Tag.nondeterministic_seeded,)
_ARGUMENTS = (
    "Tensor input, Tensor weight, Tensor? bias, Tensor? input_range, Tensor? output_gain, int handle, "
    "SymInt[]? output_size"
)
_LIBRARY.define(f"layer({_ARGUMENTS}) -> (Tensor, Tensor)", tags=_TAGS)
_LIBRARY.define(f"layer_backward(Tensor grad, {_ARGUMENTS}, Tensor token, int needs) -> Tensor[]", tags=_TAGS)


def register(layer: nn.Module) -> int:
    """Give a layer a number by which the operation finds it."""
    handle = next(_HANDLES)
    _LAYERS[handle] = layer
    return handle


def followed(input: Any) -> bool:
    """Whether somebody follows the forward pass."""
    return (
        torch.compiler.is_compiling()
        or transformed()
        or torch._C._get_tracing_state() is not None
        or isinstance(input, torch.fx.Proxy)
    )


def _written_down(input: Any) -> bool:
    """Whether the operations of the forward pass are written down, by a tracer that knows no break in its graph.

    ``torch.compiler.is_compiling`` also says so between the graphs of ``torch.compile``, where numbers are at hand.
    """
    numberless = type(input).__module__.startswith("torch._subclasses")  # as torch.export has them
    return numberless or torch._C._get_tracing_state() is not None or isinstance(input, torch.fx.Proxy)


def transformed() -> bool:
    """Whether a transform of torch.func (grad, vmap) is under way."""
    return _C._functorch.peek_interpreter_stack() is not None


def read_opaquely(layer: Any, input: Tensor, output_size: list[int] | None) -> Tensor:
    """A forward pass of the layer as one operation; arguments as for the layer."""
    learned = layer.hardware.input_range.mode == "learned"
    # torch.func takes its gradients from functions of torch, not of libraries.
    operation: Any = torch.ops.aimc.layer
    if not torch.compiler.is_compiling() and transformed():
        operation = _Transformed.apply
    y, _ = operation(
        input, layer.weight, layer.bias, layer.input_range if learned else None, layer.output_gain,
        layer._handle, output_size,
    )  # fmt: skip
    return y.to(result_dtype(input)) if isinstance(input, Tensor) else y


def result_dtype(x: Tensor) -> torch.dtype:
    """What a layer returns for such an input: its own type, or autocast's where that is on, as torch's layers do."""
    device = x.device.type
    # The first compilers do not know the question, so it is asked of rare devices alone.
    available = device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)
    autocast = available and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast and x.dtype != torch.float64 else x.dtype


NO_GRAPH = "recurrent analog layers and cells have no place in a graph of torch's operations"
_FRAMES: Any = _C._dynamo.eval_frame


def outside_graphs(forward: Any) -> Any:
    """A forward pass that ``torch.compile`` leaves alone: the graph ends before it and another begins after it.

    What ``torch.compiler.disable`` does, without its import, which takes as long as that of torch.
    """

    @functools.wraps(forward)
    def run(self, input, *args, **kwargs):
        if _written_down(input):
            raise AimcError(
                f"{NO_GRAPH}; torch.compile runs it between its graphs (without fullgraph=True), and to take a "
                "network elsewhere export aimc.to_digital(net)",
                layer=getattr(self, "analog_name", None) or getattr(self, "name", None),
            )
        before = _FRAMES.set_eval_frame(None)
        try:
            if callable(before):
                unwatched(self)
            return forward(self, input, *args, **kwargs)
        finally:
            _FRAMES.set_eval_frame(before)

    # Torch's own marks on a function.
    run._torchdynamo_disable = True  # type: ignore[attr-defined]
    run._torchdynamo_disable_msg = f"{NO_GRAPH}; export aimc.to_digital(net)"  # type: ignore[attr-defined]
    return run


def _find(handle: int) -> Any:
    layer = _LAYERS.get(handle)
    if layer is None:
        raise AimcError(
            "an analog layer that was exported or compiled runs where it was made and as long as it lives; to take a "
            "network elsewhere, export aimc.to_digital(net)"
        )
    return layer


@contextlib.contextmanager
def _holding(layer: Any, tensors: dict[str, Any]) -> Iterator[None]:
    """With these parameters in place of the layer's own, which they mostly are."""
    before: dict[str, Any] = {}
    for name, tensor in tensors.items():
        own = getattr(layer, name)
        if tensor is None or own is tensor:
            continue
        if name not in layer._parameters:
            if own.data_ptr() == tensor.data_ptr():  # a view of its owner's
                continue
            raise AimcError(
                "is a part of another module's parameter, which cannot be exchanged here",
                layer=layer.name,
                field=name,
            )
        before[name] = layer._parameters[name]
        layer._parameters[name] = tensor
    versions = layer._clipped_version, layer._range_version
    if "weight" in before:
        same = before["weight"]._version == versions[0]
        layer._clipped_version = layer.weight._version if same else -1
    if "input_range" in before:
        layer._range_version = -1
    try:
        yield
    finally:
        layer._parameters.update(before)
        if before:
            layer._clipped_version, layer._range_version = versions


@contextlib.contextmanager
def _plainly(input: Tensor) -> Iterator[None]:
    """Without autocast, which the caller applies, and without the transforms that called."""
    with temporarily_clear_interpreter_stack(), torch.autocast(input.device.type, enabled=False):
        yield


def _layer(input, weight, bias, input_range, output_gain, handle, output_size):
    layer = _find(handle)
    unwatched(layer)
    held: dict[str, Any] = dict(zip(_NAMES, (weight, bias, input_range, output_gain)))
    args = () if output_size is None else (list(output_size),)
    mark = fingerprint(input)
    # A graph may drop what it computed and make it again for its gradient.
    record = layer._records.matching(mark) if inside_backward() else None
    again = contextlib.nullcontext() if record is None else _again(layer, record)
    with _plainly(input), torch.no_grad(), _holding(layer, held), again:
        record = layer._record(mark) if record is None else record
        y = layer.read(input, *args)
    return y, torch.tensor([record.token], dtype=torch.int64, device="cpu")


def _layer_backward(grad, input, weight, bias, input_range, output_gain, handle, output_size, token, needs):
    layer = _find(handle)
    record = layer._records.named(int(token))
    if record is None:
        raise AimcError("the forward pass of this gradient is too long ago", layer=layer.name)
    given = (input, weight, bias, input_range, output_gain)
    leaves = [
        None if t is None else t.detach().requires_grad_(bool(needs >> i & 1)) for i, t in enumerate(given)
    ]
    args = () if output_size is None else (list(output_size),)
    with _plainly(input), torch.enable_grad():
        with _holding(layer, dict(zip(_NAMES, leaves[1:]))), _again(layer, record):
            y = layer.read(leaves[0], *args)
        asked = [t for t in leaves if t is not None and t.requires_grad]
        found = iter(torch.autograd.grad(y, asked, grad.to(y.dtype), allow_unused=True))
    result = []
    for leaf in leaves:
        g = next(found) if leaf is not None and leaf.requires_grad else None
        result.append(
            input.new_empty(0) if leaf is None else torch.zeros_like(leaf) if g is None else g.contiguous()
        )
    return result


@contextlib.contextmanager
def _again(layer: Any, record: Any) -> Iterator[None]:
    """In the mode of a record, with its noise."""
    before, layer.training = layer.training, record.training
    try:
        with layer._replayed(record):
            yield
    finally:
        layer.training = before


def _shape(input, weight, bias, input_range, output_gain, handle, output_size):
    layer = _find(handle)
    args = () if output_size is None else (list(output_size),)
    y = layer.digital(input.to(weight.dtype), weight, *args)
    return torch.empty_like(y, dtype=input.dtype), torch.empty(1, dtype=torch.int64, device="cpu")


def _shape_backward(grad, input, weight, bias, input_range, output_gain, handle, output_size, token, needs):
    given = (input, weight, bias, input_range, output_gain)
    return [
        input.new_empty(0) if t is None else torch.empty_like(t, memory_format=torch.contiguous_format)
        for t in given
    ]


def _keep(ctx, inputs, output) -> None:
    *tensors, ctx.handle, ctx.output_size = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[1])


def _gradient(ctx, grad, _):
    *given, token = ctx.saved_tensors
    if grad is None:
        return (None,) * 7
    needs = sum(1 << i for i, need in enumerate(ctx.needs_input_grad[:5]) if need)
    found = torch.ops.aimc.layer_backward(grad, *given, ctx.handle, ctx.output_size, token, needs)
    if torch.is_grad_enabled():
        found = made_once(tuple(found), (grad, *given))
    return *(g if needs >> i & 1 else None for i, g in enumerate(found)), None, None


def _batched(info, in_dims, input, weight, bias, input_range, output_gain, handle, output_size):
    """A batch of inputs is a longer batch; parameters that differ within one have no tiles of their own."""
    if any(d is not None for d in in_dims[1:5]):
        raise AimcError(
            "torch.vmap over parameters would need tiles for each of them", layer=_find(handle).name
        )
    x = input.movedim(in_dims[0], 0)
    rest = x.shape[1:]
    linear = isinstance(_find(handle), nn.Linear)
    single = not linear and len(rest) == weight.dim() - 1  # images without a batch dimension
    flat = x if linear or single else x.flatten(0, 1)
    y, token = torch.ops.aimc.layer(flat, weight, bias, input_range, output_gain, handle, output_size)
    if not linear and not single:
        y = y.unflatten(0, (x.shape[0], rest[0]))
    return (y, token), (0, None)


class _Transformed(torch.autograd.Function):
    """The operation for ``torch.func.grad`` and its kin."""

    @staticmethod
    def forward(*args):
        return torch.ops.aimc.layer(*args)

    setup_context = staticmethod(_keep)
    backward = staticmethod(_gradient)  # type: ignore[assignment]  (torch declares it without arguments of ours)
    vmap = staticmethod(_batched)  # type: ignore[assignment]  (likewise)


_LIBRARY.impl("layer", _layer, "CompositeExplicitAutograd")
_LIBRARY.impl("layer_backward", _layer_backward, "CompositeExplicitAutograd")
torch.library.register_fake("aimc::layer", _shape, lib=_LIBRARY)
torch.library.register_fake("aimc::layer_backward", _shape_backward, lib=_LIBRARY)
torch.library.register_autograd("aimc::layer", _gradient, setup_context=_keep, lib=_LIBRARY)
torch.library.register_vmap("aimc::layer", _batched, lib=_LIBRARY)
