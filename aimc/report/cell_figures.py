"""A pulsed cell at a glance: its response as a figure, its numbers as a table, or a fit to measured pulses."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from aimc.cells import PULSED_CELLS, CellFit, PulsedCell, fit_cell
from aimc.cells.fitting import LARGEST, SMALLEST
from aimc.cells.pulsed import BMAX, BMIN
from aimc.config import load_yaml
from aimc.errors import AimcError, suggest
from aimc.files import figure_path, load_matplotlib, write_figure
from aimc.random import Key, normal

DEVICES = 4096
"""Devices from which spreads are counted."""
_SHOWN = 12


def make_cell(name: str, settings: Sequence[str] = (), states: float | None = None) -> PulsedCell:
    """A cell by name, with fields set.

    Args:
        name: a key of :data:`aimc.cells.PULSED_CELLS`.
        settings: ``field=value`` each, the value as in YAML.
        states: nominal number of states, by changing the step (for a ladder, the levels).

    Raises:
        AimcError: an unknown name or field, with the nearest one; a value that does not fit.

    Example:
        >>> make_cell("SoftBounds", ["w_max=1.0", "w_min=-1"], states=4).dw_min
        0.5
    """
    if name not in PULSED_CELLS:
        raise AimcError(f"no pulsed cell is called {name!r}; {suggest(name, PULSED_CELLS)}", field="name")
    fields: dict[str, Any] = {}
    for setting in settings:
        field, equals, text = setting.partition("=")
        if not equals or not field.strip():
            raise AimcError(f"must be field=value, got {setting!r}", field="set")
        try:
            fields[field.strip()] = load_yaml(text)
        except AimcError as error:
            raise error.at(field=field.strip()) from None
    cell = PULSED_CELLS[name](**fields)
    if states is None:
        return cell
    follows = {"levels", "dw_min"} - ({"dw_min"} & set(fields))  # one that was given is refused
    plain = {n: getattr(cell, n) for n in cell.field_names() if n not in follows}
    return type(cell).with_states(states, **plain)


def summary(cell: PulsedCell, devices: int = DEVICES, key: Key = Key(0)) -> list[tuple[str, str]]:
    """Names and values of what the pulse trains and the algorithms depend on, counted from drawn devices.

    Example:
        >>> from aimc.cells import SoftBounds
        >>> dict(summary(SoftBounds.with_states(4, w_max=1.0, w_min=-1.0)))["states (nominal)"]
        '4'
    """
    p = _draw(cell, devices, key)
    point = cell.symmetry_point(p)
    known = point[~point.isnan()]
    moving = p[p[:, BMAX] > p[:, BMIN]]
    rows = [
        ("granularity", f"{cell.granularity:.4g}"),
        ("states (nominal)", f"{cell.states:.4g}"),
        ("upper bound", _spread(moving[:, BMAX])),
        ("lower bound", _spread(moving[:, BMIN])),
        ("step up at 0", _spread(_size(cell, moving, True))),
        ("step down at 0", _spread(_size(cell, moving, False))),
        ("symmetry point", _spread(known) if len(known) else "none"),
        ("devices without one", f"{100 * (1 - len(known) / len(point)):.2f} %"),
        ("corrupt devices", f"{100 * (1 - len(moving) / len(p)):.2f} %"),
    ]
    return rows


def draw_cell(cell: PulsedCell, path: str | os.PathLike[str], name: str = "", key: Key = Key(0)) -> None:
    """Draw a cell into a file: response to up and then down pulses, steps over the weight, spread of the devices.

    Args:
        cell: any pulsed cell.
        path: the file; without a suffix ``.png`` is added.
        name: title; the type's name where empty.
        key: of the devices and of the noise of the pulses.

    Raises:
        AimcError: the file cannot be written.
    """
    load_matplotlib()
    from matplotlib.figure import Figure

    pulses = int(min(max(2.5 * cell.states, 20), 2000))
    paths = response(cell, pulses, _SHOWN, key)
    quiet = cell.replace(
        **{n: 0.0 for n in cell.field_names() if n.endswith("_dtod") or n == "reference_std"}
    )
    quiet = quiet.replace(corrupt_probability=0.0)
    mean = response(quiet, pulses, 200, key).mean(1)
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    figure.suptitle(f"{name or type(cell).__name__}, {cell.states:.4g} states")
    axes = figure.subplots(2, 3)
    axes[0, 0].plot(paths, color="tab:gray", linewidth=0.7)
    axes[0, 0].plot(mean, color="tab:red", label="mean of the mean device")
    axes[0, 0].axvline(pulses, color="black", linewidth=0.7, linestyle=":")
    axes[0, 0].set(title=f"{pulses} pulses up, {pulses} down", xlabel="pulse", ylabel="weight")
    axes[0, 0].legend(fontsize="small")
    _draw_steps(axes[0, 1], cell, quiet, key)
    p = _draw(cell, DEVICES, key)
    moving = p[p[:, BMAX] > p[:, BMIN]]
    _histogram(axes[0, 2], {"up": _size(cell, moving, True), "down": _size(cell, moving, False)})
    axes[0, 2].set(title="steps at weight 0", xlabel="mean step")
    _histogram(axes[1, 0], {"upper": moving[:, BMAX], "lower": moving[:, BMIN]})
    axes[1, 0].set(title="bounds", xlabel="weight")
    _histogram(axes[1, 1], {"": cell.symmetry_point(p)})
    axes[1, 1].set(title="symmetry points", xlabel="weight")
    axes[1, 2].axis("off")
    text = "\n".join(f"{label:20s} {value}" for label, value in summary(cell, key=key))
    axes[1, 2].text(0, 0.95, text, family="monospace", fontsize="small", va="top")
    write_figure(figure, path, dpi=100)


def response(cell: PulsedCell, pulses: int, devices: int, key: Key = Key(0)) -> np.ndarray:
    """Weights of devices after each of ``pulses`` up and as many down pulses, from their lower bounds.

    What is read: with write noise. ``[2 * pulses + 1, devices]``.

    Example:
        >>> from aimc.cells import SoftBounds
        >>> response(SoftBounds(), 10, 3).shape
        (21, 3)
    """
    p = _draw(cell, devices, key)
    w = cell.snap(p[:, BMIN], p)
    noise = normal(key.at("pulse_noise"), (2 * pulses, devices))
    path = [w]
    for k in range(2 * pulses):
        path.append(cell.step(path[-1], p, torch.tensor(k < pulses), noise[k]))
    read = torch.stack(path)
    if cell.write_noise_std > 0:
        read[1:] += (
            cell.write_noise_std * cell.dw_min * normal(key.at("pulse_noise", step=1), tuple(noise.shape))
        )
    return read.numpy()


def read_pulses(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Values and directions ``[devices, pulses]`` from a CSV file: columns pulse, direction, value and maybe device.

    A direction is ``up``, ``1`` or ``+1``; or ``down``, ``-1`` or ``0``. Rows are put into the order of ``pulse``.

    Raises:
        AimcError: the file cannot be read, a column is missing, an entry is no number, or devices differ in length.
    """
    where = os.fspath(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise AimcError(f"cannot read {where}: {error}", field="fit") from None
    if not rows:
        raise AimcError(f"{where} has no rows", field="fit")
    columns = [name.strip() for name in reader.fieldnames or ()]
    for name in ("pulse", "direction", "value", "device"):
        if name not in columns and name != "device":
            raise AimcError(f"{where} has no column {name!r}, but {', '.join(columns)}", field="fit")
        if columns.count(name) > 1:
            raise AimcError(f"{where} has the column {name!r} twice", field="fit")
    devices: dict[str, dict[float, tuple[int, float]]] = {}
    for line, row in rows:
        beyond: Any = row.pop(None, [])  # type: ignore[call-overload]  (where csv puts what has no head)
        if any(text.strip() for text in beyond):
            raise AimcError(
                f"{where}, line {line}: has {len(columns) + len(beyond)} columns, the head has {len(columns)}; a "
                "decimal comma?",
                field="fit",
            )
        cells = {
            (name or "").strip(): (text or "").strip() if isinstance(text, str) else ""
            for name, text in row.items()
        }
        direction = _DIRECTIONS.get(cells["direction"].lower())
        if direction is None:
            raise AimcError(
                f"{where}, line {line}: {cells['direction']!r} is neither up nor down", field="direction"
            )
        pulse, value = (_measured(cells[name], name, f"{where}, line {line}") for name in ("pulse", "value"))
        pulses = devices.setdefault(cells.get("device", ""), {})
        if pulse in pulses:
            raise AimcError(
                f"{where}, line {line}: pulse {pulse:g} is there twice; give several devices a column 'device'",
                field="pulse",
            )
        pulses[pulse] = direction, value
    if len({len(pulses) for pulses in devices.values()}) > 1:
        raise AimcError(f"{where}: all devices need the same number of pulses", field="device")
    table = np.array([[pulses[pulse] for pulse in sorted(pulses)] for pulses in devices.values()])
    return table[:, :, 1], table[:, :, 0]


def _measured(text: str, name: str, where: str) -> float:
    """A number of a file of pulses."""
    try:
        number = float(text)
    except ValueError:
        raise AimcError(f"{where}: {text!r} is not a number", field=name) from None
    if not math.isfinite(number):
        raise AimcError(f"{where}: {text!r} is not a finite number", field=name)
    if name == "value" and number != 0 and not SMALLEST <= abs(number) <= LARGEST:
        raise AimcError(
            f"{where}: {text!r} is not between {SMALLEST:g} and {LARGEST:g}; give the values in another unit",
            field=name,
        )
    return number


_DIRECTIONS = {"up": 1, "1": 1, "+1": 1, "1.0": 1, "down": -1, "-1": -1, "0": -1, "-1.0": -1, "0.0": -1}


def command(asked: Any) -> int:
    """Run ``aimc cell``: print the numbers, write the figure, say where it is."""
    wanted = figure_path(asked.out) if asked.out is not None else None  # refused before the work
    if asked.fit is not None:
        if asked.set or asked.states is not None:
            raise AimcError("--fit finds the fields; it does not go with --set or --states", field="fit")
        found: CellFit = fit_cell(*read_pulses(asked.fit), kind=asked.name)
        print(found)
        print(f"in a run: {as_flag(found.cell)}")
        out = wanted or f"{found.kind}.png"
        found.plot(out)
    else:
        cell = make_cell(asked.name, asked.set, asked.states)
        for label, value in summary(cell):
            print(f"{label:20s} {value}")
        out = wanted or f"{asked.name}.png"
        draw_cell(cell, out, asked.name)
    print(f"written: {out}")
    return 0


def as_flag(cell: PulsedCell) -> str:
    """The cell as a flag of ``aimc run``, to the last digit.

    Example:
        >>> from aimc.cells import SoftBounds
        >>> as_flag(SoftBounds(dw_min=0.1))
        "--hardware.cell '{type: SoftBounds, dw_min: 0.1}'"
    """
    plain = type(cell)().to_dict()
    own = {"type": type(cell).__name__} | {k: v for k, v in cell.to_dict().items() if v != plain[k]}
    return f"--hardware.cell '{yaml.safe_dump(own, default_flow_style=True, sort_keys=False, width=math.inf).strip()}'"


def _draw(cell: PulsedCell, devices: int, key: Key) -> Tensor:
    """Parameters ``[devices, P]``."""
    p = cell.draw((devices, 1), key)
    return p.expand(devices, 1, p.shape[-1])[:, 0]


def _size(cell: PulsedCell, p: Tensor, up: bool) -> Tensor:
    """Mean step of each device at the weight that it can hold next to 0."""
    w = torch.minimum(torch.maximum(torch.zeros(len(p)), p[:, BMIN]), p[:, BMAX])
    return cell.mean_change(w, p, torch.tensor(up)).expand(w.shape)


def _spread(x: Tensor) -> str:
    if len(x) == 0:
        return "none"
    return f"{float(x.mean()):.4g} ± {float(x.std(correction=0)):.2g}"


def _draw_steps(axes: Any, cell: PulsedCell, quiet: PulsedCell, key: Key) -> None:
    for source, devices, width, alpha in ((cell, _SHOWN, 0.6, 0.5), (quiet, 1, 2.0, 1.0)):
        for p in _draw(source, devices, key):
            w = torch.linspace(float(p[BMIN]), float(p[BMAX]), 200)
            for up, colour, label in ((True, "tab:blue", "up"), (False, "tab:orange", "down")):
                size = source.mean_change(w, p, torch.tensor(up)).expand(w.shape)
                axes.plot(
                    w, size, color=colour, linewidth=width, alpha=alpha, label=label if devices == 1 else None
                )
    axes.set(title="mean step, mean device thick", xlabel="weight", ylabel="step", ylim=(0, None))
    axes.legend(fontsize="small")


def _histogram(axes: Any, samples: dict[str, Tensor]) -> None:
    kept = {label: x[x.isfinite()].numpy() for label, x in samples.items()}
    every = np.concatenate(list(kept.values()))
    if len(every) == 0:
        axes.text(0.5, 0.5, "none", ha="center", transform=axes.transAxes)
        return
    low, high = np.quantile(every, (0.001, 0.999))
    margin = max(high - low, 0.02 * max(abs(high), abs(low)), 1e-6) * 0.05
    for label, x in kept.items():
        axes.hist(x, bins=60, range=(low - margin, high + margin), alpha=0.6, label=label or None)
    axes.set_ylabel(f"of {DEVICES} devices")
    if all(kept):  # labels
        axes.legend(fontsize="small")
