"""What people do to torch modules and optimizers, done to cells: it works, or is refused by name."""

import copy
import pickle
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize, prune, spectral_norm

import aimc
from aimc.errors import AimcError

ALGORITHMS = {
    "sgd": aimc.algorithms.AnalogSGD(),
    "residual": aimc.algorithms.Residual(tiles=3),
    "mp": aimc.algorithms.MixedPrecision(),
}


def _cells(analog_bias=False, **options):
    torch.manual_seed(0)
    hardware = aimc.presets.reram(states=20, **options).replace(
        **{"mapping.analog_bias": analog_bias, "mapping.overflow": "clip"}
    )
    return aimc.convert(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), hardware, seed=0)


def _wrapped(net, groups=None):
    return aimc.optim.wrap(torch.optim.SGD(groups or net.parameters(), lr=0.1), net)


def _backward(net):
    net(torch.ones(4, 6)).square().sum().backward()


def _step(net, optimizer):
    _backward(net)
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize("when", ["before wrap", "after"])
def test_an_analog_bias_is_frozen_with_its_weight_or_not(frozen, when):
    net = _cells(analog_bias=True)
    optimizer = None if when == "before wrap" else _wrapped(net)
    for layer in (net[0], net[2]):
        getattr(layer, frozen).requires_grad_(False)
    with pytest.raises(
        AimcError, match=r"layer '0', field 'bias': .*one of them is frozen.*analog_bias=False"
    ):
        _step(net, optimizer or _wrapped(net, [p for p in net.parameters() if p.requires_grad]))
    net.zero_grad()
    for p in net.parameters():
        p.requires_grad_(False)
    net[0].weight.requires_grad_(True), net[0].bias.requires_grad_(True)
    before = net[2].weight.clone()
    _step(net, _wrapped(net))
    assert torch.equal(net[2].weight, before)


def test_an_analog_bias_has_the_rate_of_its_weight():
    net = _cells(analog_bias=True)
    weights, biases = [net[0].weight, net[2].weight], [net[0].bias, net[2].bias]
    optimizer = _wrapped(net, [{"params": biases, "lr": 0.0}, {"params": weights}])
    with pytest.raises(AimcError, match="layer '0', field 'bias': .*their groups differ in lr"):
        _step(net, optimizer)
    with pytest.raises(AimcError, match="field 'bias': .*one of them is in the optimizer"):
        _step(net, _wrapped(net, weights))
    _step(net, _wrapped(net, [{"params": biases}, {"params": weights}]))


def test_a_cancelled_gradient_of_an_analog_bias_is_that_of_its_weight():
    net = _cells(analog_bias=True)
    optimizer = _wrapped(net)
    for name, other in (("bias", "weight"), ("weight", "bias")):
        _backward(net)
        getattr(net[0], name).grad = None
        assert getattr(net[0], name).grad is None and getattr(net[0], other).grad is not None
        with pytest.raises(AimcError, match=f"layer '0', field '{name}.grad': .*was set to None"):
            optimizer.step()
        before = net[0].weight.clone()
        getattr(net[0], other).grad = None  # now there is none
        optimizer.step()
        assert torch.equal(net[0].weight, before)
        optimizer.zero_grad()
    _step(net, optimizer)
    assert not torch.equal(net[0].weight, before)


CHANGES = {
    "prune": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "spectral_norm": lambda layer: spectral_norm(layer),
    "parametrize": lambda layer: parametrize.register_parametrization(layer, "weight", nn.Identity()),
    "no bias": lambda layer: setattr(layer, "bias", None),
}
USES = {
    "forward": lambda net: net(torch.ones(1, 6)),
    "state_dict": lambda net: net.state_dict(),
    "double": lambda net: net.double(),
    "wrap": _wrapped,
    "deepcopy": copy.deepcopy,
}
# A forward pass without a bias is one, and torch copies a parametrized layer in a way of its own.
ALLOWED = {("no bias", "forward"), ("parametrize", "deepcopy")}


@pytest.mark.parametrize(("change", "use"), [(c, u) for c in CHANGES for u in USES if (c, u) not in ALLOWED])
def test_cells_are_computed_from_nothing_else(change, use):
    net = _cells(analog_bias=True)
    CHANGES[change](net[0])
    with pytest.raises(AimcError, match="field '(weight|bias)': .*no parameter .*before aimc.convert"):
        USES[use](net)


