"""Products that a network makes beside its tiles are never silent."""

import copy
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import aimc
from tests.helpers import assert_close

PCM = aimc.presets.pcm().replace(**{"input_range.value": 2.0, "input_range.init_batches": 0})
CELLS = aimc.presets.reram(20, w_max_dtod=0.0, w_min_dtod=0.0)
X = torch.randn(5, 2, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers and what a forward pass may multiply by beside them."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.table = nn.Embedding(7, 4)
        self.vector = nn.Parameter(torch.randn(4))
        self.register_buffer("basis", torch.randn(4, 4))
        self.register_buffer("mask", torch.ones(7, 4))
        self.register_buffer("cache", torch.zeros(5, 2, 4))
        self.plain = torch.randn(4, 4)

    def forward(self, x):
        return self.how(self, self.second(self.first(x)))


class InAFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight):
        return x @ weight.t()


def projected_table(net, x):
    return x + F.embedding(torch.tensor(1), F.linear(net.table.weight, net.first.weight))


def learned_keys(net, x):
    return F.scaled_dot_product_attention(x, net.table.weight.expand(5, 7, 4), x.new_ones(5, 7, 4))


def made_of_two(net, x):
    return x @ (2 * net.table.weight * net.mask).double().float().T


BESIDE = {
    "linear by a table": (lambda net, x: F.linear(x, net.table.weight), "linear", "table.weight"),
    "by its transpose": (lambda net, x: x @ net.table.weight.t(), "matmul", "table.weight"),
    "by names": (lambda net, x: F.linear(weight=net.table.weight, input=x), "linear", "table.weight"),
    "einsum": (lambda net, x: torch.einsum("bti,oi->bto", x, net.table.weight), "einsum", "table.weight"),
    "by another layer's weight": (lambda net, x: F.linear(x, net.first.weight), "linear", "first.weight"),
    "mm": (lambda net, x: torch.mm(x[0], net.first.weight), "mm", "first.weight"),
    "bmm": (lambda net, x: x.bmm(net.first.weight.expand(5, 4, 4)), "bmm", "first.weight"),
    "addmm": (lambda net, x: torch.addmm(net.first.bias, x[0], net.first.weight.mT), "addmm", "first.weight"),
    "a convolution": (lambda net, x: F.conv1d(x.mT, net.first.weight[:, :, None]), "conv1d", "first.weight"),
    "by a buffer": (lambda net, x: x @ net.basis, "matmul", "basis"),
    "by a plain tensor": (lambda net, x: x @ net.plain, "matmul", "plain"),
    "by a vector": (lambda net, x: x.matmul(net.vector), "matmul", "vector"),
    "by what was made of two": (made_of_two, "matmul", "table.weight"),
    "by what chance was put on": (
        lambda net, x: x @ F.dropout(net.basis * torch.rand(4, 4)),
        "matmul",
        "basis",
    ),
    "a layer's weight with a table": (projected_table, "linear", "first.weight"),
    "attention over learned keys": (learned_keys, "scaled_dot_product_attention", "table.weight"),
    "in a function of one's own": (lambda net, x: InAFunction.apply(x, net.basis), "matmul", "basis"),
}


def into_cache(net, x):
    net.cache[:] = x.detach()
    return x @ net.cache.mT


NOT_BESIDE = {
    "element by element": lambda net, x: x * net.vector + net.basis[0],
    "a look-up": lambda net, x: x + F.embedding(torch.tensor([1, 2]), net.table.weight) + net.table(torch.tensor(3)),
    "activations": lambda net, x: x @ x.mT,
    "an outer product": lambda net, x: x[..., None] @ net.vector[None] + torch.einsum("bti,j->btij", x, net.vector),
    "a penalty on a weight": lambda net, x: x.sum() + (net.first.weight @ net.first.weight.t() - torch.eye(4)).norm(),
    "a buffer that holds activations": into_cache,
    "learned inputs of a layer": lambda net, x: x @ net.second(net.table.weight).mT,
    "channels scaled": lambda net, x: F.conv1d(x.mT, net.vector[:, None, None], groups=4),
    "what is only added": lambda net, x: F.linear(x, x[0], net.vector[:2]) + net.mask[:2, 0].addmm(x[0], x[1].mT),
    "parameters alone": lambda net, x: x + net.basis @ net.mask.mT @ net.mask @ net.vector,
}  # fmt: skip


