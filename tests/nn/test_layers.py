"""Analog layers: equal to torch with ideal hardware, and what the hardware does to them."""

import contextlib
import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import aimc
from aimc.random import Key
from tests.helpers import assert_close

IDEAL = aimc.presets.ideal()

LAYERS = {
    "linear": (lambda: nn.Linear(37, 11), (5, 37)),
    "linear without bias": (lambda: nn.Linear(37, 11, bias=False), (5, 37)),
    "linear, sequence": (lambda: nn.Linear(8, 3), (2, 4, 5, 8)),
    "linear, one vector": (lambda: nn.Linear(8, 3), (8,)),
    "linear, no vector": (lambda: nn.Linear(8, 3), (0, 8)),
    "linear, one weight": (lambda: nn.Linear(1, 1), (3, 1)),
    "conv1d": (lambda: nn.Conv1d(5, 7, 3, stride=2, padding=2, dilation=2), (2, 5, 19)),
    "conv2d": (lambda: nn.Conv2d(5, 7, 3, padding=1), (2, 5, 9, 8)),
    "conv2d, same": (lambda: nn.Conv2d(6, 4, (4, 3), padding="same", dilation=(1, 2)), (2, 6, 9, 8)),
    "conv2d, valid": (lambda: nn.Conv2d(6, 4, (4, 3), padding="valid"), (2, 6, 9, 8)),
    "conv2d, groups": (lambda: nn.Conv2d(8, 12, 3, groups=4, stride=(2, 1), padding=(1, 0)), (2, 8, 9, 8)),
    "conv2d, depthwise": (lambda: nn.Conv2d(8, 16, 3, groups=8, padding="same"), (2, 8, 9, 8)),
    "conv2d, unbatched": (lambda: nn.Conv2d(5, 7, 3), (5, 9, 8)),
    "conv2d, rectangular": (lambda: nn.Conv2d(3, 7, (1, 5), padding=(0, 2), stride=(2, 3)), (2, 3, 9, 8)),
    "conv3d": (lambda: nn.Conv3d(3, 4, (1, 2, 3), padding=(0, 1, 1), bias=False), (2, 3, 4, 5, 6)),
    "transposed 1d": (lambda: nn.ConvTranspose1d(5, 7, 3, stride=2, padding=2, dilation=2), (2, 5, 9)),
    "transposed 1d, unbatched": (lambda: nn.ConvTranspose1d(5, 7, 3, bias=False), (5, 9)),
    "transposed 2d": (
        lambda: nn.ConvTranspose2d(8, 6, (3, 2), stride=(2, 3), padding=1, output_padding=(1, 2), groups=2),
        (2, 8, 5, 4),
    ),
    "transposed 2d, depthwise": (lambda: nn.ConvTranspose2d(4, 8, 3, stride=2, groups=4), (2, 4, 5, 4)),
    "transposed 3d": (
        lambda: nn.ConvTranspose3d(6, 4, (1, 2, 3), stride=2, dilation=(1, 2, 1)),
        (2, 6, 3, 2, 3),
    ),
    **{
        f"conv{n}d, {mode}": (
            lambda n=n, mode=mode: getattr(nn, f"Conv{n}d")(
                4, 6, 3, padding=2, dilation=2, padding_mode=mode
            ),
            (2, 4, *(7, 6, 5)[:n]),
        )
        for n in (1, 2, 3)
        for mode in ("zeros", "reflect", "replicate", "circular")
    },
}


@pytest.fixture(params=LAYERS, ids=str)
def layer_and_input(request):
    torch.manual_seed(0)
    make, shape = LAYERS[request.param]
    return make(), torch.randn(shape)


@pytest.mark.parametrize("rows", [512, 30, 4])
def test_ideal_hardware_is_digital(layer_and_input, rows):
    """Output and every gradient equal torch's, whole or split over tiles, channels too; so does the way back."""
    layer, x = layer_and_input
    hardware = IDEAL.replace(**{"tile.rows": rows})
    analog = aimc.convert(layer, hardware)
    grad = None
    found = []
    for module in (layer, analog, aimc.to_digital(analog)):
        inputs = x.clone().requires_grad_()
        y = module(inputs)
        grad = torch.randn(y.shape) if grad is None else grad
        y.backward(grad)
        found.append([y, inputs.grad, *(p.grad for p in module.parameters())])
    names = ["output", "input gradient", "weight gradient", "bias gradient"]
    for other in found[1:]:
        for name, a, e in zip(names, other, found[0], strict=False):
            assert_close(
                name, a, e, atol=1e-6 * max(1.0, float(e.detach().abs().max()) if e.numel() else 1.0) * 4
            )
    assert type(aimc.to_digital(analog)) is type(layer)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_standard_hardware_runs_every_layer(layer_and_input, backend):
    layer, x = layer_and_input
    hardware = aimc.presets.pcm().replace(
        **{"tile.rows": 30, "input_range.value": 2.0, "input_range.init_batches": 0}
    )
    analog = aimc.convert(layer, hardware, seed=0, backend=backend)
    inputs = x.clone().requires_grad_()
    y = analog(inputs)
    assert y.shape == layer(x).shape
    y.sum().backward()
    for name, p in analog.named_parameters():
        assert p.grad is not None and bool(torch.isfinite(p.grad).all()), name


