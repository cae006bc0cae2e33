"""What is saved comes back: to the bit, into the network that runs, onto the hardware of whoever loads it."""

from __future__ import annotations

import copy
import io
import json
import multiprocessing

import pytest
import torch
from torch import nn

import aimc
from aimc.algorithms import (
    AnalogSGD,
    LossRise,
    MixedPrecision,
    Pair,
    Residual,
    TikiTakaV1,
    TikiTakaV2,
    TikiTakaV3,
    TikiTakaV4,
    WarmStart,
)
from tests.algorithms.helpers import hardware_of
from tests.helpers import assert_close
from tests.nn.pulsed_helpers import batch, sgd

# Resuming -------------------------------------------------------------------------------------------------------------

RUNS = {
    "hardware-aware": aimc.presets.pcm().replace(**{"input_range.init_batches": 10}),
    "sgd": hardware_of(AnalogSGD()),
    "ttv1": hardware_of(TikiTakaV1(reset_chance=0.5)),
    "ttv2": hardware_of(TikiTakaV2(momentum=0.3)),
    "ttv3": hardware_of(TikiTakaV3(columns="all", gamma=0.5, row_chop=0.2, scale_transfer_lr=False)),
    "ttv4": hardware_of(TikiTakaV4(columns="all", chop=0.5, scale_transfer_lr=False)),
    "mp": hardware_of(MixedPrecision(period=3, x_bins=15, d_bins=15)),
    "mp, pairs": aimc.presets.pcm_pulsed(
        MixedPrecision(pair=Pair(refresh=7, upper=0.3, lower=0.1)), io="noisy", write_noise_std=0.5
    ).replace(**{"mapping.overflow": "clip"}),
    "residual": hardware_of(Residual(tiles=4, columns=3)),
    "residual pulsed": hardware_of(Residual(tiles=3, gradient="pulsed", fast_lr=0.1)),
    "residual published": hardware_of(
        Residual(order="cuda", warm_start=WarmStart(rule=LossRise()), tiles=4, columns=2, period_growth=2)
    ),
}
"""Learned input ranges; write noise, decay and noisy reads in the cells."""


def made(name: str, seed: int):
    torch.manual_seed(seed)
    digital = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(48, 4))
    net = aimc.convert(digital, RUNS[name], seed=seed)
    pulsed = bool(aimc.pulsed_layers(net))
    return net, sgd(net) if pulsed else torch.optim.AdamW(net.parameters(), lr=1e-2)


def steps(net, optimizer, numbers) -> list[float]:
    losses = []
    for k in numbers:
        x, y = batch(seed=k)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if aimc.pulsed_layers(net) and k % 6 == 5:  # an epoch is over
            aimc.optim.observe(net, losses[-1])
    return losses


def go_on(folder: str) -> None:
    """What a new process does: networks of other seeds, the files of the old process, and on."""
    torch.set_num_threads(1)
    for name in RUNS:
        net, optimizer = made(name, seed=99)
        saved = torch.load(f"{folder}/{name}.pt", weights_only=True)
        net.load_state_dict(saved["net"])
        optimizer.load_state_dict(saved["optimizer"])
        torch.set_rng_state(saved["torch"])
        losses = steps(net, optimizer, range(20, 40))
        torch.save({"losses": losses, "net": net.state_dict()}, f"{folder}/{name}-on.pt")


@pytest.fixture(scope="module")
def resumed(tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("resumed"))
    for name in RUNS:
        net, optimizer = made(name, seed=0)
        steps(net, optimizer, range(20))
        saved = {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "torch": torch.get_rng_state()}
        torch.save(saved, f"{folder}/{name}.pt")
    process = multiprocessing.get_context("spawn").Process(target=go_on, args=(folder,))
    process.start()
    process.join(300)
    assert process.exitcode == 0
    return folder


@pytest.mark.parametrize("name", RUNS)
def test_twenty_steps_and_twenty_in_a_new_process_are_forty(name, resumed):
    """Losses, and every hidden array, buffer, chopper, counter and input range."""
    net, optimizer = made(name, seed=0)
    losses = steps(net, optimizer, range(40))
    found = torch.load(f"{resumed}/{name}-on.pt", weights_only=True)
    assert found["losses"] == losses[20:]
    for key, value in net.state_dict().items():
        assert torch.equal(found["net"][key], value), key
    assert len(set(losses)) == 40


