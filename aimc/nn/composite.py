"""Modules with several matrices: each matrix on tiles of its own, everything else as torch computes it."""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aimc.crossbar import Layout
from aimc.errors import AimcError
from aimc.hardware import Hardware, PulsedHardware
from aimc.hwa import FixedClip, GaussianClip
from aimc.nn.base import AnalogLayer
from aimc.nn.linear import AnalogLinear
from aimc.nn.loading import misfits, take_before_gains
from aimc.nn.pulsed import PulsedLayer, PulsedLinear
from aimc.random import Key

AnyHardware = Hardware | PulsedHardware


class Reached(Mapping[str, Any]):
    """A module's parameters by dotted name, those of the modules in it as well.

    Example:
        >>> Reached(nn.Sequential(nn.Linear(3, 2)))["0.weight"].shape
        torch.Size([2, 3])
    """

    def __init__(self, module: nn.Module):
        self._module = module

    def holder(self, name: str) -> nn.Module:
        """The module that holds the parameter."""
        module: Any = self._module
        for child in name.split(".")[:-1]:
            module = module._modules[child]
        return module

    def __getitem__(self, name: str) -> Any:
        return self.holder(name)._parameters[name.rpartition(".")[2]]

    def __iter__(self) -> Iterator[str]:
        return (name for name, _ in self._module.named_parameters(remove_duplicate=False))

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclasses.dataclass(frozen=True)
class Piece:
    """Where in a module's parameters one matrix is.

    Attributes:
        weight: name of the parameter, dotted where it is a child's.
        bias: name of the parameter that holds the bias, or None.
        index: what of the weight it is: an expert's number, or a slice; None is all.
        bias_index: likewise of the bias.
        transposed: whether the weight lies as ``[in, out]``.

    Example:
        >>> Piece("weight_ih_l0", index=slice(0, 4)).of(nn.LSTM(3, 4)._parameters).shape
        torch.Size([4, 3])
    """

    weight: str
    bias: str | None = None
    index: int | slice | None = None
    bias_index: int | slice | None = None
    transposed: bool = False

    def of(self, parameters: Mapping[str, Any]) -> Tensor:
        """The matrix in the parameters of a module, ``[out, in]``; a view."""
        value = parameters[self.weight]
        value = value if self.index is None else value[self.index]
        return value.t() if self.transposed else value

    def write(self, parameters: Mapping[str, Any], matrix: Tensor) -> None:
        """Write the matrix into the parameters of a module."""
        self.of(parameters).copy_(matrix)

    def layer(self, digital: nn.Module) -> nn.Module:
        """A digital layer with this piece alone; a bias that is a whole parameter stays that parameter."""
        held = Reached(digital)
        whole: Any = held[self.weight]
        weight, bias = self.of(held), self.bias_of(held)
        made = self._blank_layer(digital, weight, bias is not None)
        # Only read, to be programmed.
        made.weight = nn.Parameter(weight.detach().contiguous(), whole.requires_grad)
        if bias is not None:
            shared = isinstance(bias, nn.Parameter)
            made.bias = bias if shared else nn.Parameter(bias.detach().clone(), bias.requires_grad)
        return made.train(digital.training)

    def _blank_layer(self, digital: nn.Module, weight: Tensor, bias: bool) -> nn.Module:
        return nn.Linear(weight.shape[1], weight.shape[0], bias, device="meta")

    def bias_of(self, parameters: Mapping[str, Any]) -> Tensor | None:
        """The bias ``[out]`` in the parameters of a module; a view."""
        value = None if self.bias is None else parameters[self.bias]
        return value if value is None or self.bias_index is None else value[self.bias_index]