@pytest.mark.parametrize("rows", [30, 4])
def test_bodies_agree_on_a_whole_step(layer_and_input, rows):
    layer, x = layer_and_input
    hardware = aimc.presets.pcm().replace(
        adc=None, **{"tile.rows": rows, "input_range.value": 2.0, "input_range.init_batches": 0}
    )
    results = []
    for backend in ("reference", "cpu"):
        analog = aimc.convert(layer, hardware, seed=3, backend=backend)
        inputs = x.clone().requires_grad_()
        y = analog(inputs)
        y.square().sum().backward()
        results.append([y, inputs.grad, *(p.grad for p in analog.parameters())])
    for i, (a, e) in enumerate(zip(*results, strict=True)):
        size = max(1.0, float(e.detach().abs().max())) if e.numel() else 1.0
        assert_close(f"tensor {i}", a, e, atol=2e-5 * size, rtol=1e-4)


@pytest.mark.parametrize(
    "shape", [(3, 1, 9, 8), (3, 6, 9, 8), (2, 6, 1, 1), (1, 1, 1, 1), (2, 6, 1, 5)], ids=str
)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_memory_format_is_torchs_own(shape, groups, channels_last):
    torch.manual_seed(0)
    channels = shape[1]
    groups = groups if channels % groups == 0 else 1
    layer = nn.Conv2d(channels, 4, 3, padding=1, groups=groups)
    x = torch.randn(shape)
    if channels_last:
        x = x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    analog = aimc.convert(layer, IDEAL.replace(**{"tile.rows": 20}))
    results = []
    for module in (layer, analog):
        inputs = x.detach().requires_grad_()
        y = module(inputs)
        y.square().sum().backward()
        results.append((y, inputs.grad, *(p.grad for p in module.parameters())))
    assert results[0][0].stride() == results[1][0].stride()
    for name, a, e in zip(("output", "input", "weight", "bias"), results[1], results[0]):
        assert_close(name, a, e, atol=1e-4)


@pytest.mark.parametrize("mode", ["training", "evaluation", "chip"])
def test_noise_does_not_depend_on_the_memory_format(mode):
    torch.manual_seed(0)
    net = aimc.convert(nn.Sequential(nn.Conv2d(6, 5, 3, padding=1)), aimc.presets.pcm(), seed=0)
    x = torch.randn(4, 6, 9, 8)
    net(x)
    if mode != "training":
        net.eval()
    found = []
    for form in (torch.contiguous_format, torch.channels_last):
        twin, inputs = copy.deepcopy(net), x.clone(memory_format=form).requires_grad_()
        place = aimc.program(twin, seed=1).at("1h") if mode == "chip" else contextlib.nullcontext()
        with place:
            for _ in range(2):  # the second read goes on where the first ended
                y = twin(inputs)
                y.square().sum().backward()
        found.append((y, inputs.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_standard_hardware_in_channels_last():
    """Without noise, positions are the vectors; sums in another order now and then round to another step."""
    torch.manual_seed(0)
    hardware = aimc.presets.pcm().replace(
        output_noise=0.0, short_term_noise=0.0, training=None,
        **{"tile.rows": 30, "input_range.value": 2.0, "input_range.init_batches": 0},
    )  # fmt: skip
    analog = aimc.convert(nn.Conv2d(6, 5, 3), hardware, seed=0)
    x = torch.randn(4, 6, 9, 8)
    y, z = analog(x), analog(x.contiguous(memory_format=torch.channels_last))
    assert z.is_contiguous(memory_format=torch.channels_last)
    assert ((y - z).abs() > 1e-5).float().mean() < 0.01
    assert abs(float(y.std() / z.std()) - 1) < 1e-3


def switched(**changes):
    """Ideal hardware with one effect on."""
    return IDEAL.replace(**changes)


def forward_by_hand(x, w, b, r, dac=127, adc=127, bound=10.0):
    """One tile, no noise, in double precision."""
    x, w = x.double(), w.double()
    s = w.abs().amax(1)
    xq = torch.round((x / r).clamp(-1, 1) * dac) / dac
    y = xq @ (w / s[:, None]).T
    y = torch.round(y / bound * adc).clamp(-adc, adc) / adc * bound
    return (y * s * r + b.double()).float()


def test_converters_by_hand():
    torch.manual_seed(0)
    layer, x = nn.Linear(40, 9), torch.randn(50, 40)
    hardware = switched(
        dac=aimc.periphery.DAC(),
        adc=aimc.periphery.ADC(),
        input_range=aimc.periphery.InputRange(mode="static", value=1.5),
    )
    y = aimc.convert(layer, hardware)(x)
    expected = forward_by_hand(x, layer.weight, layer.bias, 1.5)
    off = (y - expected).abs() > 1e-5  # single precision may tip a value over the edge of a level
    assert off.float().mean() < 0.01


def test_adc_gradient_is_zero_where_it_saturates():
    layer = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.5]]))
    analog = aimc.convert(layer, switched(adc=aimc.periphery.ADC(bits=8, bound=2.0)))
    x = torch.ones(1, 3, requires_grad=True)
    y = analog(x)
    assert y.tolist()[0][0] == 2.0  # 3 saturates
    y.sum().backward()
    assert x.grad.tolist() == [[1.0, -1.0, 0.5]]
    assert analog.weight.grad.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert analog.statistics.saturated == [0.5]


