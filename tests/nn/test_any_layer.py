"""Whatever shape a layer has and whatever numbers it is given: it computes, or says why not by its name.

Hypothesis draws layers of the smallest and oddest shapes, tiles down to one row and one column, weights and inputs that
are zero, tiny, huge, of all sizes at once or no numbers, on both halves; then the layer is run, trained, saved, loaded.
"""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import aimc

PCM = aimc.presets.pcm()
INFERENCE = {
    "standard": PCM,
    "ideal": aimc.presets.ideal(),
    "dynamic": PCM.replace(**{"input_range.mode": "dynamic"}),
    "without converters": PCM.replace(dac=None, adc=None),
    "remapped": PCM.replace(**{"training.remap_every": 2, "mapping.scale": "tile"}),
    "clipped": PCM.replace(**{"mapping.scale": "none"}),
}
IN_CELLS = {
    "sgd": aimc.algorithms.AnalogSGD(),
    "residual": aimc.algorithms.Residual(tiles=3),
    "tiki-taka v1": aimc.algorithms.TikiTakaV1(),
    "tiki-taka v2": aimc.algorithms.TikiTakaV2(),
    "tiki-taka v3": aimc.algorithms.TikiTakaV3(),
    "tiki-taka v4": aimc.algorithms.TikiTakaV4(),
    "mixed precision": aimc.algorithms.MixedPrecision(),
}
USUAL = ("normal", "zero", "zero column", "zero row", "one")
FAR = ("tiny", "huge", "all sizes")
NO_NUMBERS = ("nan", "inf")

few = st.integers(0, 3)
some = st.integers(1, 4)


@st.composite
def layers(draw):
    """A digital layer, and the shape of its input."""
    kind = draw(st.sampled_from(("linear", "conv1d", "conv2d", "transposed")))
    bias, images = draw(st.booleans()), draw(few)
    torch.manual_seed(0)
    if kind == "linear":
        inputs = draw(st.integers(0, 5))
        return nn.Linear(inputs, draw(st.integers(0, 5)), bias), (
            *draw(st.sampled_from(((), (2,)))),
            images,
            inputs,
        )
    groups, kernel, dims = draw(st.integers(1, 2)), draw(some), 1 if kind == "conv1d" else 2
    make = {"conv1d": nn.Conv1d, "conv2d": nn.Conv2d, "transposed": nn.ConvTranspose2d}[kind]
    inputs, outputs, size = (
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        draw(st.integers(0, 5)),
    )
    stride, padding = draw(st.integers(1, 2)), draw(st.integers(0, 1))
    layer = make(inputs, outputs, kernel, stride=stride, padding=padding, groups=groups, bias=bias)
    return layer, (images, inputs, *(size,) * dims)


