"""Convolutions of which one channel has more taps than a tile has rows; others compare them with torch (rows=4)."""

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import aimc
from aimc.chip import Accuracy, Chip
from tests.helpers import assert_close

RANGE, DAC, ADC, BOUND = 1.5, 7, 15, 1.1
QUANTISED = aimc.presets.ideal().replace(
    dac=aimc.periphery.DAC(bits=4),
    adc=aimc.periphery.ADC(bits=5, bound=BOUND),
    input_range=aimc.periphery.InputRange(mode="static", value=RANGE),
)
LAYERS = {
    "1d": (lambda: nn.Conv1d(2, 6, 11, stride=2, padding=4, dilation=2), (2, 2, 29), 8),
    "one channel": (lambda: nn.Conv1d(1, 3, 40), (2, 1, 50), 16),
    "patches": (lambda: nn.Conv2d(3, 4, 4, stride=4), (2, 3, 8, 12), 8),
    "2d": (lambda: nn.Conv2d(4, 6, (3, 5), (2, 1), (2, 0), (1, 2), groups=2), (2, 4, 8, 11), 11),
    "3d": (lambda: nn.Conv3d(2, 3, (2, 3, 2), (1, 2, 1), (0, 1, 1)), (2, 2, 3, 5, 4), 7),
    "transposed": (lambda: nn.ConvTranspose1d(2, 3, 9, stride=2, padding=3, output_padding=1), (2, 2, 8), 4),
    "transposed 2d": (
        lambda: nn.ConvTranspose2d(4, 6, (3, 4), (2, 1), (1, 0), dilation=(1, 2), groups=2),
        (2, 4, 4, 5),
        7,
    ),
}


def columns(layer, x):
    """What every row of the crossbars reads, ``[images, groups, rows, positions]``, and the weights of the rows."""
    kernel, dilation, groups, area = (
        layer.kernel_size,
        layer.dilation,
        layer.groups,
        math.prod(layer.kernel_size),
    )
    if (
        layer.transposed
    ):  # a convolution with stride 1 over the inputs with zeros between them, taps turned round
        spread = x.new_zeros(*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], layer.stride)))
        spread[(..., *(slice(None, None, s) for s in layer.stride))] = x
        reach = [d * (k - 1) for d, k in zip(dilation, kernel)]
        ends = [(r - p, r - p + o) for r, p, o in zip(reach, layer.padding, layer.output_padding)]
        x, stride = spread, (1,) * len(kernel)
        matrix = layer.weight.view(groups, -1, layer.out_channels // groups, area).transpose(1, 2)
    else:
        ends, stride = [(p, p) for p in layer.padding], layer.stride
        matrix = layer.weight.view(groups, layer.out_channels // groups, -1, area)
    x = F.pad(x, [n for pair in reversed(ends) for n in pair])
    out = [(n - d * (k - 1) - 1) // s + 1 for n, d, k, s in zip(x.shape[2:], dilation, kernel, stride)]
    taps = []
    for tap in itertools.product(*map(range, kernel)):
        tap = [k - 1 - t for k, t in zip(kernel, tap)] if layer.transposed else tap
        place = [slice(t * d, t * d + (n - 1) * s + 1, s) for t, d, n, s in zip(tap, dilation, out, stride)]
        taps.append(x[(..., *place)].flatten(2))
    return torch.stack(taps, 2).flatten(1, 2).unflatten(1, (groups, -1)), matrix.flatten(2), out


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_every_part_of_a_channel_passes_its_own_converter(name):
    """Against vectors that are laid out, split by rows, converted tile by tile and added up."""
    torch.manual_seed(0)
    make, shape, rows = LAYERS[name]
    layer, x = make().double(), torch.randn(shape, dtype=torch.float64)
    vectors, matrix, out = columns(layer, x)
    exact = torch.einsum("gor,ngrp->ngop", matrix, vectors).flatten(1, 2).unflatten(2, out)
    bias = layer.bias.view(-1, *(1,) * len(out))
    assert_close("laid out", exact + bias, layer(x), atol=1e-12)
    net: Any = aimc.convert(layer, QUANTISED.replace(**{"tile.rows": rows}))
    expected, saturated = torch.zeros_like(exact), []
    assert net.layout.row_tiles == math.ceil(matrix.shape[2] / rows)
    inputs = torch.round((vectors / RANGE).clamp(-1, 1) * DAC) / DAC
    for a, b in net.layout.row_splits:
        assert b - a <= rows
        scale = matrix[:, :, a:b].abs().amax(2)[..., None]
        y = torch.einsum("gor,ngrp->ngop", matrix[:, :, a:b] / scale, inputs[:, :, a:b])
        saturated.append(float((y.abs() > BOUND).double().mean()))
        y = torch.round((y / BOUND).clamp(-1, 1) * ADC) / ADC * BOUND
        expected += (RANGE * scale * y).flatten(1, 2).unflatten(2, out)
    assert_close("output", net(x), expected + bias, atol=1e-9)
    assert float((expected - exact).abs().max()) > 0.1 and max(saturated) > 0
    assert net.statistics.saturated == pytest.approx(saturated)


@torch.no_grad()
def test_calibration_sees_the_channels_of_each_tile():
    net = aimc.convert(nn.Conv1d(2, 3, 6), QUANTISED.replace(**{"tile.rows": 5}))
    x = torch.stack([torch.full((9,), 0.5), torch.full((9,), 4.0)])[None]
    aimc.calibrate(net, [x], method="max")
    assert net.layout.channel_splits == ((0, 1), (0, 2), (1, 2))
    assert net.input_range.tolist() == [0.5, 4.0, 4.0]


def test_states_and_chips_are_saved_and_age(tmp_path):
    torch.manual_seed(0)
    hardware = aimc.presets.pcm().replace(**{"tile.rows": 8, "input_range.init_batches": 1})

    def make():
        layers = nn.Conv2d(2, 4, 5, 5), nn.ConvTranspose2d(4, 3, 3), nn.Flatten(), nn.Linear(48, 3)
        return aimc.convert(nn.Sequential(*layers), hardware, seed=0)

    net, x = make(), torch.randn(6, 2, 10, 10)
    net(x).square().sum().backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in net.parameters())
    again = make()
    again.load_state_dict(net.state_dict())
    net.eval(), again.eval()
    with torch.no_grad():
        assert torch.equal(net(x), again(x))
        chip = aimc.program(net, seed=1)
        chip.save(tmp_path / "chip")
        other = Chip.load(tmp_path / "chip", again)
        with chip.at("1y"), other.at("1y"):
            assert chip.compensation_factors()["0"].shape == (7, 4) and torch.equal(net(x), again(x))
        result = aimc.evaluate_over_time(net, Accuracy(x, net(x).argmax(1)), times=("1s", "1y"), chips=2)
    assert result.values.shape == (2, 2)
    aimc.set_hardware(net, aimc.presets.ideal())
    assert net[0].layout.row_tiles == 1
    assert_close("fits again", net(x), aimc.to_digital(net)(x), atol=1e-5)