# Parameters -----------------------------------------------------------------------------------------------------------


class Several(nn.Module):
    """Layers of one matrix and of several."""

    def __init__(self):
        super().__init__()
        self.conv, self.lstm = nn.Conv1d(4, 6, 3), nn.LSTM(6, 6)
        self.attention, self.head = nn.MultiheadAttention(6, 2), nn.Linear(6, 2)
        nn.init.normal_(self.attention.in_proj_weight, std=3.0)  # not every key alike

    def forward(self, x):
        x = self.lstm(self.conv(x).movedim(1, 2))[0]
        return self.head(self.attention(x, x, x)[0])


def through_a_file(net, state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    net.load_state_dict(torch.load(file, weights_only=True))
    return net


WAYS = {
    "file": through_a_file,
    "assigned": lambda net, state: net.load_state_dict(state, assign=True) and net,
    "copy": lambda net, state: copy.deepcopy(through_a_file(net, state)),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_loaded_parameter_gets_a_gradient_and_moves_the_output(way):
    torch.manual_seed(0)
    quiet = aimc.presets.pcm().replace(adc=None, output_noise=0.0, short_term_noise=0.0)
    hardware = quiet.replace(**{"input_range.value": 0.3, "input_range.init_batches": 0})
    state = aimc.convert(Several(), hardware, seed=0).state_dict()
    x = torch.randn(3, 4, 9)
    net = loaded = WAYS[way](
        aimc.convert(Several(), hardware, seed=9), {n: v.clone() for n, v in state.items()}
    )
    found = dict(net.named_parameters())
    learnable = [n for n in found if n.endswith(("input_range", "output_gain"))]
    assert len(learnable) == 2 * len(aimc.analog_layers(net)) == 2 * 8
    for name, layer in aimc.analog_layers(net).items():
        for kind in ("input_range", "output_gain"):
            assert getattr(layer, kind) is found[f"{name}.{kind}"]
    for name in found:
        if name == "attention.in_proj_bias" or name.endswith("bias_hh_l0"):
            continue  # a key's bias moves no output
        net = copy.deepcopy(loaded)
        found = dict(net.named_parameters())
        net.train()(x).square().sum().backward()
        gradient = found[name].grad
        assert gradient is not None and bool((gradient != 0).any()), name
        before = net.eval()(x).detach()
        torch.optim.SGD([found[name]], lr=0.3 / float(gradient.abs().max())).step()
        assert not torch.equal(net.eval()(x), before), name


# Hardware -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_file_brings_weights_and_the_loader_keeps_his_converters():
    """Three bits stay three bits; the hardware of the file comes on request only."""
    torch.manual_seed(0)
    saved = aimc.convert(nn.Sequential(nn.Linear(12, 5, bias=False)), aimc.presets.ideal(), seed=0).eval()
    state = json_safe(saved.state_dict())
    coarse = aimc.presets.ideal().replace(
        adc=aimc.periphery.ADC(bits=3, bound=2.0), **{"mapping.scale": "tile"}
    )
    mine = aimc.convert(nn.Sequential(nn.Linear(12, 5, bias=False)), coarse, seed=1).eval()
    with pytest.warns(UserWarning, match=r"adc: None -> ADC\(bits=3"):
        mine.load_state_dict(state)
    x = torch.randn(500, 12)
    assert torch.equal(mine[0].weight, saved[0].weight) and mine[0].hardware == coarse
    assert len((mine(x) * 1e4).round().unique()) == 7
    assert not torch.equal(mine(x), saved(x))
    aimc.set_hardware(mine, aimc.nn.saved_hardware(state, "0"))
    assert_close("on the saved hardware", mine(x), saved(x))


def json_safe(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same state through lists of numbers: nothing but numbers is in it."""
    text = json.dumps({n: (str(v.dtype)[6:], list(v.shape), v.flatten().tolist()) for n, v in state.items()})
    return {
        n: torch.tensor(v, dtype=getattr(torch, kind)).view(shape)
        for n, (kind, shape, v) in json.loads(text).items()
    }
