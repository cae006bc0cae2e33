"""In-memory training keeps to the device of its tensors: tests have no GPU, but a device that acts like one."""

import pytest
import torch

from aimc.algorithms import AnalogSGD, Array, Residual
from aimc.ops.pulsed_update import Patches, PulseTrain, Vectors
from aimc.periphery import ArrayIO
from aimc.random import Key
from tests.algorithms.helpers import ALGORITHMS, soft
from tests.helpers import assert_close
from tests.other_device import DEVICE, Elsewhere, OtherDevice
from tests.pulsed_cells import PULSED


def test_the_other_device_acts_like_one():
    with OtherDevice():
        x = torch.tensor([[1.0, 2.0], [3.0, 4.0]], device=DEVICE)
        x[:, 1] += 1
        assert isinstance(x, Elsewhere) and not x.is_cpu and float(x.sum()) == 12
        assert isinstance(x @ torch.ones(2, 1, device=DEVICE), Elsewhere) and not isinstance(
            x.cpu(), Elsewhere
        )
        for mixed in (lambda: x + torch.ones(2), lambda: torch.where(torch.tensor([True, False]), x, x)):
            with pytest.raises(RuntimeError, match="two devices"):
                mixed()
        assert float((x + torch.tensor(1.0)).sum()) == 16 and float(x[torch.tensor([1])].sum()) == 8


def _vectors(form, generator, device):
    """Two vectors of a linear layer, or the four of a small image, for 3 x 8 cells."""
    if form == "linear":
        x, d = torch.rand(2, 8, generator=generator), torch.randn(2, 3, generator=generator)
        return Vectors(x.to(device), d.to(device))
    x, d = torch.rand(1, 2, 3, 3, generator=generator), torch.randn(1, 3, 4, generator=generator)
    return Vectors(x.to(device), d.to(device), 1, Patches.of((3, 3), 2, (2, 2), (1, 1), (1, 1)))


def _trained(algorithm, cell, form, device):
    """The state after two steps with noisy reads, and all else that a layer asks of an algorithm; on the CPU."""
    array = Array(cell, (3, 8), Key(1), transfer=ArrayIO(), backend="reference")
    state = algorithm.init(array, torch.full((3, 8), 0.1 * cell.w_max).to(device))
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        algorithm.step(array, state, _vectors(form, generator, device), 0.2)
        algorithm.observe(array, state, 1.0)
    algorithm.rest(array, state)
    assert algorithm.telemetry(array, state)["tiles"]
    state = {**state, "weight": algorithm.weight(array, state)}
    matrices = [v for v in state.values() if v.is_floating_point() and v.dim() > 1]
    assert all(v.device == device for v in matrices)
    return {name: value.cpu() for name, value in state.items()}


def _same(algorithm, cell, form):
    expected = _trained(algorithm, cell, form, torch.device("cpu"))
    with OtherDevice():
        found = _trained(algorithm, cell, form, DEVICE)
    assert found.keys() == expected.keys()
    for name, value in expected.items():  # the CPU's compiled random numbers round in another way
        close = {"atol": 2e-6, "rtol": 1e-6} if value.is_floating_point() else {}
        assert_close(name, found[name], value, **close)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm(name):
    form = "linear" if name.startswith("ttv2") else "convolution"
    trains = name not in ("mp", "residual")
    _same(ALGORITHMS[name].replace(**{"pulses.length": 5} if trains else {}), soft(10), form)


@pytest.mark.parametrize("name", PULSED)
def test_every_cell(name):
    _same(Residual(tiles=2, columns=3), PULSED[name], "linear")


@pytest.mark.parametrize("kind", ["mean_count", "deterministic", "none", "none_bounded"])
def test_every_kind_of_train(kind):
    train = PulseTrain(kind=kind, **({} if "none" in kind else {"length": 5}))
    _same(AnalogSGD(pulses=train), PULSED["reference"], "linear")
