"""What n bits and types of numbers mean, wherever the numbers are computed."""

import copy

import pytest
import torch
from torch import nn

import aimc
from aimc.hwa import Discretize, HardwareAware
from aimc.periphery import InputRange
from tests.helpers import assert_close

IDEAL = aimc.presets.ideal()


@pytest.mark.parametrize(("bits", "levels"), [(3, 7), (4, 15), (8, 255)])
def test_n_bits_of_a_weight_are_as_many_levels_and_the_same_in_every_body_compiled_or_not(bits, levels):
    """In training, over the range of the largest weight."""
    torch.manual_seed(0)
    digital = nn.Linear(64, 64, bias=False)
    digital.weight.data = torch.linspace(-0.7, 0.7, 64 * 64)[torch.randperm(64 * 64)].view(64, 64)
    hardware = IDEAL.replace(
        **{"mapping.scale": "tile"}, training=HardwareAware(modifiers=(Discretize(bits=bits),))
    )
    for dtype in (torch.float32, torch.float64):
        found = {}
        for backend in ("reference", "cpu", "auto") if dtype == torch.float32 else ("reference", "auto"):
            for compiled in (False, True):
                torch._dynamo.reset()  # it compiles a function for so many networks only
                net = aimc.convert(copy.deepcopy(digital).to(dtype), hardware, backend=backend)
                follow = torch.compile(net, backend="aot_eager", fullgraph=True) if compiled else net
                found[backend, compiled] = follow(torch.eye(64, dtype=dtype)).detach().T
        seen = found["reference", False]
        steps = seen.double() / 0.7 * (levels // 2)
        assert_close("whole steps", steps, steps.round(), atol=1e-4)
        assert steps.round().unique().tolist() == list(range(-(levels // 2), levels // 2 + 1))
        for way, other in found.items():
            assert torch.equal(other, seen), (way, dtype)
    torch._dynamo.reset()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_range_beyond_the_numbers_of_half_precision_is_the_largest_of_them(dtype):
    """Three standard deviations of inputs up to 6e4 are; set by the first batches, by hand, or by steps."""
    net = aimc.convert(nn.Linear(8, 6), aimc.presets.pcm(), seed=0).to(dtype)
    x = torch.tensor([[6e4, -6e4] * 4] * 3, dtype=dtype)
    net.weight.data /= 8
    for _ in range(3):
        assert bool(torch.isfinite(net(x)).all()) and 6e4 < net.input_range.item() < torch.inf
    net.set_input_range(torch.tensor([1e39]))
    assert net.input_range.item() == torch.finfo(dtype).max
    net.input_range.grad = -torch.ones_like(net.input_range)
    torch.optim.SGD([net.input_range], lr=torch.finfo(dtype).max).step()
    assert net.input_range.item() == torch.finfo(dtype).max


LAYERS = {
    "linear": (lambda: nn.Linear(24, 6), (16, 24)),
    "convolution": (lambda: nn.Conv1d(4, 6, 3), (16, 4, 9)),
    "recurrent": (lambda: nn.LSTM(24, 6), (4, 4, 24)),
}
RANGES = {
    "learned": InputRange(init_batches=2),
    "learned, given": InputRange(value=2e4, init_batches=0),
    "per vector": InputRange(mode="dynamic"),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("setting", RANGES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_inputs_stay_finite_in_half_precision(layer, setting, dtype):
    """Inputs up to 3e4, half of what float16 holds: outputs, losses, ranges and gradients are near float32's."""
    make, shape = LAYERS[layer]
    torch.manual_seed(0)
    digital, x = make(), (torch.rand(shape) * 6e4 - 3e4).to(dtype)
    x.view(-1)[0] = 3e4
    for name, p in digital.named_parameters():  # a recurrent layer's gates stay between on and off
        p.data = (p.data * (3e-4 if name == "weight_ih_l0" else 0.25)).to(dtype).float()
    # Without levels, one of which a rounded number may be away.
    exact = {"adc": None, "output_noise": 0.0, "short_term_noise": 0.0, "training": None, "dac.bits": None}
    hardware = aimc.presets.pcm().replace(input_range=RANGES[setting], **exact)
    first, ranges = [], []
    for kind in (dtype, torch.float32):
        net = aimc.convert(digital, hardware, seed=0).to(kind)
        optimizer, outputs = torch.optim.SGD(net.parameters(), lr=0.01), []
        for _ in range(4):
            optimizer.zero_grad()
            y = net(x.to(kind))
            y = y[0] if isinstance(y, tuple) else y
            loss = (y.float() / 3e4).square().mean()
            loss.backward()
            optimizer.step()
            assert bool(torch.isfinite(loss)) and y.dtype == kind
            for name, p in net.named_parameters():
                assert p.grad is not None and bool((torch.isfinite(p.grad) & torch.isfinite(p)).all()), name
            outputs.append(y.detach().float())
        first.append(outputs[0])
        ranges.append([p.float() for n, p in net.named_parameters() if n.endswith("input_range")])
    tolerance = 0.01 if dtype == torch.float16 else 2.0**-5
    assert_close("output", first[0], first[1], atol=tolerance * float(first[1].abs().max()))
    for a, b in zip(*ranges, strict=True):
        assert_close("range", a, b, rtol=0.02)
