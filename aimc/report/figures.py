"""Accuracy, or another metric, over time as a figure."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence

import numpy as np

from aimc.arguments import checked
from aimc.errors import AimcError
from aimc.files import load_matplotlib, write_figure
from aimc.report.reading import RunReport
from aimc.units import readable

_COLOURS = ("tab:orange", "tab:blue", "tab:green", "tab:red", "tab:purple")


@checked
def draw(runs: Sequence[RunReport], path: str | os.PathLike[str]) -> None:
    """Draw the runs side by side: mean over chips, bands of one chip-to-chip standard deviation, digital baselines.

    One colour per network; solid with drift compensation, dashed without. A PNG holds :func:`drawn_sha256` of the runs
    as its description, so that a figure can be told from one of other records.

    Raises:
        AimcError: no run has an evaluation, or the path cannot be written.
    """
    load_matplotlib()
    from matplotlib.figure import Figure

    runs = [run for run in runs if run.groups]
    if not runs:
        raise AimcError("no run has an evaluation over time to draw", field="runs")
    figure = Figure(figsize=(6.5 * len(runs), 4.5), layout="constrained")
    for axes, run in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs):
        group = run.groups[0]
        variants = list(dict.fromkeys(e.name.split(",")[0] for e in group))
        for evaluation in group:
            result = evaluation.result
            scale = 100.0 if result.percent else 1.0
            times = np.maximum(np.array(result.times), 0.1)
            mean, spread = scale * result.mean, scale * np.nan_to_num(result.std)
            colour = _COLOURS[variants.index(evaluation.name.split(",")[0]) % len(_COLOURS)]
            axes.fill_between(times, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
            axes.plot(
                times, mean, "o-" if evaluation.compensated else "o--", color=colour, label=evaluation.name
            )
        first = group[0].result
        scale = 100.0 if first.percent else 1.0
        for (name, value), style in zip(run.digital.items(), ("-", ":", "-.")):
            axes.axhline(scale * value, color="black", linewidth=1, linestyle=style, label=name)
        axes.set_xscale("log")
        axes.set_xticks(np.maximum(np.array(first.times), 0.1), [readable(t) for t in first.times])
        axes.minorticks_off()
        axes.set_xlabel("time after programming")
        axes.set_ylabel(f"test {first.metric}{', %' if first.percent else ''}")
        if first.logarithmic:
            axes.set_yscale("log")
        axes.set_title(f"{run.path.name}: {first.chips} chips, band: 1 chip-to-chip std", fontsize="medium")
        axes.legend(fontsize="small")
    write_figure(figure, path, dpi=150, drawn=drawn_sha256(runs))


@checked
def drawn_sha256(runs: Sequence[RunReport]) -> str:
    """A hash of what :func:`draw` shows of some runs: names, times, means, spreads and digital values, to six digits.

    Example:
        >>> drawn_sha256([])[:8]
        '4f53cda1'
    """

    def written(values) -> list[str]:
        return [f"{v:.6g}" for v in values]  # machines add in other orders

    shown = [
        (
            run.path.name,
            [(name, *written([value])) for name, value in run.digital.items()],
            [(e.name, *(written(v) for v in (e.result.times, e.result.mean, e.result.std))) for e in run.groups[0]],
        )
        for run in runs
        if run.groups
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()
