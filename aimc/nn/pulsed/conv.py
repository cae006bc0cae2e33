"""Convolutions in cells: native products, and nothing is unfolded."""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aimc.crossbar import Layout
from aimc.errors import AimcError
from aimc.hardware import PulsedHardware
from aimc.nn.images import TorchsArguments, batched, check_kernel, pad_images
from aimc.nn.pulsed.base import PulsedLayer
from aimc.ops.pulsed_update import Patches, Vectors, channels_last, padded
from aimc.random import Key

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_MOST_UNFOLDED = 1 << 22
"""Numbers of the patches that are laid out at a time where they are read through converters."""
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class ConvForm:
    """Inputs ``[images, channels, *size]``; every output position of every image is a vector.

    Args:
        layer: the digital convolution.
        padding: symmetric zero padding per dimension; any other is applied before.
        analog_bias: the vectors have a last input that is 1, from a channel of ones.
    """

    def __init__(self, layer, padding: tuple[int, ...], analog_bias: bool):
        self.kernel, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.groups, self.padding, self.analog_bias = layer.groups, padding, analog_bias
        self.channels = layer.in_channels // layer.groups
        self._patches: dict[tuple[tuple[int, ...], bool], Patches] = {}
        self._rest: dict[tuple[int, ...], list[int]] = {}

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _CONV[len(self.padding)](
            x, weight, bias, self.stride, self.padding, self.dilation, self.groups
        )

    def input_gradient(self, grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_bias: bool):
        bias = self.bias_gradient(grad) if need_bias else None
        if not need_x:
            return None, bias
        # A transposed convolution takes half the time of torch's own backward pass without the weight's gradient.
        weight, dims = weight.to(grad.dtype), len(self.padding)
        rest = self._rest.get(x.shape[2:])
        if rest is None:
            spans = zip(
                x.shape[2:],
                grad.shape[2:],
                self.kernel,
                self.stride,
                self.dilation,
                self.padding,
                strict=True,
            )
            rest = [n + 2 * p - ((m - 1) * s + d * (k - 1) + 1) for n, m, k, s, d, p in spans]
            self._rest[x.shape[2:]] = rest
        found = _TRANSPOSED[dims](
            grad, weight, None, self.stride, self.padding, rest, self.groups, self.dilation
        )
        return found.to(x.dtype), bias

    def bias_gradient(self, grad: Tensor) -> Tensor:
        return grad.flatten(2).sum((0, 2))

    def vectors(self, x: Tensor, d: Tensor) -> Vectors:
        amounts = [p for n in reversed(self.padding) for p in (n, n)]
        x = padded(x.detach().float(), amounts)
        if self.analog_bias:
            x = torch.cat([x, x.new_ones(len(x), 1, *x.shape[2:])], 1)
        return self._vectors(x, d.float())

    def _geometry(self, size: tuple[int, ...], with_one: bool = False) -> Patches:
        """Of a padded input."""
        patches = self._patches.get((size, with_one))
        if patches is None:
            patches = Patches.of(size, self.channels, self.kernel, self.stride, self.dilation, with_one)
            self._patches[size, with_one] = patches
        return patches

    def _vectors(self, x: Tensor, d: Tensor) -> Vectors:
        patches = self._geometry(tuple(x.shape[2:]), self.analog_bias)
        d = d.flatten(2)
        return Vectors(x, d if channels_last(d) else d.contiguous(), self.groups, patches)

    def merged(self, parts: list[Vectors]) -> Vectors:
        largest = tuple(max(sizes) for sizes in zip(*(p.x.shape[2:] for p in parts), strict=True))
        fitted = [self._enlarged(p, largest) for p in parts]
        return dataclasses.replace(
            fitted[0], x=torch.cat([p.x for p in fitted]), d=torch.cat([p.d for p in fitted])
        )

    def _enlarged(self, part: Vectors, size: tuple[int, ...]) -> Vectors:
        """The same vectors in a larger image; those that come with it have no gradient, so they give no pulse."""
        if part.x.shape[2:] == size:
            return part
        before, after = self._out(part.x.shape[2:]), self._out(size)

        def grown(value: Tensor, old: tuple[int, ...], new: tuple[int, ...]) -> Tensor:
            amounts = [n for a, b in reversed(list(zip(old, new, strict=True))) for n in (0, b - a)]
            return F.pad(value, amounts)

        d = part.d.view(*part.d.shape[:2], *before)
        return self._vectors(grown(part.x, tuple(part.x.shape[2:]), size), grown(d, before, after))

    def _out(self, size) -> tuple[int, ...]:
        return tuple(
            (n - d * (k - 1) - 1) // s + 1
            for n, k, s, d in zip(size, self.kernel, self.stride, self.dilation, strict=True)
        )

    # For reads through converters: [vectors, groups, columns, 1], see aimc.nn.pulsed.read.

    def parts(self, x: Tensor) -> list[slice]:
        each = self._positions(x) * self.groups * self.channels * math.prod(self.kernel)
        images = max(_MOST_UNFOLDED // max(each, 1), 1)
        return [slice(i, i + images) for i in range(0, len(x), images)] or [slice(0, 0)]

    def flat(self, x: Tensor) -> Tensor:
        amounts = [p for n in reversed(self.padding) for p in (n, n)]
        x = padded(x, amounts)
        index = self._index(tuple(x.shape[2:]), x.device)
        return x.flatten(1)[:, index].flatten(0, 1)[..., None]

    def _index(self, size: tuple[int, ...], device: torch.device) -> Tensor:
        """Where the inputs of every position lie in a padded image, ``[positions, groups, C]``."""
        p = self._geometry(size)
        group = torch.arange(self.groups, device="cpu") * p.group_stride
        return (p.starts[:, None, None] + group[None, :, None] + p.offsets[None, None]).to(device)

    def tile(self, part: Tensor, weight: Tensor) -> Tensor:
        filters = weight.view(self.groups, len(weight) // self.groups, weight.shape[1])
        found = torch.matmul(part[..., 0].transpose(0, 1), filters.transpose(1, 2))
        return found.transpose(0, 1).flatten(1)[..., None]

    def output(self, y: Tensor, x: Tensor) -> Tensor:
        y = y.view(len(x), self._positions(x), y.shape[1]).transpose(1, 2)
        return y.reshape(*y.shape[:2], *self._out(self._padded_size(x)))

    def flat_gradient(self, grad: Tensor) -> Tensor:
        grouped = grad.flatten(2).unflatten(1, (self.groups, grad.shape[1] // self.groups))
        return grouped.permute(0, 3, 1, 2).flatten(0, 1)[..., None]

    def transposed(self, part: Tensor, matrix: Tensor) -> Tensor:
        return torch.matmul(part[..., 0].transpose(0, 1), matrix).transpose(0, 1).flatten(1)[..., None]

    def _padded_size(self, x: Tensor) -> list[int]:
        return [n + 2 * p for n, p in zip(x.shape[2:], self.padding, strict=True)]

    def _positions(self, x: Tensor) -> int:
        return math.prod(self._out(self._padded_size(x)))

    def gathered(self, found: Tensor, x: Tensor) -> Tensor:
        """Add up what the transposed array gave for every input of every patch: the inverse of unfolding."""
        size, images = self._padded_size(x), len(x)
        index = self._index(tuple(size), found.device).flatten().expand(images, -1)
        image = found.new_zeros(images, x.shape[1] * math.prod(size))
        image = image.scatter_add_(1, index, found.reshape(index.shape)).view(images, x.shape[1], *size)
        for axis, (n, p) in enumerate(zip(x.shape[2:], self.padding, strict=True)):
            image = image.narrow(axis + 2, p, n)
        return image.contiguous()


class _PulsedConv(TorchsArguments, PulsedLayer):
    """What the three convolutions share."""

    spatial: int
    in_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...] | str
    groups: int
    padding_mode: str
    _reversed_padding_repeated_twice: list[int]

    def __init__(self, digital, hardware: PulsedHardware, key: Key, name: str = "", backend: str = "auto"):
        nn.Module.__init__(self)
        for field in (
            "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "transposed",
            "output_padding", "groups", "padding_mode", "_reversed_padding_repeated_twice",
        ):  # fmt: skip
            setattr(self, field, getattr(digital, field))
        analog_bias = hardware.mapping.analog_bias and digital.bias is not None
        if analog_bias and self.groups > 1:
            raise AimcError(
                "a grouped convolution has no column for the bias; set mapping.analog_bias to false", layer=name,
                field="mapping.analog_bias",
            )  # fmt: skip
        layout = Layout.of(
            hardware.tile, digital.out_channels, digital.in_channels // self.groups,
            math.prod(self.kernel_size), self.groups,
        )  # fmt: skip
        amounts = self._reversed_padding_repeated_twice
        symmetric = all(amounts[2 * i] == amounts[2 * i + 1] for i in range(self.spatial))
        self._outside = (
            self.padding_mode != "zeros" or not symmetric
        )  # 'same' with an even kernel is not symmetric
        inside = self._inside = tuple(
            0 if self._outside else amounts[2 * i] for i in reversed(range(self.spatial))
        )
        self._set_up(digital, hardware, key, name, backend, layout, ConvForm(digital, inside, analog_bias))

    def forward(self, input: Tensor) -> Tensor:
        x, single = batched(input, self.spatial, self.in_channels, self.name)
        if self._outside:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            x = pad_images(x, self._reversed_padding_repeated_twice, mode, self.name)
        reach = zip(x.shape[2:], self._inside, self.dilation, self.kernel_size)
        check_kernel((n + 2 * p - d * (k - 1) for n, p, d, k in reach), self.name, input.shape)
        y = self._product(x)
        return y[0] if single else y

    def to_digital(self):
        """The torch convolution with a copy of what the cells amount to."""
        kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[self.spatial]
        digital = kind(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation,
            self.groups, self.bias is not None, self.padding_mode,
        )  # type: ignore[arg-type, call-arg]  # fmt: skip
        return self._exported(digital)


class PulsedConv1d(_PulsedConv, nn.Conv1d):
    """``nn.Conv1d`` in cells; arguments as for :class:`PulsedLinear`.

    Example:
        >>> from aimc import presets
        >>> PulsedConv1d(nn.Conv1d(3, 2, 5), presets.reram(), Key(0))(torch.ones(1, 3, 9)).shape
        torch.Size([1, 2, 5])
    """

    spatial = 1


class PulsedConv2d(_PulsedConv, nn.Conv2d):
    """``nn.Conv2d`` in cells; arguments as for :class:`PulsedLinear`.

    Example:
        >>> from aimc import presets
        >>> PulsedConv2d(nn.Conv2d(3, 2, 5), presets.reram(), Key(0))(torch.ones(1, 3, 9, 9)).shape
        torch.Size([1, 2, 5, 5])
    """

    spatial = 2


class PulsedConv3d(_PulsedConv, nn.Conv3d):
    """``nn.Conv3d`` in cells; arguments as for :class:`PulsedLinear`.

    Example:
        >>> from aimc import presets
        >>> PulsedConv3d(nn.Conv3d(1, 2, 3), presets.reram(), Key(0))(torch.ones(1, 1, 4, 4, 4)).shape
        torch.Size([1, 2, 2, 2, 2])
    """

    spatial = 3