@pytest.fixture(params=[PCM, CELLS], ids=["inference", "cells"])
def hardware(request):
    return request.param


@pytest.mark.parametrize("case", BESIDE)
def test_a_product_beside_the_tiles_is_an_error_when_it_is_first_made(case, hardware):
    how, function, name = BESIDE[case]
    net = aimc.convert(Net(how), hardware, seed=0)
    message = rf"(?s)no hardware acts on them:\n  {function} by [^\n]*{name}.* in the network "
    message += r"\(Net, test_watching.py:\d+\).*register_products\(Net.*digital=\('.*'"
    for _ in range(2):  # it does not wear off
        with pytest.raises(aimc.AimcError, match=message):
            net(X)
    with pytest.raises(aimc.AimcError, match=message):
        net.eval()(X)


@pytest.mark.parametrize("case", BESIDE)
def test_what_is_named_stays_digital_and_is_counted(case):
    how, function, name = BESIDE[case]
    layer = name.removesuffix(".weight")
    net = aimc.convert(Net(how), PCM, digital=(layer,), seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(X)
    report = aimc.coverage(net)
    assert report.analog_share < 1 and not [r for r in report.rows if r.where == "unsupported"]
    assert any(r.where == "excluded" and r.name in (layer, name) for r in report.rows)


@pytest.mark.parametrize("case", NOT_BESIDE)
def test_what_is_no_product_by_parameters_passes(case, hardware):
    net = aimc.convert(Net(NOT_BESIDE[case]), hardware, seed=0, example=X)
    for _ in range(2):
        net.train()(X)
        net.eval()(X)
    assert aimc.coverage(net).analog_share == 1.0


def test_an_example_shows_it_at_the_conversion_and_leaves_no_trace():
    how = BESIDE["by a buffer"][0]
    with pytest.raises(aimc.AimcError, match=r"matmul by basis"):
        aimc.convert(Net(how), aimc.presets.pcm(), example=X)
    with pytest.raises(aimc.AimcError, match=r"matmul by basis"):
        aimc.convert(Net(how), CELLS, example=(X,))
    plain, tried = (
        aimc.convert(Net(NOT_BESIDE["activations"]), PCM, seed=0, example=e) for e in (None, {"x": X})
    )
    tried.load_state_dict(plain.state_dict())
    before = torch.get_rng_state()
    aimc.summary(tried, example=X)
    assert torch.equal(torch.get_rng_state(), before)
    assert tried.training and tried.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        assert torch.equal(tried.state_dict()[name], value), name
    assert_close("output", tried(X), plain(X))


def test_without_strictness_it_is_a_warning_and_a_row():
    net = aimc.convert(Net(BESIDE["linear by a table"][0]), PCM, strict=False, seed=0)
    assert aimc.coverage(net).analog_share == 1.0  # nothing has run
    with pytest.warns(UserWarning, match=r"(?s)linear by table.weight in the network"):
        net(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(X)
    report = aimc.coverage(net)
    assert report.analog_share == 32 / (32 + 28)
    assert "table.weight  linear in Net  unsupported" in " ".join(str(report).split("\n")).replace(
        "   ", "  "
    )
    again = aimc.convert(Net(BESIDE["linear by a table"][0]), PCM, strict=False, seed=0)
    assert aimc.coverage(again, example=X).analog_share == 32 / (32 + 28)
    with pytest.raises(aimc.AimcError, match="field 'example'"):
        aimc.coverage(Net(None), example=X)


class TwoWays(Net):
    """Another product in training than in evaluation."""

    def __init__(self, training):
        super().__init__(None)
        self.branch = training

    def forward(self, x):
        x = self.first(x)
        return x @ self.basis if self.training == self.branch else x


@pytest.mark.parametrize("training", [True, False])
def test_both_modes_are_watched(training):
    net = aimc.convert(TwoWays(training), PCM, seed=0)
    net.train(not training)(X)
    with pytest.raises(aimc.AimcError, match="matmul by basis"):
        net.train(training)(X)


def test_drift_is_not_reported_of_a_network_that_it_cannot_reach():
    net = aimc.convert(TwoWays(False), PCM, seed=0)
    net(X)
    with pytest.raises(aimc.AimcError, match="matmul by basis"):
        aimc.evaluate_over_time(net, lambda n: float(n(X).sum()), times=("1y",), chips=2, workers=2)


class Asks(nn.Module):
    """Whether somebody follows."""

    def __init__(self):
        super().__init__()
        self.layer, self.seen, self.fails = nn.Linear(4, 4), [], False

    def forward(self, x):
        self.seen.append(torch._C._len_torch_function_stack())
        if self.fails:
            raise KeyError("no")
        return self.layer(x)


def test_only_the_first_pass_of_each_mode_is_followed():
    net = aimc.convert(Asks(), PCM, seed=0)
    for mode in (True, True, False, False, True):
        net.train(mode)(X)
    assert net.seen == [1, 0, 1, 0, 0]
    net = aimc.convert(Asks(), PCM, seed=0)
    net.fails = True
    with pytest.raises(KeyError):
        net(X)
    assert torch._C._len_torch_function_stack() == 0


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))], ids=["copy", "pickle"]
)
def test_copies_are_watched_and_digital_ones_are_not(way):
    net = aimc.convert(TwoWays(True), PCM, seed=0)
    with pytest.raises(aimc.AimcError, match="matmul by basis"):
        way(net)(X)
    digital = aimc.to_digital(net)
    digital(X)
    assert (
        not digital._forward_pre_hooks
        and not digital._forward_hooks
        and not digital._forward_hooks_always_called
    )


