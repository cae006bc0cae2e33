"""Data that comes from worker processes trains what data of this process trains, to the bit, in both halves."""

import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import aimc


class Drawn(Dataset):
    """Samples made by an analog layer where they are asked for, so that workers run compiled kernels, too."""

    def __init__(self):
        torch.manual_seed(0)
        self.layer = aimc.convert(nn.Linear(6, 6), aimc.presets.pcm().replace(training=None), seed=3).eval()
        aimc.calibrate(self.layer, [torch.randn(64, 6, generator=torch.Generator().manual_seed(0))])

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int):
        x = torch.randn(6, generator=torch.Generator().manual_seed(index))
        self.layer._evaluated = index  # a read's noise follows its number, not who makes it
        with torch.no_grad():
            return self.layer(x), int(x.sum() > 0)


def trained(hardware, workers: int, data: Dataset, seed: int = 0) -> dict[str, torch.Tensor]:
    torch.manual_seed(seed)
    net = aimc.convert(nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 2)), hardware, seed=seed)
    optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    if aimc.pulsed_layers(net):
        optimizer = aimc.optim.wrap(optimizer, net)
    loader = DataLoader(
        data, batch_size=8, shuffle=True, num_workers=workers, timeout=60 if workers else 0,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    for _ in range(2):
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net.state_dict()


@pytest.mark.parametrize(
    "hardware",
    [aimc.presets.pcm(), aimc.presets.reram(20, aimc.algorithms.Residual(tiles=3), io="noisy")],
    ids=["hardware-aware", "cells"],
)
def test_workers_change_no_bit(hardware):
    before = torch.get_num_threads()
    torch.set_num_threads(2)  # the workers are forked from a process whose threads have worked
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = Drawn()
            alone = trained(hardware, 0, data)
            together = trained(hardware, 2, data)
    finally:
        torch.set_num_threads(before)
    for name, value in alone.items():
        assert torch.equal(value, together[name]), name