class Alone(nn.Module):
    """A module of several matrices, as one from an input to an output."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        attention = isinstance(self.inner, nn.MultiheadAttention) or hasattr(self.inner, "num_heads")
        return self.inner(x, x, x, need_weights=False)[0] if attention else self.inner(x)[0]


@st.composite
def composites(draw):
    """A recurrent or an attention layer, and the shape of its input."""
    kind, bias, first = (
        draw(st.sampled_from(("lstm", "gru", "attention"))),
        draw(st.booleans()),
        draw(st.booleans()),
    )
    torch.manual_seed(0)
    if kind == "attention":
        heads = draw(st.integers(1, 2))
        width = heads * draw(st.integers(1, 2))
        layer = nn.MultiheadAttention(width, heads, bias=bias, batch_first=first)
    else:
        width, make = draw(some), nn.LSTM if kind == "lstm" else nn.GRU
        layer = make(
            width,
            draw(some),
            draw(st.integers(1, 2)),
            bias=bias,
            batch_first=first,
            bidirectional=draw(st.booleans()),
        )
    return Alone(layer), (draw(some), draw(some), width)


def matrices(net: nn.Module) -> list[torch.Tensor]:
    return [p for p in net.parameters() if p.dim() > 1]


def numbers(shape, kind: str) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    if x.numel() == 0:
        return x
    if kind == "zero":
        x.zero_()
    elif kind == "zero column":
        x.flatten(1)[:, 0] = 0
    elif kind == "zero row":
        x[0] = 0
    elif kind == "one":
        x.fill_(1.0)
    elif kind in ("tiny", "huge"):
        x *= {"tiny": 1e-38, "huge": 1e30}[kind]
    elif kind == "all sizes":
        x *= 10.0 ** torch.linspace(-40, 30, x.numel()).view(x.shape)
    elif kind in NO_NUMBERS:
        x[-1] = math.nan if kind == "nan" else -math.inf  # a stride may pass by single pixels
    return x


def run(digital: nn.Module, shape, hardware, weights: str, inputs: str, backend: str) -> str:
    """What became of it: "ran", or our message."""
    x, cells = numbers(shape, inputs), isinstance(hardware, aimc.PulsedHardware)
    with torch.no_grad():
        for p in matrices(digital):
            p.copy_(numbers(p.shape, weights) / 2)
    try:
        expected = digital(x).shape
    except RuntimeError:
        expected = None  # torch takes no such images; we say so
    try:
        net = aimc.convert(nn.Sequential(digital), hardware, seed=0, backend=backend)
        optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        optimizer = aimc.optim.wrap(optimizer, net) if cells else optimizer
        for _ in range(2):
            given = x.clone().requires_grad_()
            optimizer.zero_grad()
            y = net(given)
            assert y.shape == expected
            y.sum().backward()
            optimizer.step()
            usual = {weights, inputs} <= set(USUAL)
            assert not usual or bool(torch.isfinite(given.grad).all())
            assert bool(torch.isfinite(y).all()) or cells and not usual, (
                "an output that is no number, without a word"
            )
        again = aimc.convert(nn.Sequential(copy.deepcopy(digital)), hardware, seed=1, backend=backend)
        again.load_state_dict(net.state_dict())
        for copied in (again, copy.deepcopy(net)):
            for name, value in net.state_dict().items():
                assert torch.equal(value, copied.state_dict()[name]), name
            y, same = copied.eval()(x), copy.deepcopy(net).eval()(x)
            assert torch.equal(y.nan_to_num(1.0), same.nan_to_num(1.0)), "after loading"
    except aimc.AimcError as error:
        said = str(error)
        assert said.startswith("layer '0"), said
        return said
    return "ran"


def check(digital, shape, hardware, weights, inputs, backend):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of overflowing cells and empty layers
        said = run(digital, shape, hardware, weights, inputs, backend)
    usual = {weights, inputs} <= set(USUAL)
    refusals = ("no pixels", "kernel is larger", "leaves no output")
    fits = not any(why in said for why in refusals)
    if "range is not set" in said:  # evaluated after a training on zeros
        fits = inputs not in ("zero", "zero column", "zero row") or 0 in shape
    # What is inside a module may be zero without its input being so.
    inside = isinstance(digital, Alone) and "range is not set" in said
    assert not usual or said == "ran" or not fits or inside, said
    held = sum(p.numel() for p in matrices(digital))
    rubbish = held and (weights in NO_NUMBERS or inputs in NO_NUMBERS and math.prod(shape))
    assert not rubbish or said != "ran", "NaN or infinite values were taken"


anything = {
    "layer": layers(),
    "rows": st.sampled_from((1, 2, 512)),
    "columns": st.sampled_from((None, 1, 2)),
    "weights": st.sampled_from((*USUAL, *FAR, *NO_NUMBERS)),
    "inputs": st.sampled_from((*USUAL, *FAR, *NO_NUMBERS)),
    "backend": st.sampled_from(("reference", "cpu")),
}


@settings(max_examples=30)
@pytest.mark.parametrize("name", list(INFERENCE))
@given(**anything)
def test_any_hardware_aware_layer(name, layer, rows, columns, weights, inputs, backend):
    hardware = INFERENCE[name].replace(**{"tile.rows": rows, "tile.columns": columns})
    check(*layer, hardware, weights, inputs, backend)


@settings(max_examples=16)
@pytest.mark.parametrize("name", list(IN_CELLS))
@given(io=st.sampled_from(("perfect", "noisy")), **anything)
def test_any_layer_in_cells(name, io, layer, rows, columns, weights, inputs, backend):
    hardware = aimc.presets.reram(10, IN_CELLS[name], io=io)
    hardware = hardware.replace(**{"tile.rows": rows, "tile.columns": columns, "mapping.overflow": "clip"})
    check(*layer, hardware, weights, inputs, backend)


@settings(max_examples=5)
@pytest.mark.parametrize("name", list(INFERENCE))
@given(**{**anything, "layer": composites()})
def test_any_hardware_aware_layer_of_several_matrices(name, layer, rows, columns, weights, inputs, backend):
    hardware = INFERENCE[name].replace(**{"tile.rows": rows, "tile.columns": columns})
    check(*layer, hardware, weights, inputs, backend)


@settings(max_examples=5)
@pytest.mark.parametrize("name", list(IN_CELLS))
@given(io=st.sampled_from(("perfect", "noisy")), **{**anything, "layer": composites()})
def test_any_layer_of_several_matrices_in_cells(name, io, layer, rows, columns, weights, inputs, backend):
    hardware = aimc.presets.reram(10, IN_CELLS[name], io=io)
    hardware = hardware.replace(**{"tile.rows": rows, "tile.columns": columns, "mapping.overflow": "clip"})
    check(*layer, hardware, weights, inputs, backend)


@pytest.mark.parametrize("hardware", [PCM, aimc.presets.reram()], ids=["tiles", "cells"])
@pytest.mark.parametrize(
    "make",
    [lambda: nn.Conv2d(0, 3, 1), lambda: nn.Conv1d(3, 0, 2), lambda: nn.ConvTranspose2d(3, 2, 0)],
)
def test_a_convolution_without_a_weight_is_refused(hardware, make):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net = nn.Sequential(nn.Linear(2, 2), make())
    with pytest.raises(aimc.AimcError, match=r"layer '1': a Conv.* nothing that a tile or a cell.*digital="):
        aimc.convert(net, hardware)
    aimc.convert(net, hardware, digital="1")


@pytest.mark.parametrize("hardware", [PCM, aimc.presets.reram()], ids=["tiles", "cells"])
def test_images_that_do_not_fit_are_refused_by_the_layers_name(hardware):
    for make, shape, said in (
        (lambda: nn.Conv2d(3, 2, 5), (1, 3, 4, 4), "kernel is larger"),
        (lambda: nn.Conv2d(3, 2, 3, padding="same"), (1, 3, 0, 4), "no pixels"),
        (lambda: nn.ConvTranspose2d(3, 2, 2), (1, 3, 0, 4), "no pixels"),
        (lambda: nn.Conv2d(3, 2, 5, padding=4, padding_mode="reflect"), (1, 3, 4, 4), "mode 'reflect' does not fit"),
        (lambda: nn.Conv1d(3, 2, 1), (2, 4), "expects 3 channels"),
        (lambda: nn.ConvTranspose2d(3, 2, (1, 2), padding=(1, 0)), (1, 3, 2, 2), "padding leaves no output"),
    ):  # fmt: skip
        net = aimc.convert(nn.Sequential(make()), hardware)
        with pytest.raises(aimc.AimcError, match=f"layer '0.*{said}"):
            net(torch.ones(shape))