def test_a_network_inside_another_is_watched():
    outer = nn.Sequential(aimc.convert(TwoWays(True), PCM, seed=0))
    with pytest.raises(aimc.AimcError, match="matmul by basis"):
        outer(X)


def test_a_network_that_only_runs_compiled_says_that_nobody_looked():
    torch._dynamo.reset()
    net = aimc.convert(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), PCM, seed=0)
    looked = copy.deepcopy(net)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    with pytest.warns(UserWarning, match="cannot be seen; call it once"):
        compiled(X)
    looked(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled(X)  # once
        torch.compile(looked, backend="aot_eager", fullgraph=True)(X)
        seen = aimc.convert(nn.Sequential(nn.Linear(4, 4)), PCM, seed=0, example=X)
        torch.compile(seen, backend="aot_eager", fullgraph=True)(X)


def test_compiled_parts_run_while_the_rest_is_followed():
    torch._dynamo.reset()

    @torch.compile(backend="aot_eager", fullgraph=True)
    def gate(x):
        return (2 * x).relu()

    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.last = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4)

        def forward(self, x):
            x = self.last(gate(self.layers(x)))
            return F.linear(x, self.last.weight) if self.training else x

    net = aimc.convert(Parts(), PCM, seed=0).eval()
    expected = copy.deepcopy(net)(X)
    net.layers = torch.compile(net.layers, backend="aot_eager", fullgraph=True)
    assert_close("output", net(X), expected, atol=1e-6)
    with pytest.raises(aimc.AimcError, match=r"linear by last.weight"):
        net.train()(X)


def stack():
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))


CAME = r"(?s)came after aimc.convert.*:\n  1 \(%s, \d+ parameters\).*aimc.convert\(layer, hardware\).*digital=\('1'"


