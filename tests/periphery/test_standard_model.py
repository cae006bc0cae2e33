"""The noise of a read: its spread, what it scales with, and where in the chain it sits."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import aimc
from aimc.periphery import ADC, DAC, InputRange
from tests.helpers import assert_close
from tests.moments import assert_moments

BACKENDS = ["reference", "cpu"]
READS = 20_000


def build(digital, backend="auto", seed=1, **changes):
    return aimc.convert(digital, aimc.presets.ideal().replace(**changes), backend=backend, seed=seed).eval()


def test_standard_numbers():
    hardware = aimc.presets.pcm()
    assert (hardware.dac.half, hardware.adc.half, hardware.adc.bound) == (127, 127, 10.0)
    assert (hardware.output_noise, hardware.short_term_noise) == (0.04, 0.0175)
    assert hardware.ir_drop is not None and hardware.ir_drop.scale == 1.0
    assert (hardware.tile.rows, hardware.mapping.scale, hardware.input_range.mode) == (
        512,
        "column",
        "learned",
    )


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_output_noise(backend):
    """In units of one fully-on input at a full-scale weight: it scales with the column's scale and the range."""
    digital = nn.Linear(3, 2)
    digital.weight.data = torch.tensor([[0.5, -2.0, 1.0], [0.1, 0.2, -0.3]])
    net = build(
        digital,
        backend,
        output_noise=0.04,
        dac=DAC(bits=None),
        input_range=InputRange(mode="static", value=3.0),
    )
    x = torch.tensor([[0.3, -0.2, 1.0]])
    noise = net(x.expand(READS, 3)) - digital(x)
    for i, scale in enumerate((2.0, 0.3)):
        assert_moments(f"output {i}", noise[:, i], 0.0, 0.04 * scale * 3.0)
    assert abs(float(torch.corrcoef(noise.T)[0, 1])) < 5 / READS**0.5


@pytest.mark.parametrize("backend", BACKENDS)
@torch.no_grad()
def test_short_term_noise(backend):
    """Standard deviation 0.0175 sqrt(sum_j |w_j| x_j^2) in normalised units."""
    digital = nn.Linear(3, 2)
    digital.weight.data = torch.tensor([[0.5, -2.0, 1.0], [0.1, 0.2, -0.3]])
    net = build(
        digital,
        backend,
        short_term_noise=0.0175,
        dac=DAC(bits=None),
        input_range=InputRange(mode="static", value=3.0),
    )
    x = torch.tensor([[0.3, -0.2, 1.0]])
    noise = net(x.expand(READS, 3)) - digital(x)
    for i, scale in enumerate((2.0, 0.3)):
        w = digital.weight[i].abs() / scale
        expected = 0.0175 * float((w * (x[0] / 3.0) ** 2).sum().sqrt()) * scale * 3.0
        assert_moments(f"output {i}", noise[:, i], 0.0, expected)
    assert_close("no input, no noise", net(torch.zeros(5, 3)), digital.bias.expand(5, 2))


@torch.no_grad()
def test_noise_powers_add():
    digital = nn.Linear(1, 1, bias=False)
    digital.weight.data.fill_(1.0)
    net = build(digital, output_noise=0.04, short_term_noise=0.03)
    assert_moments("both", net(torch.ones(READS, 1)), 1.0, 0.05)


@torch.no_grad()
def test_noise_sits_before_the_adc():
    """Every reading is on the converter's grid; noise smaller than half a step cannot be seen."""
    digital = nn.Linear(1, 1, bias=False)
    digital.weight.data.fill_(1.0)
    net = build(digital, output_noise=0.2, adc=ADC(bits=3, bound=3.0))
    y = net(torch.full((READS, 1), 0.5))
    assert_close("on the grid", y, y.round())
    assert_moments("dithered", y, 0.5)
    assert len(y.unique()) == 2
    quiet = build(digital, output_noise=0.01, adc=ADC(bits=3, bound=3.0))(torch.full((1000, 1), 1.2))
    assert float(quiet.min()) == float(quiet.max()) == 1


@torch.no_grad()
def test_every_row_tile_has_its_own_converter_and_noise():
    digital = nn.Linear(4, 1, bias=False)
    digital.weight.data.fill_(1.0)
    one, two = (
        build(digital, output_noise=0.04, **{"tile.rows": rows})(torch.zeros(READS, 4)) for rows in (4, 2)
    )
    assert_moments("one tile", one, 0.0, 0.04)
    assert_moments("two tiles", two, 0.0, 0.04 * 2**0.5)
    clipped = build(digital, adc=ADC(bound=1.5), **{"tile.rows": 2})
    assert_close(
        "each saturates alone",
        clipped(torch.tensor([[1.0, 1.0, 0.25, 0.0]])),
        torch.tensor([[1.75]]),
        atol=0.01,
    )


@torch.no_grad()
def test_two_reads_differ_and_the_order_of_the_batch_does_not_matter():
    torch.manual_seed(0)
    digital = nn.Linear(5, 3)
    x = torch.randn(8, 5)
    kinds = {"output_noise": 0.04, "short_term_noise": 0.0175}
    whole = build(digital, **kinds)(x)
    net = build(digital, **kinds)
    assert_close("in two batches", torch.cat([net(x[:3]), net(x[3:])]), whole)
    assert not torch.equal(net(x), whole)
    assert not torch.equal(build(digital, seed=2, **kinds)(x), whole)
