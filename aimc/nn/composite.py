"""Modules with several matrices: each matrix on tiles of its own, everything else as torch computes it."""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aimc.crossbar import Layout
from aimc.errors import AimcError
from aimc.hardware import Hardware, PulsedHardware
from aimc.nn.base import AnalogLayer
from aimc.nn.linear import AnalogLinear
from aimc.nn.pulsed import PulsedLinear
from aimc.random import Key

AnyHardware = Hardware | PulsedHardware


@dataclasses.dataclass(frozen=True)
class Piece:
    """Where in a module's parameters one matrix is.

    Attributes:
        weight: name of the parameter.
        bias: name of the parameter that holds the bias, or None.
        index: what of the weight it is, and of the bias: an expert's number, or a slice; None is all.
        transposed: whether the weight lies as ``[in, out]``.

    Example:
        >>> lstm = nn.LSTM(3, 4)
        >>> Piece("weight_ih_l0", "bias_ih_l0", slice(0, 4)).of(lstm).shape
        torch.Size([4, 3])
    """

    weight: str
    bias: str | None = None
    index: int | slice | None = None
    transposed: bool = False

    def of(self, module: nn.Module) -> Tensor:
        """The matrix in a module's parameter, ``[out, in]``; a view."""
        value = getattr(module, self.weight)
        value = value if self.index is None else value[self.index]
        return value.t() if self.transposed else value

    def bias_of(self, module: nn.Module) -> Tensor | None:
        """The bias ``[out]`` in a module's parameter; a view."""
        value = None if self.bias is None else getattr(module, self.bias)
        return value if value is None or self.index is None else value[self.index]


class AnalogMatrix(AnalogLinear):
    """One matrix of a :class:`Composite`, which holds the weight and the bias; arguments as for :class:`AnalogLinear`.

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
        self._set_up(
            hardware, Layout.of(hardware.tile, self.out_features, self.in_features), key, name, backend
        )

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
        return self.piece.of(self.owner)

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        return self.piece.bias_of(self.owner)

    def _parameter(self) -> nn.Parameter | None:
        owner = self._owner() if self._owner is not None else None
        return getattr(owner, self.piece.weight) if owner is not None else None

    @torch.no_grad()
    def constrain(self) -> None:
        before = self.weight._version
        super().constrain()
        after = self.weight._version
        # Matrices in one parameter have one version; what was clipped here leaves the others as they were.
        for other in self.owner.matrices().values():
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

    A leaf copies what else torch's module knows, calls :meth:`_set_up` in its constructor, and in its forward pass
    computes with the children where torch multiplies.
    """

    _pieces: dict[str, Piece]

    def _set_up(
        self,
        digital: nn.Module,
        pieces: Mapping[str, Piece],
        hardware: AnyHardware,
        key: Key,
        name: str,
        backend: str,
    ) -> None:
        """Take over the parameters and make a child for each piece."""
        self._pieces, self.name = dict(pieces), name
        self.training = digital.training
        in_cells = isinstance(hardware, PulsedHardware)
        taken = self.placed() if in_cells else set()
        for parameter, value in digital._parameters.items():
            if parameter not in taken or value is None:
                self.register_parameter(parameter, value)
        for child, piece in pieces.items():
            below = key.fold(child), f"{name}.{child}" if name else child, backend
            made = (
                PulsedLinear(_linear(digital, piece), hardware, *below)
                if in_cells
                else AnalogMatrix(self, piece, hardware, *below)
            )
            self.add_module(child, made)

    def matrices(self) -> dict[str, AnalogMatrix]:
        """The children on inference tiles by name."""
        return {n: m for n, m in self._modules.items() if isinstance(m, AnalogMatrix)}

    def placed(self) -> set[str]:
        """Names of the parameters here of which the tiles hold parts."""
        return {n for p in self._pieces.values() for n in (p.weight, p.bias) if n is not None}

    def _blank(self) -> nn.Module:
        """A module of torch's type and of this shape; its parameters will be written."""
        raise NotImplementedError

    @torch.no_grad()
    def to_digital(self) -> Any:
        """The torch module with copies of the weights, output gains multiplied in."""
        digital = self._blank().train(self.training)
        for name, mine in self._parameters.items():
            there: Any = digital._parameters[name]
            if mine is not None:
                there.copy_(mine)
                there.requires_grad_(mine.requires_grad)
        for name, piece in self._pieces.items():
            child: Any = self._modules[name]
            gain = getattr(child, "output_gain", None)
            piece.of(digital).copy_(child.weight if gain is None else child.weight * gain[:, None])
            if isinstance(child, PulsedLinear):
                bias = piece.bias_of(digital)
                if bias is not None and child.bias is not None:
                    bias.copy_(child.bias)
                getattr(digital, piece.weight).requires_grad_(child.weight.requires_grad)
        return digital

    def like(self) -> dict[str, Any]:
        """Device and type of the weights, for factories."""
        child: Any = self._modules[next(iter(self._pieces))]
        return {"device": child.weight.device, "dtype": child.weight.dtype}

    # State ---------------------------------------------------------------------------------------------------------

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        """Cells take their weights from the names of torch as well."""
        for name, piece in self._pieces.items():
            child = self._modules[name]
            if not isinstance(child, PulsedLinear):
                continue
            for field, source in (("weight", piece.weight), ("bias", piece.bias)):
                value = state_dict.get(f"{prefix}{source}")
                if value is None:
                    continue
                value = value if piece.index is None else value[piece.index]
                value = value.t() if piece.transposed and field == "weight" else value
                state_dict.setdefault(f"{prefix}{name}.{field}", value)
        for source in self.placed():
            if source not in self._parameters:
                state_dict.pop(f"{prefix}{source}", None)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def __setstate__(self, state):
        super().__setstate__(state)
        for child in self.matrices().values():
            child.belongs_to(self)
            child._count_versions()


def _linear(digital: nn.Module, piece: Piece) -> nn.Linear:
    """A layer of its own with one piece; a bias that is a whole parameter stays that parameter."""
    weight, bias = piece.of(digital), piece.bias_of(digital)
    made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    # Only read, to be programmed.
    made.weight = nn.Parameter(weight.detach().contiguous(), getattr(digital, piece.weight).requires_grad)
    if bias is not None:
        made.bias = (
            bias
            if isinstance(bias, nn.Parameter)
            else nn.Parameter(bias.detach().clone(), bias.requires_grad)
        )
    return made.train(digital.training)


@contextlib.contextmanager
def held(child: nn.Module, reads: int) -> Iterator[None]:
    """A pass of several reads; cells have nothing to hold, their weights are disturbed by nobody."""
    if isinstance(child, AnalogLayer):
        with child.held(reads):  # type: ignore[attr-defined]
            yield
    else:
        yield
