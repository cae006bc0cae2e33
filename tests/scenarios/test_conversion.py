"""Whatever a network is made of is found, and computes what it did."""

import itertools

import pytest
import torch
from torch import nn

import aimc
from tests.helpers import assert_close

CELLS = aimc.presets.reram(100, w_max_dtod=0.0, w_min_dtod=0.0)
HOLDERS = {
    "sequence": lambda m: nn.Sequential(m),
    "list": lambda m: nn.ModuleList([m]),
    "dict": lambda m: nn.ModuleDict({"inner": m}),
}


@pytest.mark.parametrize("order", list(itertools.permutations(HOLDERS)), ids="-".join)
@pytest.mark.parametrize("hardware", [aimc.presets.pcm(), CELLS], ids=["chip", "cells"])
def test_containers_in_containers_are_converted_whole(order, hardware):
    net: nn.Module = nn.Linear(3, 2)
    for holder in order:
        net = HOLDERS[holder](net)
    analog = aimc.convert(nn.ModuleList([net, nn.Linear(2, 2)]), hardware, seed=0)
    assert aimc.coverage(analog).analog_share == 1.0
    assert sum(type(m) is nn.Linear for m in analog.modules()) == 0
    layers = aimc.analog_layers(analog) or aimc.pulsed_layers(analog)
    assert len(layers) == 2 and all(analog.get_submodule(name) is m for name, m in layers.items())


CONVOLUTIONS = [
    {"stride": stride, "padding": padding, "dilation": dilation, "padding_mode": mode, "groups": groups}
    for groups in (1, 2, 8)
    for mode in ("zeros", "reflect", "replicate", "circular")
    for dilation in (1, 2)
    for stride, padding in ((1, "same"), (1, 2), (2, 2))
]


@pytest.mark.parametrize("rows", [512, 40])
def test_convolutions_compute_what_torch_does_with_every_option(rows):
    """Groups, padding, its mode, dilation and stride together; whole and split over tiles."""
    torch.manual_seed(0)
    hardware = aimc.presets.ideal().replace(**{"tile.rows": rows})
    x = torch.randn(2, 8, 9, 10)
    for options in CONVOLUTIONS:
        digital = nn.Conv2d(8, 16, 3, **options)
        analog = aimc.convert(digital, hardware)
        assert_close(str(options), analog(x), digital(x), atol=1e-5)
        blocks = analog.layout.blocks
        assert max(blocks) * 9 * 8 // options["groups"] <= rows or max(blocks) == 1
    for groups, stride, dilation in itertools.product((1, 8), (1, 2), (1, 2)):
        options = {"groups": groups, "stride": stride, "dilation": dilation, "output_padding": stride - 1}
        digital = nn.ConvTranspose2d(8, 16, 3, padding=1, **options)
        assert_close(str(options), aimc.convert(digital, hardware)(x), digital(x), atol=1e-5)
