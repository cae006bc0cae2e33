"""Whoever follows a network instead of running it, or runs it twice, gets what a plain run gives."""

import copy
import inspect
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import aimc
from aimc.errors import AimcError
from aimc.nn.replay import Records
from tests.helpers import assert_close

FIXED = aimc.presets.pcm().replace(**{"input_range.value": 3.0})
MESSAGES = "_torchdynamo_disable_msg" in inspect.getsource(torch._dynamo.decorators)
"""Whether this torch tells why a function is left out of graphs."""
X = torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(0))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(2, 3, 3, stride=2), nn.ReLU(), nn.Conv2d(3, 2, 3, padding="same", padding_mode="circular"),
        nn.Flatten(), nn.Linear(242, 4),
    )  # fmt: skip


def twins(net: nn.Module, hardware=FIXED):
    torch.manual_seed(0)
    analog = aimc.convert(net, hardware, seed=0)
    return analog, copy.deepcopy(analog)


def train(net, follow, x, steps=3):
    """Outputs of some steps of training, the last gradients and the weights."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    outputs = []
    for k in range(steps):
        optimizer.zero_grad()
        y = follow(x * (k + 1))
        y = y[0] if isinstance(y, tuple) else y
        y.pow(2).sum().backward()
        optimizer.step()
        outputs.append(y.detach())
    return outputs, [p.grad for p in net.parameters()], list(net.parameters())


def assert_equal_training(net, follow, plain, x, rtol=0.0):
    for found, expected in zip(train(net, follow, x), train(plain, plain, x), strict=True):
        for a, b in zip(found, expected, strict=True):
            assert_close("training", a.detach(), b.detach(), atol=1e-6, rtol=rtol)


@pytest.mark.parametrize("hardware", [FIXED, aimc.presets.pcm()], ids=["range given", "range from data"])
def test_a_compiled_network_trains_alike(hardware):
    torch._dynamo.reset()
    net, plain = twins(convolutions(), hardware)
    assert_equal_training(net, torch.compile(net, backend="aot_eager", fullgraph=True), plain, X)


@pytest.mark.slow
def test_the_default_compiler_makes_a_noisy_network_that_trains_alike(tmp_path, monkeypatch):
    """Inductor, with a compiler of C++ behind it, as a user gets it by torch.compile(net)."""
    if not any(map(shutil.which, ("g++", "clang++", "cl"))):
        pytest.skip("needs a compiler of C++ for torch's inductor")
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    net, plain = twins(nn.Sequential(nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 3)), aimc.presets.pcm())
    with inductor.patch(compile_threads=1):  # no pool of processes that outlives the test
        # What a compiler of C++ makes of a sum depends on the processor.
        assert_equal_training(net, torch.compile(net, fullgraph=True), plain, X, rtol=1e-5)
    assert list(tmp_path.rglob("*.so")), "nothing was compiled"


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_compiled_recurrent_network_trains_alike(kind):
    torch._dynamo.reset()
    net, plain = twins(kind(25, 4, 2, batch_first=True))
    assert_equal_training(net, torch.compile(net, backend="aot_eager"), plain, X.flatten(2))


def test_a_compiled_network_in_cells_trains_alike():
    torch._dynamo.reset()
    reram = aimc.presets.reram(w_max_dtod=0.0, w_min_dtod=0.0)
    nets = twins(nn.Sequential(nn.Flatten(), nn.Linear(50, 6), nn.Tanh(), nn.Linear(6, 3)), reram)
    found = []
    for net, follow in zip(nets, (torch.compile(nets[0], backend="aot_eager"), nets[1])):
        optimizer = aimc.optim.wrap(torch.optim.SGD(net.parameters(), lr=0.1), net)
        for _ in range(3):
            optimizer.zero_grad()
            follow(X).pow(2).sum().backward()
            optimizer.step()
        found.append(net(X))
    assert_close("after training", found[0], found[1], atol=1e-6)


def test_a_compiled_network_evaluates_alike():
    torch._dynamo.reset()
    net, plain = twins(convolutions())
    follow = torch.compile(net.eval(), backend="aot_eager", fullgraph=True)
    plain.eval()
    with torch.no_grad():
        for _ in range(2):
            assert_close("output", follow(X), plain(X), atol=1e-6)
    outputs = []
    for one, forward in ((net, follow), (plain, plain)):
        with torch.no_grad(), aimc.program(one, seed=3).at("1h"):
            outputs.append(forward(X))
    assert_close("chip", outputs[0], outputs[1], atol=1e-6)


def test_the_gradient_of_a_chip_is_made_while_it_is_in_place():
    torch._dynamo.reset()
    net, plain = twins(nn.Linear(5, 3))
    follow = torch.compile(net.eval(), backend="aot_eager", fullgraph=True)
    found = []
    for one, forward in ((net, follow), (plain.eval(), plain)):
        x = X.clone().requires_grad_()
        with aimc.program(one, seed=3).at("1h"):
            forward(x).pow(2).sum().backward()
        found.append(x.grad)
    assert_close("input", found[0], found[1], atol=1e-6)
    with aimc.program(net, seed=3).at("1h"):
        y = follow(X.clone().requires_grad_())
    with pytest.raises(AimcError, match="chip .* is gone"):
        y.sum().backward()


def test_the_gradient_of_a_compiled_layer_is_that_of_its_forward_pass_whatever_the_mode_now():
    torch._dynamo.reset()
    net, plain = twins(nn.Linear(5, 3))
    found = []
    for one, forward in ((net, torch.compile(net, backend="aot_eager", fullgraph=True)), (plain, plain)):
        x = X.clone().requires_grad_()
        y = forward(x).pow(2).sum()
        one.eval()
        y.backward()
        assert not one.training
        found.append(x.grad)
    assert_close("input", found[0], found[1], atol=1e-6)


def test_autocast_reaches_a_compiled_layer():
    torch._dynamo.reset()
    net, plain = twins(nn.Linear(5, 3))
    with torch.autocast("cpu", torch.bfloat16):
        y = torch.compile(net, backend="aot_eager", fullgraph=True)(X)
        assert y.dtype == torch.bfloat16 == plain(X).dtype


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_network(strict, tmp_path):
    net, plain = twins(convolutions())
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(net.eval(), (X,), dynamic_shapes=({0: batch},), strict=strict)
    torch.export.save(program, tmp_path / "net.pt2")
    again = torch.export.load(tmp_path / "net.pt2").module()
    plain.eval()
    for x in (X, X[:3]):
        assert_close("output", again(x), plain(x), atol=1e-6)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 3, batch_first=True), nn.Linear(3, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0])


NO_GRAPH = {
    "recurrent": (Recurrent, FIXED, torch.ones(2, 4, 5), "lstm"),
    "cell": (lambda: nn.Sequential(nn.GRUCell(5, 3)), FIXED, torch.ones(2, 5), "0"),
    "in cells": (lambda: nn.Sequential(nn.Linear(5, 3)), aimc.presets.reram(20), torch.ones(2, 5), "0"),
    "kernels in cells": (
        lambda: nn.Sequential(nn.Conv1d(2, 3, 2)),
        aimc.presets.reram(20),
        torch.ones(2, 2, 5),
        "0",
    ),
}


@pytest.mark.parametrize("name", list(NO_GRAPH))
def test_what_has_no_place_in_a_graph_says_so_and_how_to_export_it(name):
    make, hardware, x, layer = NO_GRAPH[name]
    net = aimc.convert(make(), hardware, seed=0).eval()
    with pytest.raises(AimcError, match=rf"layer '{layer}': .*no place in a graph.*aimc\.to_digital\(net\)"):
        torch.export.export(net, (x,), strict=False)
    with pytest.raises(Exception, match="no place in a graph" if MESSAGES else "disable"):
        torch.export.export(net, (x,), strict=True)
    for follow in (lambda: torch.jit.trace(net, x), lambda: torch.fx.symbolic_trace(net)):
        with pytest.raises(AimcError, match=r"no place in a graph.*aimc\.to_digital\(net\)"):
            follow()
    digital = aimc.to_digital(net)
    exported = torch.export.export(digital, (x,), strict=False).module()
    assert_close("exported", exported(x), digital(x), atol=1e-6)


def test_a_layer_that_is_gone_says_where_it_ran():
    """As an exported program in another process."""
    with pytest.raises(AimcError, match="to_digital"):
        torch.ops.aimc.layer(X, torch.ones(3, 5), None, None, None, 10**9, None)


def test_gradients_by_transforms():
    net, plain = twins(convolutions())
    net.eval(), plain.eval()
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(parameters):
        return torch.func.functional_call(net, parameters, (X,)).pow(2).sum()

    found = torch.func.grad(loss)(parameters)
    plain(X).pow(2).sum().backward()
    for name, p in plain.named_parameters():
        assert_close(name, found[name], p.grad, atol=1e-5)


def test_a_mapped_forward_pass_is_that_of_the_batch():
    for make, x in ((convolutions, X), (lambda: nn.Linear(5, 3), X)):
        net, plain = twins(make())
        net.eval(), plain.eval()
        mapped = torch.func.vmap(lambda one, net=net: net(one[None])[0], randomness="different")(x)
        assert_close("output", mapped, plain(x), atol=1e-6)


def test_inputs_are_mapped_over_another_dimension():
    net, plain = twins(nn.Linear(5, 3))
    net.eval(), plain.eval()
    mapped = torch.func.vmap(net, 1, randomness="different")(X)
    assert_close("output", mapped, plain(X.movedim(1, 0)), atol=1e-6)


def test_parameters_are_not_mapped():
    net, _ = twins(nn.Linear(5, 3))
    stack = {name: torch.stack([p.detach()] * 2) for name, p in net.eval().named_parameters()}
    with pytest.raises(AimcError, match="tiles"):
        torch.func.vmap(lambda p: torch.func.functional_call(net, p, (X,)), randomness="different")(stack)


def test_traced_networks():
    net, plain = twins(convolutions())
    net.eval(), plain.eval()
    assert_close("fx", torch.fx.symbolic_trace(net)(X), plain(X), atol=1e-6)
    traced = torch.jit.trace(net, (X,), check_trace=False)
    plain(X)  # tracing ran it once
    assert_close("jit", traced(X), plain(X), atol=1e-6)


def test_inference_mode():
    with torch.inference_mode():
        net, plain = twins(convolutions())
        assert_close("output", net.eval()(X), plain.eval()(X))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["convolutions", "LSTM"])
def test_activation_checkpoints_meet_the_same_noise(name, reentrant):
    """The same input in every step, and the range started by the first ones: what a second pass could mistake."""
    net, plain = twins(convolutions() if name == "convolutions" else nn.LSTM(25, 4, 2), aimc.presets.pcm())
    x = (X if name == "convolutions" else X.flatten(2)).clone().requires_grad_()
    for _ in range(12):
        for one, forward in ((net, lambda x: checkpoint(net, x, use_reentrant=reentrant)), (plain, plain)):
            one.zero_grad()
            y = forward(x)
            (y if name == "convolutions" else y[0]).pow(2).sum().backward()
        for (where, p), q in zip(net.named_parameters(), plain.parameters(), strict=True):
            assert_close(where, p.grad, q.grad, atol=1e-6)


@pytest.mark.parametrize("reentrant", [False, True])
def test_cells_under_activation_checkpoints_take_the_same_pulses(reentrant):
    noisy = aimc.presets.reram(20, io="noisy").replace(**{"mapping.overflow": "clip"})
    net, plain = twins(nn.Sequential(nn.Flatten(), nn.Linear(50, 6), nn.Tanh(), nn.Linear(6, 3)), noisy)
    x = X.clone().requires_grad_()
    for one, forward in ((net, lambda x: checkpoint(net, x, use_reentrant=reentrant)), (plain, plain)):
        optimizer = aimc.optim.wrap(torch.optim.SGD(one.parameters(), lr=0.1), one)
        for _ in range(3):
            optimizer.zero_grad()
            forward(x).pow(2).sum().backward()
            optimizer.step()
    assert int(net[1].cells.statistics[0, 2]) > 0
    for name, value in plain.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


def test_noise_on_the_way_back_alone_is_another_one_in_every_step():
    back = aimc.presets.reram(20, io="noisy").replace(forward=None)
    net, x, gradients = aimc.convert(nn.Linear(5, 3), back, seed=0), X[0, 0].clone().requires_grad_(), []
    for _ in range(2):
        gradients.append(torch.autograd.grad(net(x).sum(), x)[0])
    assert not torch.equal(*gradients)


def test_a_shared_layer_under_checkpoints():
    """Two passes of one layer with equal inputs, each with noise of its own."""
    net, plain = twins(nn.Linear(5, 5))
    weights, gradients = torch.tensor([1.0, 3.0]), []
    for one, forward in ((net, lambda x: checkpoint(net, x, use_reentrant=False)), (plain, plain)):
        x = X[0, 0].clone().requires_grad_()
        sum(w * forward(x).pow(2).sum() for w in weights).backward()  # type: ignore[union-attr]
        assert one._step == 2
        gradients.append(x.grad)
    assert_close("weight", net.weight.grad, plain.weight.grad, atol=1e-6)
    assert_close("input", gradients[0], gradients[1], atol=1e-6)  # the noise of the weights is in this one


@pytest.mark.parametrize("order", [1, -1], ids=["first things first", "last things first"])
def test_inputs_of_the_same_numbers_in_another_order_are_told_apart(order):
    net, plain = twins(nn.Linear(5, 5))
    gradients = []
    for forward in (lambda x: checkpoint(net, x, use_reentrant=False), plain):
        x = X[0, 0].clone().requires_grad_()
        outputs = [forward(x).pow(2).sum(), 3 * forward(x.flip(0)).pow(2).sum()]
        for y in outputs[::order]:
            y.backward()
        gradients.append(x.grad)  # the noise of the weights is in this one
    assert_close("input", *gradients, atol=1e-6)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_checkpoints_in_a_compiled_function_meet_the_same_noise(backend):
    """The graph makes the operation of a layer again."""
    if backend == "inductor" and shutil.which("g++") is None and shutil.which("clang++") is None:
        pytest.skip("no C++ compiler")
    torch._dynamo.reset()
    net, plain = twins(
        nn.Sequential(nn.Flatten(), nn.Linear(50, 6), nn.Tanh(), nn.Linear(6, 3)), aimc.presets.pcm()
    )
    follow = torch.compile(lambda x: checkpoint(net, x, use_reentrant=False), backend=backend)
    assert_equal_training(net, follow, plain, X, rtol=1e-5)
    assert net[1]._step == plain[1]._step == 3


TWICE = {
    "hardware-aware": aimc.presets.pcm().replace(**{"input_range.value": 3.0}),
    "ideal": aimc.presets.ideal(),
    "in cells": aimc.presets.reram(1000, w_max_dtod=0.0, w_min_dtod=0.0),
}
_f = torch.autograd.functional
SECOND = {
    "hessian": lambda net, x: _f.hessian(lambda z: net(z).pow(2).sum(), x),
    "hvp": lambda net, x: _f.hvp(lambda z: net(z).pow(2).sum(), x, x),
    "jvp": lambda net, x: _f.jvp(net, x, x),
    "penalty": lambda net, x: _penalty(net, x).backward(),
    "penalty of a sum": lambda net, x: torch.autograd.grad(
        _penalty(net, x, 1), list(net.parameters()), allow_unused=True
    ),
    "torch.func": lambda net, x: torch.func.grad(
        lambda z: torch.func.grad(lambda v: net(v).pow(2).sum())(z).sum()
    )(x),
}


def _unused(y, parameters):
    torch.autograd.grad(y, list(parameters), allow_unused=True)


def _penalty(net, x, power: int = 2):
    x = x.clone().requires_grad_()
    y = net(x).sum() if power == 1 else net(x).pow(power).sum()
    return torch.autograd.grad(y, x, create_graph=True)[0].pow(2).sum()


@pytest.mark.parametrize("what", SECOND)
@pytest.mark.parametrize("half", TWICE)
@pytest.mark.parametrize("layer", ["linear", "LSTM"])
def test_second_derivatives_are_refused_and_not_zero(layer, half, what):
    if (layer, what) == ("LSTM", "torch.func"):
        pytest.skip("recurrent layers have no place in torch.func")
    net, x = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 2)), X[0, 0]
    if layer == "LSTM":
        net, x = First(), X[0, :1]
    analog = aimc.convert(net, TWICE[half], seed=0).eval()
    with pytest.raises(AimcError, match="second derivative|torch.func"):
        SECOND[what](analog, x)
    x = x.clone().requires_grad_()  # a graph that nobody differentiates is no harm
    loss = analog(x).pow(2).sum()
    graph, plain = (torch.autograd.grad(loss, x, create_graph=c, retain_graph=True)[0] for c in (True, False))
    assert torch.equal(graph, plain)


@pytest.mark.parametrize("half", TWICE)
def test_second_derivatives_by_the_weight_alone_are_refused(half):
    """Of one matrix and a gradient of ones: nothing else leads from the penalty anywhere."""
    analog = aimc.convert(nn.Linear(5, 4), TWICE[half], seed=0).eval()
    with pytest.raises(AimcError, match="second derivative"):
        _unused(_penalty(analog, X[0, 0], 1), analog.parameters())


class First(nn.Module):
    """The outputs of an LSTM."""

    def __init__(self):
        super().__init__()
        self.lstm = nn.LSTM(5, 4, batch_first=True)

    def forward(self, x):
        return self.lstm(x)[0]


def test_a_program_of_another_process_finds_no_layer_here(tmp_path):
    code = """
