"""The input and gradient vectors of one update, where they lie: nothing is unfolded."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from aimc.errors import AimcError
from aimc.ops.pulsed_update.cpu import finite

Arrays: TypeAlias = tuple[
    np.ndarray, int, np.ndarray, np.ndarray, int, int, int, int, np.ndarray, int, int, int, int, int
]


@dataclasses.dataclass(frozen=True)
class Patches:
    """How a convolution's vectors lie in its padded input.

    Attributes:
        starts: int64 ``[L]``: where the patch of an output position begins, relative to its image.
        offsets: int64 ``[C]``: where the inputs of a patch lie, relative to its beginning.
        group_stride: elements between the first channels of two groups.
        stride, dilation: of the convolution.
        kernel: spatial size of the filter.
        with_one: the input has a last channel of ones, and every patch a last input there: that of an analog bias.
    """

    starts: Tensor
    offsets: Tensor
    group_stride: int
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    kernel: tuple[int, ...]
    with_one: bool = False

    @functools.cached_property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Starts and offsets as the compiled body sees them, copied: torch gives tensors that go to another process
        other memory."""
        return self.starts.numpy().copy(), self.offsets.numpy().copy()

    @classmethod
    def of(
        cls,
        size: tuple[int, ...],
        channels: int,
        kernel: tuple[int, ...],
        stride: tuple[int, ...],
        dilation: tuple[int, ...],
        with_one: bool = False,
    ) -> Patches:
        """Of an input with spatial ``size`` (padding included) and ``channels`` per group, the one of ones not counted.

        Example:
            >>> Patches.of((3,), 2, (2,), (1,), (1,), with_one=True).offsets
            tensor([0, 1, 3, 4, 6])
        """
        strides = [math.prod(size[i + 1 :]) for i in range(len(size))]
        out = [
            (n - d * (k - 1) - 1) // s + 1 for n, k, s, d in zip(size, kernel, stride, dilation, strict=True)
        ]

        def grid(counts, steps) -> Tensor:
            total = torch.zeros(1, dtype=torch.int64, device="cpu")
            for count, by in zip(counts, steps, strict=True):
                total = (total[:, None] + torch.arange(count, device="cpu")[None] * by).reshape(-1)
            return total

        starts = grid(out, [s * st for s, st in zip(stride, strides, strict=True)])
        plane = math.prod(size)
        offsets = grid(
            (channels, *kernel), (plane, *(d * st for d, st in zip(dilation, strides, strict=True)))
        )
        if with_one:
            offsets = torch.cat([offsets, torch.tensor([channels * plane], device="cpu")])
        return cls(starts, offsets, (channels + with_one) * plane, stride, dilation, kernel, with_one)


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Inputs ``x`` and gradients ``d`` of one or more forward passes of a layer.

    Vector ``v`` of image ``b`` at output position ``l`` is number ``b L + l``: image-major, position-minor.

    Attributes:
        x: float32, contiguous: ``[vectors, C]``, or a convolution's padded input ``[images, channels, *size]``.
        d: float32, contiguous: ``[vectors, R]``, or ``[images, R, L]`` for a convolution, in memory perhaps as
            ``[images, L, R]`` (channels last).
        groups: of the convolution; rows and channels are divided among them in order.
        patches: a convolution's geometry, None for a linear layer.
    """

    x: Tensor
    d: Tensor
    groups: int = 1
    patches: Patches | None = None

    def __post_init__(self):
        x, d, p = self.x.shape, self.d.shape, self.patches
        if p is None and not (len(x) == len(d) == 2 and self.groups == 1):
            raise AimcError(
                f"inputs {list(x)} and {self.groups} groups are not those of a linear layer", shape=d
            )
        if p is not None and not (len(d) == 3 and math.prod(x[1:]) == self.groups * p.group_stride):
            raise AimcError(
                f"inputs {list(x)} are not those of {self.groups} groups of these patches", shape=d
            )
        if d[0] != x[0]:
            raise AimcError(f"{x[0]} inputs and {d[0]} gradients", shape=d)
        if p is not None and d[2] != p.starts.shape[0]:
            raise AimcError(f"{p.starts.shape[0]} output positions and {d[2]} gradients", shape=d)
        if d[1] % self.groups:
            raise AimcError(f"{d[1]} rows do not divide into {self.groups} groups", shape=d)
        if not (self.x.is_contiguous() and (self.d.is_contiguous() or channels_last(self.d))):
            raise AimcError("inputs and gradients must be contiguous", shape=d)

    @property
    def count(self) -> int:
        """Number of vectors."""
        return self.d.shape[0] * (self.d.shape[2] if self.d.dim() == 3 else 1)

    @property
    def rows(self) -> int:
        return self.d.shape[1]

    @property
    def columns(self) -> int:
        return self.patches.offsets.shape[0] if self.patches is not None else self.x.shape[1]

    @functools.cached_property
    def flat(self) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and gradients as the compiled body sees them."""
        d = self.d if self.d.is_contiguous() else self.d.transpose(1, 2)
        return self.x.numpy().reshape(-1), d.numpy().reshape(-1)

    @functools.cached_property
    def odd(self) -> str | None:
        """Which of the two holds NaN or infinite values, if any does."""
        flat = self.flat if self.x.is_cpu else (self.x, self.d)
        for what, value in (("gradient", flat[1]), ("input", flat[0])):
            if not (finite(value) if isinstance(value, np.ndarray) else bool(torch.isfinite(value).all())):
                return what
        return None

    def arrays(self) -> Arrays:
        """What the compiled body takes: inputs, gradients and where their vectors lie."""
        (x, d), p = self.flat, self.patches
        if p is None:
            (count, rows), columns = self.d.shape, self.x.shape[1]
            starts = _range(count, columns)  # one image, of which each vector is a position
            return x, 0, starts, _range(columns), columns, 0, 0, 1, d, 0, 1, rows, 1, count
        images, rows, positions = self.d.shape
        # The channel of ones has a single input in a patch, so that all inputs are looked at one by one.
        taps = p.offsets.shape[0] if p.with_one else math.prod(p.kernel)
        row, position = (positions, 1) if self.d.is_contiguous() else (1, rows)
        return (
            x, self.groups * p.group_stride, *p.arrays, taps,
            math.prod(self.x.shape[2:]), p.group_stride, self.groups, d, rows * positions, row, position, images,
            positions,
        )  # fmt: skip

    def gradient(self, columns: Tensor | None = None) -> Tensor:
        """``sum_v d_v x_v^T``: the dense gradient ``[R, C]``, or only those columns of it."""
        if self.patches is None:
            return self.d.t() @ (self.x if columns is None else self.x[:, columns])
        p, dims = self.patches, self.x.dim() - 2
        out = [
            (n - d * (k - 1) - 1) // s + 1
            for n, k, s, d in zip(self.x.shape[2:], p.kernel, p.stride, p.dilation, strict=True)
        ]
        x = self.x[:, :-1] if p.with_one else self.x
        filters = x.new_empty(self.rows, x.shape[1] // self.groups, *p.kernel)
        grad = torch.ops.aten.convolution_backward(
            self.d.view(self.d.shape[0], self.rows, *out), x, filters, None, p.stride, [0] * dims, p.dilation,
            False, [0] * dims, self.groups, [False, True, False],
        )[1]  # fmt: skip
        grad = grad.reshape(self.rows, -1)
        if p.with_one:
            grad = torch.cat([grad, self.d.sum((0, 2))[:, None]], 1)
        return grad if columns is None else grad[:, columns]

    def unfolded(self) -> tuple[Tensor, Tensor]:
        """``x [groups, vectors, C]`` and ``d [groups, vectors, R/groups]``, copied out; for checks."""
        rows = self.rows // self.groups
        if self.patches is None:
            return self.x[None], self.d[None]
        p = self.patches
        group = torch.arange(self.groups, device="cpu") * p.group_stride
        index = group[:, None, None] + p.starts[None, :, None] + p.offsets[None, None]
        x = self.x.flatten(1)[:, index].transpose(0, 1).flatten(1, 2)
        d = self.d.unflatten(1, (self.groups, rows)).permute(1, 0, 3, 2).flatten(1, 2)
        return x, d


def channels_last(d: Tensor) -> bool:
    """Whether gradients ``[images, R, L]`` lie in memory as ``[images, L, R]``."""
    return d.dim() == 3 and d.transpose(1, 2).is_contiguous()


@functools.lru_cache(256)
def _range(n: int, step: int = 1) -> np.ndarray:
    return np.arange(n) * step


def padded(x: Tensor, padding: list[int], mode: str = "zeros") -> Tensor:
    """The input of a convolution with its padding made explicit, contiguous."""
    if any(padding):
        x = F.pad(x, padding, mode="constant" if mode == "zeros" else mode)
    return x.contiguous()