class AnalogMatrix(AnalogLinear):
    """One matrix of a :class:`Composite`, which holds weight and bias; further arguments as for :class:`AnalogLinear`.

    Args:
        owner: the module around it.
        piece: where in the owner's parameters the matrix is.
    """

    def __init__(
        self,
        owner: Composite,
        piece: Piece,
        hardware: Hardware,
        key: Key,
        name: str = "",
        backend: str = "auto",
    ):
        nn.Module.__init__(self)
        self.piece, self.training = piece, owner.training
        self.belongs_to(owner)
        self.out_features, self.in_features = self.weight.shape
        layout = Layout.of(hardware.tile, self.out_features, self.in_features)
        self._set_up(hardware, layout, key, name, backend)

    def belongs_to(self, owner: Composite) -> None:
        """Find the parameters there; a copied matrix has to be told where the copied owner is."""
        self._owner: weakref.ref[Composite] | None = weakref.ref(owner)

    @property
    def owner(self) -> Composite:
        """The module that holds the parameters."""
        owner = self._owner() if self._owner is not None else None
        if owner is None:
            raise AimcError("the module that holds this matrix is gone; keep it, or copy it whole")
        return owner

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.piece.of(self._present())

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        return self.piece.bias_of(self._present())

    def _present(self) -> Mapping[str, Any]:
        owner = self.owner
        owner.analog_refuse_gone([self.piece])
        return owner.analog_held()

    def _outputs_first(self) -> Tensor:
        self.owner.analog_refuse_gone([self.piece])
        return self.piece.of(self.owner.analog_parameters())

    def _parameter(self) -> nn.Parameter | None:
        owner = self._owner() if self._owner is not None else None
        return owner.analog_held().get(self.piece.weight) if owner is not None else None

    def _part(self, whole: Tensor) -> Tensor:
        return self.piece.of({self.piece.weight: whole})

    def _clip_weight(self, parameter: Tensor, clip: FixedClip | GaussianClip) -> None:
        before = parameter._version
        super()._clip_weight(parameter, clip)
        after = parameter._version
        # Matrices in one parameter have one version; what was clipped here leaves the others as they were.
        for other in self.owner.analog_matrices().values():
            if other.piece.weight == self.piece.weight and other._clipped_version == before:
                other._clipped_version = after

    def __getstate__(self):
        return {**super().__getstate__(), "_owner": None}

    def _count_versions(self) -> None:
        """Waits for the owner."""
        if self._owner is not None:
            super()._count_versions()


