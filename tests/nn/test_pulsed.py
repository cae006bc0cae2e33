"""Layers whose weights live in cells: products, gradients, updates, mapping, reads through converters."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import aimc
from aimc.algorithms import ALGORITHMS, AnalogSGD
from aimc.cells import ConstantStep, Ladder, SoftBounds
from aimc.errors import AimcError
from aimc.ops.pulsed_update import PulseTrain
from aimc.periphery import ADC, DAC, ArrayIO
from tests.helpers import assert_close
from tests.nn.pulsed_helpers import (
    EXACT,
    NO_SPREAD,
    PULSED,
    STEP,
    batch,
    cells_of,
    in_bounds,
    loss_of,
    sgd,
    small_net,
)

CLEAR = ArrayIO(dac=None, adc=None, output_noise=0.0)

CASES = {
    "linear": (lambda: nn.Linear(7, 4), (5, 7)),
    "no bias": (lambda: nn.Linear(7, 4, bias=False), (5, 7)),
    "one vector": (lambda: nn.Linear(7, 4), (7,)),
    "tokens": (lambda: nn.Linear(7, 4), (2, 3, 7)),
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 5, 3), (2, 3, 7, 6)),
    "one image": (lambda: nn.Conv2d(3, 5, 3), (3, 7, 6)),
    "strided": (lambda: nn.Conv2d(3, 5, (3, 2), stride=(2, 3), padding=(1, 2)), (2, 3, 8, 9)),
    "dilated": (lambda: nn.Conv2d(2, 3, 3, dilation=2, padding=2), (2, 2, 8, 8)),
    "depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, padding="same"), (2, 4, 6, 6)),
    "same, even kernel": (lambda: nn.Conv2d(2, 3, 4, padding="same"), (2, 2, 6, 6)),
    "reflect": (lambda: nn.Conv2d(2, 3, 3, padding=2, padding_mode="reflect"), (2, 2, 6, 6)),
    "circular": (lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), (2, 2, 6)),
    "replicate, same": (lambda: nn.Conv2d(2, 3, 2, padding="same", padding_mode="replicate"), (2, 2, 5, 5)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, stride=2), (2, 2, 5, 5, 5)),
    "1x1": (lambda: nn.Conv2d(5, 3, 1, bias=False), (2, 5, 4, 4)),
}


def pair(case: str, hardware=EXACT):
    torch.manual_seed(0)
    build, shape = CASES[case]
    digital = build()
    return digital, aimc.convert(digital, hardware, seed=0), torch.randn(shape), shape


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("reads", ["perfect", "through clear converters", "of small tiles"])
def test_equals_torch_in_output_gradients_and_update(case, reads):
    hardware = EXACT
    if reads != "perfect":
        tile = aimc.crossbar.TileSize(rows=3 if reads == "of small tiles" else 20, columns=3)
        hardware = EXACT.replace(forward=CLEAR, backward=CLEAR, tile=tile)
    digital, layer, x, _ = pair(case, hardware)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y = digital(a)
    target = torch.randn_like(y)
    (y * target).sum().backward()
    optimizer = sgd(layer)
    z = layer(b)
    (z * target).sum().backward()
    assert_close("output", z, y, atol=1e-5)
    assert_close("input gradient", b.grad, a.grad, atol=2e-5)
    assert_close("weight gradient", layer.weight.grad, digital.weight.grad, atol=3e-5)
    torch.optim.SGD(digital.parameters(), lr=0.1).step()
    optimizer.step()
    assert layer.weight.grad is None
    assert_close("updated weight", layer.weight, digital.weight, atol=1e-5)
    if digital.bias is not None:
        assert_close("updated bias", layer.bias, digital.bias, atol=1e-5)
    assert_close("output after", layer(x), digital(x), atol=2e-5)
    assert_close("digital twin", aimc.to_digital(layer)(x), digital(x), atol=2e-5)
    assert type(aimc.to_digital(layer)) is type(digital)


@pytest.mark.parametrize(
    "case", ["linear", "no bias", "conv2d", "strided", "dilated", "same, even kernel", "1x1"]
)
@pytest.mark.parametrize("io", [None, CLEAR])
def test_an_analog_bias_is_a_column_of_the_array(case, io):
    hardware = EXACT.replace(forward=io, **{"mapping.analog_bias": True})
    digital, layer, x, _ = pair(case, hardware)
    assert layer.cells.held.shape[2] == digital.weight[0].numel() + (digital.bias is not None)
    optimizer = sgd(layer)
    for net in (digital, layer):
        y = net(x)
        (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
    for name, parameter in digital.named_parameters():
        assert_close(f"{name} gradient", getattr(layer, name).grad, parameter.grad, atol=3e-5)
    torch.optim.SGD(digital.parameters(), lr=0.1).step()
    optimizer.step()
    assert_close("output after", layer(x), digital(x), atol=3e-5)


def test_an_analog_bias_of_groups_is_refused():
    with pytest.raises(aimc.AimcError, match=r"layer '0', field 'mapping.analog_bias'.*to false"):
        aimc.convert(
            nn.Sequential(nn.Conv2d(2, 2, 1, groups=2)), EXACT.replace(**{"mapping.analog_bias": True})
        )


# Batch size -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_the_mean_update_follows_the_batch_size_in_any_order(backend):
    """Batch 1, 256, 1, 7, 1000 in one layer, and each in a fresh one: the mean change is batch times that of one."""

    def change(layer, optimizer, n: int) -> torch.Tensor:
        layer(torch.ones(n, 8)).backward(torch.full((n, 1), -1.0))
        before = layer.weight.detach().clone()
        optimizer.step()
        return (layer.weight.detach() - before)[0]

    lr, pulses = 5e-4, 5.0  # mean pulses per vector and device
    sizes = (1, 30, 1, 7) if backend == "reference" else (1, 256, 1, 7, 1000)
    layer = aimc.convert(nn.Linear(8, 1, bias=False), PULSED, seed=3, backend=backend)
    layer.program(torch.zeros(1, 8))
    optimizer = sgd(layer, lr)
    for k, n in enumerate(sizes):
        fresh = aimc.convert(nn.Linear(8, 1, bias=False), PULSED, seed=100 + k, backend=backend)
        fresh.program(torch.zeros(1, 8))
        for found in (change(layer, optimizer, n), change(fresh, sgd(fresh, lr), n)):
            # x and d are equal everywhere: the mean over devices has the variance of one binomial, 31 slots a vector.
            deviation = 1e-4 * (n * pulses) ** 0.5
            assert abs(float(found.mean()) - n * pulses * 1e-4) < 4 * deviation, n


# Mapping --------------------------------------------------------------------------------------------------------------


def test_large_weights_fit_a_small_device_range():
    hardware = aimc.PulsedHardware(cell=SoftBounds(dw_min=0.001, w_max=0.1, w_min=-0.1, **NO_SPREAD))
    digital = nn.Linear(30, 20)
    nn.init.uniform_(digital.weight, -1, 1)
    layer = aimc.convert(digital, hardware)
    x = torch.randn(50, 30)
    assert in_bounds(layer) and float(layer.cells.held.abs().max()) <= 0.1 + 1e-7
    assert_close("output", layer(x), digital(x), atol=1e-5)
    assert (layer.clipped, layer.mapping_error < 1e-6) == (0.0, True)
    nn.init.uniform_(digital.weight, -3, 3)
    layer.load_state_dict(digital.state_dict())
    assert in_bounds(layer)
    assert_close("output after loading", layer(x), digital(x), atol=2e-5)


def test_every_device_keeps_within_its_own_bounds():
    with pytest.warns(UserWarning, match=r"weights beyond what their devices hold: 0 \([\d.]+% of.*3 \("):
        net = aimc.convert(small_net(), aimc.presets.reram(w_max_dtod=0.5, w_min_dtod=0.5), seed=0)
    for layer in aimc.pulsed_layers(net).values():
        assert in_bounds(layer) and layer.clipped > 0.01
        assert torch.equal(layer.weight, aimc.to_digital(layer).weight)
    assert "of the weights clipped" in aimc.summary(net)


def test_a_single_weight_that_does_not_fit_is_told():
    """However little it is in all: nothing is clipped silently."""
    torch.manual_seed(0)
    digital = nn.Linear(100, 100, bias=False)
    hardware = aimc.presets.reram(w_max_dtod=0.14, w_min_dtod=0.14)
    with pytest.warns(UserWarning, match=r"PulsedLinear \(0\.\d+% of the weights, relative error 0\.\d+%\)"):
        layer = aimc.convert(digital, hardware, seed=0)
    assert 0 < layer.clipped < 0.01 and layer.mapping_error < 0.01


def test_overflow_is_one_warning_or_silence_or_growth_or_an_error():
    spread = aimc.presets.reram()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        usual = aimc.convert(small_net(), spread, seed=0)
    assert len(seen) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aimc.convert(small_net(), spread.replace(**{"mapping.overflow": "clip"}), seed=0)
        grown = aimc.convert(small_net(), spread.replace(**{"mapping.overflow": "grow"}), seed=0)
    x, _ = batch()
    assert_close("grown", grown(x), small_net()(x), atol=2e-3)
    assert grown[3].scale > usual[3].scale and grown[3].clipped == 0
    with pytest.raises(aimc.AimcError, match=r"layer '3', field 'mapping.overflow': [\d.]+% of the weights"):
        aimc.convert(small_net(), spread.replace(**{"mapping.overflow": "error"}), seed=0)
    wide = aimc.presets.reram(w_max_dtod=1.0, w_min_dtod=1.0).replace(**{"mapping.overflow": "grow"})
    with pytest.raises(aimc.AimcError, match="more than 10-fold"):
        aimc.convert(small_net(), wide, seed=0)


def test_growth_does_not_wait_for_stuck_devices():
    hardware = EXACT.replace(**{"cell.corrupt_probability": 0.2, "mapping.overflow": "grow"})
    layer = aimc.convert(nn.Linear(20, 20), hardware, seed=0)
    assert 0.1 < layer.clipped < 0.3


def test_an_overflow_that_is_refused_changes_nothing():
    hardware = EXACT.replace(**{"mapping.scale": 0.1, "mapping.overflow": "error"})
    layer = aimc.convert(nn.Linear(4, 3), hardware, seed=0)
    before, weight = cells_of(layer), layer.weight.detach().clone()
    with pytest.raises(aimc.AimcError, match="mapping.overflow"):
        layer.program(torch.full((3, 4), 2.0))
    assert all(torch.equal(v, before[k]) for k, v in cells_of(layer).items())
    assert_close("weight", layer.weight, weight)


def test_scales():
    w = nn.Linear(4, 2, bias=False)
    with torch.no_grad():
        w.weight.copy_(torch.tensor([[0.1, -0.2, 0.3, -0.4], [0.0, 0.1, 0.1, 0.1]]))

    def scale(**mapping):
        cell = STEP.replace(w_max=2.0, w_min=-1.0)
        return aimc.convert(w, EXACT.replace(cell=cell, mapping=aimc.PulsedMapping(**mapping))).scale

    assert scale() == pytest.approx(1.5 / 2) and scale(factor=3.0) == pytest.approx(1.5)
    assert scale(factor=0.1) == pytest.approx(0.4) == pytest.approx(scale(scale="max"))
    assert scale(scale=0.7) == 0.7


def test_a_ladder_counts_as_held_what_rounds_to_a_level():
    hardware = aimc.PulsedHardware(
        cell=Ladder(
            levels=5, w_max=1.0, w_min=-1.0, dw_min_dtod=0.0, up_down_dtod=0.0, w_max_dtod=0.0, w_min_dtod=0.0
        )
    )
    with pytest.warns(UserWarning, match=r"\(rounded to levels, relative error"):
        layer = aimc.convert(nn.Linear(8, 8), hardware, seed=0)
    assert layer.clipped == 0
    levels = layer.cells.held.unique()
    assert set(levels.tolist()) <= {-1.0, -0.5, 0.0, 0.5, 1.0}


# What is recorded -----------------------------------------------------------------------------------------------------


def test_a_backward_pass_in_evaluation_mode_trains_as_torch_does():
    """Frozen statistics of norms are a common reason for it."""
    net = aimc.convert(small_net(), EXACT, seed=0)
    optimizer, before = sgd(net), net[0].weight.detach().clone()
    loss_of(net.eval()).backward()
    assert torch.nn.utils.clip_grad_norm_(net.parameters(), 1e9) > 0
    optimizer.step()
    assert not torch.equal(net[0].weight, before)


def test_no_grad_and_autograd_grad_leave_nothing():
    net = aimc.convert(small_net(), EXACT, seed=0)
    x, y = batch()
    x.requires_grad_()
    torch.autograd.grad(F.cross_entropy(net(x), y), x)
    with torch.no_grad():
        net(x)
    assert not any(layer.pending for layer in aimc.pulsed_layers(net).values())
    assert net[0].weight.grad is None
    with pytest.raises(aimc.AimcError, match="layer '3': .*no dense gradient for autograd.grad"):
        torch.autograd.grad(F.cross_entropy(net.train()(x), y), net[3].weight)


def test_a_frozen_layer_records_nothing_but_passes_the_gradient_on():
    net = aimc.convert(small_net(), EXACT, seed=0)
    net[3].weight.requires_grad_(False)
    loss_of(net).backward()
    assert bool(net[0].pending) and not net[3].pending


def test_all_uses_of_a_layer_count_in_order():
    torch.manual_seed(0)
    layer, digital = nn.Linear(5, 5), nn.Linear(5, 5)
    digital.load_state_dict(layer.state_dict())
    shared = aimc.convert(nn.Sequential(layer, nn.Tanh(), layer), EXACT)
    plain = nn.Sequential(digital, nn.Tanh(), digital)
    optimizer, reference = sgd(shared), torch.optim.SGD(plain.parameters(), lr=0.1)
    for net, opt in ((shared, optimizer), (plain, reference)):
        for k in (1.0, -2.0, 0.5):  # accumulated over several forwards, of different sizes
            net(torch.linspace(-1, 1, 10).view(2, 5) * k).square().sum().backward()
        net(torch.ones(5)).sum().backward()
        opt.step()
    assert shared[0] is shared[2]
    assert_close("weight", shared[0].weight, plain[0].weight, atol=1e-5)


@pytest.mark.parametrize(("groups", "analog_bias"), [(1, False), (2, False), (1, True)])
def test_one_step_over_images_of_several_sizes(groups, analog_bias):
    torch.manual_seed(0)
    digital = nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=groups)
    layer = aimc.convert(digital, EXACT.replace(**{"mapping.analog_bias": analog_bias}))
    optimizer, reference = sgd(layer), torch.optim.SGD(digital.parameters(), lr=0.1)
    images = [torch.randn(2, 2, *s) for s in ((6, 9), (9, 5), (6, 9))]
    for net, opt in ((layer, optimizer), (digital, reference)):
        for x in images:
            net(x).square().mean().backward()
        opt.step()
    assert_close("weight", layer.weight, digital.weight, atol=1e-5)
    assert_close("bias", layer.bias, digital.bias, atol=1e-5)


def test_an_analog_bias_unfolds_nothing():
    """One more channel waits with the input, not the patches of all channels."""
    layer = aimc.convert(nn.Conv2d(6, 4, 5, padding=2), EXACT.replace(**{"mapping.analog_bias": True}))
    x = torch.randn(3, 6, 9, 9)
    layer(x).sum().backward()
    vectors = layer.pending.take()
    assert vectors.columns == 6 * 25 + 1 and vectors.count == 3 * 81
    assert vectors.x.numel() == 3 * 7 * 13 * 13
    assert_close("input of the bias", vectors.unfolded()[0][0, :, -1], torch.ones(3 * 81))


def test_a_buffer_that_is_filled_again_does_not_change_the_recorded_input():
    layer = aimc.convert(nn.Linear(3, 2), EXACT)
    x = torch.ones(1, 3)
    layer(x).sum().backward()
    x.fill_(7.0)
    assert_close("gradient", layer.weight.grad, torch.ones(2, 3))


def test_writing_the_weight_directly_is_noticed():
    layer = aimc.convert(nn.Linear(3, 2), EXACT)
    nn.init.zeros_(layer.weight)
    with pytest.raises(
        aimc.AimcError, match=r"field 'weight': the weight was written directly.*layer.program"
    ):
        layer(torch.ones(1, 3))
    layer.program(torch.zeros(2, 3))
    assert_close("output", layer(torch.ones(1, 3))[0], layer.bias)


def test_wrong_inputs_name_the_layer():
    net = aimc.convert(nn.Sequential(nn.Linear(3, 2)), EXACT)
    with pytest.raises(aimc.AimcError, match=r"layer '0', shape \[1, 4\]: expects 3 features"):
        net(torch.ones(1, 4))
    net = aimc.convert(nn.Sequential(nn.Conv2d(3, 2, 1)), EXACT)
    with pytest.raises(aimc.AimcError, match="expects 3 channels"):
        net(torch.ones(1, 2, 4, 4))
    with pytest.raises(aimc.AimcError, match="expects 3 or 4 dimensions"):
        net(torch.ones(1, 2))
    layer = aimc.convert(nn.Linear(3, 2), EXACT)
    with pytest.raises(aimc.AimcError, match=r"expects a weight \[2, 3\]"):
        layer.program(torch.ones(3, 2))
    with pytest.raises(aimc.AimcError, match="NaN"):
        layer.program(torch.full((2, 3), torch.nan))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_cells_stay_float32_whatever_the_network_is(dtype):
    net = aimc.convert(small_net(), EXACT, seed=0)
    before = cells_of(net)
    net = net.to(dtype)
    assert {p.dtype for p in net.parameters()} == {dtype}
    assert all(torch.equal(v, before[k]) for k, v in cells_of(net).items())
    optimizer = sgd(net)
    x, y = batch()
    out = net(x.to(dtype))
    assert out.dtype == dtype
    F.cross_entropy(out, y).backward()
    assert net[3].weight.grad.dtype == dtype
    optimizer.step()
    reference, weight = small_net(), net[3].weight.detach().float()
    loss_of(reference).backward()
    torch.optim.SGD(reference.parameters(), lr=0.1).step()
    assert_close("weight", weight, reference[3].weight, atol=2e-3)
    net.float()
    assert float((net[3].weight.detach() - weight).abs().max()) < 2e-3


def test_autocast_computes_in_the_type_of_torchs_layers():
    net, digital = aimc.convert(small_net(), EXACT, seed=0), small_net()
    x, y = batch()
    with torch.autocast("cpu", torch.bfloat16):
        out, expected = net(x), digital(x)
    assert out.dtype == expected.dtype == torch.bfloat16
    F.cross_entropy(out.float(), y).backward()
    F.cross_entropy(expected.float(), y).backward()
    assert_close("gradient", net[0].weight.grad, digital[0].weight.grad, atol=2e-3)


# Reads through converters ---------------------------------------------------------------------------------------------


def quantised(x, bound, half):
    return torch.round((x / bound).clamp(-1, 1) * half) * bound / half


def test_a_noiseless_read_is_the_formula():
    io = ArrayIO(dac=DAC(bits=4), adc=ADC(bits=5, bound=2.0), output_noise=0.0, bound_management=False)
    hardware = EXACT.replace(
        forward=io, tile=aimc.crossbar.TileSize(rows=4), cell=STEP.replace(w_max=1.0, w_min=-1.0)
    )
    digital = nn.Linear(7, 3)
    layer = aimc.convert(digital, hardware, seed=0)
    x = torch.randn(6, 7)
    cells, expected = layer.cells.held[0], torch.zeros(6, 3)
    assert layer.layout.splits == ((0, 4), (4, 7))
    for a, b in ((0, 4), (4, 7)):
        r = x[:, a:b].abs().amax(1, keepdim=True)
        read = quantised(quantised(x[:, a:b] / r, 1.0, 7) @ cells[:, a:b].t(), 2.0, 15)
        expected += layer.scale * r * read
    assert_close("output", layer(x), expected + layer.bias, atol=1e-6)


def patches_of(x, **options):
    """``[images, positions, C]``."""
    return F.unfold(x, 3, **options).transpose(1, 2)


def test_every_patch_of_a_convolution_has_its_own_range():
    io = ArrayIO(dac=DAC(bits=4), adc=ADC(bits=5, bound=2.0), output_noise=0.0, bound_management=False)
    cell = STEP.replace(w_max=1.0, w_min=-1.0)
    layer = aimc.convert(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), EXACT.replace(forward=io, cell=cell), seed=0
    )
    x = torch.randn(4, 2, 7, 6)
    x[1, :, :4, :4] = 0.0  # whole patches of zeros: they are not read
    patches = patches_of(x, stride=2, padding=1)
    r = patches.abs().amax(2, keepdim=True)
    read = quantised(
        quantised(torch.where(r > 0, patches / r, 0.0), 1.0, 7) @ layer.cells.held[0].t(), 2.0, 15
    )
    expected = (layer.scale * r * read).transpose(1, 2).reshape(4, 3, 4, 3) + layer.bias[:, None, None]
    assert bool((r == 0).any())
    assert_close("output", layer(x), expected, atol=1e-6)


def test_every_position_of_an_output_gradient_has_its_own_range():
    io = ArrayIO(dac=DAC(bits=4), adc=ADC(bits=5, bound=2.0), output_noise=0.0, bound_management=False)
    cell = STEP.replace(w_max=1.0, w_min=-1.0)
    layer = aimc.convert(nn.Conv2d(2, 3, 3), EXACT.replace(backward=io, cell=cell), seed=0)
    x, d = torch.randn(4, 2, 6, 5, requires_grad=True), torch.randn(4, 3, 4, 3)
    d[2, :, 1:] = 0.0
    layer(x).backward(d)
    vectors = d.flatten(2).transpose(1, 2)
    r = vectors.abs().amax(2, keepdim=True)
    read = quantised(quantised(torch.where(r > 0, vectors / r, 0.0), 1.0, 7) @ layer.cells.held[0], 2.0, 15)
    expected = F.fold((layer.scale * r * read).transpose(1, 2), (6, 5), 3)
    assert_close("input gradient", x.grad, expected, atol=1e-6)


NOISY = ArrayIO(dac=DAC(bits=5), adc=ADC(bits=8, bound=4.0), output_noise=0.1)


@pytest.mark.parametrize("rows", [512, 7])
def test_a_convolution_is_the_linear_layer_of_its_patches_noise_included(rows):
    hardware = EXACT.replace(forward=NOISY, cell=STEP.replace(w_max=1.0, w_min=-1.0), **{"tile.rows": rows})
    conv = nn.Conv2d(2, 3, 3)
    linear = nn.Linear(18, 3)
    linear.load_state_dict({"weight": conv.weight.flatten(1), "bias": conv.bias})
    x = torch.randn(4, 2, 6, 6)
    found = aimc.convert(conv, hardware, seed=0)(x).flatten(2).transpose(1, 2)
    assert_close("output", found, aimc.convert(linear, hardware, seed=0)(patches_of(x)), atol=1e-5)


def test_what_is_zero_is_not_read():
    """No noise where no line is driven: zero vectors, patches and positions of a gradient."""
    hardware = EXACT.replace(forward=NOISY, backward=NOISY)
    for make, shape in (
        (nn.Linear(4, 3, bias=False), (5, 4)),
        (nn.Conv2d(1, 3, 3, bias=False), (2, 1, 8, 8)),
    ):
        layer = aimc.convert(make, hardware, seed=0)
        x = torch.zeros(shape, requires_grad=True)
        y = layer(x)
        assert bool((y == 0).all())
        d = torch.zeros_like(y)
        d[0] = 1.0
        y.backward(d)
        assert x.grad is not None and bool((x.grad[1:] == 0).all()) and bool((x.grad[0] != 0).any())


def exact_convolution(groups: int, analog_bias: bool):
    """Sums that float32 holds exactly, so that no order of them matters."""
    hardware = EXACT.replace(
        forward=NOISY, backward=NOISY, tile=aimc.crossbar.TileSize(rows=9),
        mapping=aimc.PulsedMapping(scale=1.0, analog_bias=analog_bias),
    )  # fmt: skip
    layer = aimc.convert(nn.Conv2d(4, 4, 3, padding=1, groups=groups), hardware, seed=0)
    g = torch.Generator().manual_seed(0)
    bias = torch.randint(-8, 9, (4,), generator=g) / 16 if analog_bias else None
    layer.program(torch.randint(-8, 9, layer.weight.shape, generator=g) / 16, bias)
    if not analog_bias:
        nn.init.constant_(layer.bias, 0.5)
    return layer, g


@pytest.mark.parametrize(("groups", "analog_bias"), [(1, False), (1, True), (2, False)])
def test_a_read_of_many_images_is_the_same_bits_in_parts(monkeypatch, groups, analog_bias):
    found = []
    for most in (1 << 22, 1, 8 * 5 * 36):
        monkeypatch.setattr("aimc.nn.pulsed.conv._MOST_UNFOLDED", most)
        layer, g = exact_convolution(groups, analog_bias)
        x = torch.randint(-1, 2, (5, 4, 5, 4), generator=g).float().requires_grad_()
        y = layer(x)
        y.backward(torch.randint(-1, 2, y.shape, generator=g).float())
        assert x.grad is not None
        with torch.no_grad():
            evaluated = layer.eval()(x)
            found.append((y.detach(), x.grad, evaluated))
            # The rest of the images goes on where the first ones ended.
            layer.reads.evaluated = 0
            assert torch.equal(torch.cat([layer(x[:2]), layer(x[2:])]), evaluated)
    for other in found[1:]:
        assert all(map(torch.equal, other, found[0]))


def test_the_transposed_read_is_the_formula():
    io = ArrayIO(dac=DAC(bits=4), adc=ADC(bits=5, bound=2.0), output_noise=0.0, bound_management=False)
    hardware = EXACT.replace(backward=io, **{"cell.w_max": 1.0, "cell.w_min": -1.0, "tile.columns": 2})
    layer = aimc.convert(nn.Linear(7, 3), hardware, seed=0)
    x, d = torch.randn(6, 7, requires_grad=True), torch.randn(6, 3)
    layer(x).backward(d)
    expected = torch.zeros(6, 7)
    for a, b in ((0, 2), (2, 3)):
        r = d[:, a:b].abs().amax(1, keepdim=True)
        read = quantised(quantised(d[:, a:b] / r, 1.0, 7) @ layer.cells.held[0][a:b], 2.0, 15)
        expected += layer.scale * r * read
    assert_close("input gradient", x.grad, expected, atol=1e-6)
    assert_close("bias gradient", layer.bias.grad, d.sum(0), atol=1e-6)


def test_noisy_presets_are_noisy_in_every_direction():
    """By the defaults of IBM's simulator."""
    hardware = aimc.presets.reram(io="noisy")
    assert hardware.forward == hardware.backward == hardware.transfer
    io = hardware.backward
    assert io is not None and io.dac is not None and io.adc is not None
    assert (io.dac.bits, io.adc.bits, io.adc.bound, io.output_noise) == (7, 9, 12.0, 0.06)
    assert io.bound_management


