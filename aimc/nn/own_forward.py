"""Modules that multiply with bare parameters: their own forward pass runs, and its products are made on tiles."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aimc.errors import AimcError
from aimc.hardware import PulsedHardware
from aimc.nn.base import AnalogLayer
from aimc.nn.composite import AnyHardware, Composite, Piece, Reached
from aimc.nn.pulsed import PulsedLayer
from aimc.random import Key


class OwnForward(Composite):
    """A module that computes as its author wrote it, but for the products by some of its parameters.

    While the forward pass runs, those parameters are :class:`StandIn` objects: a product by one is made on its tiles,
    anything else that is done with one is an error. A matrix ``matrix`` has its tiles in the child ``tiles_matrix``,
    the matrices of a stack ``[matrices, ., .]`` theirs in ``tiles_stack_0`` and so on. Other children are
    converted beside it; one that holds such a parameter (``table.weight``, in ``tiles_table_weight``) is a
    :class:`ChildStandIn` meanwhile. Made by :func:`own_forward`.
    """

    _analog_kind: type[nn.Module]
    _analog_unwrapped: bool
    _analog_shapes: dict[str, torch.Size]
    _analog_depth: int
    _analog_live: tuple[bool, dict[str, Any]] | None

    def forward(self, *args, **kwargs):
        """Arguments and results of the module's own."""
        forward: Callable = self._analog_kind.forward
        if self._analog_unwrapped:
            forward = inspect.unwrap(forward)
        if not self._analog_depth:  # a parameter that was replaced would be multiplied by beside the tiles
            self.analog_refuse_gone()
        self._analog_depth += 1
        try:
            return forward(self, *args, **kwargs)
        finally:
            self._analog_depth -= 1
            if not self._analog_depth:
                self._analog_live = None

    def __getattr__(self, name: str) -> Any:
        own = self.__dict__
        made = _stand_in(self, name) if own.get("_analog_depth") else None
        return super().__getattr__(name) if made is None else made

    def analog_held(self) -> Mapping[str, Any]:
        return Reached(self) if any("." in name for name in self._analog_shapes) else self._parameters

    def _analog_hardware(self, piece: Piece, hardware: Any) -> Any:
        """Without output gains where the matrix serves another module, too: there is one to multiply them into."""
        alone = "." not in piece.weight or isinstance(Reached(self).holder(piece.weight), _LISTS)
        return hardware if alone else hardware.replace(**{"mapping.learned_gain": False})

    def analog_parameters(self) -> Mapping[str, Any]:
        """While the forward pass runs, stacks come apart: they have one gradient, not one for each matrix."""
        held = self.analog_held()
        if not self._analog_depth:
            return held
        if self._analog_live is None or self._analog_live[0] != torch.is_grad_enabled():
            for matrix in self.analog_matrices().values():
                matrix._clip_changes()  # in place, which the parts would not survive
            present = {n: held[n] for n in self._analog_shapes}
            parts = {n: p.unbind(0) if p is not None and p.dim() == 3 else p for n, p in present.items()}
            self._analog_live = torch.is_grad_enabled(), parts
        return self._analog_live[1]

    def analog_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Children that are not tiles of this module's parameters."""
        for name, child in self._modules.items():
            if name not in self._analog_pieces and child is not None:
                yield name, child

    def analog_shell(self, memo: dict[int, Any]) -> nn.Module:
        """A digital twin with copies of the parameters and without children.

        Args:
            memo: of the copy that the twin is a part of.
        """
        self.analog_refuse_gone()
        digital = _blank(self._analog_kind)
        for name, value in self.__dict__.items():
            if name not in _PLAIN and not name.startswith(("_analog", "analog")):
                digital.__dict__[name] = copy.deepcopy(value, memo)
        digital._buffers.update(copy.deepcopy(self._buffers, memo))
        digital._non_persistent_buffers_set.update(self._non_persistent_buffers_set)
        for name, value in self._parameters.items():
            if name in self._analog_shapes:
                empty = torch.empty(self._analog_shapes[name], **self.analog_like())
                digital.register_parameter(name, nn.Parameter(empty))
            else:
                digital.register_parameter(name, copy.deepcopy(value, memo))
        return self.analog_export(digital)

    @torch.no_grad()
    def analog_fill(self, digital: nn.Module) -> None:
        """Write what the tiles hold of its children's parameters into a digital twin that has its children.

        Raises:
            AimcError: a trained output gain on a matrix that has another use, too.
        """
        held = Reached(digital)
        for name, piece in self._analog_pieces.items():
            child: Any = self._modules[name]
            gain = getattr(child, "output_gain", None)
            if "." not in piece.weight:
                continue
            holder, key = held.holder(piece.weight), piece.weight.rpartition(".")[2]
            scaled = gain is not None and bool((gain != 1).any())
            if not isinstance(holder, _LISTS):
                there: Any = holder._parameters[key]
                if scaled or not torch.equal(there, self.analog_held()[piece.weight]):
                    raise AimcError(
                        f"output gains have been trained, and {piece.weight} is multiplied by in two places, which "
                        "would need two matrices; use hardware without mapping.learned_gain, or a matrix for each",
                        layer=self.analog_name,
                    )
                continue
            if not (scaled or isinstance(child, PulsedLayer)):
                continue  # the copied list has it
            if piece.index in (None, 0):
                old, shape = holder._parameters[key], self._analog_shapes[piece.weight]
                made = torch.empty(shape, **self.analog_like()) if old is None else old.detach().clone()
                holder._parameters[key] = nn.Parameter(made, old is None or old.requires_grad)
            self._analog_write(name, piece, held)

    def to_digital(self) -> Any:
        """A module of the original type, with copies of the weights, output gains multiplied in."""
        return digital_copy(self)

    def __reduce_ex__(self, protocol):
        _, _, *rest = super().__reduce_ex__(protocol)  # the type has no name that it could be found under
        return _blank_twin, (self._analog_kind,), *rest