def test_partial_sums_pass_their_own_converter():
    layer = nn.Linear(4, 1, bias=False)
    nn.init.ones_(layer.weight)
    adc = aimc.periphery.ADC(bits=8, bound=2.0)
    x = torch.tensor([[1.0, 1.0, 1.0, -1.0]])
    assert aimc.convert(layer, switched(adc=adc, tile=aimc.crossbar.TileSize(rows=4)))(x).item() == 2.0
    two = aimc.convert(layer, switched(adc=adc, tile=aimc.crossbar.TileSize(rows=2)))(x).item()
    assert two == 2.0 + 0.0
    three = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    assert aimc.convert(layer, switched(adc=adc, tile=aimc.crossbar.TileSize(rows=2)))(three).item() == 4.0


@pytest.mark.parametrize(
    "modifier",
    [
        aimc.hwa.AddNormal(std=0.3),
        aimc.hwa.MultiplyNormal(std=0.3),
        aimc.hwa.Polynomial(scale=3.0),
        aimc.hwa.ProgrammingNoise(scale=3.0),
        aimc.hwa.CellNoise(earliest="1d", latest="1y"),
    ],
    ids=lambda m: type(m).__name__,
)
@pytest.mark.parametrize("convolution", [False, True])
def test_gradient_uses_the_noisy_weights_of_the_forward_pass(modifier, convolution):
    torch.manual_seed(0)
    digital = nn.Conv2d(5, 6, 2, bias=False) if convolution else nn.Linear(20, 6, bias=False)
    training = aimc.hwa.HardwareAware(modifiers=(modifier,))
    hardware = switched(training=training, cell=aimc.cells.PCM())
    analog = aimc.convert(digital, hardware, seed=1)
    x = torch.eye(20).requires_grad_()
    images = x.view(20, 5, 2, 2) if convolution else x
    y = analog(images).flatten(1)  # the rows of y are the columns of the noisy weight
    y.sum().backward()
    noisy, weight = y.detach().T, analog.weight.detach().flatten(1)
    assert float((noisy - weight).abs().max()) > 1e-3
    assert_close("input gradient", x.grad, noisy.sum(0).expand(20, 20), atol=1e-5)
    assert_close("the update goes to the clean weight", analog.weight.grad.flatten(1), torch.ones(6, 20))
    analog.eval()
    assert_close("clean in evaluation", analog(images).flatten(1).T, weight, atol=1e-6)


