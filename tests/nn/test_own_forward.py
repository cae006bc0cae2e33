"""Modules that multiply with bare parameters, on tiles without a line of theirs changed."""

import copy
import functools
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import aimc
from aimc.random import Key
from tests.helpers import assert_close

IDEAL = aimc.presets.ideal()
CELLS = aimc.presets.reram(20, w_max_dtod=0.0, w_min_dtod=0.0)


class Bare(nn.Module):
    """Every way to multiply, with a child and with parameters that are no matrices."""

    def __init__(self):
        super().__init__()
        self.out_in = nn.Parameter(torch.randn(4, 3))
        self.in_out = nn.Parameter(torch.randn(3, 4))
        self.stack = nn.Parameter(torch.randn(2, 4, 3))
        self.bias = nn.Parameter(torch.randn(4))
        self.table = nn.Parameter(torch.randn(6, 4))
        self.child = nn.Linear(4, 4)
        self.register_buffer("offset", torch.randn(4))
        self.settings = {"scale": 0.5}
        self.name = "mine"  # names that a twin must leave alone

    def products(self, x, flat):
        return [
            F.linear(x, self.out_in),
            F.linear(x, self.out_in, self.bias),
            F.linear(x, self.in_out.t(), bias=self.bias),
            x @ self.in_out,
            x @ self.out_in.T,
            torch.matmul(x, self.out_in.transpose(0, 1)),
            x.matmul(self.in_out),
            torch.mm(flat, self.in_out),
            torch.addmm(self.bias, flat, self.in_out, beta=2, alpha=0.5),
            self.bias.addmm(flat, self.out_in.mT),
            self.out_in @ flat.t(),
            torch.mv(self.out_in, flat[0]),
            self.out_in.float().contiguous() @ flat[0],
            *(F.linear(x, matrix) for matrix in self.stack),
            F.linear(x, self.stack[torch.tensor(1)]),
            x @ self.stack[-1].t(),
            torch.bmm(torch.stack([flat, 2 * flat]), self.stack.transpose(1, 2)),
            torch.stack([x, 2 * x]).matmul(self.stack.mT)
            if x.dim() == 2
            else self.stack.unbind()[0] @ flat.t(),
        ]

    def forward(self, x, tokens):
        assert (
            self.name == "mine" and self.out_in.shape == (4, 3) and self.stack.size(0) == len(self.stack) == 2
        )
        assert self.out_in.dtype == x.dtype and self.in_out.dim() == self.in_out.ndim == 2
        return self.products(x, x.reshape(-1, 3)), self.child(
            F.embedding(tokens, self.table)
        ) * self.settings["scale"]


aimc.register_products(Bare, weights=["*_*", "stack"], transposed=["in_out"], others=["table"])


def outputs(net, x, tokens):
    products, looked_up = net(x, tokens)
    return [*products, looked_up + net.offset]


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Bare()


X, TOKENS = torch.linspace(-1, 1, 30).view(5, 2, 3), torch.tensor([1, 5, 2])


@pytest.mark.parametrize("x", [X, X[0]], ids=["batches", "matrix"])
@pytest.mark.parametrize(
    "hardware", [IDEAL, IDEAL.replace(**{"tile.rows": 2}), CELLS], ids=["ideal", "split", "cells"]
)
def test_ideal_hardware_is_digital(net, x, hardware):
    analog = aimc.convert(net, hardware)
    assert isinstance(analog, Bare) and type(net) is Bare
    expected = outputs(net, x, TOKENS)
    for module in (analog, aimc.to_digital(analog)):
        for i, (a, e) in enumerate(zip(outputs(module, x, TOKENS), expected, strict=True)):
            assert_close(f"product {i}", a, e, atol=2e-5)
    assert type(aimc.to_digital(analog)) is Bare
    assert aimc.coverage(analog).analog_share == 1.0
    names = ["tiles_out_in", "tiles_in_out", "tiles_stack_0", "tiles_stack_1", "child"]
    assert sorted({**aimc.analog_layers(analog), **aimc.pulsed_layers(analog)}) == sorted(names)


def test_gradients_are_torchs(net):
    analog = aimc.convert(net, IDEAL)
    for module in (net, analog):
        sum((y * y.detach().cos()).sum() for y in outputs(module, X, TOKENS)).backward()
    expected = dict(net.named_parameters())
    found = dict(analog.named_parameters())
    assert found.keys() == expected.keys()
    for name, parameter in expected.items():
        assert_close(name, found[name].grad, parameter.grad, atol=1e-4, rtol=1e-5)


