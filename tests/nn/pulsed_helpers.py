"""Hardware that makes pulsed training predictable."""

from __future__ import annotations

import torch
from torch import nn

import aimc
from aimc.algorithms import Algorithm, AnalogSGD, Array, State
from aimc.cells import ConstantStep
from aimc.ops.pulsed_update import PulseTrain, Vectors

NO_SPREAD = {"dw_min_dtod": 0.0, "up_down_dtod": 0.0, "w_max_dtod": 0.0, "w_min_dtod": 0.0, "dw_min_std": 0.0}

STEP = ConstantStep(dw_min=1e-4, w_max=10.0, w_min=-10.0, **NO_SPREAD)
"""A cell with a constant step of 1e-4 and wide bounds, without any variation."""

EXACT = aimc.PulsedHardware(cell=STEP, algorithm=AnalogSGD(pulses=PulseTrain(kind="none")))
"""The update is exact, so that everything has to agree with plain gradient descent."""

PULSED = aimc.PulsedHardware(cell=STEP, mapping=aimc.PulsedMapping(scale=1.0))
"""Real pulses of 1e-4 in the weight."""


class TwoArrays(Algorithm):
    """A gradient array that leaks into a second one through a hidden buffer; only the second is read."""

    @property
    def tile_count(self) -> int:
        return 2

    def step(self, array: Array, state: State, vectors: Vectors, lr: float) -> None:
        self.pulse(array, state, 0, vectors, lr)
        buffer = state.setdefault("buffer", torch.zeros_like(state["held"][0]))
        buffer.mul_(0.9).add_(state["held"][0], alpha=0.1)
        state["held"][1].add_(buffer, alpha=0.1)
        self.finish(array, state, vectors)


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 4))


def batch(n: int = 5, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 6, 6, generator=g), torch.randint(0, 4, (n,), generator=g)


def sgd(net: nn.Module, lr: float = 0.1, **options) -> aimc.optim.PulsedOptimizer:
    return aimc.optim.wrap(torch.optim.SGD(net.parameters(), lr=lr, **options), net)


def loss_of(net: nn.Module, data=None) -> torch.Tensor:
    x, y = data if data is not None else batch()
    return nn.functional.cross_entropy(net(x), y)


def cells_of(net: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of everything that the algorithms hold."""
    return {
        f"{name}.{k}": v.clone()
        for name, layer in aimc.pulsed_layers(net).items()
        for k, v in layer.cells.state.items()
    }


def in_bounds(layer) -> bool:
    """Whether every device holds what it can."""
    state = layer.cells.state
    p = state["parameters"]
    return bool(((state["held"] <= p[..., 2]) & (state["held"] >= p[..., 3])).all())


def assert_same_cells(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    off = [name for name in a if not torch.equal(a[name], b[name])]
    assert not off, f"differ: {off}"