OPTIMIZERS = {
    "sgd, momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.1),
}
SPREADS = {  # of one output, for weights w and inputs x
    "additive": (aimc.hwa.AddNormal(std=0.1), lambda w, x: 0.1 * w.abs().max() * x.norm()),
    "proportional": (aimc.hwa.MultiplyNormal(std=0.2), lambda w, x: 0.2 * (w * x).square().sum(1).mean().sqrt()),
    "dropped": (
        aimc.hwa.DropConnect(probability=0.1), lambda w, x: (0.09 * (w * x).square().sum(1).mean()).sqrt(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("modifier", SPREADS)
@pytest.mark.parametrize("convolution", [False, True])
def test_noise_is_drawn_once_per_forward_pass_with_the_stated_spread(optimizer, modifier, convolution):
    """Two forwards differ, and weights stay clipped after a step, written as for any torch model."""
    torch.manual_seed(0)
    noise, spread = SPREADS[modifier]
    training = aimc.hwa.HardwareAware(modifiers=(noise,), clip=aimc.hwa.FixedClip(value=0.0625))
    hardware = switched(training=training, **{"mapping.scale": "tile", "tile.columns": None})
    digital = nn.Conv2d(50, 3000, 2) if convolution else nn.Linear(200, 3000)
    analog = aimc.convert(digital, hardware, seed=1)
    stepper = optimizer(analog.parameters())
    x = torch.randn(1, 200)
    images = x.view(1, 50, 2, 2) if convolution else x
    for _ in range(3):
        first, second = analog(images), analog(images)
        expected = 2**0.5 * float(spread(analog.weight.detach().flatten(1), x))
        assert abs(float((first - second).detach().std()) / expected - 1) < 0.05
        stepper.zero_grad()
        second.square().sum().backward()
        before = analog.weight.detach().clone()
        stepper.step()
        assert float(analog.weight.abs().max()) <= 0.0625 and not torch.equal(analog.weight, before)
    with torch.no_grad():
        analog.weight += 1.0  # a loop without optimizer
    analog(images)
    assert float(analog.weight.abs().max()) <= 0.0625


def test_short_term_noise_law():
    analog = aimc.convert(nn.Linear(100, 400, bias=False), switched(short_term_noise=0.0175), seed=2).eval()
    x = torch.rand(1, 100)
    reads = torch.stack([analog(x)[0] for _ in range(200)]).detach()
    w, s = analog.weight.detach(), analog.weight.detach().abs().amax(1)
    expected = 0.0175 * torch.sqrt((w.abs() / s[:, None]) @ (x[0] ** 2)) * s
    z = (reads - (w @ x[0])) / expected
    assert abs(float(z.std()) - 1) < 5 / (2 * z.numel()) ** 0.5


def test_ir_drop_in_a_layer():
    """The published cubic: a load of 0.0448 on one column of 512 rows."""
    layer = nn.Linear(512, 1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    analog = aimc.convert(layer, switched(ir_drop=aimc.periphery.IRDrop()))
    x = torch.full((1, 512), 50 / 512)
    j = torch.arange(512) / 512
    expected = 50 - 0.0220029 * float((x[0] * (1 - (1 - j) ** 2)).sum())
    assert abs(analog(x).item() - expected) < 1e-3


def learned(**changes):
    return switched(
        dac=aimc.periphery.DAC(),
        input_range=aimc.periphery.InputRange(**{"init_batches": 0, "value": 1.0, **changes}),
    )


def test_input_range_gradient():
    """Clipped inputs can only widen; the decay shrinks while at least 95 % fit."""
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -1.0]]))
    analog = aimc.convert(layer, learned(decay=0.0))
    y = analog(torch.tensor([[3.0, 0.5], [0.2, 4.0]]))
    y.backward(torch.tensor([[-2.0], [5.0]]))
    # x=3 clips with gradient -2 * 1; x=4 clips with gradient 5 * -1: both ask for a larger range
    assert analog.input_range.grad.tolist() == [-7.0]
    analog.input_range.grad = None
    analog(torch.tensor([[3.0, 0.5]])).backward(torch.tensor([[2.0]]))
    assert analog.input_range.grad.tolist() == [0.0]  # would shrink: not by this gradient
    shrinking = aimc.convert(layer, learned(decay=0.001, value=2.0))
    shrinking(torch.full((1, 2), 0.1)).sum().backward()
    assert_close("decay", shrinking.input_range.grad, torch.tensor([0.002]), rtol=1e-5)
    shrinking.input_range.grad = None
    shrinking(torch.full((1, 2), 5.0)).sum().backward()  # all clip: no decay, and one pushes outwards
    assert shrinking.input_range.grad.tolist() == [-2.0]


FIRST_LAYERS = {
    "linear": (lambda: nn.Linear(50, 8), (30, 50)),
    "convolution": (lambda: nn.Conv2d(3, 8, 3, stride=2, padding=1), (4, 3, 11, 9)),
    "channels last": (lambda: nn.Conv2d(6, 8, 3, stride=(1, 2), groups=2), (4, 6, 11, 9)),
    "groups": (lambda: nn.Conv1d(6, 8, 3, dilation=2, groups=2, padding="same"), (4, 6, 40)),
    "many channels": (
        lambda: nn.Conv2d(64, 8, (2, 3), padding="same", padding_mode="circular"),
        (2, 64, 5, 6),
    ),
}


@pytest.mark.parametrize("rows", [512, 20, 2])
@pytest.mark.parametrize("name", list(FIRST_LAYERS))
def test_input_range_gradient_of_a_first_layer(name, rows):
    """An input that needs no gradient takes a shorter way to the same gradient of the range."""
    torch.manual_seed(0)
    hardware = learned(decay=0.0, value=2.8).replace(
        adc=aimc.periphery.ADC(bound=3.0), **{"tile.rows": rows, "mapping.learned_gain": True}
    )
    make, shape = FIRST_LAYERS[name]
    x, found = torch.randn(shape), []
    if name == "channels last":
        x = x.to(memory_format=torch.channels_last)
    layer = make()
    up = torch.randn(layer(x).shape)
    for needs in (False, True):
        analog = aimc.convert(layer, hardware, seed=0)
        analog(x.clone().requires_grad_(needs)).backward(up)
        found.append(analog.input_range.grad)
    assert float(found[0].abs().max()) > 0
    assert_close("range", found[0], found[1], atol=1e-5)