@pytest.mark.parametrize("followed", [False, True], ids=["before a pass", "after passes"])
@pytest.mark.parametrize("layer", [nn.Linear(4, 9), nn.LSTM(4, 2)], ids=["linear", "recurrent"])
def test_a_digital_layer_that_comes_after_the_conversion_is_an_error(layer, followed, hardware):
    net = aimc.convert(stack(), hardware, seed=0)
    if followed:
        net.train()(X), net.eval()(X)
    net[1] = layer
    for mode in (True, True, False):  # it does not wear off
        with pytest.raises(aimc.AimcError, match=CAME % type(layer).__name__):
            copy.deepcopy(net).train(mode)(X)
    if hardware is PCM:
        for one in (net, nn.Sequential(net)):
            with pytest.raises(aimc.AimcError, match="came after aimc.convert"):
                aimc.program(one.eval(), seed=0)


def test_the_ways_out_for_a_layer_that_comes_later_are_ways_out():
    net = aimc.convert(stack(), PCM, seed=0)
    net[1] = nn.Linear(4, 9)
    meant = aimc.convert(aimc.to_digital(net), PCM, digital=("1",), seed=0).eval()
    net[1] = aimc.convert(net[1], PCM, seed=0)
    for one, share in ((meant, 16 / 52), (net.eval(), 1.0)):
        aimc.program(one, seed=0)
        assert one(X).shape == (5, 2, 9) and aimc.coverage(one).analog_share == share
    meant[1] = nn.Linear(4, 7)  # the name is excluded
    meant(X), aimc.program(meant, seed=0)


def test_without_strictness_a_layer_that_comes_later_is_a_warning():
    net = aimc.convert(nn.Sequential(*stack(), nn.Bilinear(2, 2, 2)), PCM, strict=False, seed=0)
    net.forward = lambda x: net[1](net[0](x))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net(X), aimc.program(net.eval(), seed=0)  # the third was left digital knowingly
    net[1] = nn.Linear(4, 9)
    for act in (net, lambda x: aimc.program(net, seed=0)):
        with pytest.warns(
            UserWarning, match=r"came after aimc.convert.*:\n  1 \(Linear, 45 parameters\)\naimc.summary"
        ):
            act(X)


class Halved(nn.Module):
    """A parametrization with a matrix of its own."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(4))

    def forward(self, weight):
        return weight @ self.matrix


class Around(nn.Module):
    """Whatever wraps a module under a name of its own."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.norm, self.table = inner, nn.LayerNorm(4), nn.Embedding(3, 4)

    def forward(self, x):
        return self.inner(self.norm(x) + self.table(torch.tensor(1)))


def test_what_may_come_after_the_conversion_comes_without_a_word():
    net = aimc.convert(nn.Sequential(stack(), nn.Linear(2, 2)), PCM, digital=("0.0",), seed=0).eval()
    net(X)
    net[0] = Around(net[0])  # what was meant to be digital has another name, and still is
    drawn = aimc.convert(stack(), PCM, seed=0).eval()
    nn.utils.parametrize.register_parametrization(drawn[0], "weight", Halved())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for one in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net)), drawn):
            aimc.program(one, seed=0)
            one(X)
    assert aimc.coverage(drawn).analog_share == 1.0


