"""Layers and chips whose tiles have resistive wires: every array is the crossbar of tests/periphery/test_wires.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import aimc
from aimc.crossbar import from_conductance, to_conductance
from aimc.periphery import DAC, InputRange, IRDrop, Wires
from tests.helpers import assert_close

WIRES = Wires(row=200.0, column=150.0, source=100.0, sense=50.0)
BARE = aimc.presets.ideal().replace(**{"mapping.scale": "none"}, wires=WIRES)
SIGNED = aimc.cells.SingleExponentPCM(programming_scale=0.0)


def tile_of(weight: torch.Tensor, cell, wires: Wires = WIRES) -> torch.Tensor:
    """Normalised weights ``[columns, rows]`` of one tile as they act, device by device of a pair."""
    g = to_conductance(weight, cell)
    pair = g if len(g) == 2 else torch.stack([g[0].clamp_min(0), (-g[0]).clamp_min(0)])
    seen = torch.stack([wires.conductance(one) for one in pair])
    return from_conductance(seen if len(g) == 2 else seen[:1] - seen[1:], cell).to(weight.dtype)


@pytest.mark.parametrize("cell", [aimc.cells.Ideal(), SIGNED], ids=["pair", "signed"])
@torch.no_grad()
def test_every_tile_has_wires_of_its_own(cell):
    """Two by two tiles; training mode, evaluation and a chip that was programmed without error."""
    torch.manual_seed(0)
    digital = nn.Linear(7, 5)
    digital.weight.data.uniform_(-1, 1)
    net = aimc.convert(digital, BARE.replace(cell=cell, **{"tile.rows": 4, "tile.columns": 3}), seed=0)
    expected = torch.empty(5, 7)
    for rows in (slice(0, 4), slice(4, 7)):
        for columns in (slice(0, 3), slice(3, 5)):
            expected[columns, rows] = tile_of(digital.weight[columns, rows], cell)
    assert float((expected - digital.weight).abs().max()) > 0.01
    assert net.layout.splits == ((0, 4), (4, 7))
    x = torch.randn(6, 7)
    y = x @ expected.T + digital.bias
    assert_close("training", net(x), y, atol=1e-6)
    assert_close("evaluation", net.eval()(x), y, atol=1e-6)
    chip = aimc.program(net, seed=0, compensation=None)
    assert_close("weights", chip.weights()[""], expected, atol=1e-6)
    assert_close("devices", chip.conductances()[""], to_conductance(digital.weight, cell), atol=1e-5)
    with chip.at(0):
        assert_close("chip", net(x), y, atol=1e-6)
    assert torch.equal(aimc.to_digital(net).weight, digital.weight)


@torch.no_grad()
def test_scales_are_outside_of_the_wires():
    torch.manual_seed(0)
    digital = nn.Linear(6, 4, bias=False)
    net = aimc.convert(digital, BARE.replace(**{"mapping.scale": "column"}))
    scale = digital.weight.abs().amax(1, keepdim=True)
    expected = tile_of(digital.weight / scale, net.hardware.cell) * scale
    assert_close("weight", net(torch.eye(6)).T, expected, atol=1e-6)


@torch.no_grad()
def test_groups_are_read_one_after_another():
    torch.manual_seed(0)
    digital = nn.Conv1d(4, 6, 1, groups=2, bias=False)
    net = aimc.convert(digital, BARE)
    assert net.layout.tiles == 1
    parts = [tile_of(w.squeeze(2), net.hardware.cell) for w in digital.weight.split(3)]
    found = net(torch.eye(4)[:, :, None]).squeeze(2).T
    assert_close("weight", found, torch.block_diag(*parts), atol=1e-6)


def test_the_input_gradient_feels_the_wires_and_the_weights_gradient_passes_them_by():
    torch.manual_seed(0)
    net = aimc.convert(nn.Linear(6, 4, bias=False), BARE)
    x = torch.eye(6).requires_grad_()
    y = net(x)
    y.sum().backward()
    assert_close("input", x.grad, y.detach().T.sum(0).expand(6, 6), atol=1e-6)
    assert_close("weight", net.weight.grad, torch.ones(4, 6))


@torch.no_grad()
def test_drifting_cells_lose_less_in_the_wires():
    torch.manual_seed(0)
    digital = nn.Linear(64, 64, bias=False)
    hardware = BARE.replace(
        cell=aimc.cells.PCM(), wires=Wires(row=1.0, column=1.0), **{"mapping.scale": "column"}
    )
    free = hardware.replace(wires=None)
    lost = {}
    chips = [aimc.program(aimc.convert(digital, h).eval(), 3, None) for h in (hardware, free)]
    for time in ("1s", "1y"):
        with chips[0].at(time), chips[1].at(time):
            assert_close("devices", chips[0].conductances()[""], chips[1].conductances()[""])
            wired, ideal = (chip.weights()[""] for chip in chips)
            lost[time] = 1 - float((wired * ideal).sum() / ideal.square().sum())
    assert 0.1 > lost["1s"] > 1.3 * lost["1y"] > 0.01


@torch.no_grad()
def test_a_chip_is_compensated_through_its_wires_and_survives_a_file(tmp_path):
    """What the wires take away counts as lost where the reference is exact, and is measured."""
    torch.manual_seed(0)
    net = aimc.convert(nn.Linear(20, 10, bias=False), BARE.replace(cell=SIGNED)).eval()
    chip = aimc.program(net, seed=0, compensation=aimc.chip.LeastSquares())
    chip.save(tmp_path / "chip")
    again = aimc.chip.Chip.load(tmp_path / "chip", net)
    for time in ("1s", "1y"):
        with chip.at(time), again.at(time):
            assert_close("weights", again.weights()[""], chip.weights()[""])
    with pytest.raises(aimc.AimcError, match=r"wires: .*-> None"):
        aimc.chip.Chip.load(tmp_path / "chip", aimc.convert(nn.Linear(20, 10), BARE.replace(wires=None)))


@torch.no_grad()
def test_calibration_sees_the_digital_network():
    hardware = BARE.replace(dac=DAC(), input_range=InputRange(mode="static"))
    net = aimc.convert(nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 4)), hardware).eval()
    ranges = []
    for wires in (WIRES, None):
        aimc.set_hardware(net, hardware.replace(wires=wires))
        aimc.calibrate(net, [torch.ones(3, 6)])
        ranges.append(net[1].input_range.clone())
    assert torch.equal(*ranges)


def test_two_models_of_one_thing_are_refused():
    with pytest.raises(aimc.AimcError, match="field 'wires'.*ir_drop to null"):
        BARE.replace(ir_drop=IRDrop())
