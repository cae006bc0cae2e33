"""Every layer in half precision, under autocast and in double precision."""

import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import aimc
from tests.algorithms.helpers import ALGORITHMS, hardware_of
from tests.helpers import assert_close
from tests.nn.pulsed_helpers import EXACT, batch, small_net

IDEAL = aimc.presets.ideal()
PCM = aimc.presets.pcm().replace(**{"input_range.init_batches": 2})


class Mixed(nn.Module):
    """One of each kind."""

    def __init__(self):
        super().__init__()
        self.conv, self.up = nn.Conv1d(4, 6, 3, padding=1), nn.ConvTranspose1d(6, 8, 3, padding=1)
        self.lstm, self.cell = (
            nn.LSTM(8, 4, batch_first=True, bidirectional=True),
            nn.GRUCell(8, 8),
        )
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        x = F.relu(self.up(self.conv(x))).transpose(1, 2)
        x, (h, _) = self.lstm(x)
        x = x + self.attention(x, x, x, need_weights=False)[0] + self.attention(x, x, x)[0]
        state = self.cell(x.mean(1), h.transpose(0, 1).flatten(1))
        return self.head(state)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Mixed()


X = torch.linspace(-1, 1, 3 * 4 * 5).view(3, 4, 5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_cast_to_half_precision_stays_there(net, dtype):
    """Every parameter and buffer, the outputs, on a chip too; training stays finite and gets somewhere."""
    analog = aimc.convert(net, PCM, seed=0).to(dtype)
    optimizer, x = torch.optim.SGD(analog.parameters(), lr=0.05), X.to(dtype)
    scale = 1024.0 if dtype == torch.float16 else 1.0  # torch's own scaler refuses weights in half precision
    losses = []
    for _ in range(50):
        optimizer.zero_grad()
        y = analog(x)
        loss = (y.float() - torch.tensor([1.0, 0.0, -1.0])).square().mean()
        (scale * loss).backward()
        for parameter in analog.parameters():
            parameter.grad /= scale
        optimizer.step()
        losses.append(loss.item())
    tensors = dict(analog.named_parameters()) | dict(analog.named_buffers())
    assert {t.dtype for t in tensors.values() if t.is_floating_point()} == {dtype} == {y.dtype}
    assert all(bool(torch.isfinite(t).all()) for t in tensors.values())
    assert losses[-1] < 0.5 * losses[0]
    analog.eval()
    with torch.no_grad(), aimc.program(analog, seed=0).at("1d"):
        assert analog(x).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("rows", [512, 3])
def test_perfect_hardware_is_as_near_as_the_type_allows(net, dtype, rows):
    expected = net(X)
    found = aimc.convert(net, IDEAL.replace(**{"tile.rows": rows})).to(dtype)(X.to(dtype))
    assert found.dtype == dtype
    scale = float(expected.detach().abs().max())
    tolerance = {torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9, torch.float64: 1e-6}[dtype]
    assert_close("output", found.float(), expected, atol=tolerance * scale)


@pytest.mark.parametrize("hardware", [IDEAL, PCM], ids=["ideal", "pcm"])
def test_under_autocast_outputs_have_the_type_of_torchs_layers(net, hardware):
    """Those of torch's own LSTM have no such kernel on a CPU; it gets what a linear layer gives."""
    analog, seen = aimc.convert(net, hardware, seed=0), []
    for layer in aimc.analog_layers(analog).values():
        layer.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    for module in (analog.lstm, analog.attention):
        module.register_forward_hook(lambda module, args, output: seen.append(output[0].dtype))
    analog.cell.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert nn.Linear(5, 2)(X).dtype == torch.bfloat16
        y = analog(X)
        loss = y.square().mean()
    assert set(seen) == {torch.bfloat16} == {y.dtype}
    loss.backward()
    gradients = {n: p.grad for n, p in analog.named_parameters()}
    assert all(g is not None and g.dtype == torch.float32 for g in gradients.values())
    if hardware is IDEAL:
        expected = net(X)
        assert_close("output", y.float(), expected, atol=2.0**-6 * float(expected.detach().abs().max()))
        net(X).square().mean().backward()
        for name, parameter in net.named_parameters():
            size = float(parameter.grad.abs().max())
            assert_close(name, gradients[name], parameter.grad, atol=0.1 * size + 1e-5)
    double = aimc.convert(nn.Linear(5, 2).double(), IDEAL)
    with torch.autocast("cpu", torch.bfloat16):
        assert double(X.double()).dtype == torch.float64  # as torch, which leaves double precision alone


@pytest.mark.parametrize(
    "make, shape", [(nn.Linear, (3, 4)), (lambda i, o, bias: nn.Conv1d(i, o, 2, bias=bias), (3, 4, 5))]
)
def test_layers_without_a_bias_train_under_autocast(make, shape):
    torch.manual_seed(0)
    layer, x = make(4, 6, bias=False), torch.randn(shape)
    analog = aimc.convert(layer, IDEAL)
    for module in (layer, analog):
        with torch.autocast("cpu", torch.bfloat16):
            y = module(x)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
    assert_close(
        "gradient", analog.weight.grad, layer.weight.grad, atol=2.0**-5 * float(layer.weight.grad.abs().max())
    )


RECURRENT = {
    "LSTM, projected": lambda: nn.LSTM(5, 6, proj_size=2),
    "GRU": lambda: nn.GRU(5, 6, 2, bidirectional=True),
    "RNN": lambda: nn.RNN(5, 6),
    "LSTMCell": lambda: nn.LSTMCell(5, 6),
    "GRUCell": lambda: nn.GRUCell(5, 6),
    "RNNCell": lambda: nn.RNNCell(5, 6),
}


def tensors_of(value):
    return [value] if isinstance(value, torch.Tensor) else [t for v in value for t in tensors_of(v)]


@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_recurrent_layers_under_autocast_return_the_types_of_torchs(name):
    torch.manual_seed(0)
    layer = RECURRENT[name]()
    analog, x = aimc.convert(layer, IDEAL), torch.randn((2, 5) if "Cell" in name else (3, 2, 5))
    states = [torch.zeros_like(s) for s in tensors_of(layer(x))[-1 - ("LSTM" in name) :]]
    for given in (x, x.bfloat16()):
        for kind in (None, torch.float32, torch.bfloat16):
            hx = None if kind is None else [s.to(kind) for s in states]
            hx = hx if hx is None or "LSTM" in name else hx[0]
            with torch.autocast("cpu", torch.bfloat16):
                found, expected = tensors_of(analog(given, hx)), tensors_of(layer(given, hx))
            assert [t.dtype for t in found] == [t.dtype for t in expected], (given.dtype, kind)
            for a, e in zip(found, expected, strict=True):
                assert_close(name, a.float(), e.float(), atol=2.0**-5)
    found[0].float().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in analog.parameters())


