"""The algorithms that every test of a kind runs over, and a small problem whose solution is known."""

from __future__ import annotations

import torch
from torch import Tensor

import aimc
from aimc.algorithms import (
    Algorithm,
    AnalogSGD,
    Array,
    LossRise,
    MixedPrecision,
    Residual,
    State,
    TikiTakaV1,
    TikiTakaV2,
    TikiTakaV3,
    TikiTakaV4,
    WarmStart,
)
from aimc.cells import ConstantStep, PulsedCell, SoftBounds
from aimc.ops.pulsed_update import PulseTrain, Vectors
from aimc.random import Key
from tests.pulsed_cells import ALIKE, RANGE

PLAIN = ConstantStep(dw_min=0.1, dw_min_std=0.0, **ALIKE)
"""Every step is 0.1, up and down, between -1 and 1."""

RELATIVE = {"fast_lr": 1.0, "scale_fast_lr": True, "transfer_lr": 1.0, "scale_transfer_lr": True}
"""Both rates are the layer's."""

WARM = {"tiles": 3, "columns": 2, "period_growth": 2}
ALGORITHMS: dict[str, Algorithm] = {
    "sgd": AnalogSGD(),
    "ttv1": TikiTakaV1(gamma=0.3, period=2, reset_chance=0.5),
    "ttv1 rows": TikiTakaV1(gamma=0.3, period=2, rows=True, columns=2, reset_chance=0.2),
    "ttv2": TikiTakaV2(columns="all", momentum=0.3),
    "ttv2 vectors": TikiTakaV2(
        **RELATIVE, unit="vectors", period=3, forget=False, most_pulses=2, auto_granularity=50.0
    ),
    "ttv3": TikiTakaV3(columns="all", gamma=0.5, row_chop=0.2, scale_transfer_lr=False),
    "ttv4": TikiTakaV4(columns="all", chop=0.5, scale_transfer_lr=False),
    "mp": MixedPrecision(period=2, threshold=0.5),
    "residual": Residual(tiles=4, columns=3),
    "residual pulsed": Residual(tiles=3, gradient="pulsed", fast_lr=0.1),
    "residual paper": Residual(order="paper", warm_start=WarmStart(rule=LossRise()), **WARM),
    "residual cpu": Residual(
        order="cpu", warm_start=WarmStart(rule=LossRise(), signal="pulses"), reset_chance=0.5, **WARM
    ),
    "residual cuda": Residual(
        order="cuda", warm_start=WarmStart(rule=LossRise(), self_transfer=True), **WARM
    ),
}
"""Every algorithm, in settings that use what it has."""

SPREAD = {**RANGE, "w_max_dtod": 0.1, "w_min_dtod": 0.1}
TARGET = torch.linspace(-0.4, 0.4, 24)[torch.randperm(24, generator=torch.Generator().manual_seed(3))].view(
    6, 4
)


def soft(states: float) -> PulsedCell:
    """Cells whose devices differ, with an uneven response and noise."""
    return SoftBounds.with_states(states, **SPREAD)


def array_of(cell: PulsedCell = PLAIN, shape=(6, 4), **options) -> Array:
    return Array(cell, shape, Key(0), **options)


def fit(
    algorithm: Algorithm,
    cell: PulsedCell,
    lr: float,
    steps: int,
    noise: float = 0.0,
    decay: float = 0.1,
    epoch: int = 100,
) -> tuple[Tensor, State]:
    """Least squares on outputs of :data:`TARGET`, plus noise; the mean weight of the last quarter, and the state.

    The learning rate falls by ``decay`` after 60 % of the steps; the algorithm is told of a loss after every ``epoch``.
    """
    array, g = array_of(cell), torch.Generator().manual_seed(1)
    state, mean = algorithm.init(array, torch.zeros(6, 4)), torch.zeros(6, 4)
    for k in range(steps):
        x = torch.randn(8, 4, generator=g)
        error = x @ (algorithm.weight(array, state) - TARGET).t() + noise * torch.randn(8, 6, generator=g)
        algorithm.step(array, state, Vectors(x, error / 8), lr * (decay if k > 0.6 * steps else 1.0))
        if (k + 1) % epoch == 0:
            algorithm.observe(array, state, 1.0)
        if k >= steps - steps // 4:
            mean += algorithm.weight(array, state) / (steps // 4)
    return mean, state


def distance(weight: Tensor) -> float:
    """Relative error."""
    return float((weight - TARGET).norm() / TARGET.norm())


def projection(weight: Tensor) -> float:
    """How much of the target is there: 1 without a bias, less where the weight is drawn to zero."""
    return float((weight * TARGET).sum() / TARGET.square().sum())


def hardware_of(algorithm: Algorithm, **changes) -> aimc.PulsedHardware:
    """Write noise, decay, noisy reads: everything that a checkpoint can forget."""
    hardware = aimc.presets.reram(
        20, algorithm, io="noisy", write_noise_std=0.5, lifetime=50.0, diffusion=0.01
    )
    return hardware.replace(**{"mapping.overflow": "clip", **changes})


DETERMINISTIC = PulseTrain(kind="deterministic")
