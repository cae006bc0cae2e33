"""The weight of a layer that lives in cells, and the vectors that wait to become pulses."""

from __future__ import annotations

import dataclasses
import math
from typing import Protocol

import torch
from torch import Tensor, nn

from aimc import processes
from aimc.errors import AimcError, warn
from aimc.ops.pulsed_update import Vectors


class Form(Protocol):
    """What differs between a linear layer and a convolution."""

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The exact product, as torch computes it."""
        ...

    def input_gradient(
        self, grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_bias: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients with respect to ``x`` and to a digital bias, each where it is needed."""
        ...

    def bias_gradient(self, grad: Tensor) -> Tensor:
        """``[outputs]``."""
        ...

    def vectors(self, x: Tensor, d: Tensor) -> Vectors:
        """Inputs and output gradients of one backward pass, as the layer had them."""
        ...

    def merged(self, parts: list[Vectors]) -> Vectors:
        """Several in order, as one."""
        ...

    # For reads through converters, see aimc.nn.pulsed.read.

    def parts(self, x: Tensor) -> list[slice]:
        """Along the first dimension of ``x``, what is laid out as vectors at a time, so that memory stays bounded."""
        ...

    def flat(self, x: Tensor) -> Tensor:
        """Inputs as ``[vectors, groups, columns, 1]``; of a convolution every output position of every image."""
        ...

    def tile(self, part: Tensor, weight: Tensor) -> Tensor:
        """The product of some columns of such inputs with theirs of the matrix: ``[vectors, outputs, 1]``."""
        ...

    def output(self, y: Tensor, x: Tensor) -> Tensor:
        """``[vectors, outputs, 1]`` in the shape of the layer's output for ``x``."""
        ...

    def flat_gradient(self, grad: Tensor) -> Tensor:
        """Output gradients as ``[vectors, groups, outputs of a group, 1]``."""
        ...

    def transposed(self, part: Tensor, matrix: Tensor) -> Tensor:
        """Such gradients through a matrix ``[groups, outputs, columns]``: ``[vectors, groups * columns, 1]``."""
        ...

    def gathered(self, found: Tensor, x: Tensor) -> Tensor:
        """What the transposed array gave, ``[vectors, groups * columns, 1]``, added up in the shape of x."""
        ...


@dataclasses.dataclass
class Record:
    """What one backward pass left: inputs and output gradients where autograd had them, and a factor of ``d``."""

    x: Tensor
    d: Tensor
    versions: tuple[int, int]
    factor: float = 1.0