def test_output_noise_is_that_of_the_array_in_both_directions():
    io = ArrayIO(dac=None, adc=None, output_noise=0.06)
    torch.manual_seed(0)
    layer = aimc.convert(nn.Linear(50, 40), EXACT.replace(forward=io, backward=io), seed=0)
    x = torch.full((400, 50), 2.0, requires_grad=True)
    y = layer(x)
    noise = (y - F.linear(x, layer.weight, layer.bias)).detach()
    assert float(noise.std()) == pytest.approx(0.06 * 2.0 * layer.scale, rel=0.03)
    y.backward(torch.full((400, 40), 3.0))
    assert x.grad is not None
    noise = x.grad - torch.full((400, 40), 3.0) @ layer.weight.detach()
    assert float(noise.std()) == pytest.approx(0.06 * 3.0 * layer.scale, rel=0.03)
    assert len(noise.unique()) > 19000


def test_saturated_vectors_are_read_again_with_smaller_inputs():
    io = ArrayIO(dac=None, adc=ADC(bits=None, bound=1.0), output_noise=0.0)
    managed, plain = io, io.replace(bound_management=False)
    digital = nn.Linear(40, 3)
    nn.init.constant_(digital.weight, 0.5)
    x = torch.cat([torch.ones(2, 40), torch.zeros(1, 40), torch.eye(40)[:2]])
    hardware = EXACT.replace(cell=STEP.replace(w_max=1.0, w_min=-1.0), mapping=aimc.PulsedMapping(scale=1.0))
    right = digital(x)
    layer = aimc.convert(digital, hardware.replace(forward=managed))
    assert_close("managed", layer(x), right, atol=1e-5)
    clipped = aimc.convert(digital, hardware.replace(forward=plain))(x)
    assert_close("saturated", clipped[:2] - layer.bias, torch.ones(2, 3), atol=1e-6)
    assert_close("others", clipped[2:], right[2:], atol=1e-5)


