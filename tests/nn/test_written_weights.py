"""What is written into the weights of cells past the cells is used or refused, and never lost without a word."""

import copy
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from torch import nn

import aimc
from tests.helpers import assert_close
from tests.nn.pulsed_helpers import PULSED, assert_same_cells, batch, cells_of, loss_of, sgd, small_net

BIASES_TOO = PULSED.replace(**{"mapping.analog_bias": True})


def whole_vector(net, change=0.25):
    vector = nn.utils.parameters_to_vector(net.parameters()).detach()
    nn.utils.vector_to_parameters(vector + change, net.parameters())


@torch.no_grad()
def in_place(net):
    net[3].weight.add_(0.25)


def assigned(net):
    net[3].weight.data = net[3].weight.data + 0.25


def reshaped(net):
    net[3].weight.data = torch.zeros(2, 2)


EDITS = {
    "data in place": lambda net: net[3].weight.data.add_(0.25),
    "data assigned": assigned,
    "another shape": reshaped,
    "a vector": whole_vector,
    "in place": in_place,
    "the bias": lambda net: net[3].bias.data.fill_(0.5),
}
USES = {
    "state_dict": lambda net, optimizer: net.state_dict(),
    "copy": lambda net, optimizer: copy.deepcopy(net),
    "pickle": lambda net, optimizer: pickle.dumps(net),
    "cast": lambda net, optimizer: (optimizer.zero_grad(), net.half()),
    "step": lambda net, optimizer: optimizer.step(),
    "layer's step": lambda net, optimizer: net[3].step(0.1),
    "idle step": lambda net, optimizer: (optimizer.zero_grad(), optimizer.step()),
    "observe": lambda net, optimizer: aimc.optim.observe(net, 1.0),
}


@pytest.mark.parametrize("use", list(USES))
@pytest.mark.parametrize("edit", list(EDITS))
def test_an_edit_is_refused_by_name_before_it_is_lost(edit, use):
    net = aimc.convert(small_net(), BIASES_TOO, seed=0)
    optimizer = sgd(net)
    loss_of(net).backward()
    before, shown = cells_of(net), net[3].weight.detach().clone()
    EDITS[edit](net)
    with pytest.raises(aimc.AimcError, match=r"layer '[03]'.*directly.*layer.program.*layer.refresh"):
        USES[use](net, optimizer)
    assert_same_cells(cells_of(net), before)
    for layer in aimc.pulsed_layers(net).values():
        layer.refresh()
    assert torch.equal(net[3].weight, shown)
    copy.deepcopy(net).half()
    assert_same_cells(cells_of(net), before)
    optimizer.step()


@pytest.mark.parametrize("edit", ["data assigned", "another shape", "a vector", "in place", "the bias"])
def test_a_forward_pass_sees_all_edits_that_torch_or_the_memory_tell_of(edit):
    net = aimc.convert(small_net(), BIASES_TOO, seed=0)
    if edit == "the bias":
        net[3].bias.data = net[3].bias.data + 1
    else:
        EDITS[edit](net)
    with pytest.raises(aimc.AimcError, match="directly"):
        net(batch()[0])


@pytest.mark.parametrize("edit", ["data in place", "data assigned", "a vector", "in place"])
def test_an_edit_that_is_programmed_is_in_the_cells(edit):
    net = aimc.convert(small_net(), BIASES_TOO, seed=0)
    EDITS[edit](net)
    layers = aimc.pulsed_layers(net)
    expected = {name: (m.weight.detach().clone(), m.bias.detach().clone()) for name, m in layers.items()}
    for layer in layers.values():
        layer.program(layer.weight, layer.bias)
    again = aimc.convert(small_net(), BIASES_TOO, seed=1)
    again.load_state_dict(net.state_dict())
    for name, (weight, bias) in expected.items():
        assert_close("weight", layers[name].weight, weight, atol=1e-6)
        assert_close("bias", layers[name].bias, bias, atol=1e-6)
        assert torch.equal(aimc.pulsed_layers(again)[name].weight, layers[name].weight)
    optimizer, before = sgd(net), layers["3"].weight.detach().clone()
    loss_of(net).backward()
    optimizer.step()  # the parameters are where the cells write
    assert not torch.equal(layers["3"].weight, before)
    copy.deepcopy(net)


def test_an_edit_that_is_taken_back_was_none():
    net = aimc.convert(small_net(), BIASES_TOO, seed=0)
    y, before = net(batch()[0]), cells_of(net)
    whole_vector(net, 0.0)
    assert torch.equal(net(batch()[0]), y)
    kept = net[3].weight.detach().clone()
    with torch.no_grad():
        net[3].weight.mul_(2.0)
        net[3].weight.copy_(kept)
    assert torch.equal(net(batch()[0]), y)
    optimizer = sgd(net)
    loss_of(net).backward()
    optimizer.step()
    assert any(not torch.equal(value, before[name]) for name, value in cells_of(net).items())
    assert not torch.equal(net(batch()[0]), y)
    net.state_dict()


def test_parameters_from_a_vector_are_those_of_the_digital_twin():
    net = aimc.convert(small_net(), PULSED, seed=0)
    digital = aimc.to_digital(net)
    whole_vector(digital, -0.25)
    net.load_state_dict(digital.state_dict())
    for layer, twin in ((net[0], digital[0]), (net[3], digital[3])):
        assert_close("weight", layer.weight, twin.weight, atol=1e-6)
        assert_close("bias", layer.bias, twin.bias)


def test_a_matrix_of_several_refuses_edits_as_well():
    net = aimc.convert(nn.Sequential(nn.LSTM(3, 4)), PULSED, seed=0)
    net[0].hh_l0.weight.data.add_(0.5)
    with pytest.raises(aimc.AimcError, match="layer '0.hh_l0'.*directly"):
        net.state_dict()


@pytest.mark.parametrize("view", [lambda w: w.t(), lambda w: w[:1].expand(4, 4)], ids=["turned", "repeated"])
def test_a_turned_view_of_the_same_memory_is_an_edit_and_can_be_taken_back(view):
    net = aimc.convert(nn.Linear(4, 4), PULSED, seed=0)
    before, x = net.weight.detach().clone(), torch.eye(4)
    y = net(x)
    net.weight.data = view(net.weight.data)
    with pytest.raises(aimc.AimcError, match="the weight was written directly"):
        net(x)
    net.refresh()
    assert torch.equal(net.weight, before) and torch.equal(net(x), y)
    net.refuse_edits()


def test_training_goes_on_after_what_torch_does_to_send_a_network_to_an_other_process():
    """Its tensors get other memory."""
    (net, optimizer), (twin, control) = (
        (n, sgd(n)) for n in (aimc.convert(small_net(), BIASES_TOO, seed=0) for _ in range(2))
    )
    for _ in range(3):
        for module, stepped in ((net, optimizer), (twin, control)):
            loss_of(module).backward()
            stepped.step()
            stepped.zero_grad()
        ForkingPickler.dumps(net)
        assert net[0].weight.is_shared()
    assert_same_cells(cells_of(net), cells_of(twin))
