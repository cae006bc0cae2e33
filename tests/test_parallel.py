"""Two data-parallel processes train what one trains on the joined batch, in both halves, replicated and sharded."""

import copy
import inspect
import re
import warnings
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

import aimc
from aimc import processes
from aimc.errors import AimcError
from tests.algorithms.helpers import ALGORITHMS
from tests.helpers import assert_close

CAN_SHARD = "ignored_params" in inspect.signature(fully_shard).parameters
shards = pytest.mark.skipif(
    not CAN_SHARD, reason="the first fully_shard of torch does not run on CPUs, nor leave cells out"
)

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
    return aimc.presets.pcm().replace(
        **{"input_range.decay": 0.0, "input_range.init_batches": 2, "training.clip.sigma": 1.5}
    )


def remapped() -> aimc.Hardware:
    """One scale for a tile, by its largest weight, which some part of the layer has."""
    return hardware_aware().replace(**{"training.remap_every": 2, "mapping.scale": "tile"})


def without_read_noise() -> aimc.Hardware:
    """The steps of a sequence are read together, step by step: noise has another place in the joined batch there."""
    return hardware_aware().replace(output_noise=0.0, short_term_noise=0.0)


def in_cells(algorithm: aimc.algorithms.Algorithm | None = None) -> aimc.PulsedHardware:
    # The forward and backward reads are noisy, so that every vector has to have the noise of its place in the batch.
    noisy = aimc.periphery.ArrayIO(output_noise=0.1)
    return aimc.presets.reram(20, algorithm).replace(forward=noisy, backward=noisy)


CASES: dict[str, tuple] = {
    "hardware-aware": (convolutional, hardware_aware),
    "remapped": (convolutional, remapped),
    "recurrent": (Recurrent, without_read_noise),
    "attention": (Attention, hardware_aware),
    "in cells": (convolutional, in_cells),
}
SHARDED = list(CASES)
CASES |= {
    f"in cells, {name}": (convolutional, partial(in_cells, algorithm))
    for name, algorithm in ALGORITHMS.items()
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
    fully_shard(net, ignored_params=cells)
    return net


def whole_state(net: nn.Module) -> dict[str, Any]:
    return get_model_state_dict(net, options=StateDictOptions(full_state_dict=True))


def train(net: nn.Module, forward, part: slice, state=nn.Module.state_dict) -> dict[str, torch.Tensor]:
    optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    if any(isinstance(p, aimc.nn.CellWeight) for p in net.parameters()):
        optimizer = aimc.optim.wrap(optimizer, net)
    for x, y in zip(X, Y):
        optimizer.zero_grad()
        nn.functional.cross_entropy(forward(x[part]), y[part]).backward()
        optimizer.step()
    return {name: value.clone() for name, value in state(net).items()}


def step_beside_the_shards() -> None:
    net = fully_shard(build("hardware-aware"))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for forward_again in (False, True):
        net(X[0]).sum().backward()
        if forward_again:
            net(X[0])  # its weights stay gathered
        optimizer.step()


def step_on_some_of_the_processes() -> None:
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("apart", "together"))
    net = fully_shard(build("hardware-aware"), mesh=mesh["together"])
    train(net, net, slice(None))


def by_columns() -> None:
    net = build("hardware-aware")
    parallelize_module(net, init_device_mesh("cpu", (2,)), {"3": ColwiseParallel()})
    net(X[0])


def calibrated() -> None:
    aimc.calibrate(sharded(build("hardware-aware")).eval(), [X[0]])


def converted_while_gathered() -> None:
    net = fully_shard(convolutional())
    net(X[0])
    aimc.convert(net, hardware_aware(), inplace=True)


def wrapped() -> None:
    FullyShardedDataParallel(build("hardware-aware"), device_id=torch.device("cpu"))(X[0])


REFUSED = {
    "convert": (
        lambda: aimc.convert(sharded(convolutional()), hardware_aware()),
        "convert the network first",
    ),
    "convert gathered": (converted_while_gathered, "convert the network first"),
    "exchange": (
        lambda: aimc.set_hardware(sharded(build("remapped")), hardware_aware()),
        "before fully_shard",
    ),
    "calibrate": (calibrated, "calibrate the network before fully_shard"),
    "remap": (lambda: aimc.remap(sharded(build("remapped"))), "takes the whole"),
    "program": (lambda: aimc.program(sharded(build("hardware-aware")).eval()), "get_model_state_dict"),
    "export": (lambda: aimc.to_digital(sharded(build("attention"))), "get_model_state_dict"),
    "cells": (lambda: fully_shard(build("in cells"))(X[0]), "would take wrong pulses.*ignored_params"),
    "gathered": (step_beside_the_shards, r"call reshard\(\)"),
    "some": (step_on_some_of_the_processes, "1 of 2 processes.*a mesh of all"),
    "columns": (by_columns, "tensor parallel is not supported"),
    "first kind": (wrapped, "take torch.distributed.fsdp.fully_shard"),
}


