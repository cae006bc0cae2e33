"""Draw the figures of docs/cells from the cells' own functions.

python tools/plot_cells.py [--output docs/cells]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from aimc.cells import (
    PCM,
    Cell,
    ExpStep,
    Hermes,
    Ladder,
    LinearStep,
    PiecewiseStep,
    PowStep,
    PulsedCell,
    SingleExponentPCM,
    SoftBounds,
    TabulatedPCM,
    measured,
)
from aimc.random import Key
from aimc.report.cell_figures import draw_cell

CELLS: dict[str, Cell] = {
    "pcm": PCM(),
    "hermes": Hermes(parallel=2),
    "tabulated": TabulatedPCM(
        conductance=(0, 5, 25), exponent_mean=(0.09, 0.05, 0.04), exponent_std=(0.04, 0.02, 0.01)
    ),
    "single_exponent": SingleExponentPCM(),
}

PULSED: dict[str, PulsedCell] = {
    "constant_linear": LinearStep.with_states(100, w_max=1.0, w_min=-1.0, gamma_up=0.5, gamma_down=0.3),
    "soft_bounds": SoftBounds.with_states(20, w_max=1.0, w_min=-1.0),
    "soft_bounds_reference": measured.reram_om(),
    "exp_step": ExpStep.with_states(100, w_max=1.0, w_min=-1.0),
    "pow_step": PowStep.with_states(50, w_max=1.0, w_min=-1.0, pow_gamma=2.0),
    "piecewise_step": PiecewiseStep.with_states(
        50,
        w_max=1.0,
        w_min=-1.0,
        piecewise_up=(0.8, 1.3, 1.0, 0.6, 0.2),
        piecewise_down=(0.1, 0.5, 1.0, 1.2, 1.0),
    ),
    "ladder": Ladder(levels=8, w_max=1.0, w_min=-1.0),
}


def draw(cell: Cell, path: Path) -> None:
    """Programming error, drift exponent, read noise, and twelve devices over a year."""
    g = torch.linspace(0, cell.g_max, 400)
    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    axes[0, 0].plot(g, cell.programming_std(g))
    axes[0, 0].set(
        title="programming error", xlabel="target, uS", ylabel="standard deviation, uS", ylim=(0, None)
    )
    mean, spread = cell.drift_exponent(g)
    axes[0, 1].fill_between(g, mean - spread, mean + spread, alpha=0.3, linewidth=0)
    axes[0, 1].plot(g, mean)
    axes[0, 1].set(title="drift exponent, mean and spread", xlabel="target, uS", ylim=(0, None))
    for label, t in (("1 s", 1.0), ("1 h", 3600.0), ("1 d", 86400.0), ("1 y", 31536000.0)):
        axes[1, 0].plot(g[1:], 100 * cell.read_noise_std(g, t)[1:], label=label)
    axes[1, 0].set(
        title="read noise accumulated", xlabel="target, uS", ylabel="% of the conductance", ylim=(0, 60)
    )
    axes[1, 0].legend()
    targets = torch.linspace(0, cell.g_max, 12)
    cells, times = cell.program(targets, Key(0)), np.logspace(0, 7.5, 120)
    paths = np.stack([cell.read(cells, float(t), Key(0)).numpy() for t in times])
    axes[1, 1].plot(times, paths, linewidth=0.8)
    axes[1, 1].set(
        title="twelve devices", xlabel="seconds after programming", ylabel="conductance, uS", xscale="log"
    )
    figure.savefig(path, dpi=100)


def main() -> None:
    """Draw every cell."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "docs" / "cells")
    output = parser.parse_args().output
    for name, cell in CELLS.items():
        draw(cell, output / f"{name}.png")
        print(output / f"{name}.png")
    for name, cell in PULSED.items():
        draw_cell(cell, output / f"{name}.png")
        print(output / f"{name}.png")


if __name__ == "__main__":
    main()
