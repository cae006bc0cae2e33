"""Transposed convolutions, native: a tile is one over some of the input channels.

A column of the crossbar holds what one output channel takes from its inputs: its rows are input channels times kernel
taps, as in a convolution, and for one output position those taps are driven that an input position falls upon.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aimc.errors import AimcError
from aimc.hardware import PulsedHardware
from aimc.nn.composite import Composite, Piece
from aimc.nn.conv import FIELDS, AnalogConv, is_channels_last
from aimc.nn.images import batched
from aimc.nn.linear import export
from aimc.nn.pulsed import PulsedConv1d, PulsedConv2d, PulsedConv3d
from aimc.random import Key

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


def output_padding(layer: Any, x: Tensor, output_size: list[int] | None, name: str) -> list[int]:
    """What is added on the far side of the output, as torch works it out."""
    spatial = len(layer.kernel_size)
    try:
        rest = layer._output_padding(
            x, output_size, layer.stride, layer.padding, layer.kernel_size, spatial, layer.dilation
        )
    except ValueError as error:
        raise AimcError(str(error), layer=name, field="output_size") from None
    return list(rest)


class AnalogConvTranspose(AnalogConv):
    """What the three transposed convolutions share."""

    padding: tuple[int, ...]
    output_padding: tuple[int, ...]

    def _outputs_first(self) -> Tensor:
        return outputs_first(self.weight, self.groups)

    def shaped_like_weight(self, matrix: Tensor) -> Tensor:
        return inputs_first(matrix, self.groups, self.kernel_size)

    def digital(self, input: Tensor, weight: Tensor, *args: Any) -> Tensor:
        rest = output_padding(self, input, args[0], self.name) if args else self.output_padding
        product = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[self.spatial]
        return product(input, weight, None, self.stride, self.padding, rest, self.groups, self.dilation)

    def read(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        x, single = self._batched(input)
        rest = output_padding(self, input, output_size, self.name)
        geometry = TransposedGeometry(self, tuple(x.shape[2:]), rest)
        if any(n < 1 for n in geometry.out):
            raise AimcError("the padding leaves no output", layer=self.name, shape=input.shape)
        images = x.shape[0]

        channels_last = is_channels_last(x)

        def finish(y: Tensor) -> Tensor:
            y = y.view(images, y.shape[1], *geometry.out)
            y = y.contiguous(memory_format=torch.channels_last) if channels_last else y
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


# In cells --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Turned(Piece):
    """The weight of a transposed convolution as that of a convolution over the spread input."""

    groups: int = 1

    def of(self, parameters: Mapping[str, Any]) -> Tensor:
        weight = outputs_first(parameters[self.weight], self.groups)
        return weight.flip(tuple(range(2, weight.dim())))

    def write(self, parameters: Mapping[str, Any], matrix: Tensor) -> None:
        turned = matrix.flip(tuple(range(2, matrix.dim()))).flatten(1)
        parameters[self.weight].copy_(inputs_first(turned, self.groups, tuple(matrix.shape[2:])))

    def _blank_layer(self, digital: Any, weight: Tensor, bias: bool) -> nn.Module:
        kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[weight.dim() - 2]
        return kind(
            digital.in_channels, digital.out_channels, digital.kernel_size, dilation=digital.dilation,
            groups=self.groups, bias=bias, device="meta",
        )  # fmt: skip


class PulsedConvTranspose(Composite):
    """What the three transposed convolutions in cells share.

    Inputs are spread, zeros between them, and a convolution in the child ``conv`` reads them. Its patches are the
    vectors that the cells take pulses from; those of a stride hold as many zeros as it skips.
    """

    def __init__(
        self, digital: Any, hardware: PulsedHardware, key: Key, name: str = "", backend: str = "auto"
    ):
        nn.Module.__init__(self)
        for field in FIELDS:
            setattr(self, field, getattr(digital, field))
        bias = "bias" if digital.bias is not None else None
        pieces = {"conv": _Turned("weight", bias, groups=digital.groups)}
        self._analog_set_up(digital, pieces, hardware, key, name, backend)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Arguments as for the torch layer."""
        layer: Any = self
        x, single = batched(input, len(layer.kernel_size), layer.in_channels, self.analog_name)
        rest = output_padding(layer, input, output_size, self.analog_name)
        wide = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], layer.stride, strict=True)]
        spread = x.new_zeros(*x.shape[:2], *wide)
        if is_channels_last(x):  # and so is the result, as torch's
            spread = spread.contiguous(memory_format=torch.channels_last)
        spread[(..., *(slice(None, None, s) for s in layer.stride))] = x
        amounts = []
        for k, d, p, r in zip(layer.kernel_size, layer.dilation, layer.padding, rest, strict=True):
            amounts = [d * (k - 1) - p, d * (k - 1) - p + r, *amounts]
        reach = zip(
            reversed(wide), amounts[::2], amounts[1::2], reversed(layer.kernel_size), reversed(layer.dilation)
        )
        if any(n + a + b - d * (k - 1) < 1 for n, a, b, k, d in reach):
            raise AimcError("the padding leaves no output", layer=self.analog_name, shape=input.shape)
        y = layer.conv(F.pad(spread, amounts))
        return y[0] if single else y

    def _analog_blank(self) -> nn.Module:
        layer: Any = self
        kind = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[len(layer.kernel_size)]
        return kind(
            layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding,
            layer.output_padding, layer.groups, self._analog_pieces["conv"].bias is not None, layer.dilation,
            **self.analog_like(),
        )  # fmt: skip


class PulsedConvTranspose1d(PulsedConvTranspose, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` in cells; arguments as for :class:`PulsedLinear`.

    Example:
        >>> from aimc import presets
        >>> from aimc.random import Key
        >>> PulsedConvTranspose1d(nn.ConvTranspose1d(3, 2, 5), presets.reram(), Key(0))(torch.ones(1, 3, 9)).shape
        torch.Size([1, 2, 13])
    """

    _analog_in_cells = PulsedConv1d


class PulsedConvTranspose2d(PulsedConvTranspose, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` in cells, see :class:`PulsedConvTranspose1d`."""

    _analog_in_cells = PulsedConv2d


class PulsedConvTranspose3d(PulsedConvTranspose, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` in cells, see :class:`PulsedConvTranspose1d`."""

    _analog_in_cells = PulsedConv3d