def refused(act) -> str:
    try:
        act()
    except AimcError as error:
        return str(error)
    return "taken"


def in_cells_with_biases() -> aimc.PulsedHardware:
    """Nothing digital is left for DistributedDataParallel to give."""
    return in_cells().replace(**{"mapping.analog_bias": True})


def with_a_warm_start() -> aimc.PulsedHardware:
    algorithm = aimc.algorithms.Residual(
        tiles=3, order="paper", warm_start=aimc.algorithms.WarmStart(signal="loss")
    )
    return in_cells_with_biases().replace(algorithm=algorithm)


def unequal(rank: int, hardware=in_cells_with_biases) -> nn.Module:
    """Weights, devices and draws of each process's own, where nothing is shared yet."""
    torch.manual_seed(100 + rank)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return aimc.convert(convolutional(), hardware())


def stepped(
    net: nn.Module, optimizer: torch.optim.Optimizer, part: slice, forward=None
) -> dict[str, torch.Tensor]:
    for x, y in zip(X[:3], Y):
        optimizer.zero_grad()
        nn.functional.cross_entropy((forward or net)(x[part]), y[part]).backward()
        optimizer.step()
    return {name: value.clone() for name, value in net.state_dict().items()}


def sgd(net: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr=0.1)


def unequally_started(
    rank: int, part: slice, early: nn.Module, optimizer: aimc.optim.PulsedOptimizer
) -> dict:
    """Networks that start differently in the processes, or come to differ."""
    found: dict[str, dict] = {"wrapped before the group": stepped(early, optimizer, part)}
    net = unequal(rank)
    found["alone"] = stepped(net, aimc.optim.wrap(sgd(net), net), part)
    net = unequal(rank)
    if rank == 1:
        net[3].weight.data.add_(1.0)
    found["edited before"] = stepped(net, aimc.optim.wrap(sgd(net), net), part)
    net = unequal(rank, in_cells)
    found["replicated"] = stepped(net, aimc.optim.wrap(sgd(net), net), part, DistributedDataParallel(net))
    said = []
    for name, hardware, change in (
        ("written in one", in_cells_with_biases, lambda net, _: rank and net[3].program(torch.zeros(3, 64))),
        ("loaded in one", in_cells_with_biases, lambda net, saved: rank and net.load_state_dict(saved)),
        ("told of other losses", with_a_warm_start, lambda net, _: aimc.optim.observe(net, 1.0 + rank)),
    ):
        net = unequal(rank, hardware)
        saved = copy.deepcopy(net.state_dict())
        optimizer = aimc.optim.wrap(sgd(net), net)
        change(net, saved)
        with warnings.catch_warnings(record=True) as caught:
            found[name] = stepped(net, optimizer, part)
        said += [f"{name}: {w.message}" for w in caught]
    found["warnings"] = {line: torch.zeros(()) for line in said}
    net = unequal(rank)
    optimizer = aimc.optim.wrap(sgd(net), net)
    if rank == 1:
        net[3].weight.data.add_(1.0)
    found["edited in one"] = {refused(lambda: stepped(net, optimizer, part)): torch.zeros(())}
    net = aimc.convert(nn.Linear(2, 2), aimc.presets.reram(states=10 + rank))
    try:
        aimc.optim.wrap(sgd(net), net)
    except AimcError as error:
        found["hardware"] = {str(error): torch.zeros(())}
    return found


def evaluated() -> dict[str, torch.Tensor]:
    """Outputs for the same inputs in all processes, devices, an evaluation of ours, and what is said of odd parts."""
    found, x = {}, torch.linspace(-1, 1, 30).view(5, 6)
    with torch.no_grad():
        tiles = hardware_aware().replace(**{"input_range.value": 1.0})
        for name, hardware in (("tiles", tiles), ("cells", aimc.presets.reram(20, io="noisy"))):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of weights beyond the bounds of some devices
                net = aimc.convert(nn.Linear(6, 3), hardware, seed=0)
            net.load_state_dict({"weight": torch.ones(3, 6), "bias": torch.zeros(3)}, strict=False)
            net.eval()
            found[name] = net(x)
            if name == "tiles":
                chip = aimc.program(net, seed=3)
                found["devices"] = torch.cat([g.flatten() for g in chip.conductances().values()])
                with chip.at("1h"):
                    found["on a chip"] = net(x)
                result = aimc.evaluate_over_time(net, lambda net: float(net(x).sum()), ("1h",), chips=2)
                found["evaluation"] = torch.tensor(result.values)
    net = aimc.convert(nn.Linear(6, 3), in_cells(), seed=0)
    optimizer = aimc.optim.wrap(sgd(net), net)
    net(torch.ones(1 + processes.rank(), 6)).sum().backward()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        optimizer.step()
    found["said"] = torch.tensor(sum("parts of different sizes" in str(w.message) for w in caught))
    return found


