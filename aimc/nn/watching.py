"""What a forward pass multiplies by beside its tiles: products that no conversion of modules can see.

``F.linear(x, self.embedding.weight)``, a product by another layer's weight, by a buffer or by a vector of parameters
leave the tiles out, and with them noise and drift, without a trace in the result. So a network's first forward pass is
followed, function by function: what is computed from parameters and buffers alone is known by their names, and a
product of such a thing with anything else is found.
"""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary


@dataclasses.dataclass(frozen=True)
class Product:
    """A product beside the tiles.

    Attributes:
        names: parameters, buffers and other tensors of the network that it multiplies by.
        sizes: their numbers of elements.
        module: dotted name of the module that makes it.
        kind: type of that module.
        function: of torch.
        line: where it stands in the source.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    module: str
    kind: str
    function: str
    line: str


@dataclasses.dataclass
class Watch:
    """What is known of a network's products; its layers share it.

    Attributes:
        strict: whether a product beside the tiles is an error.
        seen: what has been followed: a forward pass in training (True), in evaluation (False), of an example.
        found: products beside the tiles.
        used: names of what passes have put together with what depends on the input, or given to tiles.
        multiplied: names of those among them by which they may have multiplied; the others are looked up and added.
        told: whether was said that none could be followed.
    """

    strict: bool
    seen: set[Any] = dataclasses.field(default_factory=set)
    found: dict[Product, None] = dataclasses.field(default_factory=dict)
    used: set[str] = dataclasses.field(default_factory=set)
    multiplied: set[str] = dataclasses.field(default_factory=set)
    told: bool = False

    def add(self, watching: Watching) -> None:
        """What a forward pass has shown."""
        self.found.update(watching.found)
        self.used |= watching.used
        self.multiplied |= watching.multiplied


def unwatched(layer: Any) -> None:
    """Say once that a network whose layer runs in a graph has not been followed before."""
    watch: Watch | None = getattr(layer, "watch", None)
    if watch is None or watch.seen or watch.told:
        return
    watch.told = True
    warnings.warn(
        "the network runs compiled, exported or transformed, where products beside its layers (F.linear with another "
        "module's weight, say) cannot be seen; call it once as it is before that, or give aimc.convert an example",
        stacklevel=2,
    )


# Functions that multiply, and which of their arguments they only add.
_ADDED: dict[Any, tuple[int, str] | None] = {
    F.linear: (2, "bias"),
    F.bilinear: (3, "bias"),
    **dict.fromkeys((torch.conv1d, torch.conv2d, torch.conv3d), (2, "bias")),
    **dict.fromkeys((F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d), (2, "bias")),
    **{
        getattr(space, name): (0, "input")
        for space in (torch, Tensor)
        for name in ("addmm", "addmv", "addbmm", "baddbmm")
    },
    **{
        getattr(space, name): None
        for space in (torch, Tensor)
        for name in ("matmul", "mm", "mv", "bmm", "dot", "vdot", "inner")
    },
    **dict.fromkeys((Tensor.__matmul__, torch.linalg.matmul, torch.linalg.vecdot), None),
    **dict.fromkeys((torch.einsum, torch.tensordot, torch.chain_matmul, torch.linalg.multi_dot), None),
    F.scaled_dot_product_attention: (3, "attn_mask"),
    F.multi_head_attention_forward: None,
}

# Functions that multiply nothing by what they are given, by name without the marks of their variants.
_MOVE = frozenset(
    "add sub cat concat concatenate hstack vstack stack where masked_fill masked_scatter embedding getitem setitem "
    "copy index_select index_copy index_put index_fill gather take take_along_dim".split()
)
# What the second tensor gives is a type or a shape.
_LIKE = frozenset(("to", "type_as", "expand_as", "view_as", "reshape_as", "broadcast_to"))


class Watching(TorchFunctionMode):
    """While it is entered, follows a network's forward pass.

    Args:
        net: the network.
        placed: parameters that are on tiles or in cells; None for one that is gone.

    Attributes:
        found: products beside the tiles, in the order they were met.
        used: names of what met something that depends on the input, or went onto tiles.
        multiplied: names of what was multiplied there, or given to a function that may multiply.
    """

    def __init__(self, net: nn.Module, placed: list[Tensor | None]):
        self.found: dict[Product, None] = {}
        self.used: set[str] = set()
        self.multiplied: set[str] = set()
        self._modules = {id(m): (name, type(m).__name__) for name, m in net.named_modules()}
        # Names of what a tensor was made from; none for one that was made from nothing. Others depend on the input.
        self._origins: Any = WeakTensorKeyDictionary()
        self._sizes: dict[str, int] = {}
        for path, module in net.named_modules():
            for name, value in (*module._parameters.items(), *module._buffers.items(), *vars(module).items()):
                if isinstance(value, Tensor) and value not in self._origins:
                    full = f"{path}.{name}" if path else name
                    self._origins[value], self._sizes[full] = frozenset((full,)), value.numel()
        self._placed = frozenset[str]().union(*(self._origins.get(p, ()) for p in placed if p is not None))

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch.compiler.is_compiling():  # a part of the network is a graph
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        if all(issubclass(kind, Tensor) for kind in types):  # else a stand-in for what is on tiles
            self._follow(func, args, kwargs, result, sys._getframe(1))
        return result

    def _follow(self, func: Any, args: tuple, kwargs: dict, result: Any, frame: FrameType | None) -> None:
        while frame is not None and _package(frame) == "torch":
            frame = frame.f_back
        ours = frame is not None and _package(frame) == "aimc"
        if func in _ADDED and not ours:
            self._look(func, args, kwargs, frame)
        given = list(_tensors((args, kwargs)))
        if _plain_name(func) in _LIKE:
            given = given[:1]
        origins = [self._origins.get(t) for t in given]
        if ours or None in origins:
            self.used |= self._names(given)
        if not ours and (None in origins or func in _ADDED):
            self.multiplied |= self._names(_factors(func, args, kwargs))
        if None in origins:
            if _in_place(func):
                self._forget(given[0])
            for changed in _tensors(kwargs.get("out")):
                self._forget(changed)
            return
        origin = frozenset[str]().union(*origins)
        for made in _tensors(result):
            # What the tiles give depends on more than their weights; a view of a weight is the weight.
            if not ours or any(_storage(made) == _storage(t) for t in given):
                self._origins[made] = origin

    def _names(self, tensors: Iterable[Tensor]) -> frozenset[str]:
        """Of what the tensors were made from."""
        return frozenset[str]().union(*(self._origins.get(t) or () for t in tensors))

    def _forget(self, tensor: Tensor) -> None:
        for one in (tensor, tensor._base):
            if one is not None:
                self._origins.pop(one, None)

    def _look(self, func: Any, args: tuple, kwargs: dict, frame: FrameType | None) -> None:
        operands = _factors(func, args, kwargs)
        origins = [self._origins.get(t) for t in operands]
        known = {o for o in origins if o}
        names = self._names(operands)
        if not names or _scales(func, args, operands):
            return
        # A weight made of weights is not a product with them yet, unless the tiles of one are passed by.
        if all(origins) and (len(known) == 1 or names.isdisjoint(self._placed)):
            return
        line = f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}" if frame is not None else "?"
        module, kind = "", "?"
        while frame is not None:
            place = self._modules.get(id(frame.f_locals.get("self")))
            if place is not None:
                module, kind = place
                break
            frame = frame.f_back
        ordered = tuple(n for n in self._sizes if n in names)
        product = Product(
            ordered,
            tuple(self._sizes[n] for n in ordered),
            module,
            kind,
            getattr(func, "__name__", "?"),
            line,
        )
        self.found[product] = None


def _factors(func: Any, args: tuple, kwargs: dict) -> list[Tensor]:
    """The tensors that a function may multiply by, and not only look up, move or add."""
    if _plain_name(func) in _MOVE or _plain_name(func) in _LIKE:
        return []
    added = _ADDED.get(func)
    if added is not None:
        args = tuple(a for i, a in enumerate(args) if i != added[0])
    left_out = ("out", added[1]) if added is not None else ("out",)
    return list(_tensors((args, {n: v for n, v in kwargs.items() if n not in left_out})))


def _plain_name(func: Any) -> str:
    """A function's name without the marks of its reflected and in-place variants."""
    return re.sub(r"^__([ir](?=add|sub))?|_+$", "", getattr(func, "__name__", ""))


