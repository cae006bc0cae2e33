"""Weights and inputs of any size: the same numbers, or a message of ours."""

import math

import pytest
import torch
from torch import nn

import aimc
from aimc.nn.extremes import exponents, far_ranges, far_scales, times
from aimc.periphery import Wires
from tests.helpers import assert_close

PCM = aimc.presets.pcm()
HARDWARE = {
    "standard": PCM,
    "a scale for a tile": PCM.replace(**{"mapping.scale": "tile"}),
    "dynamic ranges": PCM.replace(**{"input_range.mode": "dynamic"}),
    "wires": PCM.replace(ir_drop=None, wires=Wires()),
    "whole cells": PCM.replace(**{"training.modifiers": (aimc.hwa.CellNoise(),)}),
    "two row tiles": PCM.replace(**{"tile.rows": 4}),
    # Without a DAC a range of one is all there is, and what refers to it follows no scaling.
    "no converters": PCM.replace(dac=None, adc=None, output_noise=0.0, ir_drop=None),
}
SCALES = [
    *((2.0**k, 1.0) for k in (-124, -100, -60, -37, 37, 64, 80, 120)),
    *((1.0, 2.0**k) for k in (-100, -60, -21, 21, 64, 100, 120)),
    *((2.0**a, 2.0**b) for a, b in ((-50, -50), (50, 50), (60, 60), (-100, 100), (100, -100))),
]


def results(layer, x, hardware, backend, a=1.0, b=1.0):
    """Outputs in training, in evaluation and on a chip, and both gradients; weights times a, inputs times b."""
    torch.manual_seed(0)
    digital = layer()
    with torch.no_grad():
        digital.weight.mul_(a)
    net = aimc.convert(nn.Sequential(digital), hardware, seed=0, backend=backend)
    x = (x * b).requires_grad_()
    y = net(x)
    y.sum().backward()
    found = {"output": y / a / b, "gradient": x.grad / a, "weight's": net[0].weight.grad / b}
    net.eval()
    found["evaluated"] = net(x) / a / b
    with torch.no_grad(), aimc.program(net, seed=1).at("1d"):
        found["aged"] = net(x) / a / b
    return {name: value.detach() for name, value in found.items()}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", list(HARDWARE))
