"""Weights to conductances and back: exact, and whatever the scale, the layer's function stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import aimc
from aimc.cells import PCM, SingleExponentPCM
from aimc.crossbar import Layout, Mapping, TileSize, column_scale, from_conductance, to_conductance
from tests.helpers import assert_close

SCALES = ["column", "tile", "fan_in", "none"]


@pytest.mark.parametrize("g_min", [0.0, 0.5, 5.0])
def test_pair(g_min):
    cell = PCM(g_min=g_min)
    w = torch.linspace(-1, 1, 201, dtype=torch.float64)
    g = to_conductance(w, cell)
    assert g.shape == (2, 201)
    assert float(g.min()) == g_min and float(g.max()) == 25.0
    expected = torch.stack([g_min + (25 - g_min) * w.clamp_min(0), g_min + (25 - g_min) * (-w).clamp_min(0)])
    assert_close("pair", g, expected, atol=1e-12)
    assert bool(((g == g_min).any(0)).all()), "one device of every pair is reset"
    assert_close("round trip", from_conductance(g, cell), w, atol=1e-12)
    assert float(from_conductance(torch.tensor([[10.0], [4.0]]), cell)) == pytest.approx(
        6 / (25 - g_min), rel=1e-6
    )


def test_signed_device():
    cell = SingleExponentPCM()
    w = torch.linspace(-1, 1, 11)
    assert_close("conductance", to_conductance(w, cell), 25 * w[None], atol=1e-6)
    assert_close("round trip", from_conductance(to_conductance(w, cell), cell), w, atol=1e-7)


W = torch.tensor([[0.1, -0.4, 0.3], [0.0, 0.0, -2.0], [0.5, 0.2, 0.0]])
LAYOUT = Layout.of(TileSize(rows=2, columns=2), outputs=3, channels=3)


def test_scales():
    assert LAYOUT.row_splits == ((0, 2), (2, 3)) and LAYOUT.column_tile.tolist() == [[0, 0, 1], [0, 0, 1]]
    expected = {
        "column": [[0.4, 0.0, 0.5], [0.3, 2.0, 0.0]],
        "tile": [[0.4, 0.4, 0.5], [2.0, 2.0, 0.0]],
        "fan_in": [[1.0, 1.0, 1.0], [2.0, 2.0, 1.0]],  # sqrt(3 / 3) = 1, raised where a tile holds more
        "none": [[1.0] * 3] * 2,
    }
    for name in SCALES:
        assert_close(name, column_scale(W, LAYOUT, Mapping(scale=name)), torch.tensor(expected[name]))


@pytest.mark.parametrize(
    "fan_in, scale", [(27, 1 / 3), (144, 0.1443), (576, 0.0722), (2304, 0.0361), (256, 0.1083)]
)
def test_fan_in_scale(fan_in, scale):
    layout = Layout.of(TileSize(rows=4096), outputs=2, channels=fan_in)
    assert_close(
        "scale",
        column_scale(torch.zeros(2, fan_in), layout, Mapping(scale="fan_in")),
        torch.full((1, 2), scale),
        atol=5e-5,
    )


@pytest.mark.parametrize("learned_gain", [False, True])
@pytest.mark.parametrize("scale", ["column", "tile", "fan_in"])
@torch.no_grad()
def test_function_is_kept(scale, learned_gain):
    """No weight is clipped by a scale, in training mode either, and remapping changes nothing."""
    torch.manual_seed(0)
    digital = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 5)).double()
    digital[0].weight.mul_(3.0)  # beyond any fan-in scale
    mapping = Mapping(scale=scale, learned_gain=learned_gain)
    for remap_every in (0, 1, 3):
        hardware = aimc.presets.ideal().replace(
            mapping=mapping,
            training=aimc.hwa.HardwareAware(remap_every=remap_every),
            **{"tile.rows": 16, "tile.columns": 7},
        )
        net = aimc.convert(digital, hardware)
        x = torch.randn(6, 40, dtype=torch.float64)
        for mode in (True, False):
            assert_close("function", net.train(mode)(x), digital(x), atol=1e-12)
        aimc.remap(net)
        assert_close("after remap", net(x), digital(x), atol=1e-12)
        assert_close("chip of perfect cells", _on_chip(net, x), digital(x), atol=1e-12)


def _on_chip(net, x):
    with aimc.program(net.eval(), seed=0, compensation=None).at(0):
        return net(x)


@torch.no_grad()
def test_scale_none_clips_beyond_full_scale():
    digital = nn.Linear(2, 1, bias=False)
    digital.weight.copy_(torch.tensor([[0.5, -3.0]]))
    net = aimc.convert(digital, aimc.presets.ideal().replace(**{"mapping.scale": "none"})).eval()
    assert_close("on the chip", _on_chip(net, torch.eye(2)), torch.tensor([[0.5], [-1.0]]))


def test_gain_and_bias_are_digital():
    """y = bias + gain * analog: once, per output, after the converter."""
    torch.manual_seed(0)
    digital = nn.Linear(4, 3)
    net = aimc.convert(digital, aimc.presets.ideal().replace(**{"mapping.learned_gain": True})).eval()
    assert net.output_gain.tolist() == [1.0, 1.0, 1.0]
    net.output_gain.data = torch.tensor([2.0, 0.5, -1.0])
    x = torch.randn(5, 4)
    expected = (x @ digital.weight.T) * net.output_gain + digital.bias
    assert_close("output", net(x).detach(), expected.detach(), atol=1e-6)
    assert_close("digital twin", aimc.to_digital(net)(x).detach(), expected.detach(), atol=1e-6)