def _storage(tensor: Tensor) -> int:
    """The memory that views have in common."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)


def _package(frame: FrameType) -> str:
    """The package of a frame's code; networks in plain torch are not ours."""
    name = frame.f_globals.get("__name__", "")
    return "" if name.startswith("aimc.models") else name.partition(".")[0]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def _in_place(func: Any) -> bool:
    name = getattr(func, "__name__", "")
    return bool(re.fullmatch(r"__(setitem|i(?!n)[a-z]+)__|\w*[a-z0-9]_", name))


def _scales(func: Any, args: tuple, operands: list[Tensor]) -> bool:
    """Whether nothing is added up, as in the outer product of positions and frequencies: that is no work for tiles."""
    if func is torch.einsum:
        if not isinstance(args[0], str):
            return False
        inputs, arrow, output = args[0].replace(" ", "").partition("->")
        letters = inputs.replace(",", "").replace(".", "")
        gone = {c for c in letters if (c not in output if arrow else letters.count(c) > 1)}
        sizes = [
            size
            for part, t in zip(inputs.split(","), operands)
            if "..." not in part
            for c, size in zip(part, t.shape)
            if c in gone
        ]
        return not gone or (bool(sizes) and max(sizes) == 1)
    if "conv" in func.__name__:
        return operands[1][0].numel() == 1
    if func in (torch.tensordot, torch.chain_matmul, torch.linalg.multi_dot, F.multi_head_attention_forward):
        return False
    return operands[0].dim() > 0 and operands[0].shape[-1] == 1