def test_a_network_that_has_not_changed_is_not_followed_again():
    net = aimc.convert(nn.Sequential(Asks(), nn.Linear(4, 4)), PCM, seed=0)
    net.eval()(X), net.train()(X)
    for one in (net, copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        one(X)
        assert one[0].seen == [1, 1, 0]
    net[1] = aimc.convert(nn.Linear(4, 4), PCM, seed=0)
    net(X), net(X), net.eval()(X)
    assert net[0].seen == [1, 1, 0, 1, 0, 1]


class Tables(nn.Module):
    """A transformer's input: patches, a class, positions, and biases of attention that are looked up."""

    def __init__(self, how=lambda net, x: x):
        super().__init__()
        self.how = how
        self.patches, self.query = nn.Linear(4, 4), nn.Linear(4, 4)
        self.cls, self.pos = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(1, 3, 4))
        self.biases = nn.Parameter(torch.randn(5, 1))
        self.register_buffer("places", torch.arange(9).view(3, 3) % 5)

    def forward(self, x):
        x = torch.cat([self.cls.expand(len(x), -1, -1).to(x), self.patches(x)], 1)
        x += self.pos.type_as(x)[:, : x.shape[1]]
        bias = self.biases[self.places.view(-1)].view(3, 3, 1).permute(2, 0, 1).contiguous()
        x = F.scaled_dot_product_attention(self.query(x), x, x, attn_mask=bias)
        return self.how(self, x.softmax(-1) + bias.mean())


NAMED = ("cls", "pos", "biases")


def test_what_is_only_looked_up_or_added_counts_as_no_product(hardware):
    with pytest.raises(aimc.AimcError, match=r"(?s)cls.*pos.*biases.*example="):
        aimc.convert(Tables(), hardware)
    named = aimc.convert(Tables(), hardware, digital=NAMED, seed=0).eval()
    assert aimc.coverage(named).analog_share == 32 / (32 + 21)  # nobody has looked
    shown = aimc.convert(Tables(), hardware, example=X, seed=0).eval()
    for net in (named, shown):
        net(X)
        report = aimc.coverage(net)
        assert report.analog_share == 1.0
        assert {row.name for row in report.rows if row.where == "digital"} == set(NAMED)


def test_a_table_that_goes_onto_tiles_as_an_input_is_no_product(hardware):
    net = aimc.convert(Net(lambda net, x: x + net.second(net.keys).mean()), hardware, seed=0)
    net.keys = nn.Parameter(torch.randn(3, 4))
    net(X)
    assert aimc.coverage(net).analog_share == 1.0


MULTIPLIED = {
    "a product": lambda net, x: x @ net.pos[0].mT,
    "written out": lambda net, x: (x * net.pos).sum(-1),
    "a convolution": lambda net, x: F.conv1d(x, net.pos),
    "a function of torch that nobody knows": lambda net, x: torch.cdist(x, net.pos),
    "a product of type and place": lambda net, x: x @ net.pos.to(x)[0].expand_as(x[0]).mT,
    "with another table": lambda net, x: x + F.linear(net.cls, net.pos[0]).sum(),
}


@pytest.mark.parametrize("how", MULTIPLIED.values(), ids=MULTIPLIED)
def test_what_is_multiplied_by_goes_on_being_counted_and_refused(how):
    with pytest.raises(aimc.AimcError, match=r"(?s)stay digital:\n.*  pos \("):
        aimc.convert(Tables(how), PCM, example=X)
    net = aimc.convert(Tables(how), PCM, digital=NAMED, seed=0)
    net(X)
    rows = {row.name: row for row in aimc.coverage(net).rows}
    assert rows["pos"].where == "excluded" and aimc.coverage(net).analog_share <= 32 / (32 + 12)
    assert rows["biases"].where == "digital"


def test_a_table_of_transformers_is_followed_too():
    class ScaledWordEmbedding(nn.Embedding):
        def forward(self, x):
            return F.linear(x, 2 * self.weight) if x.is_floating_point() else 2 * super().forward(x)

    ScaledWordEmbedding.__module__, ScaledWordEmbedding.__qualname__ = (
        "transformers.models.odd",
        "OddEmbedding",
    )
    net = aimc.convert(nn.Sequential(nn.Linear(4, 4), ScaledWordEmbedding(5, 4)), PCM, seed=0)
    assert net[1](torch.tensor([1])).shape == (1, 4)
    with pytest.raises(aimc.AimcError, match=r"linear by 1.weight"):
        net(X)
