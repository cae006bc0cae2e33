"""Transposed convolutions, native: a tile is one over some of the input channels.

A column of the crossbar holds what one output channel takes from its inputs: its rows are input channels times kernel
taps, as in a convolution, and for one output position those taps are driven that an input position falls upon.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aimc.errors import AimcError
from aimc.nn.conv import AnalogConv
from aimc.nn.linear import export

_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class TransposedGeometry:
    """A transposed convolution over one tile's channels; one image is one vector.

    Args:
        layer: the transposed convolution.
        size: spatial size of the input.
        output_padding: what is added on the far side of the output.
    """

    contiguous_tiles = True

    def __init__(self, layer: AnalogConvTranspose, size: tuple[int, ...], output_padding: list[int]):
        self.size, self.groups = size, layer.groups
        self.kernel, self.stride, self.dilation = layer.kernel_size, layer.stride, layer.dilation
        self.padding, self.output_padding = layer.padding, output_padding
        self.out = tuple(
            (n - 1) * s - 2 * p + d * (k - 1) + o + 1
            for n, s, p, d, k, o in zip(
                size, self.stride, self.padding, self.dilation, self.kernel, output_padding, strict=True
            )
        )

    def _image(self, part: Tensor) -> Tensor:
        return part.view(part.shape[0], part.shape[1] * part.shape[2], *self.size)

    def product(self, part: Tensor, weight: Tensor) -> Tensor:
        y = _TRANSPOSED[len(self.size)](
            self._image(part), inputs_first(weight, self.groups, self.kernel), None, self.stride, self.padding,
            self.output_padding, self.groups, self.dilation,
        )  # fmt: skip
        return y.flatten(2)

    def transposed_at(self, grad: Tensor, weight: Tensor, clipped: Tensor, backend: str) -> Tensor | None:
        return None  # as in a convolution

    def transposed(
        self, grad: Tensor, part: Tensor, weight: Tensor, need_part: bool, to_weight: Tensor | None
    ):
        found_part, found_weight, _ = torch.ops.aten.convolution_backward(
            grad.view(grad.shape[0], grad.shape[1], *self.out),
            self._image(part),
            inputs_first(weight, self.groups, self.kernel),
            None,
            self.stride,
            self.padding,
            self.dilation,
            True,
            self.output_padding,
            self.groups,
            [need_part, to_weight is not None, False],
        )
        if to_weight is not None:
            to_weight.copy_(outputs_first(found_weight, self.groups).reshape(weight.shape))
        return found_part.reshape(part.shape) if need_part else None


def outputs_first(weight: Tensor, groups: int) -> Tensor:
    """``[in, out/groups, *kernel]`` as torch has it -> ``[out, in/groups, *kernel]``.

    Example:
        >>> outputs_first(torch.ones(6, 4, 3), groups=2).shape
        torch.Size([8, 3, 3])
    """
    split = weight.view(groups, weight.shape[0] // groups, *weight.shape[1:])
    return split.transpose(1, 2).reshape(groups * weight.shape[1], split.shape[1], *weight.shape[2:])


def inputs_first(matrix: Tensor, groups: int, kernel: tuple[int, ...]) -> Tensor:
    """``[out, rows]`` -> ``[in, out/groups, *kernel]``, the inverse of :func:`outputs_first`.

    Example:
        >>> inputs_first(torch.ones(8, 9), groups=2, kernel=(3,)).shape
        torch.Size([6, 4, 3])
    """
    channels = matrix.shape[1] // math.prod(kernel)
    split = matrix.reshape(groups, matrix.shape[0] // groups, channels, *kernel)
    return split.transpose(1, 2).reshape(groups * channels, split.shape[1], *kernel)


class AnalogConvTranspose(AnalogConv):
    """What the three transposed convolutions share."""

    padding: tuple[int, ...]
    output_padding: tuple[int, ...]

    def _outputs_first(self) -> Tensor:
        return outputs_first(self.weight, self.groups)

    def shaped_like_weight(self, matrix: Tensor) -> Tensor:
        return inputs_first(matrix, self.groups, self.kernel_size)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Arguments as for the torch layer."""
        x, single = self._batched(input)
        try:
            rest = self._output_padding(  # type: ignore[attr-defined]
                input, output_size, self.stride, self.padding, self.kernel_size, self.spatial, self.dilation
            )
        except ValueError as error:
            raise AimcError(str(error), layer=self.name, field="output_size") from None
        geometry = TransposedGeometry(self, tuple(x.shape[2:]), list(rest))
        if any(n < 1 for n in geometry.out):
            raise AimcError("the padding leaves no output", layer=self.name, shape=input.shape)
        images = x.shape[0]

        def finish(y: Tensor) -> Tensor:
            y = y.view(images, y.shape[1], *geometry.out)
            return y[0] if single else y

        def flatten(grad: Tensor) -> Tensor:
            return grad.reshape(images, grad.shape[0 if single else 1], math.prod(geometry.out))

        flat = x.reshape(images, self.groups, x.shape[1] // self.groups, math.prod(geometry.size))
        return self._analog(flat, geometry, finish, flatten)

    def to_digital(self):
        """The torch layer with a copy of the weight, the output gain multiplied in."""
        kind = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[self.spatial]
        digital = kind(
            self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.output_padding,
            self.groups, self.bias is not None, self.dilation,
        )  # type: ignore[arg-type, call-arg]  # fmt: skip
        return export(self, digital)


class AnalogConvTranspose1d(AnalogConvTranspose, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` on crossbar tiles, split along the input channels; arguments as for :class:`AnalogLinear`.

    Example:
        >>> from aimc import presets
        >>> from aimc.random import Key
        >>> AnalogConvTranspose1d(nn.ConvTranspose1d(3, 2, 5), presets.ideal(), Key(0))(torch.ones(1, 3, 9)).shape
        torch.Size([1, 2, 13])
    """

    spatial = 1


class AnalogConvTranspose2d(AnalogConvTranspose, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` on crossbar tiles, see :class:`AnalogConvTranspose1d`."""

    spatial = 2


class AnalogConvTranspose3d(AnalogConvTranspose, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` on crossbar tiles, see :class:`AnalogConvTranspose1d`."""

    spatial = 3