def test_reads_are_drawn_anew_and_evaluation_does_not_shift_training():
    def run(evaluate: bool) -> list[torch.Tensor]:
        net = aimc.convert(
            small_net(), aimc.presets.reram(2000, io="noisy", w_max_dtod=0, w_min_dtod=0), seed=5
        )
        optimizer, x = sgd(net), batch()[0]
        found = []
        for _ in range(3):
            optimizer.zero_grad()
            loss_of(net).backward()
            optimizer.step()
            if evaluate:
                with torch.no_grad():
                    first, second = net.eval()(x), net.eval()(x)
                net.train()
                assert not torch.equal(first, second)
            found.append(net[3].weight.detach().clone())
        return found

    for a, b in zip(run(False), run(True)):
        assert torch.equal(a, b)


def test_training_through_the_noisy_presets_learns():
    torch.manual_seed(0)
    x = torch.randn(64, 10)
    y = (x[:, 0] + x[:, 1] > 0).long()
    net = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 2))
    analog = aimc.convert(net, aimc.presets.reram(500, io="noisy", w_max_dtod=0.0, w_min_dtod=0.0), seed=0)
    optimizer = sgd(analog, 0.3)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(analog(x), y).backward()
        optimizer.step()
    assert float((analog.eval()(x).argmax(1) == y).float().mean()) > 0.9


