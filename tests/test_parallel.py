"""Two data-parallel processes train what one process trains on the joined batch, in both halves."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import aimc
from aimc import processes
from aimc.errors import AimcError
from tests.helpers import assert_close

STEPS = 4
X = torch.randn(STEPS, 8, 2, 6, 6, generator=torch.Generator().manual_seed(0))
Y = torch.randint(3, (STEPS, 8), generator=torch.Generator().manual_seed(1))


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 3))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(12, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.lstm(x.flatten(1, 2).view(len(x), 6, 12))[0][:, -1])


class Attention(nn.Module):
    """Its three matrices lie in one parameter."""

    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(12, 2, batch_first=True), nn.Linear(12, 3)

    def forward(self, x):
        x = x.flatten(1, 2).view(len(x), 6, 12)
        return self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))


def hardware_aware() -> aimc.Hardware:
    """Everything of the preset but the decay, which looks at each part of a batch alone."""
    return aimc.presets.pcm().replace(**{"input_range.decay": 0.0, "input_range.init_batches": 2})


def without_read_noise() -> aimc.Hardware:
    """The steps of a sequence are read together, step by step: noise has another place in the joined batch there."""
    return hardware_aware().replace(output_noise=0.0, short_term_noise=0.0)


def in_cells() -> aimc.PulsedHardware:
    # The forward and backward reads are noisy, so that every vector has to have the noise of its place in the batch.
    noisy = aimc.periphery.ArrayIO(output_noise=0.1)
    return aimc.presets.reram(states=20).replace(forward=noisy, backward=noisy)


CASES = {
    "hardware-aware": (convolutional, hardware_aware),
    "recurrent": (Recurrent, without_read_noise),
    "attention": (Attention, hardware_aware),
    "in cells": (convolutional, in_cells),
}


def build(name: str) -> nn.Module:
    torch.manual_seed(0)
    make, hardware = CASES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return aimc.convert(make(), hardware(), seed=0)


def sharded(net: nn.Module) -> nn.Module:
    """Each child and the rest, as one does with blocks; cells are left whole."""
    cells = {p for p in net.parameters() if isinstance(p, aimc.nn.CellWeight)}
    for child in net.children():
        if any(p not in cells for p in child.parameters()):
            fully_shard(child, ignored_params=cells)
    return fully_shard(net, ignored_params=cells)


def whole_state(net: nn.Module) -> dict[str, torch.Tensor]:
    return get_model_state_dict(net, options=StateDictOptions(full_state_dict=True))


def train(net: nn.Module, forward, part: slice, state=nn.Module.state_dict) -> dict[str, torch.Tensor]:
    optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    if any(isinstance(p, aimc.nn.CellWeight) for p in net.parameters()):
        optimizer = aimc.optim.wrap(optimizer, net)
    for x, y in zip(X, Y):
        optimizer.zero_grad()
        nn.functional.cross_entropy(forward(x[part]), y[part]).backward()
        optimizer.step()
    return {name: value.clone() for name, value in state(net).items() if value.is_floating_point()}


def work(rank: int, place: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    part = slice(4 * rank, 4 * rank + 4)
    found = {}
    for name in CASES:
        net = build(name)
        found[name] = train(net, DistributedDataParallel(net), part)
        net = sharded(build(name))
        found[f"{name}, sharded"] = train(net, net, part, whole_state)
    torch.manual_seed(rank)  # each would draw another one
    seeds = aimc.convert(nn.Linear(2, 2), aimc.presets.pcm()).key.seed
    found["seed"] = {"seed": torch.tensor(seeds % (1 << 62))}
    joined = processes.joined(torch.full((rank + 1, 2), float(rank)), "rows")
    found["joined"] = {"rows": joined}
    try:
        processes.joined(torch.zeros(1, 2 + rank), "columns")
    except AimcError as error:
        found["message"] = {error.message: torch.zeros(())}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, (str(folder / "group"), str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("how", ["", ", sharded"], ids=["replicated", "sharded"])
@pytest.mark.parametrize("name", list(CASES))
def test_two_processes_are_one(ranks, name, how):
    net = build(name)
    start = copy.deepcopy(net.state_dict())
    alone = train(net, net, slice(None))
    moved = 0.0
    for key, value in alone.items():
        found = [rank[name + how][key] for rank in ranks]
        assert torch.equal(*found), f"the ranks differ in {key}"
        assert_close(key, found[0], value, atol=2e-5)
        moved = max(moved, float((value - start[key]).nan_to_num().abs().max()))
    assert moved > 0.01


def test_what_processes_have_together(ranks):
    assert ranks[0]["seed"]["seed"] == ranks[1]["seed"]["seed"]
    for found in ranks:
        assert found["joined"]["rows"].tolist() == [[0, 0], [1, 1], [1, 1]]
        assert "different columns" in next(iter(found["message"]))
