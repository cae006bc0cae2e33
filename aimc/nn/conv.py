"""Convolutions, native: a tile is a convolution over some of the input channels, and nothing is unfolded.

Where a channel has more taps than a tile has rows, a tile is one with some of the taps: see :class:`SomeTaps`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aimc.crossbar import Layout
from aimc.hardware import Hardware
from aimc.nn.base import AnalogLayer
from aimc.nn.images import TorchsArguments, batched, check_kernel, pad_images
from aimc.nn.linear import export
from aimc.ops import sampled_convolution_gradient
from aimc.random import Key

FIELDS = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "transposed", "output_padding",
    "groups", "padding_mode", "_reversed_padding_repeated_twice",
)  # fmt: skip
"""What a convolution of torch knows beside its weights."""
_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class ConvGeometry:
    """A convolution over one tile's channels.

    Args:
        layer: the convolution.
        size: spatial size of the (padded) input.
        padding: what is left to pad.
        channels_last: whether the input has its channels innermost. Then a vector is one position, as it lies in
            memory, and inputs are ``[images * positions, groups, channels, 1]``; otherwise a vector is one image.
    """

    contiguous_tiles = True

    def __init__(
        self, layer: AnalogConv, size: tuple[int, ...], padding: tuple[int, ...], channels_last: bool
    ):
        self.size, self.padding, self.groups, self.channels_last = size, padding, layer.groups, channels_last
        self.kernel, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.out = tuple(
            (n + 2 * p - d * (k - 1) - 1) // s + 1
            for n, p, d, k, s in zip(size, padding, self.dilation, self.kernel, self.stride, strict=True)
        )

    def flatten(self, x: Tensor) -> Tensor:
        """Images to ``[vectors, groups, channels, positions]``."""
        images, channels = x.shape[0], x.shape[1] // self.groups
        if self.channels_last:
            return x.permute(0, 2, 3, 1).reshape(images * math.prod(self.size), self.groups, channels, 1)
        return x.reshape(images, self.groups, channels, math.prod(self.size))

    def unflatten(self, y: Tensor, images: int) -> Tensor:
        """``[vectors, outputs, positions]`` to images."""
        if self.channels_last:
            return y.view(images, *self.out, y.shape[1]).permute(0, 3, 1, 2)
        return y.view(images, y.shape[1], *self.out)

    def flatten_output(self, y: Tensor) -> Tensor:
        """The inverse of :meth:`unflatten`."""
        positions = math.prod(self.out)
        if self.channels_last:
            return y.permute(0, 2, 3, 1).reshape(y.shape[0] * positions, y.shape[1], 1)
        return y.reshape(y.shape[0], y.shape[1], positions)

    def _image(self, part: Tensor) -> Tensor:
        if self.channels_last:
            channels = part.shape[1] * part.shape[2]
            return part.view(part.shape[0] // math.prod(self.size), *self.size, channels).permute(0, 3, 1, 2)
        return part.view(part.shape[0], part.shape[1] * part.shape[2], *self.size)

    def _filter(self, weight: Tensor) -> Tensor:
        return weight.reshape(weight.shape[0], weight.shape[1] // math.prod(self.kernel), *self.kernel)

    def product(self, part: Tensor, weight: Tensor) -> Tensor:
        y = _CONV[len(self.size)](
            self._image(part),
            self._filter(weight),
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )
        return self.flatten_output(y)

    def transposed_at(self, grad: Tensor, weight: Tensor, clipped: Tensor, backend: str) -> Tensor | None:
        vector, group, channel, position = clipped.nonzero(as_tuple=True)
        if len(vector) * 128 > clipped.numel():  # gathering costs as much as the native gradient of all
            return None
        image, channel = vector, group * clipped.shape[2] + channel
        images = clipped.shape[0]
        if self.channels_last:
            positions = math.prod(self.size)
            image, position = vector // positions, vector % positions
            images //= positions
        return sampled_convolution_gradient(
            self.unflatten(grad, images), self._filter(weight), image, channel, position,
            self.size, self.stride, self.padding, self.dilation, self.groups, backend,
        )  # fmt: skip

    def transposed(
        self, grad: Tensor, part: Tensor, weight: Tensor, need_part: bool, to_weight: Tensor | None
    ):
        image = self._image(part)
        found_part, found_weight, _ = torch.ops.aten.convolution_backward(
            self.unflatten(grad, image.shape[0]),
            image,
            self._filter(weight),
            None,
            self.stride,
            self.padding,
            self.dilation,
            False,
            [0] * len(self.size),
            self.groups,
            [need_part, to_weight is not None, False],
        )
        if to_weight is not None:
            to_weight.copy_(found_weight.reshape(weight.shape))
        if not need_part:
            return None
        return (
            found_part.permute(0, 2, 3, 1).reshape(part.shape)
            if self.channels_last
            else found_part.reshape(part.shape)
        )


def is_channels_last(x: Tensor) -> bool:
    """Whether torch's own convolution would take this input as channels-last, and answer in kind."""
    return (
        x.dim() == 4
        and x.stride(1) == 1
        and x.shape[2] * x.shape[3] > 1
        and x.is_contiguous(memory_format=torch.channels_last)
    )


