"""Torch's default type and device are for what users make; what is made inside says its own."""

import contextlib
import copy

import pytest
import torch
from torch import nn

import aimc
from aimc.algorithms import AnalogSGD, MixedPrecision, TikiTakaV2, TikiTakaV4

IN_CELLS = {
    name: aimc.presets.reram(20, io="noisy").replace(algorithm=algorithm)
    for name, algorithm in {
        "AnalogSGD": AnalogSGD(),
        "MixedPrecision": MixedPrecision(),
        "TikiTakaV2": TikiTakaV2(),
        "TikiTakaV4": TikiTakaV4(),
    }.items()
}
HARDWARE = {"pcm": aimc.presets.pcm(), **IN_CELLS}


@contextlib.contextmanager
def default_dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


AMBIENT = {
    "float16": lambda: default_dtype(torch.float16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float64": lambda: default_dtype(torch.float64),
    "meta": lambda: torch.device("meta"),
}


def through_its_life(net, hardware, x):
    """Converted, trained, exported and read; what came out, by name."""
    net = aimc.convert(net, hardware, seed=0)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    if aimc.pulsed_layers(net):
        optimizer = aimc.optim.wrap(optimizer, net)
    for _ in range(3):
        optimizer.zero_grad()
        net(x).square().sum().backward()
        optimizer.step()
    net.eval()
    found = {f"digital {n}": v for n, v in aimc.to_digital(net).state_dict().items()}
    with torch.no_grad():
        found["output"] = net(x)
        if not aimc.pulsed_layers(net):
            with aimc.program(net, seed=1).at("1h"):
                found["chip"] = net(x)
    return found | net.state_dict()


@pytest.mark.filterwarnings("ignore:weights beyond")
@pytest.mark.parametrize("hardware", HARDWARE)
@pytest.mark.parametrize("ambient", AMBIENT)
def test_defaults_of_torch_change_no_number(ambient, hardware):
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Conv1d(3, 4, 2), nn.Flatten(), nn.Linear(12, 2)), torch.randn(5, 3, 4)
    expected = through_its_life(copy.deepcopy(net), HARDWARE[hardware], x)
    with AMBIENT[ambient]():
        found = through_its_life(net, HARDWARE[hardware], x)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].device == value.device, name
        assert torch.equal(found[name], value), name
