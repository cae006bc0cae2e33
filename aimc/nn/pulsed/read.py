"""Reads of an array through its converters, forwards and transposed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from aimc import processes
from aimc.crossbar import Layout
from aimc.hardware import PulsedHardware
from aimc.nn.replay import Records, fingerprint, inside_backward, may_come_back
from aimc.ops import convert_input, read_out
from aimc.ops.read_out import ReadOut
from aimc.periphery import ArrayIO
from aimc.random import Key

if TYPE_CHECKING:
    from aimc.nn.pulsed.base import PulsedLayer

_MOST_HALVINGS = 10

Splits = tuple[tuple[int, int], ...]


class Reads:
    """The reads of one layer, numbered so that every draw belongs to one of them.

    Attributes:
        forwards: forward passes in training so far.
        evaluated: vectors read in evaluation so far.
    """

    def __init__(
        self, hardware: PulsedHardware, layout: Layout, key: Key, forwards: int = 0, evaluated: int = 0
    ):
        self.layout, self.key = layout, key
        self.forwards, self.evaluated = forwards, evaluated
        self._records = Records()
        rows, limit = layout.outputs // layout.groups, hardware.tile.columns
        parts = max(-(-rows // limit), 1) if limit else 1
        edges = [round(rows * k / parts) for k in range(parts + 1)]
        self.columns: Splits = tuple(zip(edges, edges[1:]))

    @property
    def counters(self) -> tuple[int, int]:
        """What a checkpoint keeps."""
        return self.forwards, self.evaluated

    def _key(self, purpose: str) -> Key:
        return processes.own_noise(self.key.fold(purpose))

    def begin(self, x: Tensor, training: bool) -> tuple[int, int]:
        """The counters that a forward pass of ``x`` draws by: its own, or those of the pass that it makes again."""
        if len(self._records) and inside_backward():
            record = self._records.matching(fingerprint(x))
            if record is not None:
                record.used = True
                return record.step, record.evaluated
        place = self.counters
        if may_come_back(training):
            self._records.add(
                step=place[0], evaluated=place[1], training=training, started=True, chip=None,
                fingerprint=fingerprint(x),
            )  # fmt: skip
        self.forwards += training
        return place

    def forward(
        self, layer: PulsedLayer, x: Tensor, weight: Tensor, bias: Tensor | None, place: tuple[int, int]
    ) -> Tensor:
        """``bias + s sum_k r_k ADC(w_k DAC(x_k / r_k) + noise)``: row tiles k, r the largest input of a vector."""
        io = layer.hardware.forward
        assert io is not None
        matrix, form = weight.flatten(1), layer.form
        rows = self.layout.row_splits
        analog = layer.shape[1] > matrix.shape[1]

        def product(k: int, part: Tensor, one: Tensor | None) -> Tensor:
            a, b = rows[k]
            y = form.tile(part, matrix[:, a:b])
            return y if one is None else y.addcmul_(one[:, None, None], bias[None, :, None])  # type: ignore[index]

        if layer.training:
            key, offset = self._key("forward").at(step=place[0] % (1 << 32)), None
        else:
            key, offset = self._key("evaluation"), processes.first_evaluated() + place[1]
        x = x.contiguous()
        images, outputs, seen = form.parts(x), [], 0
        for part in images:
            flat = form.flat(x[part])
            offset = _first_vector(flat, x, part) if offset is None else offset
            y = _read(flat, rows, product, matrix, layer.scale, io, key, offset + seen, layer.backend, analog)
            seen += len(flat)
            if bias is not None and not analog:
                y += bias[None, :, None]
            outputs.append(form.output(y, x[part]))
        if not layer.training:
            self.evaluated = max(self.evaluated, place[1] + seen)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def backward(self, layer: PulsedLayer, grad: Tensor, x: Tensor, weight: Tensor, number: int) -> Tensor:
        """The gradient of the inputs, through the transposed array: outputs of at most a tile's columns at a time."""
        io = layer.hardware.backward
        assert io is not None
        form, groups = layer.form, self.layout.groups
        matrix = weight.view(groups, len(weight) // groups, weight.shape[1:].numel())

        def product(k: int, part: Tensor, one: Tensor | None) -> Tensor:
            a, b = self.columns[k]
            return form.transposed(part, matrix[:, a:b])

        key = self._key("backward").at(step=number % (1 << 32))
        columns = weight.new_empty(groups * matrix.shape[2], 0)
        found, offset, seen = [], None, 0
        for images in form.parts(x):
            flat = form.flat_gradient(grad[images].to(weight.dtype)).contiguous()
            offset = _first_vector(flat, x, images) if offset is None else offset
            y = _read(
                flat, self.columns, product, columns, layer.scale, io, key, offset + seen, layer.backend
            )
            seen += len(flat)
            found.append(form.gathered(y, x[images]).to(x.dtype))
        return found[0] if len(found) == 1 else torch.cat(found)


def _first_vector(flat: Tensor, x: Tensor, part: slice) -> int:
    """Number of this process's first vector, from those of some of its images; every process has as many."""
    images = len(x[part])
    count = len(flat) if images == len(x) else len(flat) // images * len(x)
    return processes.rank() * count


def _read(
    x: Tensor,
    splits: Splits,
    product: Callable[[int, Tensor, Tensor | None], Tensor],
    outputs: Tensor,
    scale: float,
    io: ArrayIO,
    key: Key,
    offset: int,
    backend: str,
    with_one: bool = False,
) -> Tensor:
    """All tiles of one direction, added up: ``[vectors, outputs, 1]``.

    Args:
        x: ``[vectors, groups, lines, 1]``, contiguous.
        splits: lines of each tile.
        product: of tile k, its converted inputs, and for an analog bias the converted 1 of each vector.
        outputs: anything with as many rows as there are outputs, for type and device.
        scale: the digital scale; ``product`` is in units of the weight.
        with_one: whether the last tile has an input that is always 1.
    """
    scales = outputs.new_full((outputs.shape[0],), scale)
    adc = io.adc
    setting = ReadOut(
        half=adc.half if adc is not None else 0, bound=adc.bound if adc is not None else 0.0,
        output_noise=io.output_noise, offset=offset,
    )  # fmt: skip
    total: Tensor | None = None
    for k, (a, b) in enumerate(splits):
        part, last = x[:, :, a:b].contiguous(), with_one and k == len(splits) - 1
        ranges = part.abs().amax((1, 2, 3)) if part.numel() else part.new_ones(part.shape[0])
        if last:
            ranges = ranges.clamp_min(1.0)
        empty: Tensor = ranges <= 0  # nothing is sent, and nothing is read
        ranges = torch.where(empty, 1, ranges)

        def read(
            part: Tensor, ranges: Tensor, key: Key, k: int = k, last: bool = last
        ) -> tuple[Tensor, Tensor | None, int]:
            one = part.new_ones(part.shape[0], 1, 1, 1) if last else None
            if io.dac is not None:
                part = _converted(part, ranges, io.dac.half, backend)
                one = _converted(one, ranges, io.dac.half, backend) if one is not None else None
            y = product(k, part, one.view(-1) if one is not None else None).contiguous()
            return read_out(None, y, scales, ranges, setting, key, backend=backend)

        tile_key = key.fold(k).at("output_noise")
        y, saturated, _ = read(part, ranges, tile_key)
        # Vectors of which an output saturated are read again with their inputs halved.
        vectors = torch.arange(len(part), device=x.device)
        for halving in range(1, _MOST_HALVINGS + 1 if io.bound_management else 1):
            if saturated is None:
                break
            vectors = vectors[saturated.flatten(1).any(1)]
            if len(vectors) == 0:
                break
            again, saturated, _ = read(
                part[vectors], ranges[vectors] * 2.0**halving, tile_key.fold("halved", halving)
            )
            y[vectors] = again
        if bool(empty.any()):
            y[empty] = 0
        total = y if total is None else total.add_(y)
    assert total is not None
    return total


def _converted(part: Tensor, ranges: Tensor, half: int, backend: str) -> Tensor:
    return convert_input(part, ranges[None], ((0, part.shape[2]),), half, True, backend)[0][0]
