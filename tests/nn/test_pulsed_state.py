"""Copies and files of networks that train in memory, exact to the last hidden array."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import aimc
from tests.algorithms.helpers import ALGORITHMS
from tests.helpers import assert_close
from tests.nn.pulsed_helpers import (
    EXACT,
    TwoArrays,
    assert_same_cells,
    batch,
    cells_of,
    in_bounds,
    loss_of,
    sgd,
    small_net,
)

HIDDEN = aimc.presets.reram(
    20, TwoArrays(), io="noisy", write_noise_std=0.5, lifetime=50.0, diffusion=0.01
).replace(**{"mapping.overflow": "clip"})
"""Write noise, decay, noisy reads, two arrays and a buffer: everything that a checkpoint can forget."""


def trained(steps: int = 3, seed: int = 0):
    net = aimc.convert(small_net(), HIDDEN, seed=seed)
    optimizer = sgd(net)
    train(net, optimizer, range(steps))
    return net, optimizer


def train(net, optimizer, steps) -> list[float]:
    losses = []
    for k in steps:
        optimizer.zero_grad()
        loss = loss_of(net, batch(seed=k))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def through_torch(state, tmp_path):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def through_safetensors(state, tmp_path):
    save_file(state, tmp_path / "net.safetensors")
    return load_file(tmp_path / "net.safetensors")


@pytest.mark.parametrize("through", [through_torch, through_safetensors])
def test_a_file_holds_every_hidden_array_and_resuming_is_going_straight_on(through, tmp_path):
    straight, optimizer = trained(3)
    saved = {k: v.clone() for k, v in straight.state_dict().items()}
    at_save = cells_of(straight)
    assert float(straight[3].cells.state["held"][0].abs().mean()) > 1e-3  # the fast array holds something
    losses = train(straight, optimizer, range(3, 8))
    other = small_net()
    nn.init.uniform_(other[3].weight, -3, 3)
    # Another digital scale and other devices, until the file brings those that were saved.
    fresh = aimc.convert(other, HIDDEN, seed=99)
    fresh.load_state_dict(through(saved, tmp_path))
    assert_same_cells(cells_of(fresh), at_save)
    assert train(fresh, sgd(fresh), range(3, 8)) == losses
    assert_same_cells(cells_of(fresh), cells_of(straight))
    for (name, a), (_, b) in zip(fresh.state_dict().items(), straight.state_dict().items(), strict=True):
        assert torch.equal(a, b), name


def through_pickle(net):
    return pickle.loads(pickle.dumps(net))


@pytest.mark.parametrize("way", [copy.deepcopy, through_pickle])
def test_a_copy_is_exact_and_lives_on_its_own(way):
    net, optimizer = trained(3)
    at_copy = cells_of(net)
    twin = way(net)
    assert_same_cells(cells_of(twin), at_copy)
    losses = train(net, optimizer, range(3, 6))
    assert_same_cells(cells_of(twin), at_copy)  # the original's steps leave the copy alone
    assert train(twin, sgd(twin), range(3, 6)) == losses
    assert_same_cells(cells_of(twin), cells_of(net))


def test_a_copy_has_no_pending_update_as_a_copied_parameter_has_no_gradient():
    net, _ = trained(1)
    loss_of(net).backward()
    twin = copy.deepcopy(net)
    assert twin[0].weight.grad is None and net[0].weight.grad is not None
    sgd(twin).step()


def test_network_and_optimizer_are_copied_together():
    net, optimizer = trained(2)
    twin, stepper = copy.deepcopy((net, optimizer))
    assert stepper.net is twin and any(p is twin[0].weight for p in stepper.param_groups[0]["params"])
    assert train(twin, stepper, range(3)) == train(net, optimizer, range(3))


def test_the_loaded_weight_is_the_live_one():
    net, _ = trained(2)
    fresh = aimc.convert(small_net(), HIDDEN, seed=99)
    fresh.load_state_dict(net.state_dict(), assign=True)
    optimizer = sgd(fresh)
    for layer in aimc.pulsed_layers(fresh).values():
        assert any(p is layer.weight for p in fresh.parameters()) and isinstance(
            layer.weight, aimc.nn.CellWeight
        )
    loss_of(fresh).backward()
    assert all(p.grad is not None for p in fresh.parameters())
    x = batch()[0]
    fresh.eval()
    before = aimc.to_digital(fresh)(x)
    optimizer.step()
    assert not torch.equal(before, aimc.to_digital(fresh)(x))


def test_a_digital_checkpoint_programs_the_cells_and_keeps_the_devices():
    net = aimc.convert(small_net(), EXACT, seed=0)
    devices = net[0].cells.state["parameters"].clone()
    other = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 4))
    nn.init.uniform_(other[3].weight, -5, 5)
    loss_of(net).backward()
    net.load_state_dict(other.state_dict())
    x = batch()[0]
    assert_close("output", net(x), other(x), atol=2e-5)
    assert_close("devices", net[0].cells.state["parameters"], devices)
    assert not net[0].pending
    assert float((net[3].cells.held * net[3].scale - other[3].weight).abs().max()) < 1e-5


def test_a_digital_checkpoint_that_does_not_fit_the_devices_says_so():
    net = aimc.convert(small_net(), EXACT.replace(**{"mapping.scale": 0.1}), seed=0)
    state = small_net().state_dict()
    state["3.weight"] = torch.full_like(state["3.weight"], 2.0)
    with pytest.warns(UserWarning, match=r"devices hold: 3 \(100.0% of the weights, relative error 50"):
        net.load_state_dict(state)


def large_net() -> nn.Sequential:
    net = small_net()
    for layer in (net[0], net[3]):
        nn.init.uniform_(layer.weight, -3, 3)
    return net


SAVED = {
    "digital": lambda hardware: large_net(),
    "inference": lambda hardware: aimc.convert(large_net(), aimc.presets.ideal(), seed=0),
    "other devices": lambda hardware: aimc.convert(large_net(), EXACT, seed=0),
    "its own devices": lambda hardware: aimc.convert(large_net(), hardware, seed=9),
}


WIDE = {"w_max_dtod": 0.5, "w_min_dtod": 0.5}
SPREAD = {
    **{name: preset() for name, preset in aimc.presets.PULSED_PRESETS.items()},
    **{f"wide, {name}": aimc.presets.reram(20, algorithm, **WIDE) for name, algorithm in ALGORITHMS.items()},
}


@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.parametrize("hardware", SPREAD.values(), ids=SPREAD)
def test_what_is_loaded_is_within_the_bounds_that_each_device_has(hardware, saved):
    """Devices differ; what is clipped is told."""
    state = SAVED[saved](hardware.replace(**{"mapping.overflow": "clip"})).state_dict()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        net = aimc.convert(small_net(), hardware, seed=0)
        seen.clear()
        net.load_state_dict(state)
    layers = aimc.pulsed_layers(net).values()
    for layer in layers:
        assert len(layer.cells.state["parameters"][-1, ..., 2].unique()) > 1 and in_bounds(layer)
    if saved != "its own devices":  # those were told of when they were programmed
        told = any("devices hold" in str(warning.message) for warning in seen)
        assert told == any(layer.clipped > 0 for layer in layers)


@pytest.mark.parametrize("saved", SAVED)
@pytest.mark.filterwarnings("ignore:layer .* was saved with other hardware")
def test_a_scale_that_may_grow_keeps_the_outputs_of_what_is_loaded(saved):
    hardware = aimc.presets.reram(w_max_dtod=0.3, w_min_dtod=0.3).replace(**{"mapping.overflow": "grow"})
    net, source = aimc.convert(small_net(), hardware, seed=0), SAVED[saved](hardware)
    net.load_state_dict(source.state_dict())
    assert all(map(in_bounds, aimc.pulsed_layers(net).values()))
    x = batch()[0]
    assert_close("output", net(x), source(x), atol=2e-3 * float(source(x).detach().abs().max()))


@pytest.mark.parametrize(
    ("name", "said"),
    [("3.weight", "3.weight: shape"), ("3.cells.held", "3.cells: held missing"), ("3.bias", "3.bias: shape")],
)
def test_a_wrong_shape_writes_nothing_of_its_layer(name, said):
    net, _ = trained(2)
    state = dict(trained(3, seed=5)[0].state_dict())
    state[name] = torch.zeros(2, 3)
    before, weight, bias = cells_of(net[3]), net[3].weight.detach().clone(), net[3].bias.detach().clone()
    with pytest.raises(RuntimeError, match=said):
        net.load_state_dict(state)
    assert_same_cells(cells_of(net[3]), before)
    assert torch.equal(net[3].weight, weight) and torch.equal(net[3].bias, bias)


def test_missing_and_unexpected_names_are_reported():
    net, _ = trained(1)
    state = dict(small_net().state_dict())
    del state["3.weight"]
    with pytest.raises(RuntimeError, match=r"Missing key.*\"3.weight\"") as error:
        net.load_state_dict(state)
    assert "cells" not in str(error.value)
    with pytest.raises(RuntimeError, match="3.wieght"):
        net.load_state_dict({**net.state_dict(), "3.wieght": torch.zeros(1)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert net.load_state_dict(state, strict=False).missing_keys == ["3.weight"]


def test_the_hardware_stays_the_callers():
    net, _ = trained(2)
    other = HIDDEN.replace(forward=None)
    fresh = aimc.convert(small_net(), other, seed=1)
    with pytest.warns(
        UserWarning, match=r"layer '0' was saved with other hardware, its own stays: forward: "
    ):
        fresh.load_state_dict(net.state_dict())
    assert fresh[0].hardware == other
    assert_same_cells(cells_of(fresh), cells_of(net))  # only reads differ, so the devices are the saved ones


def test_weights_of_other_devices_are_programmed_into_ones_own():
    net, _ = trained(2)
    fresh = aimc.convert(small_net(), EXACT, seed=1)
    devices = fresh[0].cells.state["parameters"].clone()
    with pytest.warns(
        UserWarning, match=r"cell: SoftBounds -> ConstantStep.*programmed into this layer's own"
    ):
        fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh[0].cells.state["parameters"], devices)
    assert_close("weight", fresh[3].weight, net[3].weight, atol=1e-5)
    assert aimc.nn.saved_hardware(net.state_dict(), "0") == HIDDEN


def test_an_inference_checkpoint_gives_its_weights():
    saved = aimc.convert(small_net(), aimc.presets.ideal())
    net = aimc.convert(nn.Sequential(*small_net()), EXACT)
    with pytest.warns(UserWarning, match="Hardware -> PulsedHardware"):
        net.load_state_dict(saved.state_dict())
    assert_close("output", net(batch()[0]), saved(batch()[0]), atol=1e-5)


def test_moving_a_network_with_a_pending_update_is_refused():
    net, _ = trained(1)
    loss_of(net).backward()
    gradient = net[0].weight.grad.clone()
    net.cpu().float().to("cpu")  # nothing moves; trainers tidy up so, after errors of others as well
    assert torch.equal(net[0].weight.grad, gradient)
    with pytest.raises(aimc.AimcError, match="layer '0': step or zero_grad before"):
        net.half()
    net.zero_grad()
    net.half().float()