import sys, torch, aimc
from aimc.errors import AimcError
torch.manual_seed(0)
net = aimc.convert(torch.nn.Linear(5, 3), aimc.presets.pcm().replace(**{"input_range.value": 1.0}), seed=0).eval()
if sys.argv[1] == "save":
    torch.export.save(torch.export.export(net, (torch.ones(2, 5),)), sys.argv[2])
else:
    try:
        torch.export.load(sys.argv[2]).module()(torch.ones(2, 5))
    except AimcError as error:
        assert "where it was made" in str(error)
    else:
        sys.exit(3)
"""
    for word in ("save", "load"):
        done = subprocess.run(
            [sys.executable, "-c", code, word, str(tmp_path / "p.pt2")],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr


def test_a_pass_whose_record_is_gone_is_no_new_one(monkeypatch):
    """Some passes later than are kept, it would meet other noise."""
    import aimc.nn.replay as replay

    monkeypatch.setattr(replay, "_KEPT", 2)
    net = aimc.convert(nn.Linear(5, 5), FIXED, seed=0)
    net._records = Records()
    x = X[0, 0].clone().requires_grad_()
    y = checkpoint(lambda x: net(net(net(x))), x, use_reentrant=True)
    with pytest.raises(AimcError, match="not among the last 2 reads"):
        y.sum().backward()


def test_without_checkpoints_nothing_is_recorded():
    net, _ = twins(nn.Linear(5, 3))
    net(X).sum().backward()
    assert len(net._records) == (0 if hasattr(torch._C._autograd, "_top_saved_tensors_default_hooks") else 1)


def test_the_latest_unused_record_is_meant():
    records = Records()
    values = dict(step=0, evaluated=0, training=True, started=True, chip=None)
    first, second = (records.add(fingerprint=("x",), **values) for _ in range(2))
    assert records.matching(("x",)) is second and records.matching(("y",)) is None
    second.used = True
    assert records.matching(("x",)) is first
    first.used = True
    assert records.matching(("x",)) is second and records.named(1) is first and records.named(9) is None


def test_importing_is_cheap():
    code = "import aimc, sys; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
