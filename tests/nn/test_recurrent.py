"""Recurrent layers on tiles: torch's results on ideal hardware, and one disturbance of the weights per forward pass."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import aimc
from aimc.nn import AnalogLSTM, AnalogMatrix
from tests.helpers import assert_close

IDEAL = aimc.presets.ideal()
CELLS = aimc.presets.reram(20, w_max_dtod=0.0, w_min_dtod=0.0)

LAYERS = {
    "lstm": lambda: nn.LSTM(5, 7),
    "lstm, two layers": lambda: nn.LSTM(5, 7, 2),
    "lstm, both directions": lambda: nn.LSTM(5, 7, 2, bidirectional=True),
    "lstm, projected": lambda: nn.LSTM(5, 7, 2, bidirectional=True, proj_size=3),
    "lstm, batch first": lambda: nn.LSTM(5, 7, batch_first=True),
    "lstm, without bias": lambda: nn.LSTM(5, 7, bias=False, proj_size=2),
    "lstm, one": lambda: nn.LSTM(5, 1),
    "gru": lambda: nn.GRU(5, 7),
    "gru, all": lambda: nn.GRU(5, 7, 3, bidirectional=True, batch_first=True),
    "gru, without bias": lambda: nn.GRU(5, 7, bias=False),
    "rnn": lambda: nn.RNN(5, 7),
    "rnn, relu": lambda: nn.RNN(5, 7, 2, nonlinearity="relu", bidirectional=True),
}
LENGTHS = [2, 6, 4, 6]


def first_states(layer, batch):
    """Random states for a layer, as it takes them."""
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    h = torch.randn(count, batch, layer.proj_size or layer.hidden_size)
    return (h, torch.randn(count, batch, layer.hidden_size)) if isinstance(layer, nn.LSTM) else h


def flat(value):
    """Every tensor in nested tuples and packed sequences."""
    if isinstance(value, nn.utils.rnn.PackedSequence):
        return [value.data]
    return [value] if isinstance(value, torch.Tensor) else [t for v in value for t in flat(v)]


def results(module, x, hx, weigh):
    """Outputs, states, and every gradient of a weighted sum of them."""
    module.zero_grad()
    x = x.clone().requires_grad_()
    given = () if hx is None else (tuple(s.clone().requires_grad_() for s in flat(hx)),)
    if weigh == "packed":
        data = pack_padded_sequence(x, torch.tensor(LENGTHS), module.batch_first, enforce_sorted=False)
    else:
        data = x
    hidden = given if not given or isinstance(module, nn.LSTM) else (given[0][0],)
    found = flat(module(data, *hidden))
    sum((y * torch.cos(torch.arange(float(y.numel()))).view_as(y)).sum() for y in found).backward()
    gradients = {
        n: p.grad for n, p in module.named_parameters() if n.split(".")[-1].startswith(("weight", "bias"))
    }
    return [*found, x.grad, *(s.grad for s in flat(given)), *gradients.values()]


@pytest.fixture(params=LAYERS, ids=str)
def layer(request):
    torch.manual_seed(0)
    return LAYERS[request.param]()


@pytest.mark.parametrize(
    "form", ["batch", "batch with states", "packed", "packed with states", "single", "one step"]
)
@pytest.mark.parametrize("rows", [512, 3])
def test_ideal_hardware_is_digital(layer, form, rows):
    """Outputs, states and every gradient, for every way to call the layer, whole or split over tiles."""
    analog = aimc.convert(layer, IDEAL.replace(**{"tile.rows": rows}))
    shape = {"single": (6, 5), "one step": (1, 4, 5)}.get(form, (6, 4, 5))
    x = torch.randn(shape)
    if layer.batch_first and form != "single":
        x = x.transpose(0, 1)
    hx = first_states(layer, 1 if form == "single" else 4) if "states" in form or form == "single" else None
    if form == "single":
        hx = tuple(s[:, 0] for s in hx) if isinstance(hx, tuple) else hx[:, 0]
    way = "packed" if form.startswith("packed") else "padded"
    expected = results(layer, x, hx, way)
    for module in (analog, aimc.to_digital(analog)):
        for i, (a, e) in enumerate(zip(results(module, x, hx, way), expected, strict=True)):
            assert_close(f"tensor {i}", a, e, atol=1e-5 * max(1.0, float(e.detach().abs().max())))
    assert type(aimc.to_digital(analog)) is type(layer)


@pytest.mark.parametrize(
    "kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell, lambda i, h, bias=True: nn.RNNCell(i, h, bias, "relu")]
)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch", [(), (4,)])
def test_cells_on_ideal_hardware_are_digital(kind, bias, batch):
    torch.manual_seed(0)
    cell = kind(5, 7, bias=bias)
    analog = aimc.convert(cell, IDEAL)
    h = torch.randn(*batch, 7)
    state = (h, torch.randn(*batch, 7)) if isinstance(cell, nn.LSTMCell) else h
    x = torch.randn(*batch, 5)
    for hx in (None, state):
        expected = flat(cell(x, hx))
        for module in (analog, aimc.to_digital(analog)):
            for a, e in zip(flat(module(x, hx)), expected, strict=True):
                assert_close("state", a, e, atol=1e-6)
    assert type(aimc.to_digital(analog)) is type(cell)
    analog(x, state)[0].sum().backward()
    assert all(p.grad is not None for p in analog.parameters())


def test_the_way_back_is_exact_and_takes_the_gains_along():
    torch.manual_seed(0)
    net = aimc.convert(nn.LSTM(5, 7, 2, dropout=0.5), IDEAL.replace(**{"mapping.learned_gain": True})).eval()
    for layer in aimc.analog_layers(net).values():
        nn.init.uniform_(layer.output_gain, 0.5, 2.0)
    net.weight_ih_l1.requires_grad_(False)
    digital, x = aimc.to_digital(net), torch.randn(6, 4, 5)
    assert_close("output", digital(x)[0], net(x)[0], atol=1e-6)
    assert digital.dropout == 0.5 and not digital.training
    assert not digital.weight_ih_l1.requires_grad and digital.weight_ih_l0.requires_grad


def test_parameters_keep_the_names_and_objects_of_torch():
    lstm = nn.LSTM(5, 7, 2, proj_size=3)
    before = dict(lstm.named_parameters())
    net = aimc.convert(nn.Sequential(lstm), aimc.presets.pcm(), inplace=True)
    after = {n.removeprefix("0."): p for n, p in net.named_parameters()}
    assert all(after[n] is p for n, p in before.items())
    assert {n.split(".")[-1] for n in after.keys() - before.keys()} == {"input_range", "output_gain"}
    assert isinstance(net[0], nn.LSTM) and net[0].all_weights[0][0] is before["weight_ih_l0"]
    net[0].flatten_parameters()


def test_checkpoints_of_torch_load_and_analog_ones_hold_torchs_names():
    torch.manual_seed(0)
    make = lambda: nn.Sequential(nn.LSTM(5, 7, 2, bidirectional=True))  # noqa: E731
    digital, x = make(), torch.randn(6, 4, 5)
    analog = aimc.convert(make(), IDEAL)
    analog.load_state_dict(digital.state_dict())
    assert_close("output", analog(x)[0], digital(x)[0], atol=1e-6)
    back = make()
    assert not back.load_state_dict(analog.state_dict(), strict=False).missing_keys
    assert_close("output", back(x)[0], digital(x)[0])
    broken = digital.state_dict()
    del broken["0.weight_hh_l1_reverse"]
    with pytest.raises(RuntimeError, match="0.weight_hh_l1_reverse"):
        analog.load_state_dict(broken)


def test_a_checkpoint_continues_to_the_bit(tmp_path):
    torch.manual_seed(0)
    digital, x = nn.LSTM(5, 7, 2), torch.randn(6, 4, 5)
    hardware = aimc.presets.pcm().replace(**{"input_range.init_batches": 2})

    def steps(net, count):
        optimizer, losses = torch.optim.SGD(net.parameters(), lr=0.1), []
        for _ in range(count):
            optimizer.zero_grad()
            loss = net(x)[0].square().sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    net = aimc.convert(digital, hardware, seed=1)
    steps(net, 3)
    torch.save(net.state_dict(), tmp_path / "state.pt")
    straight = steps(net, 3)
    again = aimc.convert(digital, hardware, seed=99)
    again.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert steps(again, 3) == straight


# One forward pass -------------------------------------------------------------------------------------------

NOISY = IDEAL.replace(training=aimc.hwa.HardwareAware(modifiers=(aimc.hwa.AddNormal(std=0.2),)))


def linear_rnn(size, hardware, seed=1):
    """An RNN that only adds up: a bias keeps the rectifier open."""
    rnn = nn.RNN(1, size, nonlinearity="relu")
    with torch.no_grad():
        rnn.weight_ih_l0.zero_()
        rnn.bias_ih_l0.fill_(100.0)
        rnn.bias_hh_l0.zero_()
        rnn.weight_hh_l0.mul_(0.2)
    return aimc.convert(rnn.double(), hardware, seed=seed)


def test_the_weights_are_disturbed_once_for_a_sequence():
    """Two steps from the unit vectors show the matrix of the first step; it must be that of the second."""
    torch.manual_seed(0)
    size = 6
    net = linear_rnn(size, NOISY)
    starts = torch.cat([torch.eye(size), torch.zeros(1, size)])[None].double()
    matrices = []
    for _ in range(2):
        y = net(torch.zeros(2, size + 1, 1).double(), starts)[0].detach()
        matrix = (y[0, :size] - y[0, size]).T
        assert float((matrix - net.weight_hh_l0).abs().max()) > 0.01
        assert_close("second step", y[1], y[0] @ matrix.T + 100, rtol=1e-9)
        matrices.append(matrix)
    assert float((matrices[0] - matrices[1]).abs().max()) > 0.01  # anew for the next sequence
    y = net.eval()(torch.zeros(1, size + 1, 1).double(), starts)[0][0]
    assert_close("clean in evaluation", y[:size] - y[size], net.weight_hh_l0.T, atol=1e-9)


@pytest.mark.parametrize("training", [True, False])
def test_every_step_is_read_with_noise_of_its_own(training):
    torch.manual_seed(0)
    net = linear_rnn(500, IDEAL.replace(output_noise=0.1)).train(training)
    with torch.no_grad():
        net.weight_hh_l0.fill_(1e-3).fill_diagonal_(0.5)  # one column scale for all
    y = net(torch.zeros(3, 1, 1).double())[0].detach()[:, 0]
    noise = torch.stack([y[t] - F.linear(y[t - 1], net.weight_hh_l0, net.bias_ih_l0) for t in (1, 2)])
    noise /= 0.1 * 0.5
    assert abs(float(noise.std()) - 1) < 0.1
    assert abs(float((noise[0] * noise[1]).mean())) < 4 / 500**0.5
    if training:
        assert not torch.equal(net(torch.zeros(3, 1, 1).double())[0], y[:, None])


def test_the_gradient_uses_the_noisy_weights_of_the_forward_pass():
    torch.manual_seed(0)
    digital, x = nn.LSTM(5, 7, 2), torch.randn(6, 4, 5)
    net = aimc.convert(digital, NOISY, seed=1)
    same = aimc.convert(digital, NOISY, seed=1)
    with torch.no_grad():
        for name, matrix in aimc.analog_layers(same).items():
            with matrix.held(1):
                digital.get_parameter(f"weight_{name}").copy_(matrix._pass.tiles.weights[0])
    for i, (a, e) in enumerate(
        zip(results(net, x, None, "padded"), results(digital, x, None, "padded"), strict=True)
    ):
        assert_close(f"tensor {i}", a, e, atol=1e-5)


def test_a_dropped_weight_gets_no_gradient():
    torch.manual_seed(0)
    training = aimc.hwa.HardwareAware(modifiers=(aimc.hwa.DropConnect(probability=0.5),))
    net, same = (aimc.convert(nn.GRU(5, 7), IDEAL.replace(training=training), seed=1) for _ in range(2))
    net(torch.randn(6, 4, 5))[0].sum().backward()
    with same.hh_l0.held(1):
        kept = same.hh_l0._pass.tiles.weights[0] != 0
    assert 0.3 < float(kept.float().mean()) < 0.7
    assert torch.equal(net.weight_hh_l0.grad != 0, kept)


def test_the_gradient_of_a_pass_is_gathered_once():
    """Whatever is asked for first, and however often."""
    torch.manual_seed(0)
    net, x = aimc.convert(nn.LSTM(5, 7), NOISY, seed=1), torch.randn(6, 4, 5, requires_grad=True)
    loss = net(x)[0].square().sum()
    (to_x,) = torch.autograd.grad(loss, x, retain_graph=True)
    loss.backward(retain_graph=True)
    once = net.weight_hh_l0.grad.clone()
    assert_close("input", x.grad, to_x)
    loss.backward()
    assert_close("twice", net.weight_hh_l0.grad, 2 * once, rtol=1e-6)
    net.zero_grad()
    net.weight_hh_l0.requires_grad_(False)
    net(x)[0].square().sum().backward()
    assert net.weight_hh_l0.grad is None and net.weight_ih_l0.grad is not None


def test_a_gradient_check_in_double_precision():
    net = aimc.convert(
        nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2).double(), IDEAL.replace(**{"tile.rows": 3})
    )
    x = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: flat(net(v)), (x,))
    gru = aimc.convert(nn.GRU(3, 4).double(), IDEAL)
    assert torch.autograd.gradcheck(lambda v: flat(gru(v)), (x,))


def learned(**changes):
    return IDEAL.replace(
        dac=aimc.periphery.DAC(bits=None),
        input_range=aimc.periphery.InputRange(**{"init_batches": 2, **changes}),
    )


def test_the_hidden_range_starts_from_whole_sequences():
    torch.manual_seed(0)
    net = aimc.convert(nn.LSTM(5, 7), learned(init_std=20.0))  # a range that clips nothing
    x = torch.randn(6, 4, 5)
    spreads = []
    for scale in (1.0, 3.0):
        before = torch.zeros(1, 4, 7)
        y, _ = net(scale * x)
        spreads.append(20 * torch.cat([before, y[:-1].detach()]).std())
    assert_close("range", net.hh_l0.input_range.detach()[0], sum(spreads) / 2, rtol=1e-5)
    held = net.hh_l0.input_range.clone()
    net(10 * x)[0].sum().backward()  # the third sequence trains it
    assert_close("range", net.hh_l0.input_range, held)
    assert net.hh_l0.input_range.grad.item() > 0  # nothing clips, so it decays


def test_the_range_decays_once_for_a_sequence():
    torch.manual_seed(0)
    net = aimc.convert(nn.LSTM(5, 7), learned(value=50.0, decay=0.01, init_batches=0))
    net(torch.randn(6, 4, 5))[0].sum().backward()
    for matrix in (net.ih_l0, net.hh_l0):
        assert_close("decay", matrix.input_range.grad, torch.tensor([0.5]), rtol=1e-5)


def test_a_sequence_is_one_step_of_a_ramp():
    training = aimc.hwa.HardwareAware(modifiers=(aimc.hwa.AddNormal(std=0.2),), ramp_steps=4)
    net = aimc.convert(nn.LSTM(5, 7), IDEAL.replace(training=training))
    for _ in range(3):
        net(torch.randn(6, 4, 5))
    assert {layer._step for layer in aimc.analog_layers(net).values()} == {3}


def test_statistics_cover_all_steps():
    net = linear_rnn(
        4,
        IDEAL.replace(
            dac=aimc.periphery.DAC(), input_range=aimc.periphery.InputRange(mode="static", value=50.0)
        ),
    )
    net.eval()(torch.zeros(4, 1, 1).double())  # the first hidden state is zero, the others clip
    assert net.hh_l0.statistics.clipped == [0.75]


# On hardware ------------------------------------------------------------------------------------------------


class LanguageModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.rnn, self.head = nn.Embedding(20, 8), nn.LSTM(8, 8, 2), nn.Linear(8, 20)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.rnn(self.embed(x))[0])


def test_a_language_model_on_a_chip():
    torch.manual_seed(0)
    tokens = torch.randint(20, (5, 3))
    net = aimc.convert(LanguageModel(), aimc.presets.pcm(), seed=0).eval()
    with pytest.raises(aimc.AimcError, match=r"layer 'rnn.ih_l0', field 'input_range'.*calibrate"):
        net(tokens)
    aimc.calibrate(net, [tokens])
    names = ["rnn.ih_l0", "rnn.hh_l0", "rnn.ih_l1", "rnn.hh_l1", "head"]
    ranges = [aimc.analog_layers(net)[n].input_range.item() for n in names]
    assert (
        ranges[1] < 1 < ranges[0] and ranges[2] == ranges[1] != ranges[3]
    )  # layer 1 reads the states of layer 0
    report = aimc.coverage(net)
    assert [r.name for r in report.rows if r.where == "analog"] == names and report.analog_share == 1.0
    clean = aimc.to_digital(net)(tokens)
    chip = aimc.program(net, seed=3)
    with chip.at(0.0):
        first = net(tokens)
    with chip.at("1y"):
        late = net(tokens)
    assert 0 < float((first - clean).std()) < float((late - clean).std())
    assert not torch.equal(first, late) and chip.compensation_factors().keys() == set(names)
    assert chip.weights()["rnn.hh_l1"].shape == (32, 8)
    metric = lambda n: float(n(tokens).std())  # noqa: E731
    one, two = (
        aimc.evaluate_over_time(net, metric, times=("1s", "1h"), chips=2, workers=w).values for w in (1, 2)
    )
    assert (one == two).all()


def test_a_chip_survives_a_file(tmp_path):
    net = aimc.convert(nn.LSTM(5, 7), aimc.presets.pcm().replace(**{"input_range.value": 1.0}), seed=0).eval()
    chip = aimc.program(net, seed=3)
    chip.save(tmp_path / "chip")
    assert aimc.Chip.load(tmp_path / "chip", net).fingerprint() == chip.fingerprint()


def test_clipping_and_new_hardware_reach_every_matrix():
    torch.manual_seed(0)
    training = aimc.hwa.HardwareAware(clip=aimc.hwa.FixedClip(value=0.125))
    net = aimc.convert(nn.LSTM(5, 7), IDEAL.replace(training=training))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    net(torch.randn(6, 4, 5))[0].sum().backward()
    optimizer.step()
    assert all(float(p.detach().abs().max()) <= 0.125 for n, p in net.named_parameters() if "weight" in n)
    aimc.set_hardware(net, aimc.presets.pcm())
    assert net.hh_l0.hardware == aimc.presets.pcm() and net.hh_l0.input_range is not None


@pytest.mark.parametrize(
    "way", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"]
)
def test_the_matrices_of_a_copy_are_the_copys(way):
    torch.manual_seed(0)
    net, x = aimc.convert(nn.Sequential(nn.LSTM(5, 7)), IDEAL), torch.randn(6, 4, 5)
    twin = way(net)
    before = twin(x)[0].detach()
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    assert_close("output", twin(x)[0], before)
    with torch.no_grad():
        twin[0].weight_hh_l0.zero_()
    assert float(twin[0].hh_l0.weight.abs().max()) == 0


def test_a_matrix_without_its_module_says_so():
    matrix = aimc.convert(nn.LSTM(5, 7), IDEAL).hh_l0  # the LSTM itself is gone
    assert isinstance(matrix, AnalogMatrix)
    with pytest.raises(aimc.AimcError, match="the module that holds this matrix is gone"):
        matrix(torch.ones(1, 7))


def test_errors_name_the_layer():
    net = aimc.convert(nn.ModuleDict({"a": nn.LSTM(5, 7), "b": nn.GRUCell(5, 7)}), IDEAL)
    for x, hx, message in (
        (torch.ones(6, 4, 3), None, r"layer 'a', .*expects 5 features"),
        (torch.ones(5), None, r"layer 'a', .*2 or 3 dimensions"),
        (torch.ones(0, 4, 5), None, r"layer 'a', .*no steps"),
        (
            torch.ones(6, 4, 5),
            (torch.ones(1, 3, 7), torch.ones(1, 4, 7)),
            r"layer 'a', field 'hx', .*\[1, 4, 7\]",
        ),
        (torch.full((6, 4, 5), float("nan")), None, r"layer 'a.ih_l0'.*NaN"),
        (
            torch.ones(6, 4, 5),
            (torch.full((1, 4, 7), float("nan")), torch.ones(1, 4, 7)),
            r"layer 'a.hh_l0'.*NaN",
        ),
    ):
        with pytest.raises(aimc.AimcError, match=message):
            net["a"](x, hx)
    with pytest.raises(aimc.AimcError, match=r"layer 'b', field 'hx', .*\[2, 7\]"):
        net["b"](torch.ones(2, 5), torch.ones(1, 7))
    with pytest.raises(aimc.AimcError, match=r"layer 'b.ih'.*5 features"):
        net["b"](torch.ones(2, 4))


H = torch.ones(1, 2, 7)


@pytest.mark.parametrize(
    "make, hx, message",
    [
        (
            lambda: nn.LSTM(5, 7),
            (H,),
            r"tuple \(h, c\) of hidden states \[1, 2, 7\] and \[1, 2, 7\], got a tuple of 1",
        ),
        (lambda: nn.LSTM(5, 7), H, r"a tuple \(h, c\) of hidden states .*, got a Tensor"),
        (
            lambda: nn.LSTM(5, 7, proj_size=3),
            (H, H),
            r"shape \[1, 2, 7\]: expects a hidden state \[1, 2, 3\]",
        ),
        (lambda: nn.LSTM(5, 7), (H, 3), "expects a tensor, got 3"),
        (lambda: nn.GRU(5, 7), (H, H), r"one hidden state \[1, 2, 7\], got a tuple of 2"),
        (lambda: nn.RNN(5, 7), [H], r"one hidden state \[1, 2, 7\], got a list of 1"),
        (lambda: nn.GRU(5, 7), H[0], r"shape \[2, 7\]: expects a hidden state \[1, 2, 7\]"),
        (lambda: nn.GRU(5, 7), H.double(), r"expects torch.float32, .*got torch.float64"),
        (lambda: nn.LSTMCell(5, 7), (H[0],), r"tuple \(h, c\) of hidden states \[2, 7\] .*got a tuple of 1"),
        (lambda: nn.LSTMCell(5, 7), H[0], r"a tuple \(h, c\) of hidden states .*, got a Tensor"),
        (lambda: nn.GRUCell(5, 7), (H[0], H[0]), r"one hidden state \[2, 7\], got a tuple of 2"),
        (lambda: nn.RNNCell(5, 7), H[0].double(), r"expects torch.float32, .*got torch.float64"),
    ],
)
def test_hidden_states_of_another_kind_are_refused(make, hx, message):
    net = aimc.convert(nn.ModuleDict({"a": make()}), IDEAL)["a"]
    x = torch.ones(2, 5) if "Cell" in type(net).__name__ else torch.ones(4, 2, 5)
    with pytest.raises(aimc.AimcError, match=f"layer 'a', field 'hx'.*{message}"):
        net(x, hx)


@pytest.mark.parametrize("make", [lambda: nn.GRU(5, 7), lambda: nn.LSTMCell(5, 7)])
def test_double_precision_does_not_mix_with_another(make):
    net = aimc.convert(nn.ModuleDict({"a": make()}), IDEAL)["a"]
    for layer, x in ((net, torch.ones(2, 5).double()), (copy.deepcopy(net).double(), torch.ones(2, 5))):
        with pytest.raises(
            aimc.AimcError, match="layer 'a', field 'input': expects torch.float.*got torch.float"
        ):
            layer(x)
    with pytest.raises(
        aimc.AimcError, match="layer 'a', field 'input': expects torch.float32.*got torch.int64"
    ):
        net(torch.ones(2, 5).long())


def test_dropout_acts_between_layers_in_training_only():
    torch.manual_seed(0)
    layer, x = nn.LSTM(5, 200, 2, dropout=0.5), torch.randn(1, 4, 5)
    net = aimc.convert(layer, IDEAL)
    seen = []
    net.ih_l1.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    net(x)
    net.eval()(x)
    assert abs(float((seen[0] == 0).float().mean()) - 0.5) < 0.1
    assert not bool((seen[1] == 0).any())
    assert_close("output", net(x)[0], layer.eval()(x)[0], atol=1e-6)


# In memory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: nn.LSTM(3, 4, 2, bidirectional=True), lambda: nn.GRUCell(3, 4)])
def test_in_cells(make):
    torch.manual_seed(0)
    layer, x = make(), torch.randn(6, 3) if isinstance(make(), nn.GRUCell) else torch.randn(6, 5, 3)
    net = aimc.convert(layer, CELLS, seed=0)
    expected = flat(layer(x))[0]
    assert_close("output", flat(net(x))[0], expected, atol=1e-5)
    assert_close("the way back", flat(aimc.to_digital(net)(x))[0], expected, atol=1e-5)
    assert aimc.coverage(net).analog_share == 1.0
    fresh = make()
    net.load_state_dict(fresh.state_dict())
    assert_close("loaded", flat(net(x))[0], flat(fresh(x))[0], atol=1e-5)
    again = aimc.convert(make(), CELLS, seed=0)
    again.load_state_dict(net.state_dict())
    assert_close("loaded", flat(again(x))[0], flat(net(x))[0])


def test_pulses_train_a_sequence():
    torch.manual_seed(0)
    net = aimc.convert(nn.LSTM(3, 8), aimc.presets.reram(100), seed=0)
    optimizer = aimc.optim.wrap(torch.optim.SGD(net.parameters(), lr=0.5), net)
    x, losses = torch.randn(6, 5, 3), []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (net(x)[0][-1] - 0.3).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_a_recurrent_matrix_that_is_made_anew_in_every_pass_is_refused():
    lstm = nn.LSTM(5, 7)
    raw = lstm.weight_hh_l0
    del lstm.weight_hh_l0
    lstm.register_parameter("weight_hh_l0_raw", raw)  # dropped-out weights, as language models have them
    with pytest.raises(aimc.AimcError, match="weight_hh_l0_raw"):
        aimc.convert(nn.Sequential(lstm), IDEAL)


def test_the_type_is_still_torchs():
    assert issubclass(AnalogLSTM, nn.LSTM)
