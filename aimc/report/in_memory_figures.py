"""In-memory training as figures: accuracy over the epochs, and how the cells fared."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from aimc.arguments import checked
from aimc.errors import AimcError
from aimc.files import load_matplotlib, write_figure
from aimc.report.reading import RunReport

_COLOURS = ("tab:orange", "tab:blue", "tab:green", "tab:red", "tab:purple")


@checked
def draw_accuracy(runs: Sequence[RunReport], path: str | os.PathLike[str]) -> None:
    """Draw the test accuracy over the epochs, runs side by side; the validation accuracy dotted.

    Raises:
        AimcError: no run has such a curve, or the path cannot be written.
    """
    load_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    runs = [run for run in runs if run.curves]
    if not runs:
        raise AimcError("no run has an accuracy per epoch to draw", field="runs")
    figure = Figure(figsize=(6 * len(runs), 4.2), layout="constrained")
    for axes, run in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs):
        for (stage, rows), colour in zip(run.curves.items(), _COLOURS):
            epochs = [row["epoch"] for row in rows]
            axes.plot(epochs, [100 * row["test"] for row in rows], "o-", ms=3, color=colour, label=stage)
            axes.plot(epochs, [100 * row["validation"] for row in rows], ":", color=colour)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="epoch", ylabel="accuracy, %")
        axes.set_title(f"{run.path.name}: test set (validation dotted)", fontsize="medium")
        axes.legend(fontsize="small")
    write_figure(figure, path, dpi=110)


_MOST_CURVES = 6
"""Layers up to which each has curves of its own."""

_ROWS = (
    "pulses per device:\nmean, 99.9 % (dashed), max. (dotted)", "saturated devices, %", "share of the weight, %",
    "clipped and (dashed)\nbeyond the trains, %",
    "no answer (black: lost), %", "tile being filled",
)  # fmt: skip
_ANSWERS, _FILLING = 4, 5


@checked
def draw_telemetry(run: RunReport, path: str | os.PathLike[str]) -> None:
    """Draw how the cells of each layer fared over the epochs, one colour per tile (0 takes the gradient's pulses).

    Pulses since the start: mean, dashed the 99.9th percentile and dotted the maximum; devices within 1 % of a bound;
    what a tile carries of the composite weight; what pulse trains could not hold: clipped probabilities, and dashed the
    vectors that asked for more pulses than a train has; devices that were pulsed and did not move, and in black what
    was lost of the content, where the algorithm looks; the tile that a warm start fills, where there is one. With many
    layers the same is a map: a line of it is a tile, and the colour is the value (of the pulses the mean, of the
    last the clipped probabilities).

    Raises:
        AimcError: the run has no telemetry, or the path cannot be written.
    """
    load_matplotlib()
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = [row for rows in run.curves.values() for row in rows if row["layers"]]
    if not rows:
        raise AimcError("the run has no telemetry of cells to draw", field="run")
    epochs, layers = [row["epoch"] for row in rows], list(rows[0]["layers"])
    if len(layers) > _MOST_CURVES:
        _draw_maps(run, rows, path)
        return
    warm = any(held["active_tile"] is not None for row in rows for held in row["layers"].values())
    looked = any(
        tile.get("unanswered") is not None
        for row in rows
        for h in row["layers"].values()
        for tile in h["tiles"]
    )
    wanted = (True, True, True, True, looked, warm)
    place = {row: sum(wanted[:row]) for row, there in enumerate(wanted) if there}
    shown = [_ROWS[row] for row in place]
    figure = Figure(figsize=(3.6 * len(layers) + 1, 2.3 * len(shown)), layout="constrained")
    grid = figure.subplots(len(shown), len(layers), squeeze=False, sharex=True)
    for column, layer in enumerate(layers):
        held = [row["layers"][layer] for row in rows]
        count = len(held[0]["tiles"])
        for tile in range(count):
            colour = colormaps["viridis"](tile / max(count - 1, 1) * 0.9)
            found = {key: [h["tiles"][tile].get(key) for h in held] for key in held[-1]["tiles"][tile]}
            grid[0, column].plot(epochs, found["pulses_mean"], color=colour, label=f"tile {tile}")
            grid[0, column].plot(epochs, found["pulses_p999"], "--", color=colour)
            grid[0, column].plot(epochs, found["pulses_max"], ":", color=colour)
            grid[1, column].plot(epochs, [100 * v for v in found["saturated"]], color=colour)
            grid[2, column].plot(epochs, [100 * v for v in found["share"]], color=colour)
            grid[3, column].plot(epochs, [100 * v for v in found["clipped"]], color=colour)
            grid[3, column].plot(epochs, [100 * v for v in found["beyond_budget"]], "--", color=colour)
            if looked:
                grid[place[_ANSWERS], column].plot(epochs, _shares(found["unanswered"]), color=colour)
        grid[0, column].set_yscale("symlog", linthresh=1)
        if looked:
            grid[place[_ANSWERS], column].plot(epochs, _shares([h["lost"] for h in held]), color="black")
        if warm:
            panel = grid[place[_FILLING], column]
            # No tile any more is drawn below all of them.
            active = [h["active_tile"] if h["active_tile"] is not None else -1 for h in held]
            panel.step(epochs, active, where="mid", color="black")
            panel.yaxis.set_major_locator(MaxNLocator(integer=True))
        grid[0, column].set_title(layer or "layer", fontsize="medium")
        grid[-1, column].xaxis.set_major_locator(MaxNLocator(integer=True))
        grid[-1, column].set_xlabel("epoch")
    for label, axes in zip(shown, grid[:, 0]):
        axes.set_ylabel(label, fontsize="small")
    grid[0, 0].legend(fontsize="x-small")
    figure.suptitle(f"{run.path.name}: cells over the training", fontsize="medium")
    write_figure(figure, path, dpi=110)


def _shares(values: Sequence[float | None]) -> list[float]:
    """Per cent; what is not known is left out of a line."""
    return [float("nan") if v is None else 100 * v for v in values]


def _draw_maps(run: RunReport, rows: Sequence[dict[str, Any]], path: str | os.PathLike[str]) -> None:
    """The telemetry of many layers: epochs to the right, the tiles of all layers downwards."""
    import numpy as np
    from matplotlib.colors import SymLogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    layers = list(rows[0]["layers"])
    counts = [len(rows[0]["layers"][layer]["tiles"]) for layer in layers]
    ends = np.cumsum(counts)

    def values(key: str) -> np.ndarray:
        tiles = [[t[key] for layer in layers for t in row["layers"][layer]["tiles"]] for row in rows]
        return np.array(tiles, dtype=float).T  # [tiles of all layers, epochs]

    pulses = values("pulses_mean")
    norm = SymLogNorm(1, vmin=0, vmax=max(float(pulses.max()), 1.0))
    shown = ((pulses, norm), *((100 * values(key), None) for key in ("saturated", "share", "clipped")))
    filling = [
        (row["epoch"], end - count + row["layers"][layer]["active_tile"] + 0.5)
        for layer, count, end in zip(layers, counts, ends)
        for row in rows
        if row["layers"][layer]["active_tile"] is not None
    ]
    figure = Figure(figsize=(12, 2 + 0.09 * int(ends[-1])), layout="constrained")
    extent = (rows[0]["epoch"] - 0.5, rows[-1]["epoch"] + 0.5, float(ends[-1]), 0.0)
    for axes, label, (image, norm) in zip(figure.subplots(1, len(shown), sharey=True), _ROWS, shown):
        drawn = axes.imshow(image, norm=norm, aspect="auto", interpolation="nearest", extent=extent)
        axes.hlines(ends[:-1], *extent[:2], color="white", lw=0.8)
        if filling:
            axes.plot(*zip(*filling), ".", color="red", ms=3, label=_ROWS[_FILLING])
            axes.legend(fontsize="x-small")
        axes.set_yticks(ends - np.array(counts) / 2, layers, fontsize="x-small")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("epoch")
        figure.colorbar(drawn, ax=axes, location="top", aspect=40, label=label)
    figure.suptitle(
        f"{run.path.name}: cells over the training, tile 0 of each layer on top", fontsize="medium"
    )
    write_figure(figure, path, dpi=110)