def test_pulses_move_the_weight_by_the_gradient_whatever_the_digital_scale():
    """With the scale s, a cell moves by lr / s times the gradient, and the weight by lr times it."""
    changes = []
    for scale in (1.0, 4.0):
        hardware = aimc.PulsedHardware(cell=STEP, mapping=aimc.PulsedMapping(scale=scale))
        layer = aimc.convert(nn.Linear(30, 40, bias=False), hardware, seed=0)
        layer.program(torch.zeros(40, 30))
        layer(torch.ones(20, 30)).sum().backward()
        sgd(layer, 0.001).step()
        changes.append(float(layer.weight.detach().mean()))
    assert changes == pytest.approx([-0.02, -0.02], rel=0.05)


def test_device_draws_follow_seed_and_name_alone():
    def parameters(net, seed):
        return aimc.convert(net, aimc.presets.reram(), seed=seed)[0].cells.state["parameters"]

    def net(*more):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 4), *more)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        a, b = parameters(net(), 1), parameters(net(nn.Linear(4, 2)), 1)
        assert torch.equal(a, b) and not torch.equal(a, parameters(net(), 2))
        torch.manual_seed(9)
        c = aimc.convert(net(), aimc.presets.reram())
        d = aimc.convert(net(), aimc.presets.reram())
    assert torch.equal(c[0].cells.state["parameters"], d[0].cells.state["parameters"])


