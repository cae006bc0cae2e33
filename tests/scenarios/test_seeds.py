"""What a seed rules: everything, and nothing else does."""

import random

import numpy as np
import pytest
import torch
from torch import nn

import aimc
from tests.helpers import assert_close
from tests.nn.pulsed_helpers import cells_of, sgd

PCM = aimc.presets.pcm().replace(**{"input_range.value": 2.0, "input_range.init_batches": 0})
RERAM = aimc.presets.reram(20, io="noisy", write_noise_std=0.3).replace(**{"mapping.overflow": "clip"})
X = torch.linspace(-1, 1, 3 * 8).view(3, 8)


def built(layers: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers)))


def on_a_chip(seed: int, layers: int = 2) -> dict[str, torch.Tensor]:
    """Build, program, drift to an hour, read twice: devices and outputs of the first two layers."""
    net = aimc.convert(built(layers), PCM, seed=seed).eval()
    chip = aimc.program(net, seed=seed)
    with torch.no_grad(), chip.at(3600):
        devices = {f"{name}, devices": g for name, g in chip.conductances().items() if name in "01"}
        return {**devices, "first read": net[:2](X), "second read": net[:2](X)}


def test_a_seed_is_a_run_and_a_layer_at_the_end_changes_none_before_it():
    one, again, longer, other = on_a_chip(5), on_a_chip(5), on_a_chip(5, layers=3), on_a_chip(6)
    for name, value in one.items():
        assert torch.equal(again[name], value), name
        assert torch.equal(longer[name], value), name
        assert not torch.equal(other[name], value), name
    assert not torch.equal(one["first read"], one["second read"])


def whole_run(hardware, seed: int, disturbance: int) -> dict[str, torch.Tensor]:
    """No seed is given to anything but torch."""
    random.seed(disturbance)
    np.random.seed(disturbance)
    net = built(2)
    torch.manual_seed(seed)
    net = aimc.convert(net, hardware)
    pulsed = bool(aimc.pulsed_layers(net))
    optimizer = sgd(net) if pulsed else torch.optim.SGD(net.parameters(), lr=0.1)
    outputs = []
    for _ in range(3):
        optimizer.zero_grad()
        y = net(X)
        y.square().sum().backward()
        optimizer.step()
        outputs.append(y.detach())
    found = {"outputs": torch.stack(outputs), "weight": net[0].weight.detach().clone()}
    if pulsed:
        return {**found, **{f"cells {name}": v for name, v in cells_of(net).items() if name.endswith("held")}}
    equal = aimc.convert(built(1), hardware, seed=0).eval()
    torch.manual_seed(seed)
    devices = aimc.program(equal).conductances()["0"]  # of equal weights
    with torch.no_grad(), aimc.program(net.eval()).at("1h"):
        return {**found, "chip": net(X), "devices": devices}


@pytest.mark.parametrize("hardware", [PCM, RERAM], ids=["chip", "cells"])
def test_torchs_seed_rules_everything_and_nothing_else_does(hardware):
    one, again, other = (whole_run(hardware, *seeds) for seeds in ((1, 10), (1, 20), (2, 10)))
    for name, value in one.items():
        assert_close(name, again[name], value)
        assert not torch.equal(other[name], value), name