def test_a_hook_that_would_see_no_gradient_is_refused_with_the_one_that_does():
    net, seen = _cells(), []
    with pytest.raises(AimcError, match="layer '0'.*register_post_accumulate_grad_hook"):
        net[0].weight.register_hook(lambda grad: grad)
    net[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.clone()))
    _backward(net)
    if _hooks_see_none():
        assert len(seen) == 1 and seen[0].shape == net[0].weight.shape and bool(seen[0].any())
    assert bool(net[0].weight.grad.any())


def _hooks_see_none() -> bool:
    """Whether this torch calls a post-accumulate hook where a function of its autograd gave no gradient."""

    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    parameter, calls = nn.Parameter(torch.ones(1)), []
    parameter.register_post_accumulate_grad_hook(lambda p: calls.append(p))
    Nothing.apply(parameter).sum().backward()
    return bool(calls)


def test_layers_that_came_later_are_wrapped_anew():
    net = _cells()
    optimizer = _wrapped(net)
    net.append(aimc.convert(nn.Sequential(nn.Linear(3, 3)), aimc.presets.reram(), seed=1))
    with pytest.raises(
        AimcError, match="cells of layer '0' came to the network after aimc.optim.wrap; wrap again"
    ):
        optimizer.add_param_group({"params": list(net[3].parameters())})
    _step(net, _wrapped(net))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_network_that_holds_its_own_optimizer_is_copied(copied):
    net = _cells()
    net.optimizer = _wrapped(net)
    twin = copied(net)
    for one in (twin, net):
        _step(one, one.optimizer)
    assert torch.equal(twin[0].weight, net[0].weight) and twin.optimizer.net is twin
    other = torch.optim.SGD(twin.parameters(), lr=0.1)
    _backward(twin)
    with pytest.raises(AimcError, match="that aimc.optim.wrap made last"):
        other.step()


@pytest.mark.parametrize("analog_bias", [False, True])
@pytest.mark.parametrize("where", ["network before", "network after", "images", "all"])
def test_the_order_in_memory_changes_no_pulse(where, analog_bias):
    weights = []
    for changed in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
        order = {"memory_format": torch.channels_last} if changed else {}
        if where in ("network before", "all"):
            net = net.to(**order)
        hardware = aimc.presets.reram(states=20).replace(
            **{"mapping.analog_bias": analog_bias, "mapping.overflow": "clip"}
        )
        net = aimc.convert(net, hardware, seed=0)
        if where in ("network after", "all"):
            net.to(**order)
        x = torch.randn(2, 3, 8, 8)
        optimizer = _wrapped(net)
        for _ in range(3):
            net(x.to(**order) if where in ("images", "all") else x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        weights.append((net[0].weight.detach(), net[2].weight.detach()))
    for plain, other in zip(*weights, strict=True):
        assert torch.equal(plain, other)


def _interrupt(*args, **options):
    raise KeyboardInterrupt


def _interrupted(act, line):
    """Do something, with Ctrl-C before one of the lines of aimc that it runs, counted from 1; whether it came to it."""
    passed = 0

    def trace(frame, event, arg):
        nonlocal passed
        if not frame.f_globals.get("__name__", "").startswith("aimc."):
            return None
        passed += event == "line"
        if event == "line" and passed == line:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        act()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_interrupt_leaves_weights_that_are_those_of_the_cells(name, monkeypatch):
    """All over a step, and between the two halves of a refresh."""
    net = _cells(algorithm=ALGORITHMS[name])
    optimizer, line, hits = _wrapped(net), 1, 0
    _step(net, optimizer)  # everything is compiled
    while True:
        _backward(net)
        if not _interrupted(optimizer.step, line):
            break
        hits, line = hits + 1, line + 3
        optimizer.zero_grad()
        net.state_dict()  # refused, if the two were taken for a weight that was written
        _assert_fresh(net)
    assert hits > 10
    _backward(net)
    with monkeypatch.context() as patch:
        patch.setattr(type(net[0]), "_take_back", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            optimizer.step()
    weight = 0.5 * net[2].weight
    with monkeypatch.context() as patch:
        patch.setattr(torch, "mul", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            net[2].program(weight)
    net(torch.ones(1, 6))
    _assert_fresh(net)


def _assert_fresh(net):
    for layer in (net[0], net[2]):
        here = layer.weight.detach().clone()
        there = aimc.to_digital(layer).weight.detach().clone()
        layer.refresh()
        assert torch.equal(here, layer.weight) and torch.equal(there, layer.weight)
