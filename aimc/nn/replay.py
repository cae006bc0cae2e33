"""Forward passes that are made again during a backward pass: they have to meet the same noise.

Activation checkpointing drops what a layer computed and calls it a second time when the gradient is asked for. A layer
that simply drew new noise would return the gradient of another network, and nothing would show it. So reads that may
come back leave a record, and a read that happens inside a backward pass looks for its own.
"""

from __future__ import annotations

import collections
import dataclasses
import weakref
import zlib
from typing import Any

import torch
from torch import Tensor

from aimc.errors import AimcError

_KEPT = 4096
"""Records a layer keeps; one is a few numbers."""


@dataclasses.dataclass
class Record:
    """What decides a forward pass beside input and parameters.

    Attributes:
        token: number of the record, for who asks for it by name.
        step: the layer's training step.
        evaluated: vectors read before, in evaluation mode.
        training: the layer's mode.
        started: whether the input range had been set.
        chip: the weights of the chip that was in place, or None.
        fingerprint: of the input, or None where the record is asked for by name.
        ranges: input range of every read.
        used: whether the forward pass has been made again.
    """

    token: int
    step: int
    evaluated: int
    training: bool
    started: bool
    chip: weakref.ref[Any] | None
    fingerprint: tuple[Any, ...] | None = None
    ranges: list[Tensor] = dataclasses.field(default_factory=list)
    used: bool = False
    position: int = 0

    @property
    def programmed(self) -> Any:
        """The weights of the chip that was in place, or None."""
        if self.chip is None:
            return None
        weights = self.chip()
        if weights is None:
            raise AimcError(
                "the chip that the forward pass read is gone; make the gradient while it is in place"
            )
        return weights


class Records:
    """The latest records of one layer."""

    def __init__(self) -> None:
        self._held: collections.deque[Record] = collections.deque(maxlen=_KEPT)
        self._count = 0

    def __reduce__(self):
        return Records, ()  # a copy has none of the backward passes that these are of

    def __len__(self) -> int:
        return len(self._held)

    def add(self, **values: Any) -> Record:
        """Make a record."""
        self._count += 1
        record = Record(token=self._count, **values)
        self._held.append(record)
        return record

    def named(self, token: int) -> Record | None:
        """The record of that number, if it is still known."""
        return next((r for r in reversed(self._held) if r.token == token), None)

    def matching(self, fingerprint: tuple[Any, ...] | None) -> Record | None:
        """The latest record of such an input, one that was not used before another; else None.

        Backward passes run last things first, so of several alike the latest is meant.

        Raises:
            AimcError: there is none, but there were more records than are kept.
        """
        alike = [r for r in self._held if r.fingerprint == fingerprint]
        if not alike and self._count > _KEPT:
            raise AimcError(
                f"a forward pass is made again that is not among the last {_KEPT} reads of this layer, so that it "
                "would meet other noise; checkpoint less at a time"
            )
        return next((r for r in reversed(alike) if not r.used), alike[-1] if alike else None)


def fingerprint(x: Tensor) -> tuple[Any, ...]:
    """What tells one input from another: its shape and a checksum of its bits in their order.

    Example:
        >>> one = fingerprint(torch.tensor([1.0, 2.0]))
        >>> one == fingerprint(torch.tensor([1.0, 2.0])), one == fingerprint(torch.tensor([2.0, 1.0]))
        (True, False)
    """
    size = x.element_size()
    bits = (
        x.detach().contiguous().view({1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[size])
    )
    if bits.is_cpu:
        return tuple(x.shape), x.dtype, zlib.crc32(bits.numpy().data)
    places = torch.arange(1, bits.numel() + 1, device=bits.device)
    return tuple(x.shape), x.dtype, int((bits.reshape(-1) * places).sum())


def may_come_back(training: bool) -> bool:
    """Whether what is computed now is dropped and may be asked for again.

    Both kinds of ``torch.utils.checkpoint`` are recognised: one catches what is saved for the backward pass, the other
    runs a training forward pass without a graph.
    """
    if not torch.is_grad_enabled():
        return training
    autograd: Any = torch._C
    hooks = getattr(autograd._autograd, "_top_saved_tensors_default_hooks", None)
    return hooks is None or hooks(True) is not None  # torch 2.6 and 2.7 do not tell: there every pass may


def inside_backward() -> bool:
    """Whether a backward pass is running in this thread."""
    return torch._C._current_graph_task_id() != -1