_LISTS = (nn.ParameterList, nn.ParameterDict)  # hold parameters and nothing that computes with them
_PLAIN = set(nn.Module().__dict__)  # what every module has, and a twin has of its own


def _blank(kind: type[nn.Module]) -> Any:
    made = kind.__new__(kind)
    nn.Module.__init__(made)
    return made


@functools.lru_cache
def _twin_type(kind: type[nn.Module]) -> type[OwnForward]:
    return type(f"Analog{kind.__name__}", (OwnForward, kind), {"__doc__": OwnForward.__doc__})


def _blank_twin(kind: type[nn.Module]) -> OwnForward:
    return _blank(_twin_type(kind))


def own_forward(
    digital: nn.Module,
    hardware: AnyHardware,
    key: Key,
    name: str = "",
    backend: str = "auto",
    *,
    weights: Iterable[str],
    transposed: Iterable[str] = (),
    unwrap: bool = False,
) -> OwnForward:
    """The twin of a module whose forward pass multiplies with bare parameters; its type is a subclass of the module's.

    Args:
        digital: the module; its parameters are shared.
        hardware, key, name, backend: as for :class:`AnalogLinear`.
        weights: name patterns (``fnmatch``) of the parameters that are multiplied by, of two or three dimensions;
            those of children by their path.
        transposed: likewise of those among them that lie as ``[in, out]``.
        unwrap: whether to run the forward pass without what decorators have put around it.

    Example:
        >>> from aimc import presets
        >>> class Twice(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.matrix = nn.Parameter(torch.ones(2, 3))
        ...     def forward(self, x):
        ...         return 2 * F.linear(x, self.matrix)
        >>> own_forward(Twice(), presets.ideal(), Key(0), weights=["matrix"])(torch.ones(1, 3)).tolist()
        [[6.0, 6.0]]
    """
    twin = _blank_twin(type(digital))
    twin.__dict__.update({n: v for n, v in digital.__dict__.items() if n not in _PLAIN})
    for kind in ("_buffers", "_modules", "_non_persistent_buffers_set"):
        twin.__dict__[kind].update(digital.__dict__[kind])
    twin._analog_kind, twin._analog_unwrapped = type(digital), unwrap
    twin._analog_shapes, twin._analog_depth, twin._analog_live = {}, 0, None
    pieces, lying, multiplied = {}, tuple(transposed), tuple(weights)
    in_cells = isinstance(hardware, PulsedHardware)
    for parameter, value in reached(digital, multiplied).items():
        if value.dim() not in (2, 3):
            raise AimcError(
                "products are registered by matrices or stacks of them; let an nn.Conv1d, nn.Conv2d or nn.Conv3d hold "
                "and apply what is the kernel of a convolution, or see aimc.register",
                field=parameter,
                shape=value.shape,
            )
        turned = _fits(parameter, lying)
        twin._analog_shapes[parameter] = value.shape
        for index in (None,) if value.dim() == 2 else range(len(value)):
            pieces[_child(parameter, index)] = Piece(parameter, index=index, transposed=turned)
        if in_cells and "." in parameter:
            _move_out(twin, parameter)
    twin._analog_set_up(digital, pieces, hardware, key, name, backend)
    return twin


