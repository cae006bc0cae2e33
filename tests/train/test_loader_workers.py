"""Data that comes from worker processes trains what data of this process trains, to the bit, in both halves.

Reads in workers have noise of their own, which is the same again with the same seeds.
"""

import contextlib
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import aimc


class Drawn(Dataset):
    """Samples made by an analog layer where they are asked for, so that workers run compiled kernels, too.

    They are functions of their index alone: the layer's converters round, and its reads have no noise.
    """

    def __init__(self):
        torch.manual_seed(0)
        quiet = aimc.presets.pcm().replace(training=None, output_noise=0.0, short_term_noise=0.0)
        self.layer = aimc.convert(nn.Linear(6, 6), quiet, seed=3).eval()
        aimc.calibrate(self.layer, [torch.randn(64, 6, generator=torch.Generator().manual_seed(0))])

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int):
        x = torch.randn(6, generator=torch.Generator().manual_seed(index))
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


class Read(Dataset):
    """One vector, read anew for every sample."""

    def __init__(self, net: nn.Module):
        self.net = net
        self.__getitem__(0)  # workers that had to compile the kernels could take longer than they may

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        with torch.no_grad():
            return self.net(torch.linspace(-1, 1, 6)[None])[0]


class ReadBack(Read):
    """One output gradient, read anew through the transposed array."""

    def __getitem__(self, index: int) -> torch.Tensor:
        x = torch.linspace(-1, 1, 6)[None].requires_grad_()
        return torch.autograd.grad(self.net(x).sum(), x)[0][0]


TILES = aimc.presets.pcm().replace(adc=None, **{"input_range.value": 1.0})
QUIET = {"output_noise": 0.0, "short_term_noise": 0.0}
CELLS = aimc.presets.reram(20, io="noisy").replace(
    **{"forward.adc": None, "backward.adc": None, "mapping.overflow": "clip"}
)
ALIKE = {"cell.programming_scale": 0.0, "cell.drift_spread_scale": 0.0, "cell.read_noise_scale": 0.0}
AGED = {"training.modifiers": (aimc.hwa.CellNoise(),)}
NOISY = {
    "tiles": (TILES, False),
    "on a chip": (TILES, False),
    "tiles in training": (TILES.replace(training=None), True),
    "weights in training": (TILES.replace(**QUIET), True),
    "ages in training": (TILES.replace(**QUIET, **ALIKE, **AGED), True),
    "cells": (CELLS, False),
    "cells in training": (CELLS, True),
    "cells on the way back": (CELLS.replace(forward=None), True),
}  # fmt: skip


def reads(name: str, workers: int, seed: int, persistent: bool = False) -> torch.Tensor:
    """Those of two epochs, ``[16, outputs]``."""
    hardware, training = NOISY[name]
    torch.manual_seed(0)
    net = aimc.convert(nn.Linear(6, 5), hardware, seed=0).train(training)
    data = ReadBack(net) if name == "cells on the way back" else Read(net)
    loader = DataLoader(
        data, num_workers=workers, timeout=60 if workers else 0, persistent_workers=persistent,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    with aimc.program(net, seed=0).at("1h") if name == "on a chip" else contextlib.nullcontext():
        return torch.cat([batch for _ in range(2) for batch in loader])


@pytest.mark.parametrize("name", list(NOISY))
def test_no_two_reads_in_workers_have_the_same_noise(name):
    """Of samples, workers, epochs, loaders, or without workers; the same seeds give the same again."""
    found = reads(name, 2, seed=0)
    everything = torch.cat([found, reads(name, 2, seed=1), reads(name, 0, seed=0)])
    assert len(everything.unique(dim=0)) == len(everything) == 48
    assert torch.equal(found, reads(name, 2, seed=0))


def test_workers_that_stay_count_on():
    assert len(reads("tiles", 2, seed=0, persistent=True).unique(dim=0)) == 16


def test_torchs_seed_rules_reads_in_workers():
    found, data = [], Read(aimc.convert(nn.Linear(6, 5), TILES, seed=0).eval())
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(torch.cat(list(DataLoader(data, num_workers=2, timeout=60))))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


class Evaluated(Dataset):
    """A network after an hour on a chip, as :func:`aimc.evaluate_over_time` finds it."""

    def __init__(self):
        self.net = aimc.convert(nn.Linear(6, 5), TILES, seed=0).eval()

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> torch.Tensor:
        x = torch.linspace(-1, 1, 6)[None]
        return torch.tensor(
            aimc.evaluate_over_time(self.net, lambda n: float(n(x).detach().sum()), ("1h",), chips=1).values
        )


def test_an_evaluation_over_time_is_the_same_in_a_worker():
    data = Evaluated()
    alone, worker = (next(iter(DataLoader(data, num_workers=n, timeout=60 * n))) for n in (0, 1))
    assert torch.equal(alone, worker)