class AnalogConv(TorchsArguments, AnalogLayer):
    """What the convolutions share."""

    spatial: int
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...] | str
    groups: int
    padding_mode: str
    _reversed_padding_repeated_twice: list[int]

    def __init__(self, digital, hardware: Hardware, key: Key, name: str = "", backend: str = "auto"):
        nn.Module.__init__(self)
        for field in FIELDS:
            setattr(self, field, getattr(digital, field))
        self.weight, self.bias = digital.weight, digital.bias
        self.training = digital.training
        layout = Layout.of(
            hardware.tile, digital.out_channels, digital.in_channels // self.groups,
            math.prod(self.kernel_size), self.groups,
        )  # fmt: skip
        self._set_up(hardware, layout, key, name, backend)

    def _batched(self, input: Tensor) -> tuple[Tensor, bool]:
        """The input with a dimension of images, and whether that was added."""
        return batched(input, self.spatial, self.in_channels, self.name)

    def digital(self, input: Tensor, weight: Tensor, *args: Any) -> Tensor:
        return self._conv_forward(input, weight, None)  # type: ignore[attr-defined]  (of torch's layer)

    def read(self, input: Tensor, *args: Any) -> Tensor:
        x, single = self._batched(input)
        amounts = self._reversed_padding_repeated_twice
        symmetric = tuple(amounts[2 * i] for i in reversed(range(self.spatial)))
        if self.padding_mode != "zeros":
            x, symmetric = pad_images(x, amounts, self.padding_mode, self.name), (0,) * self.spatial
        elif any(amounts[2 * i] != amounts[2 * i + 1] for i in range(self.spatial)):
            x, symmetric = F.pad(x, amounts), (0,) * self.spatial  # 'same' with an even kernel
        # A dynamic input range belongs to an image, and noise is numbered as the outputs of an image lie: there an
        # image has to stay one vector, however it lies in memory.
        whole = self.hardware.input_range.mode == "dynamic" or self.periphery.noisy
        channels_last = not whole and is_channels_last(x)
        geometry = ConvGeometry(self, tuple(x.shape[2:]), symmetric, channels_last)
        check_kernel(geometry.out, self.name, input.shape)
        images = x.shape[0]

        def finish(y: Tensor) -> Tensor:
            y = geometry.unflatten(y, images)
            return y[0] if single else y

        def flatten(grad: Tensor) -> Tensor:
            return geometry.flatten_output(grad[None] if single else grad)

        return self._analog(geometry.flatten(x), geometry, finish, flatten)

    def to_digital(self):
        """The torch convolution with a copy of the weight, the output gain multiplied in."""
        kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[self.spatial]
        digital = kind(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation,
            self.groups, self.bias is not None, self.padding_mode,
        )  # type: ignore[arg-type, call-arg]  # fmt: skip
        return export(self, digital)


class AnalogConv1d(AnalogConv, nn.Conv1d):
    """``nn.Conv1d`` on crossbar tiles, split along the input channels; arguments as for :class:`AnalogLinear`.

    Example:
        >>> from aimc import presets
        >>> AnalogConv1d(nn.Conv1d(3, 2, 5), presets.ideal(), Key(0))(torch.ones(1, 3, 9)).shape
        torch.Size([1, 2, 5])
    """

    spatial = 1


class AnalogConv2d(AnalogConv, nn.Conv2d):
    """``nn.Conv2d`` on crossbar tiles, split along the input channels; arguments as for :class:`AnalogLinear`."""

    spatial = 2


class AnalogConv3d(AnalogConv, nn.Conv3d):
    """``nn.Conv3d`` on crossbar tiles, split along the input channels; arguments as for :class:`AnalogLinear`."""

    spatial = 3
