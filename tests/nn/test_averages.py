"""Averages of weights over a training, and the best state so far, as scripts around torch keep them."""

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import aimc
from aimc.periphery import InputRange
from tests.helpers import assert_close

CELLS = aimc.presets.reram(
    100, w_max_dtod=0.0, w_min_dtod=0.0, w_max=1.0, w_min=-1.0, write_noise_std=0.0
).replace(**{"mapping.overflow": "clip"})
DECAY = 0.8


def network(hardware):
    torch.manual_seed(0)
    return aimc.convert(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)), hardware, seed=0)


def trained(net, after=lambda: None, steps=30):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02)
    if aimc.pulsed_layers(net):
        optimizer = aimc.optim.wrap(optimizer, net)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(16, 6, generator=generator)
        optimizer.zero_grad()
        (net(x) - x[:, :2]).square().mean().backward()
        optimizer.step()
        after()
    return net


def averaged(before, now):
    return DECAY * before + (1 - DECAY) * now


def sound(net, ranges):
    """What is read is near what torch computes, with ranges near those of the network."""
    net.eval()
    for layer, expected in zip(aimc.analog_layers(net).values(), ranges, strict=True):
        assert_close("range", layer.input_range, expected, atol=0.05 * float(expected))
    x = torch.randn(50, 6)
    with torch.no_grad():
        y = aimc.to_digital(net)(x)
        assert float((net(x) - y).norm() / y.norm()) < 0.5


def ranges_of(net):
    return [layer.input_range.detach().clone() for layer in aimc.analog_layers(net).values()]


def test_a_copy_made_before_the_first_batch_follows_its_network():
    """timm's ModelEmaV2: every entry of the state, lerped."""
    net = network(aimc.presets.pcm())
    ema = copy.deepcopy(net).eval()
    weights = [p.detach().clone() for p in ema.parameters() if p.dim() > 1]

    @torch.no_grad()
    def update():
        for mine, theirs in zip(ema.state_dict().values(), net.state_dict().values(), strict=True):
            mine.copy_(averaged(mine, theirs))
        for weight, layer in zip(weights, aimc.analog_layers(net).values(), strict=True):
            weight.copy_(averaged(weight, layer.weight))

    trained(net, update)
    for weight, layer in zip(weights, aimc.analog_layers(ema).values(), strict=True):
        assert_close("weight", layer.weight, weight, atol=1e-6)
    sound(ema, ranges_of(net))


def test_an_average_of_states_that_begins_before_the_first_batch_is_loaded():
    net = network(aimc.presets.pcm())
    ema = {n: v.clone() for n, v in net.state_dict().items()}

    def update():
        for name, value in net.state_dict().items():
            ema[name] = averaged(ema[name], value) if value.is_floating_point() else value.clone()

    trained(net, update)
    expected = ranges_of(net)
    net.load_state_dict(ema)
    sound(net, expected)
    ema = {n: v.double() for n, v in ema.items()}  # the counters as well
    with pytest.raises(
        RuntimeError, match="analog_hardware.*an average is of the floating-point entries alone"
    ):
        net.load_state_dict(ema)


@pytest.mark.parametrize("buffers", [False, True])
def test_torchs_averaged_model_holds_a_hardware_aware_network(buffers):
    net = network(aimc.presets.pcm())
    ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=buffers)
    trained(net, lambda: ema.update_parameters(net))
    sound(ema.module, ranges_of(net))


def test_an_average_of_cells_is_one_of_their_digital_twins():
    net = network(CELLS)
    ema = AveragedModel(aimc.to_digital(net), multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    by_hand = copy.deepcopy(aimc.to_digital(net).state_dict())
    first = iter([True])

    def update():
        ema.update_parameters(aimc.to_digital(net))
        start = next(first, False)  # torch's takes the first as it is
        for name, value in aimc.to_digital(net).state_dict().items():
            by_hand[name] = value.clone() if start else averaged(by_hand[name], value)

    trained(net, update)
    for name, value in ema.module.state_dict().items():
        assert_close(name, value, by_hand[name], atol=1e-6)
    assert not torch.equal(ema.module[0].weight, net[0].weight)
    net.load_state_dict(ema.module.state_dict())  # programs the cells
    assert_close("weight", net[0].weight, ema.module[0].weight, atol=1e-5)


def test_an_average_written_into_cells_is_refused_with_the_way_out():
    net = network(CELLS)
    ema = AveragedModel(net)
    trained(net, lambda: ema.update_parameters(net), steps=2)
    with pytest.raises(aimc.AimcError, match=r"layer '0'.*written directly.*average.*aimc.to_digital\(net\)"):
        ema(torch.randn(2, 6))


@pytest.mark.parametrize("hardware", [aimc.presets.pcm(), CELLS], ids=["hardware-aware", "cells"])
def test_the_best_state_so_far_is_loaded_back(hardware):
    net = trained(network(hardware), steps=5)
    best, digital = copy.deepcopy(net.state_dict()), copy.deepcopy(aimc.to_digital(net))
    trained(net, steps=5)
    assert not torch.equal(net[0].weight, digital[0].weight)
    net.load_state_dict(best)
    for name, value in net.state_dict().items():
        assert torch.equal(value, best[name]), name
    again, straight = trained(net, steps=3), network(hardware)
    straight.load_state_dict(best)
    trained(straight, steps=3)
    for name, value in again.state_dict().items():
        assert torch.equal(value, straight.state_dict()[name]), name


def test_files_in_which_a_range_that_is_not_set_is_nan_are_loaded():
    net = network(aimc.presets.pcm())
    state = dict(net.state_dict())
    state["0.input_range"] = torch.full_like(state["0.input_range"], float("nan"))
    net.load_state_dict(state)
    assert net[0].input_range.tolist() == [0.0]
    with pytest.raises(aimc.AimcError, match="input range is not set"):
        net.eval()(torch.ones(1, 6))


def test_a_step_leaves_the_range_of_a_silent_tile_unset():
    hardware = aimc.presets.pcm().replace(
        **{"tile.rows": 3, "input_range": InputRange(init_batches=1, decay=0.5)}
    )
    net = network(hardware)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    x = torch.cat([torch.zeros(8, 3), torch.randn(8, 3)], 1)
    for _ in range(4):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    assert net[0].input_range[0] == 0 and net[0].input_range[1] > 0
    net(torch.full((8, 6), 2.0))
    assert net[0].input_range[0] == 2.0