def _child(parameter: str, index: int | None) -> str:
    # Not after the parameter: libraries that rename parameters in files go by the beginning of a name.
    name = f"tiles_{parameter.replace('.', '_')}"
    return name if index is None else f"{name}_{index}"


def _fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns fits, part by part: a star stands for no dot."""
    parts = name.split(".")
    return any(
        len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
        for wanted in (pattern.split(".") for pattern in patterns)
    )


def reached(module: nn.Module, patterns: Iterable[str]) -> dict[str, nn.Parameter]:
    """Parameters of a module that patterns (``fnmatch``) name; a child's by a pattern with as many dots.

    Example:
        >>> list(reached(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), ["0.w*", "bias"]))
        ['0.weight']
    """
    patterns = tuple(patterns)
    deep = any("." in pattern for pattern in patterns)
    named = module.named_parameters(recurse=deep, remove_duplicate=False)
    return {n: p for n, p in named if _fits(n, patterns)}


def _move_out(twin: OwnForward, parameter: str) -> None:
    """Take a child's parameter out, for cells will hold it; the child of the network itself is left as it was."""
    path, _, key = parameter.rpartition(".")
    if "." in path or not isinstance(twin._modules[path], _LISTS):
        raise AimcError(
            f"{parameter} is a parameter of the module {path}, too, and cells belong to one layer; give the product a "
            "matrix of its own, or keep it digital",
            field="net",
        )
    digital: Any = twin._modules[path]
    hollow = copy.copy(digital)
    hollow._parameters = {**digital._parameters, key: None}
    twin._modules[path] = hollow


class _Refused(AimcError, AttributeError):
    """Also an AttributeError, so that ``hasattr`` works."""


def _stand_in(owner: OwnForward, path: str) -> Any:
    """What stands for a parameter on tiles or for a child that holds one; else None."""
    if path in owner._analog_shapes:
        return StandIn(owner, path)
    return ChildStandIn(owner, path) if any(n.startswith(f"{path}.") for n in owner._analog_shapes) else None


class ChildStandIn:
    """Stands for a child in the forward pass of a module that multiplies by its parameters; else it is the child.

    Called, it computes as ever and with the parameter itself: a look-up in a table whose weight is on tiles is digital.

    Args:
        owner: the module.
        path: of the child.
    """

    def __init__(self, owner: OwnForward, path: str):
        self.__dict__.update(_owner=owner, _path=path)

    @property
    def __class__(self):  # isinstance sees the child
        return type(self._stands_for())

    def _stands_for(self) -> Any:
        return Reached(self._owner).holder(f"{self._path}.")

    def __getattr__(self, name: str) -> Any:
        made = _stand_in(self._owner, f"{self._path}.{name}")
        return getattr(self._stands_for(), name) if made is None else made

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._stands_for(), name, value)

    def __call__(self, *args, **kwargs):
        return self._stands_for()(*args, **kwargs)

    def __len__(self) -> int:
        return len(self._stands_for())

    def __iter__(self) -> Iterator[Any]:
        child = self._stands_for()
        return (
            iter(child)
            if isinstance(child, (nn.ModuleDict, nn.ParameterDict))
            else map(self.__getitem__, range(len(child)))
        )

    def __bool__(self) -> bool:
        return bool(self._stands_for())

    def __contains__(self, name: str) -> bool:
        return name in self._stands_for()

    def __getitem__(self, index) -> Any:
        if isinstance(index, slice):
            return [self[k] for k in range(len(self))[index]]
        if isinstance(index, int):
            if not -len(self) <= index < len(self):
                raise IndexError(f"index {index} is out of range for {len(self)} entries")
            index = index % len(self)
        return getattr(self, str(index))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._path})"


