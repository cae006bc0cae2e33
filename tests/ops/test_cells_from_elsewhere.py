"""Cells that users define: their own response, or a word that there is none that is compiled."""

import copy
import warnings
from collections import OrderedDict

import pytest
import torch
from torch import nn

import aimc
from aimc.cells import ConstantStep, PulsedCell


class Stubborn(ConstantStep):
    """Moves by nothing, whatever its number says."""

    def change(self, w, parameters, up, noise):
        return torch.zeros_like(w)


class Copied(PulsedCell):
    """A file that was copied, with the number of another response in it."""

    KIND = (99, 0)

    def change(self, w, parameters, up, noise):
        return torch.where(up, parameters[..., 0], parameters[..., 1]) / 2


class Numberless(PulsedCell):
    def change(self, w, parameters, up, noise):
        return torch.where(up, parameters[..., 0], parameters[..., 1]) / 2


@pytest.mark.parametrize("algorithm", ["sgd", "ttv1", "ttv2", "mp", "residual"])
@pytest.mark.parametrize("kind", [Stubborn, Copied, Numberless])
def test_a_cell_from_elsewhere_has_its_own_response(kind, algorithm):
    """The compiled bodies know those of aimc alone."""
    hardware = aimc.presets.reram(20, aimc.algorithms.ALGORITHMS[algorithm]()).replace(cell=kind(dw_min=0.05))
    with pytest.raises(aimc.AimcError, match=f"layer 'a', field 'backend': 'cpu' has no .* {kind.__name__}"):
        aimc.convert(nn.Sequential(OrderedDict(a=nn.Linear(4, 3))), hardware, backend="cpu")
    torch.manual_seed(0)
    digital, found = nn.Linear(4, 3), []
    for backend in ("auto", "reference"):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            net = aimc.convert(copy.deepcopy(digital), hardware, seed=0, backend=backend)
        said = [w for w in caught if f"cells of {kind.__name__} are pulsed by the plain" in str(w.message)]
        assert len(said) == (backend == "auto")
        before = net.weight.detach().clone()
        optimizer = aimc.optim.wrap(torch.optim.SGD(net.parameters(), lr=0.5), net)
        for k in range(4):
            optimizer.zero_grad()
            net(torch.ones(2, 4) + k).sum().backward()
            optimizer.step()
        found.append(net.weight.detach().clone())
    assert torch.equal(*found)
    assert torch.equal(found[0], before) == (kind is Stubborn)