def test_a_layer_computes_the_same_at_every_scale(name, backend):
    """Powers of two change no digit, so that any difference is a number that left its type on the way."""
    layer, x = (
        lambda: nn.Linear(7, 5, bias=False),
        torch.randn(4, 7, generator=torch.Generator().manual_seed(2)),
    )
    expected = results(layer, x, HARDWARE[name], backend)
    for a, b in SCALES if name in ("standard", "no converters") else SCALES[::3]:
        for what, value in results(layer, x, HARDWARE[name], backend, a, b).items():
            assert_close(f"{what} at {a:g}, {b:g}", value, expected[what], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rows", [512, 18])
def test_a_convolution_does_as_well(rows):
    layer, x = lambda: nn.Conv2d(3, 5, 3, bias=False), torch.randn(2, 3, 5, 5)
    hardware = PCM.replace(**{"tile.rows": rows})
    expected = results(layer, x, hardware, "auto")
    for a, b in SCALES[::4]:
        for what, value in results(layer, x, hardware, "auto", a, b).items():
            assert_close(f"{what} at {a:g}, {b:g}", value, expected[what], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_dead_column_does_not_disturb_the_others(backend):
    """Weight decay brings columns that get no gradient down to the last numbers that there are."""
    torch.manual_seed(0)
    digital, x = nn.Linear(7, 5, bias=False), torch.randn(4, 7)
    expected = aimc.convert(digital, PCM, seed=0, backend=backend)(x)
    for size in (1e-12, 1e-30, 1e-40, 1e-45, 0.0):
        with torch.no_grad():
            digital.weight[2] = size
        y = aimc.convert(digital, PCM, seed=0, backend=backend)(x)
        others = [0, 1, 3, 4]
        assert_close("others", y[:, others], expected[:, others], rtol=1e-5, atol=1e-6)
        assert float(y[:, 2].detach().abs().max()) <= 100 * size


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_what_float32_cannot_hold_is_refused_by_the_layers_name(backend):
    net = aimc.convert(nn.Sequential(nn.Linear(7, 5)), PCM, seed=0, backend=backend)
    with torch.no_grad():
        net[0].weight.fill_(1e30)
    with pytest.raises(aimc.AimcError, match=r"layer '0'.*output is beyond what float32 holds.*1e\+30"):
        net(torch.full((2, 7), 1e30))
    with torch.no_grad():
        net[0].weight[0, 0] = math.inf
    with pytest.raises(aimc.AimcError, match="layer '0'.*weights hold NaN or infinite"):
        net(torch.ones(2, 7))
    net[0].check_finite = False
    assert not bool(torch.isfinite(net(torch.ones(2, 7))).all())


@pytest.mark.parametrize("hardware", [PCM, aimc.presets.reram()], ids=["tiles", "cells"])
@pytest.mark.parametrize("make", [lambda: nn.Linear(3, 2), lambda: nn.LSTM(3, 2), lambda: nn.Conv1d(3, 2, 1)])
@pytest.mark.parametrize("field", ["weight", "bias"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_layer_is_converted_with_parameters_that_are_no_numbers(hardware, make, field, value):
    net = nn.Sequential(nn.BatchNorm1d(3), make())
    full = next(name for name, _ in net[1].named_parameters() if name.startswith(field))
    with torch.no_grad():
        getattr(net[1], full).view(-1)[1] = value
    with pytest.raises(aimc.AimcError, match=rf"layer '1', field '{full}', shape .*NaN.*digital=\(\.\.\.\)"):
        aimc.convert(net, hardware)
    with torch.no_grad():
        getattr(net[1], full).zero_()
        net[0].weight.fill_(math.nan)  # stays digital
    aimc.convert(net, hardware)


ALGORITHMS = {
    "sgd": aimc.algorithms.AnalogSGD(),
    "residual": aimc.algorithms.Residual(tiles=3),
    "mixed precision": aimc.algorithms.MixedPrecision(),
}


@pytest.mark.parametrize("algorithm", list(ALGORITHMS.values()), ids=list(ALGORITHMS))
def test_cells_train_the_same_on_inputs_of_any_size(algorithm):
    torch.manual_seed(0)

    def train(b):
        net = aimc.convert(
            nn.Linear(7, 5, bias=False), aimc.presets.reram(4, algorithm, io="perfect"), seed=0
        )
        optimizer = aimc.optim.wrap(torch.optim.SGD(net.parameters(), lr=0.1 / b), net)
        for k in range(4):
            optimizer.zero_grad()
            net(torch.randn(4, 7, generator=torch.Generator().manual_seed(k)) * b).sum().backward()
            optimizer.step()
        return net.weight.detach()

    torch.manual_seed(0)
    expected = train(1.0)
    for exponent in (-60, 60, 110):
        torch.manual_seed(0)
        assert_close(f"2^{exponent}", train(2.0**exponent), expected, atol=1e-5)


def test_a_learning_rate_beyond_float32_is_refused_before_anything_is_written():
    net = aimc.convert(nn.Sequential(nn.Linear(3, 2)), aimc.presets.reram(30, ALGORITHMS["mixed precision"]))
    before = net[0].weight.detach().clone()
    for lr in (1e39, 2e38):  # the second in units of the cells
        optimizer = aimc.optim.wrap(torch.optim.SGD(net.parameters(), lr=lr), net)
        net[0]._scale = 0.1
        net(torch.ones(1, 3)).sum().backward()
        with pytest.raises(aimc.AimcError, match="layer '0', field 'lr': .*beyond float32"):
            optimizer.step()
        assert torch.equal(net[0].weight, before)


def test_powers_of_two_are_exact():
    x = torch.tensor([1.5, -3e-39, 1e-45, 0.0, 3e38])
    away = exponents(x.abs())
    near = times(x, -away)
    assert bool(((near.abs() >= 0.5) & (near.abs() < 1) | (x == 0)).all())
    assert torch.equal(times(near, away), x)
    wide = times(torch.tensor([1.0, 1.0], dtype=torch.float64), torch.tensor([-1050, 1023]))
    assert wide.tolist() == [2.0**-1050, 2.0**1023]
    assert times(torch.tensor([1.0]), torch.tensor([300])).item() == math.inf


@pytest.mark.parametrize("far", [far_scales, far_ranges])
def test_what_is_far(far):
    for values, expected in (
        ([1.0, 0.0], False), ([0.0, 0.0], False), ([], False), ([1.0, 1e-30], True), ([0.0, 1e-30, 1.0], True),
        ([1e30, 1.0], True), ([math.nan, 1.0], True), ([math.inf], True),
    ):  # fmt: skip
        assert far(torch.tensor(values)) == expected, values
    assert not far(torch.tensor([1e-4], dtype=torch.float16))
    assert not far(torch.tensor([1e-30], dtype=torch.float64)) and far(
        torch.tensor([1e-200], dtype=torch.float64)
    )
