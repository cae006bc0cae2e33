"""The analog product with its gradient: converters, tiles, noise, partial sums.

Shapes: inputs ``[vectors, groups, channels, positions]``, outputs ``[vectors, outputs, positions]``; a linear layer has
one group and one position, a convolution's image is one vector.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from aimc.crossbar import Layout
from aimc.errors import AimcError
from aimc.nn.extremes import exponents, far_ranges, far_scales, times
from aimc.nn.once import once
from aimc.ops import convert_input, convert_input_backward, read_out, read_out_backward
from aimc.ops.memory import empty
from aimc.ops.read_out import ReadOut
from aimc.periphery import ADC, DAC, IRDrop, Wires
from aimc.random import Key


class Geometry(Protocol):
    """What differs between a linear layer and a convolution: the product of one tile and its two transposes."""

    contiguous_tiles: bool
    """Whether a tile's inputs have to be a tensor of their own, or may be a view of the whole layer's."""

    def product(self, part: Tensor, weight: Tensor) -> Tensor:
        """``[vectors, groups, channels, positions]`` times ``[outputs, rows]`` -> ``[vectors, outputs, positions]``."""
        ...

    def transposed_at(self, grad: Tensor, weight: Tensor, clipped: Tensor, backend: str) -> Tensor | None:
        """The gradient with respect to the few inputs where ``clipped`` is True, or None where that saves nothing."""
        ...

    def transposed(
        self, grad: Tensor, part: Tensor, weight: Tensor, need_part: bool, to_weight: Tensor | None
    ) -> Tensor | None:
        """The gradient with respect to ``part``, where needed; that of ``weight`` is written where wanted."""
        ...


@dataclasses.dataclass
class SomeTaps:
    """The geometry of a tile that holds some of a channel's taps: a product of whole channels, the other taps zero.

    Attributes:
        whole: the layer's geometry.
        before, after: rows of the tile's first and last channel that are on other tiles.
    """

    whole: Geometry
    before: int
    after: int

    contiguous_tiles = True  # as in any convolution

    def _filled(self, weight: Tensor) -> Tensor:
        return F.pad(weight, (self.before, self.after))

    def product(self, part: Tensor, weight: Tensor) -> Tensor:
        return self.whole.product(part, self._filled(weight))

    def transposed_at(self, grad: Tensor, weight: Tensor, clipped: Tensor, backend: str) -> Tensor | None:
        return self.whole.transposed_at(grad, self._filled(weight), clipped, backend)

    def transposed(
        self, grad: Tensor, part: Tensor, weight: Tensor, need_part: bool, to_weight: Tensor | None
    ) -> Tensor | None:
        filled = self._filled(weight)
        found = torch.empty_like(filled) if to_weight is not None else None
        result = self.whole.transposed(grad, part, filled, need_part, found)
        if to_weight is not None and found is not None:
            to_weight.copy_(found.narrow(1, self.before, weight.shape[1]))
        return result


def _of_tiles(geometry: Geometry, layout: Layout) -> Sequence[Geometry]:
    """The geometry of each row tile."""
    return [
        SomeTaps(geometry, before, after) if before or after else geometry for before, after in layout.missing
    ]


@dataclasses.dataclass(frozen=True)
class Periphery:
    """The numbers of the hardware that a read needs."""

    dac: DAC | None
    adc: ADC | None
    output_noise: float
    short_term_noise: float
    ir_drop: IRDrop | None
    wires: Wires | None = None

    @property
    def noisy(self) -> bool:
        """Whether a read draws random numbers."""
        return self.output_noise > 0 or self.short_term_noise > 0


@dataclasses.dataclass
class Tiles:
    """A layer's weights as they are in the array for one forward pass.

    Attributes:
        weights: one ``[outputs, rows]`` per row tile, in the units of the weight.
        scale: ``[row_tiles, outputs]``.
        factor: what reaches the clean weight of a gradient, or None.
        compensation: digital factor per row tile and output, or None.
        trained: whether the gradient goes to the layer's weight.
    """

    weights: list[Tensor]
    scale: Tensor
    factor: Tensor | None = None
    compensation: Tensor | None = None
    trained: bool = True


@dataclasses.dataclass
class Statistics:
    """What a forward pass noticed: shares of clipped inputs and saturated outputs, per row tile."""

    clipped: list[float]
    saturated: list[float]


def read_tile(
    part: Tensor,
    weight: Tensor,
    scale: Tensor,
    ranges: Tensor,
    geometry: Geometry,
    periphery: Periphery,
    setting: ReadOut,
    key: Key,
    total: Tensor | None = None,
    gain: Tensor | None = None,
    bias: Tensor | None = None,
    backend: str = "auto",
    far: bool = False,
) -> tuple[Tensor, Tensor | None, int]:
    """One row tile from converted inputs to the digital sum; see :func:`aimc.ops.read_out` for the result.

    Order: product, IR drop, short-term noise and output noise, converter. ``far`` says that scales or ranges are far
    from one, see :mod:`aimc.nn.extremes`.
    """
    if far:
        near, up = _near(part, scale, ranges, periphery)
        columns = near[1]
        y, saturated, count = read_tile(
            times(part, -near[0].view(-1, 1, 1, 1)), times(weight, -columns[:, None]), times(scale, -columns),
            times(ranges, -near[0]), geometry, periphery, setting, key, None, gain, None, backend,
        )  # fmt: skip
        y = times(y, up)
        if total is not None:
            return total.add_(y), saturated, count
        return (y if bias is None else y + bias.view(1, -1, 1)), saturated, count
    y = geometry.product(part, weight)
    magnitude = lost = variance = None
    if periphery.ir_drop is not None and periphery.ir_drop.scale > 0:
        ir, rows = periphery.ir_drop, weight.shape[1]
        magnitude = geometry.product(part.abs(), weight.abs())
        lost = geometry.product(part, weight * ir.profile(rows, weight.device, weight.dtype))
        setting = dataclasses.replace(setting, wire_load=float(ir.load(rows, 1.0)))
    if periphery.short_term_noise > 0:
        variance = geometry.product(part * part, weight.abs())
    return read_out(total, y, scale, ranges, setting, key, variance, magnitude, lost, gain, bias, backend)


def _near(
    part: Tensor, scale: Tensor, ranges: Tensor, periphery: Periphery
) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """Exponents of inputs ``[1 or vectors]`` and columns ``[outputs]``, and of outputs, all of which broadcast."""
    rows, columns = exponents(ranges), exponents(scale)
    if periphery.dac is None and part.numel():  # nothing bounds the inputs
        rows = exponents(part.abs().amax()).view(1)
        # Read-out noise is that of a range of one: inputs brought up far would leave it behind.
        rows = rows.clamp_min(0 if periphery.output_noise > 0 else -100)
    return (rows, columns), rows.view(-1, 1, 1) + columns.view(1, -1, 1)


def _clipped(x: Tensor, ranges: Tensor, layout: Layout, k: int) -> tuple[Tensor, Tensor]:
    """A row tile's inputs, and where they are beyond the range."""
    a, b = layout.splits[k]
    inputs = x[:, :, a:b]
    return inputs, inputs.abs() > ranges[k].view(-1, 1, 1, 1)


