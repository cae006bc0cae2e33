"""Fully connected layers in cells."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aimc.arguments import expect_tensor
from aimc.crossbar import Layout
from aimc.errors import AimcError
from aimc.hardware import PulsedHardware
from aimc.nn.pulsed.base import PulsedLayer
from aimc.ops.pulsed_update import Vectors
from aimc.random import Key


class LinearForm:
    """Inputs ``[..., in]``; every one is a vector."""

    def __init__(self, analog_bias: bool):
        self.analog_bias = analog_bias

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def input_gradient(self, grad: Tensor, x: Tensor, weight: Tensor, need_x: bool, need_bias: bool):
        grad_x = (grad @ weight.to(grad.dtype)).to(x.dtype) if need_x else None
        return grad_x, self.bias_gradient(grad) if need_bias else None

    def bias_gradient(self, grad: Tensor) -> Tensor:
        return grad.reshape(math.prod(grad.shape[:-1]), grad.shape[-1]).sum(0)

    def vectors(self, x: Tensor, d: Tensor) -> Vectors:
        x = x.detach().reshape(math.prod(x.shape[:-1]), x.shape[-1]).float()
        if self.analog_bias:
            x = F.pad(x, (0, 1), value=1.0)
        return Vectors(x.contiguous(), d.reshape(-1, d.shape[-1]).float().contiguous())

    def merged(self, parts: list[Vectors]) -> Vectors:
        return Vectors(torch.cat([p.x for p in parts]), torch.cat([p.d for p in parts]))

    # For reads through converters: [vectors, groups, columns, 1], see aimc.nn.pulsed.read.

    def parts(self, x: Tensor) -> list[slice]:
        return [slice(None)]

    def flat(self, x: Tensor) -> Tensor:
        return x.reshape(math.prod(x.shape[:-1]), 1, x.shape[-1], 1)

    def tile(self, part: Tensor, weight: Tensor) -> Tensor:
        return (part[:, 0, :, 0] @ weight.t())[:, :, None]

    def output(self, y: Tensor, x: Tensor) -> Tensor:
        return y.view(*x.shape[:-1], y.shape[1])

    def flat_gradient(self, grad: Tensor) -> Tensor:
        return grad.reshape(math.prod(grad.shape[:-1]), 1, grad.shape[-1], 1)

    def transposed(self, part: Tensor, matrix: Tensor) -> Tensor:
        return (matrix.transpose(1, 2) @ part).flatten(1, 2)

    def gathered(self, found: Tensor, x: Tensor) -> Tensor:
        return found.view(x.shape)


class PulsedLinear(PulsedLayer, nn.Linear):
    """A linear layer in cells: inputs ``[..., in]``, weight ``[out, in]``.

    Args:
        digital: the layer to take over; its weight is programmed, a digital bias is shared.
        hardware: description of the hardware.
        key: the layer's random key.
        name: name used in messages.
        backend: see :func:`aimc.ops.choose_backend`.

    Raises:
        AimcError: the devices cannot hold the weights and ``mapping.overflow`` says so.

    Example:
        >>> from aimc import presets
        >>> layer = PulsedLinear(nn.Linear(4, 2), presets.reram(), Key(0))
        >>> layer(torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self, digital: nn.Linear, hardware: PulsedHardware, key: Key, name: str = "", backend: str = "auto"
    ):
        nn.Module.__init__(self)
        self.in_features, self.out_features = digital.in_features, digital.out_features
        layout = Layout.of(hardware.tile, self.out_features, self.in_features)
        form = LinearForm(hardware.mapping.analog_bias and digital.bias is not None)
        self._set_up(digital, hardware, key, name, backend, layout, form)

    def forward(self, input: Tensor) -> Tensor:
        expect_tensor(input, self.name)
        if input.dim() == 0 or input.shape[-1] != self.in_features:
            raise AimcError(f"expects {self.in_features} features", layer=self.name, shape=input.shape)
        return self._product(input)

    def to_digital(self) -> nn.Linear:
        """An ``nn.Linear`` with a copy of what the cells amount to."""
        return self._exported(nn.Linear(self.in_features, self.out_features, self.bias is not None))