def test_a_bare_layer_says_what_it_is():
    layer = aimc.convert(nn.Linear(4, 2), EXACT)
    assert "1 x 1 tiles, cell=ConstantStep, algorithm=AnalogSGD" in repr(layer)
    assert isinstance(layer.hardware.cell, ConstantStep) and isinstance(layer.hardware.algorithm, AnalogSGD)
    assert layer.hardware.algorithm.pulses == PulseTrain(kind="none")


def test_an_empty_batch_through_a_convolution_writes_nothing():
    layer = aimc.convert(nn.Conv2d(1, 2, 3), aimc.presets.reram(), seed=0)
    optimizer = aimc.optim.wrap(torch.optim.SGD(layer.parameters(), lr=0.1), layer)
    before = layer.weight.detach().clone()
    layer(torch.zeros(0, 1, 5, 5)).sum().backward()
    optimizer.step()
    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
@pytest.mark.parametrize("sizes", [(8, 0), (0, 3), (0, 0)], ids=["no outputs", "no inputs", "neither"])
def test_layers_with_no_inputs_or_outputs_train_what_is_left_of_them(algorithm, sizes):
    rule = ALGORITHMS[algorithm](**({"tiles": 3} if algorithm == "residual" else {}))
    x = torch.randn(4, sizes[0])
    for io in ("perfect", "noisy"):
        for analog_bias in (False, True):
            hardware = aimc.presets.reram(algorithm=rule, io=io).replace(
                **{"mapping.analog_bias": analog_bias}
            )
            layer = aimc.convert(nn.Linear(*sizes), hardware, seed=0)
            layer.load_state_dict(layer.state_dict())
            optimizer, before = sgd(layer), layer.bias.detach().clone()
            for _ in range(3):
                optimizer.zero_grad()
                y = layer(x)
                y.sum().backward()
                optimizer.step()
            assert y.shape == (4, sizes[1]) and layer.weight.shape == sizes[::-1]
            assert analog_bias or torch.equal(layer.bias, before - 3 * 0.1 * 4)
            assert layer.telemetry()["tiles"][-1]["saturated"] == 0 or analog_bias
            assert layer.hardware.algorithm.check(layer.array, 10, 4, 0.1) == [] or 0 not in layer.shape
            assert aimc.to_digital(layer)(x).shape == y.shape