def test_saturated_outputs_widen_the_range_where_they_are_managed():
    layer = nn.Linear(2, 4, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, -1.0], [1.0, -1.0]]))
    for managed, keep, expected in ((True, 0.95, -0.5 * 2.0), (True, 0.5, 0.0), (False, 0.95, 0.0)):
        hardware = learned(decay=0.0, value=2.0, keep=keep, manage_output_clipping=managed)
        analog = aimc.convert(layer, hardware.replace(adc=aimc.periphery.ADC(bound=1.5)))
        analog(torch.full((1, 2), 1.9)).backward(
            torch.zeros(1, 4)
        )  # two of four columns carry 1.9 of full scale
        assert_close("range", analog.input_range.grad, torch.tensor([expected]), atol=1e-6)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_transposed_input_is_read_in_its_own_order(backend):
    analog = aimc.convert(nn.Linear(24, 5), learned(value=2.0), backend=backend, seed=0).eval()
    x = torch.randn(24, 8).t()
    assert not x.is_contiguous()
    assert_close("output", analog(x), analog(x.contiguous()), atol=1e-6)


def test_a_given_range_replaces_one_that_was_never_set():
    net = aimc.convert(nn.Sequential(nn.Linear(4, 2)), aimc.presets.pcm(), seed=0).eval()
    assert net[0].input_range.tolist() == [0.0]
    aimc.set_hardware(net, aimc.presets.pcm().replace(**{"input_range.value": 1.5}))
    assert net[0].input_range.tolist() == [1.5]
    aimc.set_hardware(net, aimc.presets.pcm().replace(**{"input_range.value": 7.0}))
    assert net[0].input_range.tolist() == [1.5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_range_in_half_precision_is_that_of_the_inputs(dtype):
    net = aimc.convert(nn.Sequential(nn.Linear(8, 6)).to(dtype), aimc.presets.pcm(), seed=0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(16, 8).to(dtype)).square().mean().backward()
        optimizer.step()
    assert 2 < float(net[0].input_range) < 4


def test_settings_of_a_layer_survive_an_exchange_of_hardware():
    analog = aimc.convert(nn.Linear(4, 2), learned())
    analog.check_finite, analog.noise_strength = False, 0.25
    aimc.set_hardware(analog, learned(decay=0.1))
    assert analog.check_finite is False and analog.noise_strength == 0.25


def test_input_range_starts_from_the_first_batches_and_stays_positive():
    analog = aimc.convert(nn.Linear(50, 3), learned(init_batches=3, value=None))
    x = [torch.randn(200, 50) * k for k in (1.0, 2.0, 3.0)]
    for batch in x:
        analog(batch).sum().backward()
    expected = sum(3 * float(b.std()) for b in x) / 3
    assert abs(analog.input_range.item() / expected - 1) < 1e-5
    assert analog.input_range.grad.tolist() == [0.0]
    optimizer = torch.optim.SGD([analog.input_range], lr=1.0)
    analog.input_range.grad = torch.tensor([1e9])
    optimizer.step()
    assert analog.input_range.item() > 0


def test_a_given_first_range_is_where_training_starts():
    analog = aimc.convert(nn.Linear(50, 3), learned(init_batches=3, value=5.0))
    analog(torch.randn(200, 50)).sum().backward()
    assert analog.input_range.item() == 5.0


def test_constant_and_silent_inputs_do_not_block_the_start():
    hardware = learned(init_batches=2, value=None).replace(**{"tile.rows": 25})
    analog = aimc.convert(nn.Linear(50, 3), hardware)
    silent = torch.cat([torch.zeros(8, 25), torch.randn(8, 25)], 1)
    for _ in range(4):
        assert bool(torch.isfinite(analog(silent)).all())
    assert analog.input_range[0] == 0 and abs(analog.input_range[1].item() / 3 - 1) < 0.5
    with pytest.raises(aimc.AimcError, match="input range is not set"):
        analog.eval()(silent)
    analog.train()
    analog(torch.full((8, 50), 2.0))  # late, and all alike
    assert analog.input_range[0].item() == 2.0
    assert bool(torch.isfinite(analog.eval()(silent)).all())


def test_unset_range_is_an_error_not_a_guess():
    analog = aimc.convert(nn.Sequential(nn.Linear(4, 2)), aimc.presets.pcm()).eval()
    with pytest.raises(aimc.AimcError, match=r"layer '0', field 'input_range'.*calibrate"):
        analog(torch.ones(1, 4))


def test_dynamic_range_scales_every_vector():
    torch.manual_seed(0)
    layer = nn.Linear(30, 5)
    hardware = switched(dac=aimc.periphery.DAC(bits=8), input_range=aimc.periphery.InputRange(mode="dynamic"))
    analog = aimc.convert(layer, hardware)
    x = torch.randn(20, 30) * torch.logspace(-3, 3, 20)[:, None]
    assert_close(
        "relative error",
        analog(x) / x.norm(dim=1, keepdim=True),
        layer(x) / x.norm(dim=1, keepdim=True),
        atol=0.02,
    )
    assert bool(torch.isfinite(analog(torch.zeros(2, 30))).all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("hardware", ["ideal", "pcm"])
def test_bad_input_names_the_layer(bad, hardware):
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 2))
    hardware = aimc.presets.PRESETS[hardware]()
    if hardware.dac is not None:
        hardware = hardware.replace(**{"input_range.value": 1.0})
    analog = aimc.convert(net, hardware)
    x = torch.zeros(1, 2, 4, 4)
    x[0, 1, 2, 3] = bad
    with pytest.raises(aimc.AimcError, match="layer '0'.*NaN or infinite"):
        analog(x)
    for layer in aimc.analog_layers(analog).values():
        layer.check_finite = False
    analog(x)