class StandIn:
    """Stands for a parameter in the forward pass of a module: good for products, made on tiles, and for little else.

    Args:
        owner: the module.
        name: of the parameter.
        index: which matrix of a stack; None is all.
        turned: whether the last two dimensions have been exchanged.
    """

    def __init__(self, owner: OwnForward, name: str, index: int | None = None, turned: bool = False):
        self._owner, self._name, self._index, self._turned = owner, name, index, turned

    # What a tensor knows of itself.

    @property
    def shape(self) -> torch.Size:
        shape = list(self._owner._analog_shapes[self._name][0 if self._index is None else 1 :])
        return torch.Size([*shape[:-2], shape[-1], shape[-2]] if self._turned else shape)

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self._owner.analog_like()["dtype"]

    @property
    def device(self) -> torch.device:
        return self._owner.analog_like()["device"]

    def dim(self) -> int:
        return self.ndim

    def size(self, dim: int | None = None):
        return self.shape if dim is None else self.shape[dim]

    def numel(self) -> int:
        return self.shape.numel()

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._name}, {list(self.shape)})"

    def __getattr__(self, name: str):
        raise self._refusal(f"the attribute {name}")

    # Another look at the same tiles.

    def __getitem__(self, index) -> StandIn:
        single = isinstance(index, int) or (isinstance(index, Tensor) and index.numel() == 1)
        if self.ndim != 3 or not single:
            raise self._refusal(f"[{index!r}]")
        number = int(index)
        if not -len(self) <= number < len(self):
            raise IndexError(f"index {number} is out of range for {len(self)} matrices")
        return StandIn(self._owner, self._name, number % len(self), self._turned)

    def unbind(self, dim: int = 0) -> tuple[StandIn, ...]:
        if dim != 0:
            raise self._refusal(f"unbind({dim})")
        return tuple(self[k] for k in range(len(self)))

    def __iter__(self) -> Iterator[StandIn]:
        return iter(self.unbind())

    def transpose(self, a: int, b: int) -> StandIn:
        if {a % self.ndim, b % self.ndim} != {self.ndim - 2, self.ndim - 1}:
            raise self._refusal(f"transpose({a}, {b})")
        return StandIn(self._owner, self._name, self._index, not self._turned)

    def t(self) -> StandIn:
        return self.transpose(0, 1)

    @property
    def T(self) -> StandIn:
        return self.transpose(0, 1)

    @property
    def mT(self) -> StandIn:
        return self.transpose(-2, -1)

    def _same(self, *args, **kwargs) -> StandIn:
        return self  # a tile computes in the type and on the device of its weight

    to = type = type_as = float = half = bfloat16 = contiguous = _same

    # Products.

    def product(self, x: Any, outputs_first: bool) -> Tensor:
        """``[..., in]`` -> ``[..., out]``; a stack takes ``[matrices, ..., in]``.

        Args:
            outputs_first: whether the caller takes the matrix for ``[out, in]``.
        """
        if not isinstance(x, Tensor):
            raise self._refusal(f"a product with {type(x).__name__}")
        stack = self.ndim == 3
        children = [_child(self._name, k) for k in (range(len(self)) if stack else (self._index,))]
        lies_so = self._owner._analog_pieces[children[0]].transposed == self._turned
        if lies_so != outputs_first:
            forms = ("[in, out]", "[out, in]")
            raise AimcError(
                f"is multiplied as {forms[outputs_first]}, but was registered as {forms[lies_so]}; see transposed= of "
                "aimc.register_products",
                layer=self._owner.analog_name, field=self._name,
            )  # fmt: skip
        tiles: list[Any] = [self._owner._modules[child] for child in children]
        if not stack:
            return tiles[0](x)
        if x.dim() < 3 or len(x) != len(tiles):
            raise AimcError(
                f"a stack of {len(tiles)} matrices takes as many batches", layer=self._owner.analog_name,
                field=self._name, shape=x.shape,
            )  # fmt: skip
        return torch.stack([tile(part) for tile, part in zip(tiles, x.unbind(0), strict=True)])

    def __matmul__(self, other) -> Tensor:
        return _matmul(self, other)

    def __rmatmul__(self, other) -> Tensor:
        return _matmul(other, self)

    def _refusal(self, what: str) -> AimcError:
        return _Refused(
            f"the forward pass asks for {what} of a weight that is on tiles, and tiles only multiply; keep the module "
            "digital, or write a twin for it, see aimc.register",
            layer=self._owner.analog_name, field=self._name,
        )  # fmt: skip

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _PRODUCTS:
            return _PRODUCTS[func](*args, **kwargs)
        given = [*args, *kwargs.values()]
        given += [b for a in given if isinstance(a, (tuple, list)) for b in a]
        raise next(a for a in given if isinstance(a, StandIn))._refusal(getattr(func, "__name__", str(func)))