def test_a_functional_call_gives_digital_parameters_and_no_other_weights_of_cells():
    net, x = aimc.convert(nn.Sequential(nn.Linear(3, 2)), PULSED, seed=0), torch.ones(4, 3)
    zero = torch.func.functional_call(net, {"0.bias": torch.zeros(2)}, (x,))
    assert torch.equal(zero, F.linear(x, net[0].weight, torch.zeros(2)))
    assert torch.equal(torch.func.functional_call(net, dict(net.named_parameters()), (x,)), net(x))
    for given in (net[0].weight.detach(), torch.zeros(2, 3, requires_grad=True)):
        with pytest.raises(AimcError, match=r"layer '0'.*functional_call.*layer.program.*aimc.to_digital"):
            torch.func.functional_call(net, {"0.weight": given}, (x,))


def test_transforms_of_functions_are_refused_by_cells_with_the_way_out():
    net, x = aimc.convert(nn.Sequential(nn.Linear(3, 2)), PULSED, seed=0), torch.ones(4, 3)
    digital = aimc.to_digital(net)
    for transformed in (
        lambda net: torch.func.grad(lambda x: net(x).sum())(x),
        lambda net: torch.func.vmap(net)(x),
    ):
        transformed(digital)
        with pytest.raises(AimcError, match=r"layer '0'.*torch.func.*aimc.to_digital"):
            transformed(net)