def test_a_stack_has_one_gradient_and_not_one_for_each_matrix():
    """Each would be as large as the stack."""

    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.stack = nn.Parameter(torch.randn(8, 4, 3))

        def forward(self, x):
            return sum(F.linear(x, matrix) for matrix in self.stack)

    aimc.register_products(Stack, weights=["stack"])
    y, nodes, seen = aimc.convert(Stack(), IDEAL)(X[0]), [], set()
    nodes.append(y.grad_fn)
    while nodes:
        node = nodes.pop()
        if node is not None and node not in seen:
            seen.add(node)
            nodes += [n for n, _ in node.next_functions]
    names = [type(node).__name__ for node in seen]
    assert names.count("UnbindBackward0") == 1 and "SelectBackward0" not in names


def test_noise_and_chips_reach_every_product(net):
    hardware = aimc.presets.pcm().replace(**{"input_range.value": 2.0, "input_range.init_batches": 0})
    analog = aimc.convert(net, hardware, seed=0).eval()
    clean, chip = outputs(net, X, TOKENS), aimc.program(analog, seed=0)
    with chip.at("1d"):
        for i, (a, e) in enumerate(zip(outputs(analog, X, TOKENS), clean, strict=True)):
            assert 1e-3 < float((a - e).detach().std()) < 2, i
    assert chip.weights()["tiles_in_out"].shape == (4, 3)


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"]
)
def test_copies_are_whole(net, way):
    analog = aimc.convert(net, IDEAL)
    outputs(analog, X, TOKENS)
    twin = way(analog)
    assert type(twin) is type(analog)
    with torch.no_grad():
        twin.stack.zero_()
    found, before = outputs(twin, X, TOKENS), outputs(analog, X, TOKENS)
    assert_close("product", found[0], before[0])
    assert float(found[13].detach().abs().max()) == 0 and float(before[13].detach().abs().max()) > 0


def test_checkpoints_hold_the_modules_own_names(net, tmp_path):
    torch.manual_seed(1)
    analog = aimc.convert(Bare(), aimc.presets.pcm())
    assert net.state_dict().keys() <= analog.state_dict().keys()
    analog.load_state_dict(net.state_dict())
    assert torch.equal(analog.stack, net.stack) and torch.equal(analog.table, net.table)
    torch.save(analog.state_dict(), tmp_path / "state.pt")
    again = aimc.convert(Bare(), aimc.presets.pcm())
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(again.in_out, net.in_out)
    cells = aimc.convert(Bare(), CELLS)
    cells.load_state_dict(net.state_dict())
    assert_close("in cells", outputs(cells, X, TOKENS)[0], outputs(net, X, TOKENS)[0], atol=1e-5)


def test_inside_a_network_and_next_to_other_modules(net):
    outer = nn.ModuleDict({"a": net, "b": nn.Linear(2, 2), "again": net})
    analog = aimc.convert(outer, IDEAL)
    assert analog["again"] is analog["a"] and isinstance(analog["a"].child, aimc.nn.AnalogLinear)
    assert len(aimc.analog_layers(analog)) == 6
    digital = aimc.to_digital(analog)
    assert digital["again"] is digital["a"] and type(digital["a"].child) is nn.Linear
    kept = aimc.convert(outer, IDEAL, digital=("a",))
    assert list(aimc.analog_layers(kept)) == ["b"] and type(kept["a"]) is Bare
    with pytest.raises(
        aimc.AimcError, match=r"layer 'a', field 'digital': 'stack' would stay digital.*exclude 'a'"
    ):
        aimc.convert(outer, IDEAL, digital=("a.stack",))


def refused(forward, message, **parameters):
    """A module whose forward pass does something that tiles cannot."""

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 3))

    Odd.forward = lambda self, x: forward(self, x)
    aimc.register_products(Odd, weights=["w"], **parameters)
    analog = aimc.convert(nn.ModuleDict({"odd": Odd()}), IDEAL)["odd"]
    with pytest.raises(aimc.AimcError, match=message):
        analog(X)
    assert isinstance(analog.w, nn.Parameter)  # also after an error