def work(rank: int, place: str, folder: str) -> None:
    torch.set_num_threads(1)
    early = unequal(rank)
    optimizer = aimc.optim.wrap(sgd(early), early)
    dist.init_process_group("gloo", init_method=f"file://{place}", rank=rank, world_size=2)
    part = slice(4 * rank, 4 * rank + 4)
    found: dict[str, dict] = {}
    for name in CASES:
        net = build(name)
        found[name] = train(net, DistributedDataParallel(net), part)
        if CAN_SHARD and name in SHARDED:
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
    found["unequal"] = unequally_started(rank, part, early, optimizer)
    found["reads"] = evaluated()
    if CAN_SHARD:
        found["refused"] = {name: refused(act) for name, (act, _) in REFUSED.items()}
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, (str(folder / "group"), str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize(
    "case", [*CASES, *(pytest.param(f"{name}, sharded", marks=shards) for name in SHARDED)]
)
def test_two_processes_are_one(ranks, case):
    name = case.removesuffix(", sharded")
    net = build(name)
    start = copy.deepcopy(net.state_dict())
    alone = train(net, net, slice(None))
    moved = 0.0
    for key, value in alone.items():
        found = [rank[case][key] for rank in ranks]
        assert torch.equal(*found), f"the ranks differ in {key}"
        if value.is_floating_point():
            assert_close(key, found[0], value, atol=2e-5)
            moved = max(moved, float((value - start[key]).nan_to_num().abs().max()))
        elif case != name:  # no more and no fewer reads and steps
            assert torch.equal(found[0], value), key
    assert moved > 0.01


@pytest.mark.parametrize(
    "how",
    [
        "alone",
        "edited before",
        "replicated",
        "written in one",
        "loaded in one",
        "told of other losses",
        "wrapped before the group",
    ],
)
def test_cells_that_start_differently_become_those_of_the_first_process(ranks, how):
    found = [rank["unequal"][how] for rank in ranks]
    for key, value in found[0].items():
        assert torch.equal(value, found[1][key]), f"the ranks differ in {key}"
    if how == "alone":
        net = unequal(0)
        for key, value in stepped(net, aimc.optim.wrap(sgd(net), net), slice(None)).items():
            if value.is_floating_point():
                assert_close(key, found[0][key], value, atol=2e-5)


def test_gradients_of_cells_that_were_replaced_are_spoken_of_where_they_were_made(ranks):
    said = [[m for m in rank["unequal"]["warnings"] if "not those of process 0" in m] for rank in ranks]
    assert not said[0] and [m.split(":")[0] for m in said[1]] == ["written in one", "loaded in one"]


def test_a_weight_written_past_the_cells_of_one_process_is_refused_in_every_process(ranks):
    for rank in ranks:
        assert "layer '3', field 'weight': the weight was written" in next(
            iter(rank["unequal"]["edited in one"])
        )


def test_cells_of_other_hardware_are_refused_in_every_process(ranks):
    for rank in ranks:
        assert "same hardware in all" in next(iter(rank["unequal"]["hardware"]))


def test_what_processes_have_together(ranks):
    assert ranks[0]["seed"]["seed"] == ranks[1]["seed"]["seed"]
    for found in ranks:
        assert found["joined"]["rows"].tolist() == [[0, 0], [1, 1], [1, 1]]
        assert "different columns" in next(iter(found["message"]))


def test_processes_share_devices_and_no_read_noise(ranks):
    one, other = (found["reads"] for found in ranks)
    for name in ("devices", "evaluation"):
        assert torch.equal(one[name], other[name]), name
    for name in ("tiles", "on a chip", "cells"):
        # Not a vector has the noise of another; converters may round two noises to one level.
        assert int((one[name] != other[name]).any(1).sum()) >= 4, name
        assert float((one[name] - other[name]).abs().max()) < 1.0, name
    alone = evaluated()
    assert all(torch.equal(alone[name], one[name]) for name in alone if name != "said")


def test_parts_of_different_sizes_are_spoken_of(ranks):
    assert all(int(found["reads"]["said"]) == 1 for found in ranks)


@shards
@pytest.mark.parametrize("what", list(REFUSED))
def test_what_shards_cannot_do_is_refused_with_the_layer_and_the_way_out(ranks, what):
    for found in ranks:
        said = found["refused"][what]
        assert re.search(f"layer '.*{REFUSED[what][1]}", said), said


@shards
def test_gathered_weights_age_on_a_chip_as_those_of_one_process(ranks):
    alone, gathered = build("hardware-aware"), build("hardware-aware")
    train(alone, alone, slice(None))
    gathered.load_state_dict(ranks[1]["hardware-aware, sharded"])
    results = []
    for net in (alone, gathered):
        chip = aimc.program(net.eval(), seed=1)
        with torch.no_grad(), chip.at("1y"):
            results.append(net(X[0]))
    # Weights that differ in the last bits may fall on two sides of a level of the converters.
    assert_close("outputs after a year", results[1], results[0], atol=0.05)