def _refuse(name: str) -> None:
    def refuse(self: StandIn, *args):
        raise self._refusal(name)

    setattr(StandIn, name, refuse)


for _operation in ("add", "sub", "mul", "truediv", "pow"):
    _refuse(f"__{_operation}__")
    _refuse(f"__r{_operation}__")
for _operation in ("neg", "abs", "setitem"):
    _refuse(f"__{_operation}__")


def _linear(input, weight, bias=None):
    if not isinstance(weight, StandIn) or isinstance(bias, StandIn):
        raise next(a for a in (input, bias) if isinstance(a, StandIn))._refusal(
            "something else than a product"
        )
    y = weight.product(input, outputs_first=True)
    return y if bias is None else y + bias


def _matmul(input, other):
    if isinstance(other, StandIn):
        return other.product(input, outputs_first=False)
    if other.dim() == 1:
        return input.product(other, outputs_first=True)
    return input.product(other.mT, outputs_first=True).mT


def _addmm(input, mat1, mat2, *, beta=1, alpha=1):
    y = _matmul(mat1, mat2)
    return beta * input + (y if alpha == 1 else alpha * y)


_PRODUCTS: dict[Any, Callable] = {
    F.linear: _linear,
    **dict.fromkeys((torch.matmul, torch.mm, torch.mv, torch.bmm), _matmul),
    **dict.fromkeys((Tensor.matmul, Tensor.mm, Tensor.mv, Tensor.bmm, Tensor.__matmul__), _matmul),
    **dict.fromkeys((torch.addmm, Tensor.addmm), _addmm),
}


# Copies ----------------------------------------------------------------------------------------------------------


def digital_copy(net: nn.Module) -> Any:
    """A copy in which every analog module is torch's again; what is tied stays tied.

    Example:
        >>> from aimc import presets
        >>> from aimc.nn import AnalogLinear
        >>> digital_copy(AnalogLinear(nn.Linear(2, 2), presets.ideal(), Key(0)))
        Linear(in_features=2, out_features=2, bias=True)
    """
    memo: dict[int, Any] = {}
    opened: list[OwnForward] = []
    for module in _with_twins(net):
        if isinstance(module, OwnForward):
            opened.append(module)
            twin = module.analog_shell(memo)
            tiles = [module._modules[name] for name in module._analog_pieces]
        else:
            twin = module.to_digital()  # type: ignore[operator]
            tiles = list(module.modules())
        memo[id(module)] = twin
        # A gain that was trained makes it another matrix.
        gains = [getattr(m, "output_gain", None) for m in tiles]
        if any(gain is not None and bool((gain != 1).any()) for gain in gains):
            continue
        for name, parameter in module._parameters.items():
            if parameter is not None and name in twin._parameters:
                twin._parameters[name] = memo.setdefault(id(parameter), twin._parameters[name])
    for module in opened:
        for name, child in module.analog_children():
            memo[id(module)]._modules[name] = copy.deepcopy(child, memo)
        module.analog_fill(memo[id(module)])
    return copy.deepcopy(net, memo)


def _with_twins(net: nn.Module) -> Iterator[nn.Module]:
    """Modules that know their digital twin, but for those inside another one's."""
    if isinstance(net, OwnForward):
        yield net
        for _, child in net.analog_children():
            yield from _with_twins(child)
    elif isinstance(net, (AnalogLayer, PulsedLayer, Composite)):
        yield net
    else:
        for child in net.children():
            yield from _with_twins(child)