def _push(inputs: Tensor, grad: Tensor) -> Tensor:
    """What the clipped inputs add to the range's gradient; see :func:`aimc.ops.convert_input_backward`."""
    return (inputs.sign() * grad).clamp_max(0).sum()


class AnalogProduct(torch.autograd.Function):
    """``bias + gain * sum_k compensation_k * ADC_k(W_k DAC_k(x) + noise)``."""

    @staticmethod
    def forward(ctx, x, weight, input_range, gain, bias, ranges, tiles, layout, geometry, periphery, call):
        # ranges: [row_tiles, 1 or vectors]; input_range is the parameter behind it, for its gradient, or None.
        if periphery.dac is not None:
            parts, clipped, finite = convert_input(
                x, ranges, layout.splits, periphery.dac.half, geometry.contiguous_tiles, call.backend
            )
        else:
            parts = [x[:, :, a:b] for a, b in layout.splits]
            parts = [p.contiguous() for p in parts] if geometry.contiguous_tiles else parts
            clipped, finite = [0] * len(parts), bool(torch.isfinite(x.sum())) or bool(torch.isfinite(x).all())
        if call.check_finite and not finite:
            raise AimcError("the input holds NaN or infinite values", shape=x.shape)
        far = far_scales(tiles.scale) or far_ranges(ranges)
        if periphery.dac is None and periphery.short_term_noise > 0 and x.numel():
            far = far or far_ranges(x.abs().amax())
        if far and call.check_finite and not bool(torch.isfinite(tiles.scale).all()):
            raise AimcError("the weights hold NaN or infinite values; load or initialise finite ones")
        total, masks, saturated = None, [], []
        adc = periphery.adc
        setting = ReadOut(
            half=adc.half if adc is not None else 0,
            bound=adc.bound if adc is not None else 0.0,
            output_noise=periphery.output_noise,
            short_term=periphery.short_term_noise,
            offset=call.offset,
        )
        of_tiles = _of_tiles(geometry, layout)
        for k, (part, w) in enumerate(zip(parts, tiles.weights, strict=True)):
            total, mask, count = read_tile(
                part, w, tiles.scale[k], ranges[k], of_tiles[k], periphery, setting, call.keys[k], total,
                tiles.compensation[k] if tiles.compensation is not None else None,
                bias if gain is None else None, call.backend, far,
            )  # fmt: skip
            masks.append(mask)
            saturated.append(count / max(total.numel(), 1))
        assert total is not None
        rows = [max(p.numel(), 1) for p in parts]
        call.vectors = total.shape[0]
        call.statistics = Statistics(
            [c / n for c, n in zip(clipped, rows, strict=True)],
            saturated,
        )
        # The sum before the gain is kept for the gain's gradient; the result belongs to the caller, who may change it.
        result = total
        if gain is not None:
            result = total * gain.view(1, -1, 1)
            result = result if bias is None else result.add_(bias.view(1, -1, 1))
        if far and call.check_finite and not bool(torch.isfinite(result).all()):
            raise AimcError(
                f"the output is beyond what {str(result.dtype)[6:]} holds: weights up to "
                f"{float(tiles.scale.max()):.2g} read by inputs up to {float(ranges.max()):.2g}; make one of them "
                "smaller"
            )
        # Without a DAC the tiles' inputs are views of x; saving x lets torch notice when it is changed.
        needs_x = periphery.dac is None or sum(clipped) > 0
        before_gain = total if gain is not None else None
        ctx.save_for_backward(
            x if needs_x else None, gain, ranges, before_gain, tiles.factor, tiles.compensation,
            *masks, *parts, *tiles.weights,
        )  # fmt: skip
        ctx.layout, ctx.geometries, ctx.call, ctx.periphery = layout, of_tiles, call, periphery
        ctx.trained, ctx.weight_shape = tiles.trained, weight.shape
        ctx.by = weight, gain, input_range
        # Detached, it is not a view in autograd's eyes, so that it may be changed in place.
        return call.finish(result).detach()

    @staticmethod
    @once
    def backward(ctx, grad):
        x, gain, ranges, total, weight_factor, compensation, *rest = ctx.saved_tensors
        layout, call, count = ctx.layout, ctx.call, ctx.layout.row_tiles
        masks, parts, weights = rest[:count], rest[count : 2 * count], rest[2 * count :]
        x = x if ctx.periphery.dac is not None else None
        need_x, need_weight, need_range, need_gain, need_bias = ctx.needs_input_grad[:5]
        need_weight = need_weight and ctx.trained
        # A pass of several reads makes one gradient of all their vectors, if it is going to be asked for one.
        gathered = None
        if need_weight and call.held is not None:
            gathered = call.held if torch._C._will_engine_execute_node(ctx.next_functions[1][0]) else None
            need_weight = False
        grad = call.flatten(grad).to(weights[0].dtype).contiguous()  # autocast multiplies in half precision
        grad_bias = grad.sum((0, 2)) if need_bias else None
        grad_gain = (grad * total).sum((0, 2)) if need_gain else None
        # Where no input clipped, x was not kept: nothing pushes the range, and the gradient passes unchanged.
        wants_x = need_x or (need_range and x is not None)
        grad_weight = empty((layout.outputs, layout.rows), grad) if need_weight else None
        push = ranges.new_zeros(layout.row_tiles)
        # Whether only the range wants the input's gradient, at the few inputs that clipped.
        few = wants_x and not need_x
        grads: list[Tensor | None] = []
        for k, ((i, j), part, weight) in enumerate(zip(layout.row_splits, parts, weights, strict=True)):
            factor = gain
            if compensation is not None:
                factor = compensation[k] if gain is None else gain * compensation[k]
            d = read_out_backward(grad, masks[k], factor, call.backend)
            to_weight = grad_weight[:, i:j] if grad_weight is not None else None
            if gathered is not None:
                gathered.keep(k, d, part)
            found = None
            if few and x is not None:
                inputs, beyond = _clipped(x, ranges, layout, k)
                found = ctx.geometries[k].transposed_at(d, weight, beyond, call.backend)
                if found is not None:
                    push[k] = _push(inputs[beyond], found)
            grads.append(ctx.geometries[k].transposed(d, part, weight, wants_x and found is None, to_weight))
        if grad_weight is not None:
            if weight_factor is not None:
                grad_weight *= weight_factor
            grad_weight = grad_weight.view(ctx.weight_shape)
        grad_x = None
        if wants_x:
            dense = [g for g in grads if g is not None]
            if few and x is not None:
                for k, g in enumerate(grads):
                    if g is not None:
                        inputs, beyond = _clipped(x, ranges, layout, k)
                        push[k] = _push(inputs[beyond], g[beyond])
            elif x is not None:
                grad_x, push = convert_input_backward(x, dense, ranges, layout.splits, call.backend)
            else:
                grad_x = dense[0] if len(dense) == 1 else torch.cat(dense, 2)
        grad_range = call.range_gradient(push, ranges, call) if need_range else None
        return grad_x if need_x else None, grad_weight, grad_range, grad_gain, grad_bias, *(None,) * 6
