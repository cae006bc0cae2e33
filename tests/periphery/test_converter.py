"""n bits are 2^n - 1 levels, symmetric, zero included: for every converter and every body."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import aimc
from aimc.errors import AimcError
from aimc.hwa import Discretize, HardwareAware
from aimc.ops import convert_input, read_out
from aimc.ops.read_out import ReadOut
from aimc.periphery import ADC, DAC, InputRange
from aimc.periphery.converter import round_to_grid
from aimc.random import Key
from tests.helpers import assert_close

BITS = [(3, 7), (4, 15), (8, 255)]
BACKENDS = ["reference", "cpu"]


def through_round_to_grid(x, bits, backend):
    return round_to_grid(x, 2.0, DAC(bits=bits).half)


def through_dac(x, bits, backend):
    parts, _, _ = convert_input(
        x.view(1, 1, -1, 1), torch.full((1, 1), 2.0), ((0, len(x)),), DAC(bits=bits).half, backend=backend
    )
    return parts[0].flatten()


def through_adc(x, bits, backend):
    setting, one = ReadOut(half=ADC(bits=bits).half, bound=2.0), torch.ones(1)
    y, _, _ = read_out(None, x.view(-1, 1, 1), one, one, setting, Key(0), backend=backend)
    return y.flatten()


CONVERTERS = {"round_to_grid": through_round_to_grid, "dac": through_dac, "adc": through_adc}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits, levels", BITS)
@pytest.mark.parametrize("name", CONVERTERS)
def test_levels(name, bits, levels, backend):
    x = torch.linspace(-3, 3, 20_001)
    y = CONVERTERS[name](x, bits, backend)
    expected = torch.linspace(-2, 2, levels)
    assert_close("levels", torch.unique((y * 1e5).round() / 1e5), expected, atol=2e-5)
    assert float(y.abs().min()) == 0, "zero is a level"
    inside = x.abs() <= 2
    step = 4 / (levels - 1)
    assert float((y - x)[inside].abs().max()) <= step / 2 + 1e-6, "the nearest level"
    assert_close("saturated", y[~inside], 2 * x[~inside].sign(), atol=1e-6)
    assert_close("rounding is symmetric", CONVERTERS[name](-x, bits, backend), -y)


@pytest.mark.parametrize("kind", [DAC, ADC])
def test_steps_instead_of_bits(kind):
    assert kind(bits=None, steps=64).half == 32
    assert kind(bits=8).half == kind(bits=None, steps=254).half == 127
    assert kind(bits=None).half == 0


def test_steps_of_the_standard_model():
    assert float(round_to_grid(torch.tensor(0.005), 1.0, DAC().half)) == pytest.approx(2 / 254, abs=1e-7)
    assert float(round_to_grid(torch.tensor(0.05), ADC().bound, ADC().half)) == pytest.approx(
        0.0787402, abs=1e-7
    )


@pytest.mark.parametrize(
    "make, field",
    [
        (lambda: ADC(steps=64), "steps"),
        (lambda: DAC(bits=None, steps=63), "steps"),
        (lambda: DAC(bits=None, steps=0), "steps"),
        (lambda: DAC(bits=1), "bits"),
        (lambda: ADC(bound=0.0), "bound"),
        (lambda: InputRange(mode="dynamic", value=1.0), "value"),
        (lambda: InputRange(value=-1.0), "value"),
    ],
)
def test_impossible_converters_are_refused_by_name(make, field):
    with pytest.raises(AimcError) as caught:
        make()
    assert caught.value.field == field


# ---------------------------------------------------------------- through a layer

GRID = aimc.presets.ideal().replace(
    **{"mapping.scale": "none"}, dac=DAC(bits=None), adc=ADC(bits=None, steps=64, bound=12.0)
)


def one_weight(value, hardware, backend="auto"):
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(value)
    return aimc.convert(layer, hardware, backend=backend).eval()


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_adc_grid_with_scaling_per_vector(backend):
    hardware = GRID.replace(input_range=InputRange(mode="dynamic"))
    x = torch.tensor([[1e-3], [0.3], [1.0], [7.0], [1e4]])
    y = one_weight(0.1876, hardware, backend)(x)
    assert_close("half a step above rounds up", y / x, torch.full_like(x, 0.375), rtol=1e-6)
    assert_close(
        "half a step below rounds down", one_weight(0.1874, hardware, backend)(x), torch.zeros_like(x)
    )


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_adc_grid_with_a_fixed_range(backend):
    hardware = GRID.replace(input_range=InputRange(mode="static", value=1.0))
    x = torch.linspace(-1.5, 1.5, 301)[:, None]
    y = one_weight(0.8, hardware, backend)(x)
    assert_close("multiples of the step", y / 0.375, (y / 0.375).round(), atol=1e-5)
    expected = torch.round(0.8 * x.clamp(-1, 1) / 0.375) * 0.375
    assert_close("staircase", y, expected, atol=1e-6)
    assert torch.equal(y[x > 1].unique(), y[x == 1].unique()), "saturates beyond the range"
    assert set((y / 0.375).round().int().flatten().tolist()) == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_three_bits(backend):
    hardware = aimc.presets.ideal().replace(adc=ADC(bits=3, bound=1.0))
    y = one_weight(1.0, hardware, backend)(torch.linspace(-2, 2, 401)[:, None])
    assert_close("levels", torch.unique(y), torch.tensor([-1, -2 / 3, -1 / 3, 0, 1 / 3, 2 / 3, 1]), atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bits, levels", BITS)
def test_weight_rounding_has_the_same_levels(bits, levels, backend):
    """Range is max|w|: one scale per tile."""
    layer = nn.Linear(64, 64, bias=False)
    layer.weight.data = torch.linspace(-0.7, 0.7, 64 * 64)[torch.randperm(64 * 64)].view(64, 64)
    training = HardwareAware(modifiers=(Discretize(bits=bits),))
    hardware = aimc.presets.ideal().replace(**{"mapping.scale": "tile"}, training=training)
    net = aimc.convert(layer, hardware, backend=backend).train()
    seen = net(torch.eye(64)).detach().T
    assert_close(
        "levels", torch.unique((seen * 1e5).round() / 1e5), torch.linspace(-0.7, 0.7, levels), atol=1e-5
    )
    assert_close("nearest", seen, layer.weight.detach(), atol=0.7 / (levels - 1) + 1e-6)
    assert_close(
        "evaluation uses the clean weights",
        net.eval()(torch.eye(64)).detach().T,
        layer.weight.detach(),
        atol=1e-6,
    )