def test_learned_gain_gradient():
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 4), torch.randn(5, 6)
    analog = aimc.convert(layer, switched(**{"mapping.learned_gain": True}))
    gain = torch.tensor([0.5, 1.0, 2.0, -1.0])
    with torch.no_grad():
        analog.output_gain.copy_(gain)
    free = gain.clone().requires_grad_()
    w = layer.weight.detach().clone().requires_grad_()
    expected = (x @ w.T) * free + layer.bias
    up = torch.randn(5, 4)
    expected.backward(up)
    y = analog(x)
    y.backward(up)
    assert_close("output", y, expected, atol=1e-6)
    assert_close("gain", analog.output_gain.grad, free.grad, atol=1e-5)
    assert_close("weight", analog.weight.grad, w.grad, atol=1e-5)
    assert_close("exported", aimc.to_digital(analog)(x), expected, atol=1e-6)


@pytest.mark.parametrize("scale", ["column", "tile", "fan_in", "none"])
def test_scaling_preserves_the_function(scale):
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 32), torch.randn(10, 64)
    analog = aimc.convert(layer, switched(**{"mapping.scale": scale, "tile.rows": 20}))
    assert_close(scale, analog(x), layer(x), atol=2e-6)


def test_remap_preserves_the_function_and_stale_scales_clip():
    torch.manual_seed(0)
    training = aimc.hwa.HardwareAware(remap_every=0)
    layer, x = nn.Linear(16, 4), torch.randn(10, 16)
    analog = aimc.convert(layer, switched(training=training))
    assert_close("fresh", analog(x), layer(x), atol=1e-6)
    with torch.no_grad():
        analog.weight *= 3
        layer.weight *= 3
    x.requires_grad_()
    clipped = analog(x)
    assert float((clipped - layer(x)).abs().max()) > 0.1
    clipped.sum().backward()
    beyond = analog.weight.abs() > analog.column_scale[0][:, None]
    assert bool((analog.weight.grad[beyond] == 0).all()) and bool((analog.weight.grad[~beyond] != 0).all())
    aimc.remap(analog)
    assert_close("remapped", analog(x), layer(x), atol=3e-6)


def test_draws_belong_to_the_layers_name_and_seed():
    def outputs(extra, seed):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
        if extra:
            net.append(nn.Linear(8, 2))
        hardware = aimc.presets.pcm().replace(**{"input_range.value": 2.0, "input_range.init_batches": 0})
        analog = aimc.convert(net, hardware, seed=seed)
        return analog[:3](torch.ones(3, 8))

    assert torch.equal(outputs(False, 5), outputs(True, 5))
    assert torch.equal(outputs(False, 5), outputs(False, 5))
    assert not torch.equal(outputs(False, 5), outputs(False, 6))
    torch.manual_seed(7)
    a = aimc.convert(nn.Linear(2, 2), IDEAL).key
    torch.manual_seed(7)
    assert aimc.convert(nn.Linear(2, 2), IDEAL).key == a
    assert aimc.convert(nn.Linear(2, 2), IDEAL).key != a


def test_evaluation_changes_no_training_draw():
    torch.manual_seed(0)
    hardware = aimc.presets.pcm().replace(**{"input_range.value": 2.0, "input_range.init_batches": 0})
    nets = [aimc.convert(nn.Linear(8, 8), hardware, seed=1) for _ in range(1)]
    nets.append(copy.deepcopy(nets[0]))
    x = torch.ones(2, 8)
    nets[1].eval()(x)
    nets[1].train()
    assert torch.equal(nets[0](x), nets[1](x))


