"""What a seed rules: everything, and nothing else does."""

import copy
import math
import random

import numpy as np
import pytest
import torch
from torch import nn

import aimc
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


@pytest.mark.parametrize("hardware", [PCM, RERAM], ids=["on a chip", "in cells"])
def test_the_order_in_which_layers_are_made_changes_none(hardware):
    """Devices and draws go by a layer's name."""
    torch.manual_seed(0)
    layers, found = {name: nn.Linear(8, 8) for name in "abc"}, []
    for order in ("abc", "cab"):
        net = aimc.convert(nn.ModuleDict({name: layers[name] for name in order}), hardware, seed=5)
        if hardware is RERAM:
            optimizer = sgd(net)
            sum(net[name](X).square().mean() for name in "abc").backward()
            optimizer.step()
            found.append({n: v.clone() for n, v in net.state_dict().items()})
            continue
        with torch.no_grad(), aimc.program(net.eval(), seed=5).at(3600):
            found.append({name: net[name](X) for name in "abc"})
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


KINDS = {
    "linear": (lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), (3, 8)),
    "lstm": (lambda: nn.LSTM(8, 4, batch_first=True), (3, 2, 8)),
    "attention": (lambda: nn.TransformerEncoderLayer(8, 2, 8, 0.0, batch_first=True), (3, 2, 8)),
    "dropout": (lambda: nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.3)), (3, 8)),
}


def output(net, x):
    y = net(x)
    return y[0] if isinstance(y, tuple) else y


def whole_run(kind: str, hardware, seed: int, disturbance: int) -> dict[str, torch.Tensor]:
    """No seed is given to anything but torch."""
    random.seed(disturbance)
    np.random.seed(disturbance)
    make, shape = KINDS[kind]
    x = torch.linspace(-1, 1, math.prod(shape)).view(shape)
    torch.manual_seed(0)
    digital = make()
    torch.manual_seed(seed)
    net = aimc.convert(copy.deepcopy(digital), hardware)
    pulsed = bool(aimc.pulsed_layers(net))
    optimizer = sgd(net) if pulsed else torch.optim.SGD(net.parameters(), lr=0.1)
    outputs = []
    for _ in range(3):
        optimizer.zero_grad()
        y = output(net, x)
        y.square().sum().backward()
        optimizer.step()
        outputs.append(y.detach())
    found = {"outputs": torch.stack(outputs)}
    if pulsed:
        return {**found, **{f"cells {name}": v for name, v in cells_of(net).items() if name.endswith("held")}}
    found |= {
        f"weight {n}": p.detach() for n, p in net.named_parameters() if n.endswith(("weight", "weight_ih_l0"))
    }
    equal = aimc.convert(digital, hardware, seed=0).eval()
    torch.manual_seed(seed)
    devices = aimc.program(equal).conductances()  # of equal weights
    with torch.no_grad(), aimc.program(net.eval()).at("1h"):
        return {**found, "chip": output(net, x), **{f"devices {n}": g for n, g in devices.items()}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("hardware", [PCM, RERAM], ids=["chip", "cells"])
def test_torchs_seed_rules_everything_and_nothing_else_does(kind, hardware):
    one, again, other = (whole_run(kind, hardware, *seeds) for seeds in ((1, 10), (1, 20), (2, 10)))
    for name, value in one.items():
        assert torch.equal(again[name], value), name
        assert value.unique().numel() == 1 or not torch.equal(other[name], value), (
            name
        )  # a norm of layers starts at 1


def test_dropout_follows_torchs_seed():
    """Where nothing else is drawn."""
    found = []
    for seed in (1, 1, 2):
        net = aimc.convert(KINDS["dropout"][0](), aimc.presets.ideal(), seed=0)
        for p in net.parameters():
            p.data.fill_(0.5)
        torch.manual_seed(seed)
        found.append(net(X))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_over_time_follows_its_own_seed_alone(kind):
    make, shape = KINDS[kind]
    torch.manual_seed(0)
    net = aimc.convert(make(), PCM, seed=0)
    x = torch.linspace(-1, 1, math.prod(shape)).view(shape)
    metric = lambda net: float(output(net, x).detach().flatten()[0])
    found = []
    for torchs, own in ((1, {}), (2, {}), (2, {"seed": 1}), (2, {"seed": 0})):
        torch.manual_seed(torchs)
        found.append(aimc.evaluate_over_time(net, metric, times=("1d",), chips=3, **own).values)
    assert (found[0] == found[1]).all() and (found[0] == found[3]).all()
    assert (found[0] != found[2]).all()
