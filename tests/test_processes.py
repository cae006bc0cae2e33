"""A group that cannot send tensors of the CPU, as one of nccl alone: of two equal processes, of which this is one."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

import aimc
from aimc import processes
from aimc.recipes import RECIPES, run_experiment
from aimc.train import Run, Schedule, Stage, fit, fit_in_memory
from tests.other_device import DEVICE, Elsewhere, OtherDevice


@pytest.fixture
def of_gpus_alone(monkeypatch):
    def sent(tensor):
        if not isinstance(tensor, Elsewhere):
            raise RuntimeError("No backend type associated with device type cpu")
        return tensor

    def reduce(tensor, op):
        assert op == dist.ReduceOp.MAX
        sent(tensor)

    def gather(parts, tensor):
        for part in parts:
            sent(part).copy_(sent(tensor))

    def gather_objects(found, what):
        found[:] = [what] * len(found)

    monkeypatch.setattr(processes, "together", lambda: True)
    for name, stand_in in {
        "get_rank": lambda: 0,
        "get_world_size": lambda: 2,
        "get_backend_config": lambda: f"{DEVICE.type}:nccl",
        "broadcast": lambda tensor, src: sent(tensor),
        "all_reduce": reduce,
        "all_gather": gather,
        "all_gather_object": gather_objects,
    }.items():
        monkeypatch.setattr(dist, name, stand_in)
    with OtherDevice():
        yield


def trained(x: torch.Tensor, y: torch.Tensor) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    net = aimc.convert(nn.Linear(6, 3), aimc.presets.reram(states=20), seed=0)
    optimizer = aimc.optim.wrap(torch.optim.SGD(net.parameters(), lr=0.5), net)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    return {name: value.clone() for name, value in net.state_dict().items()}


X, Y = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])


@pytest.mark.filterwarnings("ignore:weights beyond")
def test_cells_train_where_the_group_knows_gpus_alone(request):
    alone = trained(torch.cat([X, X]), torch.cat([Y, Y]))
    request.getfixturevalue("of_gpus_alone")
    for name, value in trained(X, Y).items():
        assert torch.equal(value, alone[name]), name


def test_what_is_sent_comes_back_to_where_it_was(of_gpus_alone):
    counters = torch.tensor([3, 4])
    for found, expected in (
        (processes.first(counters), [3, 4]),
        (processes.largest(counters), [3, 4]),
        (processes.joined(counters, "counters"), [3, 4, 3, 4]),
    ):
        assert type(found) is torch.Tensor and found.dtype == torch.int64 and found.tolist() == expected
    assert counters.tolist() == [3, 4]
    assert processes.spread(torch.tensor([1.0, -1.0, 3.0]), "x") == (pytest.approx(1.7889, abs=1e-4), 3.0)


def test_processes_that_start_other_layers_are_told_apart(of_gpus_alone, monkeypatch):
    def gather(parts, tensor):
        parts[0].copy_(tensor)
        parts[1].copy_(tensor).view(-1)[0] += 1  # the checksum of another name

    monkeypatch.setattr(dist, "all_gather", gather)
    with pytest.raises(aimc.AimcError, match="this one at row tile 0 of layer 'a'.*the same layers as often"):
        processes.spread(torch.ones(3), "row tile 0 of layer 'a'")


class Batches:
    asked = 0

    def __len__(self) -> int:
        return 1

    def __call__(self, epoch: int):
        self.asked += 1
        yield X, Y


def test_trainings_of_one_process_refuse_several(monkeypatch, tmp_path):
    for name, stand_in in {"is_initialized": True, "get_rank": 1, "get_world_size": 2}.items():
        monkeypatch.setattr(dist, name, lambda found=stand_in: found)
    net, batches = nn.Linear(6, 3), Batches()

    def metric(net):
        return 0.0

    with Run(tmp_path / "run", Schedule(), tensorboard=False) as run:
        refused = {
            "aimc.train.fit": lambda: fit(net, Stage(epochs=1), batches, metric),
            "aimc.train.fit_in_memory": lambda: fit_in_memory(
                net, batches, metric, metric, epochs=1, lr=0.1, run=run
            ),
            "run_experiment": lambda: run_experiment(RECIPES["demo"].config(), tmp_path / "experiment"),
        }
        for name, act in refused.items():
            with pytest.raises(aimc.AimcError, match=f"^{name} .*process 1 of 2 .*DistributedDataParallel"):
                act()
        assert not batches.asked and not (tmp_path / "experiment").exists()
        with processes.alone():
            refused["aimc.train.fit"](), refused["aimc.train.fit_in_memory"]()
    assert batches.asked == 2