@pytest.mark.parametrize(
    ("forward", "what"),
    [
        (lambda self, x: x[0] * self.w[0], r"\[0\]"),
        (lambda self, x: torch.relu(self.w), "relu"),
        (lambda self, x: F.linear(x, self.w * 2), "__mul__"),
        (lambda self, x: F.linear(x, 2 * self.w), "__rmul__"),
        (lambda self, x: F.linear(x, -self.w), "__neg__"),
        (lambda self, x: x[0] + self.w[0:2], "slice"),
        (lambda self, x: x[0, 0] * self.w, "mul"),
        (lambda self, x: F.linear(x, self.w.data), "the attribute data"),
        (lambda self, x: F.linear(self.w, x[0, :, :]), "something else than a product"),
        (lambda self, x: torch.cat([self.w, self.w]), "cat"),
        (lambda self, x: self.w.transpose(0, 0), r"transpose\(0, 0\)"),
        (lambda self, x: self.w @ self.w.t(), "a product with StandIn"),
    ],
)
def test_anything_but_a_product_is_an_error(forward, what):
    refused(forward, rf"layer 'odd', field 'w': .*asks for .*{what}")


def test_a_matrix_that_lies_the_other_way_is_an_error():
    message = r"field 'w': is multiplied as \[{}\], but was registered as \[{}\]"
    refused(lambda self, x: x @ self.w.t().t(), message.format("in, out", "out, in"))
    refused(lambda self, x: F.linear(x, self.w), message.format("out, in", "in, out"), transposed=["w"])


def test_what_a_handler_does_not_know_is_refused():
    class More(Bare):
        def __init__(self):
            super().__init__()
            self.extra = nn.Parameter(torch.ones(2, 2))

    with pytest.raises(aimc.AimcError, match=r"(?s)extra \(More.*aimc.register_products"):
        aimc.convert(More(), IDEAL)

    class Four(nn.Module):
        def __init__(self):
            super().__init__()
            self.filters = nn.Parameter(torch.ones(2, 2, 3, 3))

        def forward(self, x):
            return F.conv2d(x, self.filters)

    aimc.register_products(Four, weights=["filters"])
    with pytest.raises(aimc.AimcError, match=r"layer 'a', field 'filters'.*registered by matrices or stacks"):
        aimc.convert(nn.ModuleDict({"a": Four()}), IDEAL)


def test_hasattr_still_answers():
    refused(lambda self, x: getattr(self.w, "nothing", None) or self.w.nothing, "the attribute nothing")


def test_a_handler_of_ones_own():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Parameter(torch.randn(4, 3))

        def forward(self, x):
            return torch.sigmoid(F.linear(x, self.gate))

    with pytest.raises(aimc.AimcError, match="gate"):
        aimc.convert(Gated(), IDEAL)

    @aimc.register(Gated, weights=["gate"], hardware=aimc.Hardware)
    def twin(module, hardware, key, name, backend):
        layer = nn.Linear(3, 4, bias=False)
        layer.weight = module.gate
        return nn.Sequential(aimc.nn.AnalogLinear(layer, hardware, key, name, backend), nn.Sigmoid())

    net = Gated()
    analog = aimc.convert(net, IDEAL)
    assert_close("output", analog(X), net(X), atol=1e-6)
    assert aimc.coverage(analog).analog_share == 1.0
    with pytest.raises(aimc.AimcError, match="gate"):
        aimc.convert(net, CELLS)


def test_pulses_train_what_the_forward_pass_multiplies_by(net):
    analog = aimc.convert(net, CELLS, seed=0)
    optimizer = aimc.optim.wrap(torch.optim.SGD(analog.parameters(), lr=1.0), analog)
    before = {n: m.weight.detach().clone() for n, m in aimc.pulsed_layers(analog).items()}
    sum(y.square().mean() for y in outputs(analog, X, TOKENS)).backward()
    optimizer.step()
    assert all(not torch.equal(m.weight, before[n]) for n, m in aimc.pulsed_layers(analog).items())


def test_what_decorators_add_can_be_taken_off():
    def at_once(forward):
        """As libraries have it that multiply whole stacks in kernels of their own."""

        @functools.wraps(forward)
        def outer(self, x):
            return torch.einsum("...i,eoi->...o", x, self.stack)

        return outer

    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.stack = nn.Parameter(torch.randn(2, 4, 3))

        @at_once
        def forward(self, x):
            return sum(F.linear(x, matrix) for matrix in self.stack)

    module = Experts()
    with pytest.raises(aimc.AimcError, match="field 'stack': .*asks for einsum"):
        aimc.nn.own_forward(module, IDEAL, Key(0), weights=["stack"])(X)
    twin = aimc.nn.own_forward(module, IDEAL, Key(0), weights=["stack"], unwrap=True)
    assert_close("output", twin(X), module(X), atol=1e-5)


