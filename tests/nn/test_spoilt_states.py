"""A state that is spoilt is refused by layer and entry before anything of it is written."""

import math

import pytest
import torch
from torch import nn

import aimc
from aimc.algorithms import Residual
from tests.rubbish import same_states

CELLS = aimc.presets.reram(20, Residual(tiles=2), io="noisy")


def trained(hardware, seed=0, make=lambda: nn.Linear(3, 2)):
    torch.manual_seed(seed)
    net = aimc.convert(nn.Sequential(make()), hardware, seed=seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    if aimc.pulsed_layers(net):
        optimizer = aimc.optim.wrap(optimizer, net)
    for _ in range(2):
        optimizer.zero_grad()
        y = net(torch.randn(4, 3))
        (y[0] if isinstance(y, tuple) else y).square().sum().backward()
        optimizer.step()
    return net


def spoil(value, change):
    value = value.clone()
    if isinstance(change, (int, float)):
        value.view(-1)[-1] = change
        return value
    return change(value)


def deep(value):
    return torch.tensor(list(b"[" * 100000), dtype=torch.uint8)


@pytest.mark.parametrize(
    ("hardware", "name", "change", "said"),
    [
        (aimc.presets.pcm(), "analog_state", lambda v: v[:0], "has 0 numbers, expected 5"),
        (aimc.presets.pcm(), "analog_state", lambda v: v[None], "no row of numbers"),
        (aimc.presets.pcm(), "analog_state", lambda v: v.index_fill(0, torch.tensor(1), -1), "below 0"),
        (aimc.presets.pcm(), "analog_state", lambda v: v.float(), "expected integers.*average"),
        (aimc.presets.pcm(), "analog_hardware", lambda v: v + 128, "describes no hardware"),
        (aimc.presets.pcm(), "analog_hardware", deep, "not JSON: maximum recursion"),
        (aimc.presets.pcm(), "analog_hardware", lambda v: v.float(), "expected integers"),
        (aimc.presets.pcm(), "analog_hardware", lambda v: None, "no tensor"),
        (aimc.presets.pcm(), "weight", math.nan, "NaN or infinite"),
        (aimc.presets.pcm(), "weight", lambda v: v.bool(), "expected floating-point"),
        (aimc.presets.pcm(), "bias", lambda v: v[:1], r"shape \[1\] does not fit \[2\]"),
        (aimc.presets.pcm(), "input_range", math.inf, "NaN or infinite"),
        (aimc.presets.pcm(), "input_range", -1.0, "below 0"),
        (aimc.presets.pcm(), "output_gain", math.nan, "NaN or infinite"),
        (CELLS, "analog_state", lambda v: v[:0], "has 0 numbers, expected 3"),
        (CELLS, "analog_state", -1, "below 0"),
        (CELLS, "analog_hardware", lambda v: v + 128, "describes no hardware"),
        (CELLS, "analog_hardware", lambda v: v.float(), "expected integers"),
        (CELLS, "bias", math.nan, "NaN or infinite"),
        (CELLS, "cells.held", math.nan, "NaN or infinite"),
        (CELLS, "cells.parameters", math.inf, "NaN or infinite"),
        (CELLS, "cells.digital_scale", math.nan, "NaN or infinite"),
        (CELLS, "cells.digital_scale", 0.0, "below"),
        (CELLS, "cells.counters", -1, r"below \[0, 0, -1"),
        (CELLS, "cells.counters", lambda v: v.index_fill(0, torch.tensor(2), 2), "above"),
        (CELLS, "cells.counters", lambda v: v.float(), "expected integers"),
        (CELLS, "cells.counts", -1, "below 0"),
        (CELLS, "cells.counts", lambda v: v.long() + (1 << 40), "beyond torch.int32"),
        (CELLS, "cells.reads", -1, "below 0"),
    ],
)
def test_a_spoilt_state_is_refused_by_entry_and_nothing_is_written(hardware, name, change, said):
    net, state = trained(hardware), dict(trained(hardware, seed=5).state_dict())
    before = {n: v.clone() for n, v in net.state_dict().items()}
    state[f"0.{name}"] = spoil(state[f"0.{name}"], change)
    with pytest.raises(RuntimeError, match=rf"(?s)(layer '0', field '|0\.){name}.*{said}"):
        net.load_state_dict(state)
    assert same_states(before, net.state_dict())


def test_finite_cells_that_amount_to_infinite_weights_are_refused():
    net = trained(CELLS)
    state = dict(trained(CELLS, seed=5).state_dict())
    before = {n: v.clone() for n, v in net.state_dict().items()}
    state["0.cells.held"] = torch.full_like(state["0.cells.held"], 1e38)
    state["0.cells.digital_scale"] = torch.full_like(state["0.cells.digital_scale"], 1e3)
    with pytest.raises(RuntimeError, match=r"cells.digital_scale: brings cells.held to NaN or infinite"):
        net.load_state_dict(state)
    assert same_states(before, net.state_dict())


@pytest.mark.parametrize("hardware", [aimc.presets.pcm(), CELLS], ids=["hardware-aware", "cells"])
def test_a_sound_state_is_taken(hardware):
    net, other = trained(hardware), trained(hardware, seed=5)
    net.load_state_dict(other.state_dict())
    assert same_states(net.state_dict(), other.state_dict())


@pytest.mark.parametrize("hardware", [aimc.presets.pcm(), CELLS], ids=["hardware-aware", "cells"])
@pytest.mark.parametrize("part", ["ih_l0.analog_state", "hh_l0.analog_state"])
def test_a_layer_of_several_matrices_is_loaded_as_a_whole_or_not_at_all(hardware, part):
    net, other = (trained(hardware, k, lambda: nn.LSTM(3, 2, batch_first=True)) for k in (0, 5))
    state = dict(other.state_dict())
    state[f"0.{part}"] = state[f"0.{part}"][:0]
    before = {n: v.clone() for n, v in net.state_dict().items()}
    with pytest.raises(RuntimeError, match=part):
        net.load_state_dict(state)
    assert same_states(before, net.state_dict())


def test_weights_that_the_devices_refuse_leave_the_bias_alone():
    hardware = aimc.presets.reram(w_max_dtod=0.0).replace(
        **{"mapping.overflow": "error", "mapping.scale": 0.1}
    )
    layer = nn.Linear(3, 2)
    nn.init.uniform_(layer.weight, -0.01, 0.01)
    net = aimc.convert(layer, hardware, seed=0)
    bias = net.bias.detach().clone()
    with pytest.raises(aimc.AimcError, match="beyond what their devices hold"):
        net.load_state_dict({"weight": torch.full((2, 3), 5.0), "bias": torch.ones(2)})
    assert torch.equal(net.bias, bias)


def test_what_cells_have_counted_is_nothing_to_a_hardware_aware_layer():
    net, cells = trained(aimc.presets.pcm()), trained(CELLS)
    state = {n: v for n, v in cells.state_dict().items() if ".cells." not in n}
    before = net[0].analog_state
    with pytest.warns(UserWarning, match="PulsedHardware -> Hardware"):
        net.load_state_dict(state)
    assert torch.equal(net[0].weight, cells[0].weight) and torch.equal(net[0].analog_state, before)