def test_torchs_lstm_of_its_own_is_in_half_precision_under_autocast():
    """As oneDNN's, which processors without such products do not have."""
    analog = aimc.convert(nn.LSTM(5, 6), IDEAL)
    with torch.autocast("cpu", torch.bfloat16):
        assert {t.dtype for t in tensors_of(analog(torch.randn(3, 2, 5)))} == {torch.bfloat16}


@pytest.mark.parametrize("hardware", [IDEAL, PCM], ids=["ideal", "pcm"])
def test_half_precision_with_torchs_scaler(net, hardware):
    """Weights stay in float32, products run in float16, and gradients that would vanish there are scaled."""
    analog = aimc.convert(net, hardware, seed=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    optimizer, losses = torch.optim.SGD(analog.parameters(), lr=0.05), []
    target = torch.tensor([1.0, 0.0, -1.0])
    for _ in range(50):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            y = analog(X)
            assert y.dtype == torch.float16
            loss = (y.float() - target).square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(analog.parameters(), 5.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert scaler.get_scale() == 2.0**12  # nothing overflowed
    assert losses[-1] < 0.5 * losses[0]
    assert all(bool(torch.isfinite(p).all()) and p.dtype == torch.float32 for p in analog.parameters())


def test_torchs_scaler_makes_the_gradients_of_a_scale_of_one(net):
    """A power of two costs no bit, and an update that overflows is skipped whole."""
    found = []
    for scale in (1.0, 2.0**10):
        analog = aimc.convert(net, IDEAL, seed=0)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        optimizer = torch.optim.SGD(analog.parameters(), lr=0.0)
        with torch.autocast("cpu", torch.float16):
            loss = analog(X).float().square().mean()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        found.append({n: p.grad for n, p in analog.named_parameters()})
    for name, gradient in found[0].items():
        size = float(gradient.abs().max())
        assert_close(name, found[1][name], gradient, atol=2.0**-8 * size + 1e-6)
    optimizer = torch.optim.SGD(analog.parameters(), lr=1.0)
    optimizer.zero_grad()
    before = {n: p.detach().clone() for n, p in analog.named_parameters()}
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**100)
    with torch.autocast("cpu", torch.float16):
        loss = analog(X).float().square().mean()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**99
    assert all(torch.equal(p, before[n]) for n, p in analog.named_parameters())


def test_every_layer_passes_a_gradient_check_in_double_precision(net):
    analog = aimc.convert(net, IDEAL).double()
    assert torch.autograd.gradcheck(analog, (X.double().requires_grad_(),))


def test_cells_train_in_half_precision_with_a_scaler(net):
    """Autocast in float16 and torch's scaler, for 50 steps, come to where single precision does."""
    losses = {}
    for half in (True, False):
        cells = aimc.convert(net, aimc.presets.reram(200, w_max_dtod=0.0, w_min_dtod=0.0), seed=0)
        optimizer = aimc.optim.wrap(torch.optim.SGD(cells.parameters(), lr=0.05), cells)
        scaler, losses[half] = torch.amp.GradScaler("cpu", enabled=half), []
        for _ in range(50):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16, enabled=half):
                y = cells(X)
            loss = (y.float() - torch.tensor([1.0, 0.0, -1.0])).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses[half].append(loss.item())
            assert y.dtype == (torch.float16 if half else torch.float32)
        assert all(torch.isfinite(value).all() for value in cells.state_dict().values())
        assert losses[half][-1] < 0.5 * losses[half][0]
    assert_close("last losses", torch.tensor(losses[True][-1]), torch.tensor(losses[False][-1]), atol=0.05)


