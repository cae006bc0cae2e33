"""A comparison of algorithms as a table and a figure, from the entries of its ``comparison.json``."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from aimc.arguments import checked
from aimc.errors import AimcError
from aimc.files import NUMBER, load_matplotlib, misfit, read_json, write_figure
from aimc.report.tables import Table, circumstances

Entry = dict[str, Any]
Group = tuple[str, float | None, int | None]
"""Algorithm, states, tiles."""

_ENTRY = {
    "algorithm": str, "states": (int, float, type(None)), "tiles": (int, type(None)), "seed": int, "dataset": str,
    "epochs": int, "batch_size": int, "lr": NUMBER, "validation": NUMBER, "test": NUMBER, "seconds": NUMBER,
    "io?": (str, type(None)), "curve": {"test": [NUMBER], "pulses?": [NUMBER]},
}  # fmt: skip
_BUDGET = {"pulses": NUMBER, "reads": NUMBER, "products": NUMBER, "kept": int, "passing": int}


@checked
def load_comparison(folder: str | os.PathLike[str]) -> list[Entry]:
    """The finished runs of a comparison.

    Raises:
        AimcError: the directory holds no comparison, a damaged one, or none of its runs is finished.
    """
    place = pathlib.Path(folder) / "comparison.json"
    content = read_json(place)
    wrong = misfit(content, {"runs": [_ENTRY]})
    if wrong is None:  # a baseline has none, and nor have older comparisons
        used = [entry["budget"] for entry in content["runs"] if entry.get("budget") is not None]
        wrong = misfit({"budgets": used}, {"budgets": [_BUDGET]})
    if wrong:
        raise AimcError(
            f"{place} is damaged: {wrong}; delete it, and aimc compare makes it again", field="run"
        )
    found = content["runs"]
    if not found:
        raise AimcError(f"{os.fspath(folder)} has no finished run", field="run")
    return found


def groups(entries: Sequence[Entry]) -> dict[Group, list[Entry]]:
    """Entries that differ by their seed alone, the digital baseline first, then by states, algorithm and tiles."""
    found: dict[Group, list[Entry]] = {}
    for e in sorted(entries, key=lambda e: (e["states"] or 0, e["algorithm"], e["tiles"] or 0, e["seed"])):
        found.setdefault((e["algorithm"], e["states"], e["tiles"]), []).append(e)
    return found


@checked
def provenance(entries: Sequence[Entry]) -> list[str]:
    """Seeds, versions, machine, and checksums of code and data: a line for all runs that have them in common.

    Example:
        >>> provenance([{"seed": 1}, {"seed": 0}])
        ['seeds 0, 1: made by an aimc that kept no account of versions and data']
    """
    found: dict[str, set[int]] = {}
    for e in entries:
        known = e.get("environment")
        said = circumstances(known) if known else "made by an aimc that kept no account of versions and data"
        found.setdefault(said, set()).add(e["seed"])
    return [
        f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, sorted(seeds)))}: {said}"
        for said, seeds in found.items()
    ]


def _mean(values: Sequence[float]) -> str:
    text = f"{100 * np.mean(values):.2f}"
    return f"{text} ± {100 * np.std(values, ddof=1):.2f}" if len(values) > 1 else text


@checked
def comparison_table(entries: Sequence[Entry]) -> Table:
    """Mean and spread over the seeds of the accuracy after the last epoch, and what a run used, where it is known.

    Example:
        >>> one = {"algorithm": "mp", "states": 4.0, "tiles": 1, "seed": 0, "validation": 0.5, "test": 0.5,
        ...        "epochs": 2, "seconds": 3.0, "lr": 0.1, "dataset": "mnist", "batch_size": 8}
        >>> comparison_table([one, one | {"seed": 1, "test": 0.6}]).rows
        (('mp', '4', '1', '0.1', '2', '50.00 ± 0.00', '55.00 ± 7.07', '3 s'),)
    """
    if not entries:
        raise AimcError("there is no finished run to show", field="entries")
    head = ("algorithm", "states", "tiles", "lr", "seeds", "validation, %", "test, %", "time a run")
    used = any(e.get("budget") is not None for e in entries)
    if used:
        head += (
            "pulses a sample",
            "column reads",
            "digital products",
            "digital numbers",
            "and within a step",
        )
    rows = tuple(
        (
            algorithm, "-" if states is None else f"{states:g}", "-" if tiles is None else str(tiles),
            "/".join(dict.fromkeys(f"{e['lr']:g}" for e in held)), str(len(held)),
            *(_mean([e[key] for e in held]) for key in ("validation", "test")),
            f"{np.mean([e['seconds'] for e in held]):.0f} s",
            *(_used(held) if used else ()),
        )
        for (algorithm, states, tiles), held in groups(entries).items()
    )  # fmt: skip
    first = entries[0]
    where = "".join(f", {io} converters" for io in dict.fromkeys(e.get("io") for e in entries) if io)
    title = (
        f"{first['dataset']}, {first['epochs']} epochs, batches of {first['batch_size']}{where}: accuracy after the "
        "last epoch, mean ± standard deviation over the seeds"
    )
    return Table(title, head, rows)


def _used(held: Sequence[Entry]) -> tuple[str, ...]:
    """Pulses, column reads and digital multiplications a sample, and digital numbers, as means over the seeds."""
    found = [e["budget"] for e in held if e.get("budget") is not None]
    if not found:
        return ("-",) * len(_BUDGET)
    return tuple(f"{np.mean([b[name] for b in found]):.4g}" for name in _BUDGET)


@checked
def draw_comparison(entries: Sequence[Entry], path: str | os.PathLike[str]) -> None:
    """Draw the test accuracy over the epochs, over the pulses that were sent, and over states and tiles where there are
    several; bands and bars are one standard deviation over the seeds. A PNG holds :func:`compared_sha256` of the runs.

    Raises:
        AimcError: nothing to draw, or the path cannot be written.
    """
    load_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    if not entries:
        raise AimcError("there is no finished run to draw", field="entries")
    found = groups(entries)
    digital = [held for (_, states, _), held in found.items() if states is None]
    analog = {group: held for group, held in found.items() if group[1] is not None}
    several_states = sorted({states for _, states, _ in analog if states is not None})
    open_counts = {a for a, _, _ in analog if len({t for b, _, t in analog if b == a}) > 1}
    counted = {g: held for g, held in analog.items() if all("pulses" in e["curve"] for e in held)}
    panels = max(len(several_states), 1) + bool(counted) + (len(several_states) > 1) + bool(open_counts)
    figure = Figure(figsize=(5.2 * panels, 4.8), layout="constrained")
    axes = list(figure.subplots(1, panels, squeeze=False)[0])
    for states in several_states or [None]:
        panel = axes.pop(0)
        for held in digital:
            _curve(panel, held, "digital", color="black")
        for (algorithm, s, tiles), held in analog.items():
            if s == states:
                _curve(panel, held, f"{algorithm}, {tiles} tiles" if algorithm in open_counts else algorithm)
        panel.set(title="" if states is None else f"{states:g} states", xlabel="epoch")
    if counted:
        panel = axes.pop(0)
        for (algorithm, states, tiles), held in counted.items():
            parts = [algorithm, f"{tiles} tiles" * (algorithm in open_counts)]
            parts += [f"{states:g} states"] * (len(several_states) > 1)
            sent, tests = _epochs(held, "pulses", "test")
            panel.plot(sent.mean(0), 100 * tests.mean(0), "o-", ms=3, label=", ".join(filter(None, parts)))
        panel.set(title="at equal pulses", xlabel="pulses of all cells so far")
        if any(max(line.get_xdata(), default=0) > 0 for line in panel.lines):
            panel.set_xscale("log")
    if len(several_states) > 1:
        lines: dict[str, list[tuple[float, list[Entry]]]] = {}
        for (algorithm, s, tiles), held in analog.items():
            label = f"{algorithm}, {tiles} tiles" if algorithm in open_counts else algorithm
            lines.setdefault(label, []).append((s or 0.0, held))
        _points(axes.pop(0), lines, digital, "states")
    if open_counts:
        lines = {}
        for (algorithm, s, tiles), held in analog.items():
            if algorithm in open_counts:
                lines.setdefault(f"{algorithm}, {s:g} states", []).append((tiles or 0, held))
        _points(axes.pop(0), lines, digital, "tiles")
    for panel in figure.axes:
        if panel.get_xscale() == "linear":  # epochs or tiles
            panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.set_ylabel("test accuracy, %")
        if panel.lines:  # below it, where no curve is
            panel.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    figure.suptitle(
        f"{entries[0]['dataset']}: last epoch and way there, band: 1 std over seeds", fontsize="medium"
    )
    write_figure(figure, path, dpi=130, drawn=compared_sha256(entries))


@checked
def compared_sha256(entries: Sequence[Entry]) -> str:
    """A hash of what :func:`draw_comparison` shows of some runs, and writes into a PNG: names, curves and accuracies.

    Example:
        >>> compared_sha256([])[:8]
        '44136fa3'
    """
    shown = {
        str(group): [(e["dataset"], e["seed"], e["test"], e["curve"]["test"], e["curve"].get("pulses")) for e in held]
        for group, held in groups(entries).items()
    }  # fmt: skip
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def _epochs(held: list[Entry], *names: str) -> np.ndarray:
    """Curves ``[names, runs, epochs]``, of runs of different length only what all of them have."""
    length = min(len(e["curve"][name]) for e in held for name in names)
    return np.array([[e["curve"][name][:length] for e in held] for name in names], float)


def _curve(panel, held: list[Entry], label: str, **style) -> None:
    (values,) = 100 * _epochs(held, "test")
    epochs = np.arange(1, values.shape[1] + 1)
    (line,) = panel.plot(epochs, values.mean(0), "o-", ms=3, label=label, **style)
    if len(held) > 1:
        spread = values.std(0, ddof=1)
        panel.fill_between(
            epochs,
            values.mean(0) - spread,
            values.mean(0) + spread,
            color=line.get_color(),
            alpha=0.2,
            linewidth=0,
        )


def _points(
    panel, lines: dict[str, list[tuple[float, list[Entry]]]], digital: list[list[Entry]], name: str
) -> None:
    for held in digital:
        panel.axhline(
            100 * np.mean([e["test"] for e in held]), color="black", linestyle="--", label="digital"
        )
    for label, points in lines.items():
        points = sorted(points, key=lambda point: point[0])
        tests = [100 * np.array([e["test"] for e in held]) for _, held in points]
        spread = [t.std(ddof=1) if len(t) > 1 else 0.0 for t in tests]
        panel.errorbar(
            [x for x, _ in points], [t.mean() for t in tests], spread, fmt="o-", capsize=3, label=label
        )
    panel.set(title=f"over the {name}", xlabel=name)
    if name == "states":
        panel.set_xscale("log")
        ticks = sorted({x for points in lines.values() for x, _ in points})
        panel.set_xticks(ticks, [f"{x:g}" for x in ticks])
        panel.minorticks_off()