class Composite(nn.Module):
    """A mixin in front of a torch module with several matrices.

    On inference hardware the parameters stay here, under torch's names, and the tiles find them: optimizers,
    checkpoints and ties see no difference. In memory a matrix has cells of its own, so its parameter is the child's;
    a digital checkpoint loads all the same.

    A leaf copies what else torch's module knows, calls :meth:`_analog_set_up` in its constructor, and in its forward
    pass computes with the children where torch multiplies. Names begin with ``analog``, for torch's module may be
    anybody's.

    Attributes:
        analog_name: name used in messages.
    """

    _analog_pieces: dict[str, Piece]
    _analog_in_cells: type[PulsedLayer] = PulsedLinear

    def _analog_set_up(
        self,
        digital: nn.Module,
        pieces: Mapping[str, Piece],
        hardware: AnyHardware,
        key: Key,
        name: str,
        backend: str,
    ) -> None:
        """Take over the parameters and make a child for each piece."""
        self._analog_pieces, self.analog_name = dict(pieces), name
        self.training = digital.training
        in_cells = isinstance(hardware, PulsedHardware)
        taken = self.analog_placed() if in_cells else set()
        for parameter, value in digital._parameters.items():
            self.register_parameter(parameter, None if parameter in taken else value)
        for child, piece in pieces.items():
            below = key.fold(child), f"{name}.{child}" if name else child, backend
            kind: Any = self._analog_in_cells
            made = (
                kind(piece.layer(digital), hardware, *below)
                if in_cells
                else AnalogMatrix(self, piece, self._analog_hardware(piece, hardware), *below)
            )
            self.add_module(child, made)

    def _analog_hardware(self, piece: Piece, hardware: Any) -> Any:
        """Of a piece on inference tiles."""
        return hardware

    def analog_matrices(self) -> dict[str, AnalogMatrix]:
        """The children on inference tiles by name."""
        return {n: m for n, m in self._modules.items() if isinstance(m, AnalogMatrix)}

    def analog_placed(self) -> set[str]:
        """Names of the parameters here of which the tiles hold parts."""
        return {n for p in self._analog_pieces.values() for n in (p.weight, p.bias) if n is not None}

    def analog_held(self) -> Mapping[str, Any]:
        """The parameters by the names that pieces have for them."""
        return self._parameters

    def analog_refuse_gone(self, pieces: Iterable[Piece] | None = None) -> None:
        """Raise where a parameter of a piece (None: of any) was taken out of the module."""
        held = self.analog_held()
        pieces = self._analog_pieces.values() if pieces is None else pieces
        for name in {name for piece in pieces for name in (piece.weight, piece.bias)}:
            if name is not None and name not in held:
                raise AimcError(
                    "is no parameter of the module any more, and the tiles would miss what is in its place. After "
                    "torch.nn.utils.prune, weight_norm, spectral_norm or a parametrization: do that to the digital "
                    "network and make it permanent before aimc.convert, or prune a copy: aimc.to_digital(net). With an "
                    "adapter of PEFT, which adds to the weight itself in nn.MultiheadAttention, routers and experts "
                    "(target_parameters): choose other target_modules, or keep the module digital, "
                    "aimc.convert(..., digital=(...))",
                    layer=self.analog_name or type(self).__name__, field=name,
                )  # fmt: skip

    def analog_parameters(self) -> Mapping[str, Any]:
        """The parameters that products differentiate."""
        return self.analog_held()

    def analog_like(self) -> dict[str, Any]:
        """Device and type of the weights, for factories."""
        child: Any = self._modules[next(iter(self._analog_pieces))]
        return {"device": child.weight.device, "dtype": child.weight.dtype}

    def _analog_blank(self) -> nn.Module:
        """A module of torch's type and of this shape; its parameters will be written."""
        raise NotImplementedError

    def to_digital(self) -> Any:
        """The torch module with copies of the weights, output gains multiplied in."""
        return self.analog_export(self._analog_blank())

    @torch.no_grad()
    def analog_export(self, digital: nn.Module) -> nn.Module:
        """Write parameters, weights and mode into a digital module."""
        self.analog_refuse_gone()
        digital.train(self.training)
        for name, mine in self._parameters.items():
            there: Any = digital._parameters.get(name)
            if mine is not None:
                there.copy_(mine)
                there.requires_grad_(mine.requires_grad)
        for name, piece in self._analog_pieces.items():
            if "." not in piece.weight:
                self._analog_write(name, piece, digital._parameters)
        return digital

    def _analog_write(self, name: str, piece: Piece, there: Mapping[str, Any]) -> None:
        """Write a child's matrix into the parameters of a digital module."""
        child: Any = self._modules[name]
        if isinstance(child, AnalogMatrix):
            child.refuse_shards()
        gain = getattr(child, "output_gain", None)
        piece.write(there, child.weight if gain is None else child.weight * gain[:, None])
        if isinstance(child, PulsedLayer):
            bias = piece.bias_of(there)
            if bias is not None and child.bias is not None:
                bias.copy_(child.bias)
            there[piece.weight].requires_grad_(child.weight.requires_grad)

    # State ---------------------------------------------------------------------------------------------------------

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        """Cells take their weights from the names of torch as well."""
        gains = [(f"{prefix}{n}.output_gain", m.output_gain) for n, m in self.analog_matrices().items()]
        taken = bool(gains) and all(name in state_dict and here is not None for name, here in gains)
        take_before_gains(state_dict, prefix, self.analog_placed(), taken)
        saved = {n: state_dict.get(f"{prefix}{n}") for n in self.analog_placed()}
        own: list[str] = []
        for name, piece in self._analog_pieces.items():
            if not isinstance(self._modules[name], PulsedLayer):
                continue
            for field, source, find in (
                ("weight", piece.weight, piece.of),
                ("bias", piece.bias, piece.bias_of),
            ):
                if source is not None and saved[source] is not None:
                    try:
                        state_dict.setdefault(f"{prefix}{name}.{field}", find(saved))
                    except (AttributeError, IndexError, RuntimeError, TypeError):
                        own.append(f"{prefix}{source}: of another shape, or no tensor")
        for source in saved:
            if self.analog_held()[source] is None:
                state_dict.pop(f"{prefix}{source}", None)
        children: dict[str, Any] = {f"{prefix}{n}.": self._modules[n] for n in self._analog_pieces}
        own += [f"{prefix}{name}: {why}" for name, why in misfits(self, state_dict, prefix)]
        sound = {below for below, child in children.items() if not child.misfits(state_dict, below)}
        if own or len(sound) < len(children):
            for below in sound:  # loads what it has: all of this module, or nothing
                state_dict.update(children[below].state_dict(prefix=below))
            rest[-1].extend(own)
            return
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def __setstate__(self, state):
        super().__setstate__(state)
        for child in self.analog_matrices().values():
            child.belongs_to(self)
            child._count_versions()


@contextlib.contextmanager
def held(child: nn.Module, reads: int) -> Iterator[None]:
    """A pass of several reads; cells have nothing to hold, their weights are disturbed by nobody."""
    if isinstance(child, AnalogLayer):
        with child.held(reads):  # type: ignore[attr-defined]
            yield
    else:
        yield