class PendingUpdate:
    """The vectors of one layer since its last step.

    There is no dense gradient unless somebody asks for ``weight.grad``. What is then done to it can only be a scaling:
    pulses are made from x and d, and a scaling is all that can be passed on to d.

    Args:
        form: makes vectors of records.
        name: of the layer, for messages.
        columns: inputs of the layer's matrix; one more column holds the bias, if that is analog.
        with_bias: whether it does.
    """

    def __init__(self, form: Form, name: str, columns: int, with_bias: bool):
        self.form, self.name, self.columns, self.with_bias = form, name, columns, with_bias
        self.clear()

    def __getstate__(self):
        return {"form": self.form, "name": self.name, "columns": self.columns, "with_bias": self.with_bias}

    def __setstate__(self, state):
        self.__init__(**state)  # a copy has no gradient yet, as a copied parameter has none

    def __bool__(self) -> bool:
        return bool(self.records)

    def clear(self) -> None:
        """Cancel the update."""
        self.records: list[Record] = []
        self._cancelled: set[bool] = set()
        self._forget()

    def cancel(self, bias: bool) -> None:
        """Cancel the update of the weight or of the analog bias. There is one for both: it is gone with the second."""
        self._cancelled.add(bias)
        if len(self._cancelled) > self.with_bias or not self.records:
            self.clear()

    def _forget(self) -> None:
        self._dense: Tensor | None = None
        self._original: Tensor | None = None
        self._views: dict[bool, Tensor] = {}
        self._checked: Vectors | None = None

    def add(self, x: Tensor, d: Tensor) -> None:
        """Keep the vectors of one backward pass."""
        self._checked = None
        if self._dense is not None:
            self.settle()
        self.records.append(Record(x, d, (x._version, d._version)))

    def view(self, like: Tensor, bias: bool) -> Tensor | None:
        """The dense gradient of the weight or of the analog bias, in the shape and type of the parameter.

        Changing it in place scales the update.
        """
        if not self.records or bias in self._cancelled:
            return None
        if self._dense is None:
            self._dense = self._gradient().to(like.dtype)
            self._original = self._dense.clone()
        if bias not in self._views:
            part = self._dense[:, self.columns] if bias else self._dense[:, : self.columns]
            self._views[bias] = part.view(like.shape)
        return self._views[bias]

    @torch.no_grad()
    def _gradient(self) -> Tensor:
        return self._vectors().gradient()

    def settle(self) -> None:
        """Pass what was done to the dense gradient on to the vectors.

        Raises:
            AimcError: it was more than a scaling.
        """
        dense, original = self._dense, self._original
        if dense is None or original is None:
            return
        # Its version would not tell: GradScaler changes gradients without a new one.
        if not torch.equal(dense, original):
            now, before = dense.detach().double(), original.double()
            square = float((before * before).sum())
            factor = float((now * before).sum()) / square if square > 0 else 1.0
            # Infinite gradients keep an infinite factor: the check of the vectors reports them.
            if math.isfinite(factor):
                tolerance = max(1e-5, 4 * torch.finfo(dense.dtype).eps)
                off = float((now - factor * before).abs().max())
                if off > tolerance * max(float(now.abs().max()), abs(factor) * float(before.abs().max())):
                    raise AimcError(
                        "the gradient of cells was changed by more than a factor; pulses are made from inputs and "
                        "output gradients, so it can be scaled (clip_grad_norm_, GradScaler) and nothing else. Change "
                        "the loss or the output gradients instead",
                        layer=self.name,
                        field="weight.grad",
                    )
            if factor == 0:  # zero_grad(set_to_none=False)
                self.clear()
            for record in self.records:
                record.factor *= factor
        self._forget()

    def join(self) -> None:
        """Put the vectors of all processes in place of this one's, as of one batch; its loss is the mean of theirs."""
        if processes.count() == 1:
            return
        self.settle()
        self._verify()
        parts = torch.tensor([len(self.records), -len(self.records)], device="cpu")
        if int(processes.largest(parts).sum()) != 0:
            raise AimcError("the processes made different numbers of backward passes", layer=self.name)
        records = []
        for r in self.records:
            x = processes.joined(r.x.detach(), f"inputs of layer {self.name!r}")
            if len(x) != processes.count() * len(r.x):
                warn(
                    "the processes have parts of different sizes; each counts the same, as in DistributedDataParallel, "
                    "whatever its size, so that this is not the step of the joined batch",
                )
            d = processes.joined(r.d * (r.factor / processes.count()), f"gradients of layer {self.name!r}")
            records.append(Record(x, d, (x._version, d._version)))
        self.records = records

    def _verify(self) -> None:
        """Raise if the vectors are not as the backward pass left them."""
        for record in self.records:
            if (record.x._version, record.d._version) != record.versions:
                raise AimcError(
                    "an input or output gradient was changed in place between backward() and step(), and the pulses "
                    "need it; change a copy, or step first",
                    layer=self.name,
                )

    def check(self) -> None:
        """Raise unless the vectors are finite, as they were when the backward pass left them, and of all columns."""
        self._verify()
        if self._cancelled:
            gone, left = ("bias", "weight") if True in self._cancelled else ("weight", "bias")
            raise AimcError(
                f"the gradient of the {gone} was set to None and that of the {left} was not, but the analog bias is a "
                "column of the weight's array, and one pulse is for all columns; set both to None, or take "
                "mapping.analog_bias=False",
                layer=self.name, field=f"{gone}.grad",
            )  # fmt: skip
        vectors = self._vectors()
        if vectors.odd is not None:
            shape = next(
                (v.shape for r in self.records for v in (r.d, r.x) if not bool(torch.isfinite(v).all())), None
            )
            raise AimcError(
                f"the {vectors.odd} holds NaN or infinite values; nothing was written. Skip the step (zero_grad) or "
                "use a GradScaler",
                layer=self.name,
                shape=shape,
            )
        self._checked = vectors

    def take(self, factor: float = 1.0) -> Vectors:
        """The vectors of the update, their gradients times ``factor``; it is then no longer pending."""
        vectors = self._checked if factor == 1 else None
        vectors = vectors if vectors is not None else self._vectors(factor)
        self.clear()
        return vectors

    def _vectors(self, factor: float = 1.0) -> Vectors:
        factors = [r.factor * factor for r in self.records]
        parts = [self.form.vectors(r.x, r.d if f == 1 else r.d * f) for r, f in zip(self.records, factors)]
        return parts[0] if len(parts) == 1 else self.form.merged(parts)


class CellWeight(nn.Parameter):
    """What the cells of a layer amount to, in units of the layer; changed by pulses only.

    ``grad`` is made when it is asked for, from the vectors that wait; setting it to None cancels them, and scaling it
    in place scales them. It takes no other value. Anything that is written into the weight itself is an error at the
    next use; what goes past torch's own books (``weight.data.add_()``), at the next step, copy or save.
    ``layer.program(weight)`` writes weights.

    Attributes:
        pending: the layer's vectors.
        bias: whether this is an analog bias.

    Example:
        >>> from aimc import convert, presets
        >>> layer = convert(nn.Linear(2, 1), presets.reram(w_max_dtod=0.0, w_min_dtod=0.0))
        >>> layer(torch.ones(3, 2)).sum().backward()
        >>> layer.weight.grad
        tensor([[3., 3.]])
        >>> layer.weight.grad = None
    """

    pending: PendingUpdate | None = None
    bias: bool = False

    @property
    def grad(self) -> Tensor | None:  # type: ignore[override]
        return self.pending.view(self, self.bias) if self.pending is not None else None

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        pending = self.pending
        if value is None:
            if pending is not None:
                pending.cancel(self.bias)
        elif pending is None or value is not pending._views.get(self.bias):  # "p.grad *= c" sets what it got
            raise AimcError(
                "the gradient of cells cannot be set; pulses are made from inputs and output gradients. Set it to None "
                "to cancel the update, or scale it in place",
                layer=pending.name if pending is not None else None,
                field="weight.grad",
            )

    def register_hook(self, hook):
        """Not for cells: there is no gradient that a hook could see on its way."""
        raise AimcError(
            "cells have no dense gradient during backward(), so a hook would see none; "
            "read weight.grad after it. weight.register_post_accumulate_grad_hook(hook) may do so where torch calls it "
            "without a gradient: 2.13 does, 2.6 does not",
            layer=self.pending.name if self.pending is not None else None, field="weight",
        )  # fmt: skip

    def __reduce_ex__(self, protocol):
        return _rebuild, (self.detach(), self.requires_grad, self.bias)


def _rebuild(data: Tensor, requires_grad: bool, bias: bool) -> CellWeight:
    weight = CellWeight(data, requires_grad)
    weight.bias = bias
    return weight