def test_state_dict_round_trip_continues_to_the_bit(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    hardware = aimc.presets.pcm().replace(**{"input_range.init_batches": 3})
    analog = aimc.convert(net, hardware, seed=1)
    optimizer = torch.optim.SGD(analog.parameters(), lr=0.1)
    x = torch.randn(6, 8)

    def steps(module, optimizer, n):
        losses = []
        for _ in range(n):
            optimizer.zero_grad()
            loss = module(x).square().sum()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    steps(analog, optimizer, 2)
    torch.save(analog.state_dict(), tmp_path / "state.pt")
    straight = steps(analog, optimizer, 5)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert all(isinstance(v, torch.Tensor) for v in state.values())
    again = aimc.convert(net, hardware, seed=99)
    again.load_state_dict(state)
    assert steps(again, torch.optim.SGD(again.parameters(), lr=0.1), 5) == straight


def test_a_digital_checkpoint_loads_strictly():
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    analog = aimc.convert(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), IDEAL)
    analog.load_state_dict(net.state_dict())
    x = torch.randn(3, 8)
    assert_close("output", analog(x), net(x), atol=1e-6)
    broken = net.state_dict()
    del broken["2.weight"]
    with pytest.raises(RuntimeError, match=r"2\.weight"):
        analog.load_state_dict(broken)


def test_double_precision_passes_a_gradient_check():
    layer = nn.Conv2d(4, 3, 3, padding=1).double()
    analog = aimc.convert(layer, switched(**{"tile.rows": 20, "mapping.learned_gain": True}))
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(analog, (x,))


def test_keys_do_not_collide():
    assert Key(1).fold("a.b") != Key(1).fold("a", "b")


def test_a_copy_or_a_loaded_state_is_not_clipped_again(tmp_path):
    """Clipping at 1.5 standard deviations shrinks what it clips every time it is applied."""
    torch.manual_seed(0)
    hardware = switched(training=aimc.hwa.HardwareAware(clip=aimc.hwa.GaussianClip(sigma=1.5)))
    analog = aimc.convert(nn.Linear(30, 20), hardware)
    x = torch.ones(1, 30)
    analog(x)
    weight = analog.weight.detach().clone()
    loaded = aimc.convert(nn.Linear(30, 20), hardware)
    loaded.load_state_dict(analog.state_dict())
    for other in (analog, copy.deepcopy(analog), pickle.loads(pickle.dumps(analog)), loaded):
        other(x)
        assert_close("weight", other.weight, weight)
    digital = nn.Linear(30, 20)
    loaded.load_state_dict(digital.state_dict())
    loaded(x)
    assert float(loaded.weight.detach().abs().max()) < float(digital.weight.detach().abs().max())