# Parameters of children -----------------------------------------------------------------------------------------------

PCM = aimc.presets.pcm().replace(**{"input_range.value": 2.0, "input_range.init_batches": 0})


class Tied(nn.Module):
    """A head that multiplies by the table, as it is written without a layer for it."""

    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Embedding(11, 4), nn.Linear(4, 4)

    def forward(self, tokens):
        assert isinstance(self.table, nn.Embedding) and self.table.num_embeddings == 11
        return F.linear(self.layer(self.table(tokens)), self.table.weight)


class Listed(nn.Module):
    """Matrices, and a stack of them, in lists."""

    def __init__(self):
        super().__init__()
        self.matrices = nn.ParameterList([nn.Parameter(torch.randn(4, 4)) for _ in range(3)])
        self.named = nn.ParameterDict({"stack": torch.randn(2, 4, 4), "bias": torch.randn(4)})

    def forward(self, x):
        for matrix in self.matrices:
            x = F.linear(x, matrix).tanh()
        assert len(self.matrices) == 3 and "stack" in self.named and len(self.matrices[1:]) == 2
        return F.linear(x, self.matrices[-1]) + x @ self.named["stack"][1].t() + self.named["bias"]


aimc.register_products(Tied, weights=["table.weight"])
aimc.register_products(Listed, weights=["matrices.*", "named.stack"])
FOUR, WORDS = torch.randn(2, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([[1, 10, 2]])


def made(kind):
    torch.manual_seed(0)
    return kind(), WORDS if kind is Tied else FOUR


@pytest.mark.parametrize(("kind", "hardware"), [(Tied, IDEAL), (Listed, IDEAL), (Listed, CELLS)])
def test_a_product_by_a_childs_parameter_is_digital_on_ideal_hardware(kind, hardware):
    net, x = made(kind)
    analog = aimc.convert(nn.ModuleDict({"net": net, "other": nn.Linear(1, 1)}), hardware)
    report = aimc.coverage(analog)
    assert report.analog_share == 1.0 and "unsupported" not in str(report)
    stranger = aimc.convert(nn.ModuleDict({"net": kind(), "other": nn.Linear(1, 1)}), hardware)
    stranger.load_state_dict(analog.state_dict())
    digital = aimc.to_digital(analog)
    assert type(digital["net"]) is kind and net.state_dict().keys() == digital["net"].state_dict().keys()
    loaded = aimc.convert(kind(), hardware)
    loaded.load_state_dict(net.state_dict())
    ways = {
        "analog": analog["net"], "digital": digital["net"], "state": stranger["net"], "digital state": loaded,
        "copy": copy.deepcopy(analog)["net"], "pickle": pickle.loads(pickle.dumps(analog))["net"],
    }  # fmt: skip
    for name, module in ways.items():
        assert_close(name, module(x), net(x), atol=1e-5)
    assert net.state_dict().keys() == kind().state_dict().keys()  # the digital one keeps its lists


@pytest.mark.parametrize("kind", [Tied, Listed])
def test_gradients_of_a_childs_parameter_are_torchs(kind):
    net, x = made(kind)
    analog = aimc.convert(net, IDEAL)
    for module in (net, analog):
        y = module(x)
        (y * y.detach().cos()).sum().backward()
    found = dict(analog.named_parameters())
    for name, parameter in net.named_parameters():
        assert_close(name, found[name].grad, parameter.grad, atol=1e-5)
    assert (
        kind is Listed or int((found["table.weight"].grad.abs().sum(1) > 0).sum()) == 11
    )  # look-up and head


@pytest.mark.parametrize("kind", [Tied, Listed])
def test_drift_reaches_a_product_by_a_childs_parameter(kind):
    net, x = made(kind)
    analog = aimc.convert(net, PCM, seed=0, digital=("layer",) if kind is Tied else ()).eval()
    chip = aimc.program(analog, seed=0, compensation=None)
    outputs = []
    for time in ("1s", "1y"):
        with torch.no_grad(), chip.at(time):
            outputs.append(analog(x))
    assert float(outputs[1].std()) < 0.9 * float(outputs[0].std())
    if kind is Tied:
        with chip.at("1y"):  # the look-up is digital
            assert torch.equal(analog.table(WORDS), net.table(WORDS))


def test_gains_are_multiplied_into_a_list_and_a_matrix_with_two_uses_has_none():
    net, x = made(Listed)
    analog = aimc.convert(net, PCM, seed=0)
    tied = aimc.convert(made(Tied)[0], PCM, seed=0)
    assert tied.tiles_table_weight.output_gain is None and tied.layer.output_gain is not None
    with torch.no_grad():
        for layer in aimc.analog_layers(analog).values():
            layer.output_gain *= 1.3
        tied.layer.output_gain *= 1.3
    digital, ideal = (
        aimc.to_digital(analog),
        aimc.convert(net, IDEAL.replace(**{"mapping.learned_gain": True})),
    )
    for layer in aimc.analog_layers(ideal).values():
        layer.output_gain.data.fill_(1.3)
    assert_close("lists", digital(x), ideal(x), atol=1e-5)
    assert torch.equal(analog.matrices[0], net.matrices[0])
    assert torch.equal(aimc.to_digital(tied).table.weight, tied.table.weight)

    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return F.linear(self.layer(x), self.layer.weight)

    aimc.register_products(Twice, weights=["layer.weight"])
    twice = aimc.convert(nn.ModuleDict({"a": Twice()}), PCM, seed=0)
    twice["a"](x)
    aimc.to_digital(twice)
    twice["a"].layer.output_gain.data.fill_(1.3)
    with pytest.raises(
        aimc.AimcError, match="layer 'a': output gains have been trained, and layer.weight is multiplied"
    ):
        aimc.to_digital(twice)


def test_cells_are_not_shared_with_a_table():
    with pytest.raises(
        aimc.AimcError, match="layer 'a'.*table.weight is a parameter of the module table, too, and cells"
    ):
        aimc.convert(nn.ModuleDict({"a": made(Tied)[0]}), CELLS)
    net, x = made(Listed)
    analog = aimc.convert(net, CELLS, seed=0, inplace=True)
    optimizer = aimc.optim.wrap(torch.optim.SGD(analog.parameters(), lr=1.0), analog)
    before = {n: m.weight.detach().clone() for n, m in aimc.pulsed_layers(analog).items()}
    analog(x).square().sum().backward()
    optimizer.step()
    moved = [n for n, m in aimc.pulsed_layers(analog).items() if not torch.equal(m.weight, before[n])]
    assert len(moved) == 4 and "tiles_named_stack_0" not in moved  # which nobody multiplies by


@pytest.mark.parametrize("pattern", ["tabel.weight", "weight", "table.*.weight", "tables.weight"])
def test_a_registration_that_names_nothing_is_an_error(pattern):
    class Named(Tied):
        pass

    aimc.register_products(Named, weights=[pattern])
    with pytest.raises(
        aimc.AimcError, match=rf"layer 'a': .*a Named multiplies by '{pattern}'.*it has table.weight, layer.w"
    ):
        aimc.convert(nn.ModuleDict({"a": Named()}), IDEAL)


class Filter(nn.Module):
    """A convolution by a parameter of its own."""

    def __init__(self, spatial):
        super().__init__()
        self.kernel = nn.Parameter(torch.ones(2, 3, *(3,) * spatial))

    def forward(self, x):
        return {1: F.conv1d, 2: F.conv2d}[self.kernel.dim() - 2](x, self.kernel)


class Filter2d(Filter):
    pass


@pytest.mark.parametrize(
    "spatial, ways", [(1, "aimc.register_products and aimc.register"), (2, "aimc.register")]
)
def test_a_kernel_of_ones_own_is_sent_to_a_convolution(spatial, ways):
    with pytest.raises(
        aimc.AimcError, match=f"let an nn.Conv1d, nn.Conv2d or nn.Conv3d hold .*; else see {ways}; what is"
    ):
        aimc.convert(nn.Sequential(Filter(spatial)), IDEAL)


def test_a_kernel_is_no_product_to_register():
    aimc.register_products(Filter2d, weights=["kernel"])
    with pytest.raises(
        aimc.AimcError, match=r"layer '0', field 'kernel', .*: products are .* let an nn.Conv1d"
    ):
        aimc.convert(nn.Sequential(Filter2d(2)), IDEAL)
