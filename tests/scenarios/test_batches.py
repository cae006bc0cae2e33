"""What is read belongs to a vector, however the vectors come in batches."""

import pytest
import torch
from torch import nn

import aimc
from tests.helpers import assert_close

PCM = aimc.presets.pcm().replace(**{"input_range.value": 2.0, "input_range.init_batches": 0, "tile.rows": 30})
HARDWARE = {
    "learned ranges": PCM,
    "a range per vector": PCM.replace(input_range=aimc.periphery.InputRange(mode="dynamic")),
    "cells": aimc.presets.reram(20, io="noisy").replace(**{"mapping.overflow": "clip", "tile.rows": 30}),
}
NETS = {
    "linear": (lambda: nn.Sequential(nn.Linear(72, 50), nn.ReLU(), nn.Linear(50, 5)), (72,)),
    "tokens": (lambda: nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)), (6, 8)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2, groups=2),
            nn.Flatten(), nn.Linear(72, 5),
        ),
        (2, 8, 8),
    ),
    "transposed": (
        lambda: nn.Sequential(nn.ConvTranspose1d(4, 6, 3, stride=2), nn.Flatten(), nn.Linear(78, 5)),
        (4, 6),
    ),
    "attention": (lambda: nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), (6, 8)),
}  # fmt: skip


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    ("hardware", "time"),
    [*((name, None) for name in HARDWARE), *((name, "1h") for name in list(HARDWARE)[:2])],
)
def test_an_evaluation_in_batches_of_any_size_has_the_bits_of_one_batch(net, hardware, time):
    """All noise is on. In double precision, where no product rounds an output over to another step of the converter."""
    make, shape = NETS[net]
    torch.manual_seed(0)
    digital, x = make().double(), torch.randn(40, *shape, dtype=torch.float64)

    @torch.no_grad()
    def outputs(size: int, seed: int = 0) -> torch.Tensor:
        analog = aimc.convert(digital, HARDWARE[hardware], seed=seed).eval()
        if time is None:
            return torch.cat([analog(part) for part in x.split(size)])
        with aimc.program(analog, seed=seed).at(time):
            return torch.cat([analog(part) for part in x.split(size)])

    one = outputs(40)
    assert not torch.equal(outputs(40, seed=1), one)
    for size in (10, 7, 1):
        assert_close(f"batches of {size}", outputs(size), one)
