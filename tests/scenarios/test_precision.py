"""What n bits and types of numbers mean, wherever the numbers are computed."""

import itertools
import shutil

import pytest
import torch
from torch import nn

import aimc
from aimc.hwa import Discretize, HardwareAware
from aimc.periphery import InputRange
from tests.helpers import assert_close

IDEAL = aimc.presets.ideal()


def weight_of_bits(bits: int, dtype: torch.dtype, body: str, compiler: str | None) -> torch.Tensor:
    """What an array of 64 x 64 weights up to 0.7 is in training, in units of the step that so many bits have."""
    torch.manual_seed(0)
    digital = nn.Linear(64, 64, bias=False, dtype=dtype)
    digital.weight.data = torch.linspace(-0.7, 0.7, 64 * 64, dtype=dtype)[torch.randperm(64 * 64)].view(
        64, 64
    )
    hardware = IDEAL.replace(
        **{"mapping.scale": "tile"}, training=HardwareAware(modifiers=(Discretize(bits=bits),))
    )
    net = aimc.convert(digital, hardware, backend=body)
    torch._dynamo.reset()  # it compiles a function for so many networks only

    def read(x):
        return net(x).t() * ((2 ** (bits - 1) - 1) / 0.7)

    return (torch.compile(read, backend=compiler, fullgraph=True) if compiler else read)(
        torch.eye(64, dtype=dtype)
    ).detach()


BITS = pytest.mark.parametrize(("bits", "levels"), [(3, 7), (4, 15), (8, 255)])


def assert_levels(steps: torch.Tensor, levels: int) -> None:
    assert_close("whole steps", steps, steps.round(), atol=1e-4)
    assert steps.round().unique().tolist() == list(range(-(levels // 2), levels // 2 + 1))


@BITS
def test_n_bits_of_a_weight_are_as_many_levels_and_the_same_in_every_body_compiled_or_not(bits, levels):
    """In training, over the range of the largest weight."""
    for dtype, bodies in (
        (torch.float32, ("reference", "cpu", "auto")),
        (torch.float64, ("reference", "auto")),
    ):
        seen = weight_of_bits(bits, dtype, "reference", None)
        assert_levels(seen, levels)
        for body, compiler in itertools.product(bodies, (None, "aot_eager")):
            assert torch.equal(weight_of_bits(bits, dtype, body, compiler), seen), (body, compiler, dtype)
    torch._dynamo.reset()


@pytest.mark.slow
@BITS
def test_the_default_compiler_keeps_the_levels(bits, levels, tmp_path, monkeypatch):
    """Inductor, with a compiler of C++ behind it."""
    if not any(map(shutil.which, ("g++", "clang++", "cl"))):
        pytest.skip("needs a compiler of C++ for torch's inductor")
    import torch._inductor.config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with inductor.patch(compile_threads=1):  # no pool of processes that outlives the test
        found = weight_of_bits(bits, torch.float32, "auto", "inductor")
    assert list(tmp_path.rglob("*.so")), "nothing was compiled"
    assert_levels(found, levels)
    # What a compiler of C++ makes of a product depends on the processor.
    assert_close("as without", found, weight_of_bits(bits, torch.float32, "auto", None), rtol=1e-6)


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
