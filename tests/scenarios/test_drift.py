"""What time does, and that it is never a silent nothing."""

import pytest
import torch
from torch import nn

import aimc
from aimc.cells import PCM, SingleExponentPCM
from tests.helpers import assert_close
from tests.nn.pulsed_helpers import sgd


@pytest.mark.parametrize("age", [1.0, 10.0, 1e4, 1e6])
def test_weights_trained_by_pulses_drift_by_the_power_law_on_a_chip(age):
    """An exponent of 0.3 and ten thousand times t0 leave 0.0631; the cells themselves refuse to be asked."""
    torch.manual_seed(0)
    hardware = aimc.presets.reram(20).replace(**{"mapping.overflow": "clip"})
    net = aimc.convert(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)), hardware, seed=0)
    optimizer, start = sgd(net), net[0].weight.detach().clone()
    for _ in range(5):
        optimizer.zero_grad()
        (net(torch.randn(8, 6)) - 1).square().mean().backward()
        optimizer.step()
    assert not torch.equal(net[0].weight, start)
    with pytest.raises(aimc.AimcError, match="trains in memory"):
        aimc.program(net)
    cell = SingleExponentPCM(exponent=0.3, t0=20.0, programming_scale=0.0)
    analog = aimc.convert(aimc.to_digital(net), aimc.presets.ideal().replace(cell=cell)).eval()
    chip = aimc.program(analog, seed=0, compensation=None)
    x = torch.eye(6)
    with torch.no_grad(), chip.at(20.0 * age):
        for name, weight in chip.weights().items():
            trained = net.get_submodule(name).weight.detach()
            assert_close(name, weight, trained * age**-0.3, rtol=1e-5, atol=1e-7)
        first = analog[0](x) - analog[0].bias
    assert_close("what is read", first.T, net[0].weight.detach() * age**-0.3, rtol=1e-4, atol=1e-6)
    assert 1e4**-0.3 == pytest.approx(0.0631, abs=5e-5)


def test_reads_right_after_programming_differ_by_the_noise_of_a_read_alone():
    """Without any time having passed; slow noise is one path, so without it two reads of one moment are equal."""
    torch.manual_seed(0)
    quiet = aimc.presets.ideal().replace(cell=PCM())
    digital = nn.Linear(50, 40)
    for noise, differ in ((0.0, False), (0.0175, True)):
        net = aimc.convert(digital, quiet.replace(short_term_noise=noise), seed=0).eval()
        with torch.no_grad(), aimc.program(net, seed=0, compensation=None).at(0):
            first, second = net(torch.ones(3, 50)), net(torch.ones(3, 50))
        assert torch.equal(first, second) != differ


def test_drift_leaves_the_trained_weights_alone_whatever_follows_it():
    """Drift, then train: the first step starts from the trained weights, and is that of a network without a chip."""
    hardware = aimc.presets.pcm().replace(**{"input_range.value": 1.0, "input_range.init_batches": 0})
    found = []
    for aged in (False, True):
        torch.manual_seed(0)
        net = aimc.convert(nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 2)), hardware, seed=0)
        if aged:
            with aimc.program(net.eval(), seed=0).at("1y"):
                net(torch.ones(1, 6))
        optimizer = torch.optim.AdamW(net.train().parameters(), lr=0.01)
        net(torch.ones(4, 6)).square().sum().backward()
        optimizer.step()
        found.append({n: p.detach() for n, p in net.named_parameters()})
    for name, value in found[0].items():
        assert_close(name, found[1][name], value)