def trained_cells(net, x, hardware, dtype):
    """Cells of a network that was cast, after 50 steps: the first outputs, and the losses."""
    torch.manual_seed(0)
    cells = aimc.convert(net, hardware, seed=0).to(dtype)
    optimizer, losses, first = aimc.optim.wrap(torch.optim.SGD(cells.parameters(), lr=0.05), cells), [], None
    for _ in range(50):
        optimizer.zero_grad()
        y = cells(x.to(dtype))
        loss = (y.float() - torch.linspace(1, -1, y.shape[1])).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        first = y.detach() if first is None else first
    return cells, first, losses


@pytest.mark.parametrize("io", ["perfect", "noisy"])
@pytest.mark.parametrize("name", ["every layer", *ALGORITHMS])
def test_cells_of_a_network_cast_to_half_precision_train(net, name, io):
    """What torch sees is half precision; what cells hold and algorithms count stays, and losses are float32's."""
    net, x = (net, X) if name == "every layer" else (small_net(), batch()[0])
    algorithm = ALGORITHMS.get(name, ALGORITHMS["sgd"])
    hardware = aimc.presets.reram(200, algorithm, io=io, w_max_dtod=0.0, w_min_dtod=0.0)
    whole, expected, usual = trained_cells(net, x, hardware, torch.float32)
    kept = {n: v.dtype for n, v in whole.state_dict().items() if ".cells." in n}
    for dtype, rounding in ((torch.bfloat16, 2.0**-6), (torch.float16, 2.0**-9)):
        cells, first, losses = trained_cells(net, x, hardware, dtype)
        assert {p.dtype for p in cells.parameters()} == {dtype} == {first.dtype}
        state = cells.state_dict()
        assert {n: v.dtype for n, v in state.items() if ".cells." in n} == kept
        assert all(bool(torch.isfinite(v).all()) for v in state.values() if v.is_floating_point())
        if io == "perfect":
            assert_close("first", first.float(), expected, atol=rounding * float(expected.abs().max()))
        assert losses[-1] < 0.5 * losses[0] and losses[-1] == pytest.approx(usual[-1], abs=0.05)


def test_what_cells_keep_whatever_the_type_of_the_network():
    """As docs/torch.md lists it."""
    found = {}
    for algorithm in ALGORITHMS.values():
        layer = aimc.convert(nn.Linear(4, 3, bias=False), hardware_of(algorithm), seed=0).to(torch.bfloat16)
        for name, value in layer.cells.state.items():
            found.setdefault(value.dtype, set()).add(name)
    said = (Path(__file__).parents[2] / "docs" / "torch.md").read_text().split("## What keeps its type", 1)[1]
    for line in said.split("##", 1)[0].splitlines():
        if line.startswith("| `"):
            kind, names = line.strip("| ").split(" | ")[:2]
            assert found.pop(getattr(torch, kind.strip("`"))) == set(re.findall(r"`([\w.]+)`", names)), kind
    assert not found


@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(5, 3, bias=False), lambda: nn.Conv1d(5, 3, 2, bias=False)]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_cells_without_a_bias_are_cast(make, dtype):
    layer = aimc.convert(nn.Sequential(make()), EXACT, seed=0)
    assert layer.to(dtype)[0].weight.dtype == dtype and layer[0].bias is None


@pytest.mark.parametrize("shift", [0, 8, 12])
@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(8, 4, bias=False), lambda: nn.Conv1d(8, 4, 1, bias=False)]
)
def test_small_numbers_are_read_in_half_precision_as_large_ones(make, shift):
    """Steps of converters over small ranges leave the numbers of float16 before inputs and gradients do."""
    torch.manual_seed(0)
    digital, found = make(), []
    x = torch.randn(3, 8, 1) if isinstance(digital, nn.Conv1d) else torch.randn(3, 8)
    cells = aimc.presets.reram(200, io="noisy", w_max_dtod=0.0, w_min_dtod=0.0)
    per_vector = aimc.presets.pcm().replace(
        input_range=aimc.periphery.InputRange(mode="dynamic"), training=None
    )
    for hardware in (cells, per_vector):
        for small in (1.0, 2.0**-shift):
            layer = aimc.convert(digital, hardware, seed=0).to(torch.float16)
            inputs = (x.half() * small).requires_grad_()
            y = layer(inputs)
            y.backward(torch.linspace(-1, 1, y.numel()).view_as(y).half() * small)
            assert inputs.grad is not None
            found.append((y.detach() / small, inputs.grad / small))
        for name, small, large in zip(("output", "gradient"), found[-1], found[-2]):
            atol = 2.0 ** (shift - 22) + 2.0**-9  # a few of the smallest numbers, and rounding
            assert_close(name, small.float(), large.float(), atol=atol)