@pytest.mark.parametrize("gain", [False, True])
@pytest.mark.parametrize(
    "make", [lambda: nn.Linear(6, 4), lambda: nn.Conv2d(6, 4, 3, padding=1)], ids=["linear", "conv"]
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_output_may_be_changed_in_place(gain, make, channels_last):
    torch.manual_seed(0)
    layer = make()
    analog = aimc.convert(layer, switched(**{"mapping.learned_gain": gain}))
    x = torch.randn(3, 6) if isinstance(layer, nn.Linear) else torch.randn(3, 6, 5, 5)
    if channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    found = []
    for module in (layer, analog):
        y = module(x)
        y += 1.0
        nn.functional.relu_(y)
        y.square().sum().backward()
        found.append([y, *(p.grad for p in list(module.parameters()) if p.grad is not None)])
    assert_close("output", found[1][0], found[0][0], atol=1e-5)
    assert_close("weight", analog.weight.grad, layer.weight.grad, atol=1e-4)
    assert_close("bias", analog.bias.grad, layer.bias.grad, atol=1e-4)


def test_changing_the_input_before_backward_is_an_error_as_in_torch():
    for layer, x in ((nn.Linear(6, 4), torch.ones(3, 6)), (nn.Conv2d(6, 4, 3), torch.ones(3, 6, 5, 5))):
        y = aimc.convert(layer, IDEAL)(x)
        x.mul_(100)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()


def test_the_largest_input_of_a_vector_keeps_its_gradient():
    hardware = switched(dac=aimc.periphery.DAC(), input_range=aimc.periphery.InputRange(mode="dynamic"))
    x = torch.randn(4, 6, requires_grad=True)
    analog = aimc.convert(nn.Linear(6, 3), hardware)
    analog(x).sum().backward()
    assert_close("gradient", x.grad, analog.weight.detach().sum(0).expand(4, 6), atol=1e-6)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_a_vector_of_zeros_beside_a_tiny_column(backend):
    torch.manual_seed(0)
    layer = nn.Linear(1024, 4)
    with torch.no_grad():
        layer.weight[2, :512] *= 1e-4
    hardware = aimc.presets.pcm().replace(training=None, **{"input_range.mode": "dynamic"})
    x = torch.rand(3, 1024)
    x[1, :512] = 0
    assert bool(torch.isfinite(aimc.convert(layer, hardware, seed=0, backend=backend).eval()(x)).all())


def test_a_converter_without_bits_still_saturates():
    layer = nn.Linear(16, 1, bias=False)
    nn.init.ones_(layer.weight)
    analog = aimc.convert(layer, switched(adc=aimc.periphery.ADC(bits=None, bound=1.0)))
    assert analog(torch.ones(1, 16)).item() == 1.0


def test_frozen_weights_stay():
    torch.manual_seed(0)
    training = aimc.hwa.HardwareAware(clip=aimc.hwa.FixedClip(value=0.05))
    analog = aimc.convert(nn.Linear(6, 4), switched(training=training))
    analog.weight.requires_grad_(False)
    before = analog.weight.clone()
    optimizer = torch.optim.SGD(analog.parameters(), lr=0.1)
    analog(torch.ones(1, 6)).sum().backward()
    optimizer.step()
    assert torch.equal(analog.weight, before)


@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 4), lambda: nn.Conv2d(6, 4, 1), lambda: nn.LSTM(6, 4)])
def test_what_conversion_adds_to_frozen_weights_is_frozen(make):
    """The first batches set a range that nothing else has set; from then on the layer's function stays."""
    torch.manual_seed(0)
    hardware = aimc.presets.pcm().replace(**{"input_range.init_batches": 2})
    digital, x = make().requires_grad_(False), torch.randn(3, 6, 1, 1)
    x = x if isinstance(digital, nn.Conv2d) else x[..., 0, 0]
    trained = aimc.convert(make(), hardware)
    assert all(p.requires_grad for p in trained.parameters())
    net = aimc.convert(nn.ModuleDict({"frozen": digital, "head": nn.Linear(6, 6)}), hardware, seed=0)
    assert all(p.requires_grad == n.startswith("head") for n, p in net.named_parameters())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=0.1)
    states = []
    for _ in range(4):
        y = net.frozen(net.head(x.flatten(1)).view(x.shape))
        (y[0] if isinstance(y, tuple) else y).square().sum().backward()
        optimizer.step()
        states.append({n: v.clone() for n, v in net.frozen.named_parameters()})
    assert all(torch.equal(states[1][n], states[3][n]) for n in states[1])
    assert all(v > 0 for n, v in states[1].items() if "input_range" in n)
    aimc.set_hardware(net, IDEAL)
    parametrize.register_parametrization(net.head, "weight", nn.Tanh())
    with torch.no_grad():  # made anew, also under a weight that is computed
        aimc.set_hardware(net, hardware)
    assert all(p.requires_grad == n.startswith("head") for n, p in net.named_parameters())


def test_conversion_leaves_the_weights_alone():
    torch.manual_seed(0)
    net = nn.Linear(64, 64)
    nn.init.normal_(net.weight)
    analog = aimc.convert(net, aimc.presets.pcm())
    assert torch.equal(analog.weight, net.weight)
    aimc.set_hardware(analog, aimc.presets.pcm().replace(**{"tile.rows": 16}))
    assert torch.equal(analog.weight, net.weight)


def test_loading_keeps_the_callers_hardware_and_names_the_differences():
    saved = aimc.convert(nn.Linear(40, 3), aimc.presets.pcm().replace(**{"input_range.value": 2.0}))
    coarse = aimc.presets.pcm().replace(**{"adc.bits": 3, "tile.rows": 16, "mapping.learned_gain": False})
    mine = aimc.convert(nn.Linear(40, 3), coarse)
    with pytest.warns(
        UserWarning, match=r"tile.rows: 512 -> 16.*learned_gain: True -> False.*adc.bits: 8 -> 3"
    ):
        mine.load_state_dict(saved.state_dict())
    assert torch.equal(mine.weight, saved.weight) and mine.hardware == coarse
    assert aimc.nn.saved_hardware(saved.state_dict()) == saved.hardware
    broken = saved.state_dict()
    del broken["output_gain"]
    with pytest.raises(RuntimeError, match="output_gain"):
        aimc.convert(nn.Linear(40, 3), saved.hardware).load_state_dict(broken)


def test_exchanged_hardware_keeps_the_parameter_objects():
    analog = aimc.convert(nn.Linear(40, 3), aimc.presets.pcm())
    before = analog.input_range, analog.output_gain
    aimc.set_hardware(analog, aimc.presets.pcm().replace(**{"adc.bits": 6}))
    assert analog.input_range is before[0] and analog.output_gain is before[1]
