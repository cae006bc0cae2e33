"""Fully connected layers."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aimc.arguments import expect_tensor
from aimc.crossbar import Layout
from aimc.errors import AimcError
from aimc.hardware import Hardware
from aimc.nn.base import AnalogLayer
from aimc.nn.held import HeldPass
from aimc.nn.replay import inside_backward, may_come_back
from aimc.ops import sampled_product
from aimc.random import Key


class LinearGeometry:
    """One group, one position: plain matrix products."""

    contiguous_tiles = False

    def product(self, part: Tensor, weight: Tensor) -> Tensor:
        return torch.mm(part.squeeze((1, 3)), weight.t()).unsqueeze(2)

    def transposed_at(self, grad: Tensor, weight: Tensor, clipped: Tensor, backend: str) -> Tensor | None:
        vector, feature = clipped[:, 0, :, 0].nonzero(as_tuple=True)
        if len(vector) * 128 > clipped.numel():  # gathering costs as much as the whole product
            return None
        return sampled_product(grad.squeeze(2), weight, vector, feature, backend)

    def transposed(
        self, grad: Tensor, part: Tensor, weight: Tensor, need_part: bool, to_weight: Tensor | None
    ):
        d = grad.squeeze(2)
        if to_weight is not None:
            torch.mm(d.t(), part.squeeze((1, 3)), out=to_weight)
        return torch.mm(d, weight).view(part.shape) if need_part else None


_GEOMETRY = LinearGeometry()


class AnalogLinear(AnalogLayer, nn.Linear):
    """A linear layer on crossbar tiles: inputs ``[..., in]``, weight ``[out, in]``, digital bias.

    Args:
        digital: the layer to take over; its parameters are shared, not copied.
        hardware: description of the hardware.
        key: the layer's random key.
        name: name used in messages.
        backend: see :func:`aimc.ops.choose_backend`.

    Example:
        >>> from aimc import presets
        >>> layer = AnalogLinear(nn.Linear(4, 2), presets.ideal(), Key(0))
        >>> layer(torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """

    def __init__(
        self, digital: nn.Linear, hardware: Hardware, key: Key, name: str = "", backend: str = "auto"
    ):
        nn.Module.__init__(self)
        self.in_features, self.out_features = digital.in_features, digital.out_features
        self.weight, self.bias = digital.weight, digital.bias  # type: ignore[assignment]  (bias may be None)
        self.training = digital.training
        layout = Layout.of(hardware.tile, self.out_features, self.in_features)
        self._set_up(hardware, layout, key, name, backend)

    def digital(self, input: Tensor, weight: Tensor, *args: Any) -> Tensor:
        return F.linear(input, weight)

    def read(self, input: Tensor, *args: Any) -> Tensor:
        expect_tensor(input, self.name)
        if input.dim() == 0 or input.shape[-1] != self.in_features:
            raise AimcError(f"expects {self.in_features} features", layer=self.name, shape=input.shape)
        flat = input.reshape(math.prod(input.shape[:-1]), 1, self.in_features, 1)
        shape = (*input.shape[:-1], self.out_features)
        return self._analog(
            flat, _GEOMETRY, lambda y: y.view(shape), lambda g: g.reshape(flat.shape[0], self.out_features, 1)
        )

    @contextlib.contextmanager
    def held(self, reads: int) -> Iterator[None]:
        """One forward pass that reads the tiles several times, as a recurrent network reads its hidden matrix.

        The weights are disturbed once, every read has read noise of its own, and for what counts forward passes (ramps,
        the start of the input range) it is one.

        Args:
            reads: how many reads there will be.

        Example:
            >>> from aimc import presets
            >>> layer = AnalogLinear(nn.Linear(2, 2), presets.ideal(), Key(0))
            >>> with layer.held(3):
            ...     y = [layer(torch.ones(1, 2)) for _ in range(3)]
        """
        if self._pass is not None:  # part of a longer pass
            yield
            return
        again = inside_backward()
        with self._replayed(None) if again else contextlib.nullcontext():
            if self._replay is None and may_come_back(self.training):
                self._record(None)
            with self._held(reads):
                yield

    @contextlib.contextmanager
    def _held(self, reads: int) -> Iterator[None]:
        try:
            tiles = self._tiles()
        except AimcError as error:
            raise error.at(layer=self.name or type(self).__name__) from None
        run = HeldPass(self._outputs_first(), tiles, self.layout, reads, self.present_range())
        self._pass = run
        try:
            yield
        finally:
            self._pass = self._recording = None
            if self._replay is None:
                self._range_batches += bool(run.seen)
                self._step += self.training
                self.statistics = run.statistics()

    def to_digital(self) -> nn.Linear:
        """An ``nn.Linear`` with a copy of the weight, the output gain multiplied in."""
        digital = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        return export(self, digital)


@torch.no_grad()
def export(layer: AnalogLayer, digital):
    """Copy weight (times output gain), bias, dtype, device and mode of an analog layer to a digital twin."""
    digital = digital.to(layer.weight.device, layer.weight.dtype).train(layer.training)
    layer.refuse_shards()
    weight: Tensor = layer.weight
    if layer.output_gain is not None:
        weight = layer.shaped_like_weight(layer.matrix() * layer.output_gain[:, None])
    digital.weight.copy_(weight)
    digital.weight.requires_grad_(layer.weight.requires_grad)
    if layer.bias is not None:
        digital.bias.copy_(layer.bias)
        digital.bias.requires_grad_(layer.bias.requires_grad)
    return digital
