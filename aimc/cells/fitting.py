"""Pulsed cells from measured potentiation and depression curves."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.special import ndtr

from aimc import config
from aimc.arguments import checked
from aimc.cells.constant_step import ConstantStep
from aimc.cells.exp_step import ExpStep
from aimc.cells.linear_step import LinearStep
from aimc.cells.piecewise_step import PiecewiseStep
from aimc.cells.pow_step import PowStep
from aimc.cells.pulsed import PulsedCell
from aimc.cells.soft_bounds import SoftBounds
from aimc.errors import AimcError, suggest, warn
from aimc.files import load_matplotlib, write_figure
from aimc.random import Key

NODES = 9
"""Points of each curve of a fitted :class:`PiecewiseStep`."""
SMALLEST, LARGEST = 1e-30, 1e30
"""Measured values that can be fitted: their squares are numbers, too."""
_LEAST = 6  # steps in each direction
_NEIGHBOURS = 7  # steps from which the size of one is estimated, at least
_PARTS = (0.0, *np.geomspace(1e-4, 100, 25))  # constant part of the noise, relative to that of a typical step
_CLOSE = 4.0  # AIC: types nearer to the lowest than this are about as good
_KEY = Key(0)  # of devices without spread
_POW = ("up", "gamma_up", "down", "gamma_down", "bmax", "bmin")
_TYPES: dict[str, type[PulsedCell]] = {
    t.__name__: t for t in (ConstantStep, SoftBounds, LinearStep, PowStep, ExpStep, PiecewiseStep)
}

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class _Steps:
    """The steps of one device: weight before, signed step, direction, the extremes it was seen at, and the noise.

    A step has the variance ``additive**2 + (relative * its size)**2``. ``noise`` is its root, for sizes from a curve
    that takes no side for a type of cell, so that every type is measured with the same rod; its geometric mean is 1, so
    that the logarithms of the variances in the likelihood sum to the same for every type. ``free`` are the steps that
    did not end at an extreme.
    """

    w: Array
    step: Array
    up: Array
    low: float
    high: float
    noise: Array
    free: Array
    additive: float = 0.0
    relative: float = 0.0
    constant: bool = False  # the noise, for its larger part

    @property
    def room(self) -> Array:
        """How far a step can go before it is stopped by an extreme."""
        return np.where(self.up, self.high - self.w, self.w - self.low)

    def line(self, up: bool) -> tuple[float, float]:
        """Step at weight 0 and slope of a straight line through the steps that do not end at a bound."""
        inside = (self.up == up) & (self.w + self.step < self.high) & (self.w + self.step > self.low)
        chosen = inside if inside.sum() >= _LEAST else self.up == up
        w, size = self.w[chosen], self.step[chosen] * (1 if up else -1)
        slope, start = np.polyfit(w, size, 1) if np.ptp(w) > 0 else (0.0, size.mean())
        return max(float(start), 1e-6 * (self.high - self.low)), float(slope)


@dataclasses.dataclass(frozen=True)
class _Kind:
    """How one type of cell is fitted: starting points, size of a step, fields, and whether it stops at the extremes."""

    starts: Callable[[_Steps], list[list[float]]]
    size: Callable[[Array, _Steps], Array]
    device: Callable[[Array, _Steps], dict[str, Any]]
    limits: Callable[[_Steps], tuple[Any, Any]]
    stops: bool = True


@dataclasses.dataclass(frozen=True, eq=False)
class CellFit:
    """What :func:`fit_cell` found.

    Attributes:
        cell: the cell, in weights.
        kind: its type.
        scale, offset: the measured value is ``offset + scale * weight``, in the units of the measurement.
        r2: share of the variance of the steps that the mean response explains (1 is all; noise of the pulses is not
            explained).
        curve_r2: the same for the curve of values, followed without noise from the first value.
        rmse: root mean square of what is left of a step, in weights.
        aic: Akaike's criterion, corrected for few steps; of two types the one with the lower value is the better bet.
        devices, steps: how much was measured.
        candidates: every type that was tried and its aic, best first.
    """

    cell: PulsedCell
    kind: str
    scale: float
    offset: float
    r2: float
    curve_r2: float
    rmse: float
    aic: float
    devices: int
    steps: int
    candidates: tuple[tuple[str, float], ...]
    values: Array = dataclasses.field(repr=False)
    up: Array = dataclasses.field(repr=False)

    def __str__(self) -> str:
        lines = [
            f"{self.kind} fitted to {self.steps} steps of {self.devices} device{'s' * (self.devices > 1)}",
            f"  R2 {self.r2:.4f} of the steps, {self.curve_r2:.4f} of the curve; {self.rmse:.3g} rms per step",
            f"  value = {self.offset:.6g} + {self.scale:.6g} * weight",
        ]
        default = type(self.cell)()
        for name in self.cell.field_names():
            value = getattr(self.cell, name)
            if value != getattr(default, name) and (self.devices > 1 or not name.endswith("_dtod")):
                text = ", ".join(f"{v:.4g}" for v in value) if isinstance(value, tuple) else f"{value:.5g}"
                text = str(value).lower() if isinstance(value, bool) else text
                lines.append(f"  {name} {text}")
        if len(self.candidates) > 1:
            lines.append("  AIC: " + ", ".join(f"{name} {aic:.1f}" for name, aic in self.candidates))
        return "\n".join(lines)

    def curve(self) -> Array:
        """Values of the mean device without noise, from each first measured value on ``[devices, pulses]``."""
        quiet = self.cell.replace(**{n: 0.0 for n in self.cell.field_names() if n.endswith("_dtod")})
        parameters = quiet.draw((1, 1), _KEY)[0, 0]
        w = torch.tensor((self.values[:, 0] - self.offset) / self.scale, dtype=torch.float32)
        path = [w]
        for up in torch.tensor(self.up[:, 1:].T):
            w = quiet.step(w, parameters, up, torch.zeros_like(w))
            path.append(w)
        return self.offset + self.scale * torch.stack(path, 1).double().numpy()

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draw measured and fitted curve, and the steps over the weight, into a file (PNG where it has no suffix)."""
        load_matplotlib()
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 4), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(self.values.T, linewidth=0.8, color="tab:gray", alpha=0.7)
        left.plot(self.curve().mean(0), color="tab:red", label=f"{self.kind}, without noise")
        left.set(xlabel="pulse", ylabel="measured value", title="response")
        left.legend()
        w, step = (self.values - self.offset) / self.scale, np.diff(self.values) / self.scale
        grid = np.linspace(w.min(), w.max(), 200)
        for up, colour, label in ((True, "tab:blue", "up"), (False, "tab:orange", "down")):
            chosen = self.up[:, 1:] == up
            left_of = w[:, :-1][chosen]
            right.plot(left_of, np.abs(step[chosen]), ".", markersize=2, alpha=0.4, color=colour)
            quiet = self.cell.replace(**{n: 0.0 for n in self.cell.field_names() if n.endswith("_dtod")})
            at = torch.tensor(grid)
            size = quiet.mean_change(at, quiet.draw((1, 1), _KEY)[0, 0].double(), torch.tensor(up))
            right.plot(grid, size.expand(at.shape), color=colour, label=label)
        right.set(xlabel="weight", ylabel="step", title="steps")
        right.legend()
        write_figure(figure, path, dpi=120)


@checked
def fit_cell(values: Any, directions: Any, kind: str = "best", nodes: int = NODES) -> CellFit:
    """Estimate a pulsed cell from the value after each pulse, by least squares on the steps.

    The values are mapped to weights so that the mean device spans -1 to 1. The noise of a pulse is what the mean
    response leaves over, so that noise of the measurement counts as noise of the pulse. With several devices each is
    fitted for itself; their means and spreads become the fields and their ``_dtod``.

    Args:
        values: value after each pulse ``[pulses]``, or ``[devices, pulses]``; any unit, such as uS.
        directions: direction of each pulse, same shape or ``[pulses]``: True or 1 is up, False, 0 or -1 is down. That
            of the first is not used.
        kind: ``SoftBounds``, ``LinearStep``, ``ExpStep``, ``PowStep``, ``PiecewiseStep``, ``ConstantStep``, or ``best``
            for the simplest of those whose AIC is within 4 of the lowest.
        nodes: points of each curve of a ``PiecewiseStep``.

    Raises:
        AimcError: naming the argument that is too short, not finite, constant, or of the wrong shape or kind; pulses
            that move the value the other way, as in a curve of resistance.

    Warns:
        Where the mean response explains nothing of the steps.

    Example:
        >>> up = np.arange(200) % 100 < 50
        >>> w = [0.0]
        >>> for u in up[1:]:
        ...     w.append(w[-1] + (0.1 * (1 - w[-1]) if u else -0.1 * (1 + w[-1])))
        >>> found = fit_cell(w, up)
        >>> found.kind, round(found.cell.w_max * found.scale + found.offset, 4), round(found.r2, 4)
        ('SoftBounds', 1.0, 1.0)
    """
    values, up = _checked(values, directions)
    if kind != "best" and kind not in KINDS:
        raise AimcError(
            f"no cell that can be fitted is called {kind!r}; {suggest(kind, [*KINDS, 'best'])}", field="kind"
        )
    if nodes < 2:
        raise AimcError(f"must be at least 2, got {nodes}", field="nodes")
    _check_ways(values, up)
    kinds = {**KINDS, "PiecewiseStep": _piecewise(nodes)}
    low, high = float(values.min(1).mean()), float(values.max(1).mean())
    scale, offset = (high - low) / 2, (high + low) / 2
    devices = []
    for row, directed in zip((values - offset) / scale, up):
        devices.append(_with_noise(_steps(row, directed)))
    found: dict[str, tuple[PulsedCell, float, float]] = {}
    unsuitable = []
    for name in KINDS if kind == "best" else (kind,):
        try:
            solutions, rss, aic = _fit(kinds[name], devices)
            found[name] = _cell(name, kinds[name], solutions, devices), rss, aic
        except (_Unsuitable, AimcError) as reason:  # AimcError: a cell refuses the fields
            unsuitable.append(f"the steps do not fit a {name}: {reason}")
    if not found:
        raise AimcError("; ".join(unsuitable), field="values")
    lowest = min(aic for _, _, aic in found.values())
    best = next(name for name in KINDS if name in found and found[name][2] <= lowest + _CLOSE)
    cell, rss, aic = found[best]
    steps = values.size - len(devices)
    every = np.concatenate([d.step for d in devices])
    ranking = sorted(((name, aic) for name, (_, _, aic) in found.items()), key=lambda pair: pair[1])
    fit = CellFit(
        cell=cell, kind=best, scale=scale, offset=offset, r2=1 - rss / float(((every - every.mean()) ** 2).sum()),
        curve_r2=0.0, rmse=float(np.sqrt(rss / steps)), aic=aic, devices=len(devices), steps=steps,
        candidates=tuple(ranking), values=values, up=up,
    )  # fmt: skip
    if fit.r2 <= 0:
        warn(
            f"the mean response of the {best} explains nothing of the steps (R2 {fit.r2:.2g}): the noise is larger "
            "than what the pulses do, or directions and values do not belong together; try another kind"
        )
    left = float(((values - fit.curve()) ** 2).sum() / ((values - values.mean()) ** 2).sum())
    return dataclasses.replace(fit, curve_r2=1 - left)


def _checked(values: Any, directions: Any) -> tuple[Array, Array]:
    try:
        values = np.atleast_2d(np.asarray(values, dtype=np.float64))
    except (TypeError, ValueError):
        raise AimcError("must be numbers, in rows of equal length", field="values") from None
    if values.ndim != 2:
        raise AimcError("must be [pulses] or [devices, pulses]", field="values", shape=values.shape)
    given = np.asarray(directions)
    if given.dtype.kind not in "biuf" or not np.isin(given, (-1, 0, 1)).all():
        raise AimcError("must be 1 or True for up and -1, 0 or False for down", field="directions")
    if given.ndim not in (1, 2) or given.shape not in (values.shape, values.shape[1:]):
        raise AimcError(
            f"must have one direction for each of the {values.shape[1]} values",
            field="directions",
            shape=given.shape,
        )
    up = np.broadcast_to(given > 0, values.shape)
    if not np.isfinite(values).all():
        raise AimcError("holds NaN or infinite values", field="values", shape=values.shape)
    if np.abs(values).max(initial=0.0) > LARGEST:
        raise AimcError(f"are beyond {LARGEST:g}; give them in another unit", field="values")
    counts = np.stack([up[:, 1:].sum(1), (~up[:, 1:]).sum(1)])
    if counts.min(initial=_LEAST) < _LEAST or values.shape[1] < 2 * _LEAST + 1:
        raise AimcError(
            f"is too short: after the first value it needs at least {_LEAST} up and {_LEAST} down pulses",
            field="values",
        )
    if (np.ptp(values, axis=1) <= 1e-12 * np.abs(values).max()).any():
        raise AimcError("is constant: the pulses did not change anything", field="values")
    if (np.ptp(values, axis=1) < SMALLEST).any():
        raise AimcError(f"changes by less than {SMALLEST:g}; give them in another unit", field="values")
    return values, up


def _check_ways(values: Array, up: Array) -> None:
    """Refuse devices that their pulses move the other way."""
    wrong = {"both": [], "up": [], "down": []}
    for device, (row, directed) in enumerate(zip(values, up[:, 1:])):
        step = np.diff(row) / np.ptp(row)
        ways = step[directed], -step[~directed]
        # That one direction does next to nothing is a device; that it goes back is more than what noise does.
        back = [way.mean() < -3 * way.std(ddof=1) / np.sqrt(len(way)) for way in ways]
        if max(way.mean() for way in ways) < 0:
            wrong["both"].append(device)
        elif any(back):
            wrong["up" if back[0] else "down"].append(device)
    for which, devices in wrong.items():
        if not devices:
            continue
        where = (
            ""
            if len(values) == 1
            else f" in {len(devices)} of {len(values)} devices, the first being {devices[0]}"
        )
        if which == "both":
            raise AimcError(
                f"go the wrong way{where}: up pulses lower the value and down pulses raise it; of a resistance give "
                "the inverse (the conductance), or swap the directions",
                field="values",
            )
        moves = ("lower", "up") if which == "up" else ("raise", "down")
        raise AimcError(
            f"go one way only{where}: {moves[1]} pulses {moves[0]} the value, too; check which pulses are up and which "
            "are down, and that nothing drifts between them",
            field="values",
        )


class _Unsuitable(Exception):
    """This type cannot describe the steps."""


def _steps(row: Array, directed: Array) -> _Steps:
    """Those of one device, with noise that is not known yet."""
    after, up, low, high = row[1:], directed[1:], float(row.min()), float(row.max())
    free = np.where(up, after < high, after > low)
    free = free if free.sum() >= _LEAST else np.ones_like(free)
    return _Steps(row[:-1], np.diff(row), up, low, high, np.ones(len(after)), free)


def _fit(kind: _Kind, devices: list[_Steps]) -> tuple[list[Array], float, float]:
    """Solutions per device, residual sum of squares, AIC (of the steps in units of their noise)."""
    from scipy.optimize import least_squares

    solutions, rss, weighted, count = [], 0.0, 0.0, 0
    for d in devices:
        best = None
        lower, upper = (np.asarray(bound, dtype=float) for bound in kind.limits(d))
        for start in kind.starts(d):
            start = np.clip(start, lower + 1e-9, upper - 1e-9)
            found = least_squares(
                _residuals, start, args=(kind, d), bounds=(lower, upper), x_scale="jac", max_nfev=60
            )  # fmt: skip
            if best is None or found.cost < best.cost:
                best = found
        assert best is not None
        kind.device(best.x, d)  # raises where the solution is no such cell
        solutions.append(best.x)
        rss += float(((_predicted(kind, best.x, d) - d.step) ** 2).sum())
        weighted += 2 * float(best.cost)
        count += len(best.x) + 2 * kind.stops
    # Steps that end at a bound are 0 or cut short: counted, they make any parameters look cheap.
    n = sum(int(d.free.sum()) for d in devices)
    floor = n * np.finfo(np.float32).eps ** 2  # a perfect fit is perfect in float32
    penalty = 2 * (count + 1) * n / max(n - count - 2, 1)  # Hurvich and Tsai's, for few steps
    return solutions, rss, n * float(np.log(max(weighted, floor) / n)) + penalty


def _residuals(theta: Array, kind: _Kind, d: _Steps) -> Array:
    """What the fit makes small: what is left of the steps, in units of their noise."""
    return (_predicted(kind, theta, d) - d.step) / d.noise


def _predicted(kind: _Kind, theta: Array, d: _Steps) -> Array:
    size = kind.size(theta, d)
    if kind.stops:
        # The mean of a normal step that is stopped where there is no more room.
        std = np.maximum(np.hypot(d.additive, d.relative * size), 1e-9)
        beyond = (size - d.room) / std
        size = size - std * (beyond * ndtr(beyond) + np.exp(-0.5 * beyond**2) / np.sqrt(2 * np.pi))
    return np.where(d.up, size, -size)


def _cell(name: str, kind: _Kind, solutions: list[Array], devices: list[_Steps]) -> PulsedCell:
    """Means, spreads and noise of the devices as fields."""
    rows = [kind.device(theta, d) for theta, d in zip(solutions, devices)]
    each = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    mean = {key: value.mean(0) for key, value in each.items()}
    spread = {
        key: value.std(0, ddof=1) if len(rows) > 1 else 0.0 * abs(value[0]) for key, value in each.items()
    }
    size, up_down = _biased(mean["up"], mean["down"])
    deviation = [np.std(x, ddof=1) / size if len(rows) > 1 else 0.0
                 for x in ((each["up"] + each["down"]) / 2, (each["up"] - each["down"]) / 2)]  # fmt: skip
    fields: dict[str, Any] = dict(
        dw_min=size, up_down=up_down, dw_min_dtod=deviation[0], up_down_dtod=deviation[1],
        w_max=mean["bmax"], w_min=mean["bmin"], w_max_dtod=spread["bmax"] / abs(mean["bmax"]),
        w_min_dtod=spread["bmin"] / abs(mean["bmin"]),
    )  # fmt: skip
    if name == "LinearStep":
        gammas = each["gamma_up"], each["gamma_down"]
        fields["allow_increasing"] = bool(min(g.mean() for g in gammas) < 0)
        for key in ("gamma_up", "gamma_down"):
            fields[key], fields[f"{key}_dtod"] = mean[key], spread[key]
    elif name == "PowStep":
        gamma, fields["pow_up_down"] = _biased(mean["gamma_up"], mean["gamma_down"])
        fields["pow_gamma"] = gamma
        for key, sign in (("pow_gamma_dtod", 1), ("pow_up_down_dtod", -1)):
            both = (each["gamma_up"] + sign * each["gamma_down"]) / 2
            fields[key] = np.std(both, ddof=1) / max(gamma, 1e-9) if len(rows) > 1 else 0.0
    elif name == "ExpStep":
        fields |= {key: np.median(each[key]) for key in ("A_up", "A_down", "gamma_up", "gamma_down")}
        fields |= {"a": 1.0, "b": 0.0}
    elif name == "PiecewiseStep":
        fields |= {key: tuple(float(v) for v in mean[key]) for key in ("piecewise_up", "piecewise_down")}
    noise, additive = _noise(kind, solutions, devices, rows)
    fields["dw_min_std"] = noise
    if name in ("LinearStep", "SoftBounds"):
        fields["mult_noise"] = not additive
        if additive:
            fields["dw_min_std"] = additive
    plain: dict[str, Any] = {
        k: float(v) if isinstance(v, (float, np.floating, np.ndarray)) else v for k, v in fields.items()
    }
    # What rounding leaves of a spread that there is none of is no number of a configuration.
    tiny = {k: 0.0 for k, v in plain.items() if isinstance(v, float) and abs(v) < config.SMALLEST}
    return _TYPES[name](**{**plain, **tiny})


def _noise(
    kind: _Kind, solutions: list[Array], devices: list[_Steps], rows: list[dict[str, Any]]
) -> tuple[float, float]:
    """Noise relative to the step, and relative to the step at weight 0 where that is the likelier law, else 0."""
    left, size, base = [], [], []
    for theta, d, row in zip(solutions, devices, rows):
        step = kind.size(theta, d)
        # A step that may have been cut short says little about the noise.
        free = step < (0.5 * d.room if kind.stops else np.inf)
        free = free if free.sum() >= _LEAST else np.full_like(free, True)
        left.append((_predicted(kind, theta, d) - d.step)[free])
        size.append(step[free])
        base.append(np.where(d.up, row["up"], row["down"])[free])
    r, s, b = (np.concatenate(parts) for parts in (left, size, base))
    relative = float(np.sqrt((r**2).sum() / max((s**2).sum(), 1e-30)))
    additive = float(np.sqrt((r**2 / b**2).mean()))
    return relative, additive if sum(d.constant for d in devices) > len(
        devices
    ) / 2 and relative > 1e-6 else 0.0


def _biased(up: float, down: float) -> tuple[float, float]:
    """The larger of the two and the ``up_down`` that makes the other."""
    if up >= down:
        return up, 1 - down / up if up > 0 else 0.0
    return down, up / down - 1


def _signed(d: _Steps) -> Array:
    """The weight as seen by the pulse: increasing towards the bound it moves to."""
    return np.where(d.up, d.w, -d.w)


def _extremes(d: _Steps) -> dict[str, float]:
    return {"bmax": d.high, "bmin": d.low}


def _line_starts(d: _Steps) -> list[list[float]]:
    return [[*d.line(True), *d.line(False)]]


def _line(theta: Array, d: _Steps) -> Array:
    return np.maximum(np.where(d.up, theta[0] + theta[1] * d.w, theta[2] + theta[3] * d.w), 0.0)


def _line_limits(d: _Steps) -> tuple[Any, Any]:
    return [1e-9, -np.inf] * 2, [np.inf] * 4


def _linear_device(theta: Array, d: _Steps) -> dict[str, Any]:
    up, slope_up, down, slope_down = theta
    return {"up": up, "down": down, **_extremes(d), "gamma_up": -slope_up * d.high / up,
            "gamma_down": -slope_down * d.low / down}  # fmt: skip


def _soft_device(theta: Array, d: _Steps) -> dict[str, Any]:
    up, slope_up, down, slope_down = theta
    if slope_up >= 0 or slope_down <= 0:
        raise _Unsuitable("they do not shrink towards the bounds")
    bmax, bmin = -up / slope_up, -down / slope_down
    if max(bmax / d.high, bmin / d.low) > 100:
        raise _Unsuitable("they hardly shrink towards the bounds")
    return {"up": up, "down": down, "bmax": bmax, "bmin": bmin}


def _exp_size(theta: Array, d: _Steps) -> Array:
    z = _signed(d) * 2 / (d.high - d.low)
    size, a, gamma = (np.where(d.up, theta[k], theta[k + 3]) for k in range(3))
    return size * np.maximum(1 - a * np.exp(gamma * z), 0.0)


def _exp_starts(d: _Steps) -> list[list[float]]:
    up, down = d.line(True)[0], d.line(False)[0]
    starts = [[up, 0.9 * np.exp(-g), g, down, 0.9 * np.exp(-g), g] for g in (1.0, 3.0, 8.0)]
    # Steps that shrink fast and then stay: the exponential is the step itself, 1 - A exp(-g z) with A < 0.
    return starts + [[up / 10, -10.0, -2.0, down / 10, -10.0, -2.0]]


def _exp_device(theta: Array, d: _Steps) -> dict[str, Any]:
    names = ("up", "A_up", "gamma_up", "down", "A_down", "gamma_down")
    found = dict(zip(names, map(float, theta)))
    # At weight 0 of the cell the step must exist, else the pulse trains have no scale.
    if min(1 - found["A_up"], 1 - found["A_down"]) <= 0:
        raise _Unsuitable("no step is left in the middle of the range")
    return {**found, **_extremes(d)}


def _pow_size(theta: Array, d: _Steps) -> Array:
    up, gamma_up, down, gamma_down, bmax, bmin = theta
    r = np.where(d.up, bmax - d.w, d.w - bmin) / (bmax - bmin)
    return np.where(d.up, up, down) * np.maximum(r, 1e-12) ** np.where(d.up, gamma_up, gamma_down)


def _pow_starts(d: _Steps) -> list[list[float]]:
    starts = []
    for gamma in (0.5, 1.0, 2.0):
        for reach in (0.05,):
            room = reach * (d.high - d.low)
            factor = 2**gamma
            starts.append(
                [
                    d.line(True)[0] * factor,
                    gamma,
                    d.line(False)[0] * factor,
                    gamma,
                    d.high + room,
                    d.low - room,
                ]
            )
    return starts


def _hats(d: _Steps, nodes: int) -> Array:
    """Weights of the nodes for every step ``[steps, nodes]``."""
    at = (d.w - d.low) / (d.high - d.low) * (nodes - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(nodes)), 0.0)


def _node_starts(d: _Steps, nodes: int) -> list[list[float]]:
    """The solution itself: linear least squares, drawn towards the neighbours where nothing was measured."""
    hats, found = _hats(d, nodes), []
    smooth = 1e-3 * np.diff(np.eye(nodes), axis=0) * np.sqrt(len(d.w) / nodes)
    for up in (True, False):
        chosen = d.up == up
        size = d.step[chosen] * (1 if up else -1)
        rows = np.concatenate([hats[chosen], smooth])
        found += list(np.linalg.lstsq(rows, np.concatenate([size, np.zeros(nodes - 1)]), rcond=None)[0])
    return [[max(float(v), 0.0) for v in found]]


def _local_sizes(d: _Steps) -> Array:
    """Sizes of the steps, from straight lines through the nearest free ones of the same direction.

    Nearest by rank, not by distance: towards a bound, where steps are many and small, the lines get short, and a size
    is known to within a share of itself.
    """
    sizes = np.zeros(len(d.w))
    for up in (True, False):
        chosen = d.up == up
        known = chosen & d.free if (chosen & d.free).sum() >= _LEAST else chosen
        order = np.argsort(d.w[known], kind="stable")
        w, size = d.w[known][order], (d.step[known] * (1 if up else -1))[order]
        count = min(len(w), max(_NEIGHBOURS, len(w) // NODES))
        at = np.clip(d.w[chosen], w[0], w[-1])
        first = np.clip(np.searchsorted(w, at) - count // 2, 0, len(w) - count)
        near = first[:, None] + np.arange(count)
        x, y = w[near].mean(1), size[near].mean(1)
        dx = w[near] - x[:, None]
        slope = (dx * size[near]).sum(1) / np.maximum((dx**2).sum(1), 1e-300)
        sizes[chosen] = np.maximum(y + slope * (at - x), 0.0)
    return sizes


def _with_noise(d: _Steps) -> _Steps:
    """Its noise: a constant part and one in proportion to the step, the likeliest mixture."""
    size = _local_sizes(d)
    left = (np.where(d.up, size, -size) - d.step)[d.free]
    typical = float(np.sqrt((size[d.free] ** 2).mean()))
    # Rounding where there is no noise: of float32, or of a converter, whose steps are at least one of its units.
    unit = float(np.abs(d.step[d.step != 0]).min())
    smallest = max((d.high - d.low) * float(np.finfo(np.float32).eps), 0.4 * unit)

    def likeliness(part: float) -> tuple[float, float, Array]:
        rod = np.hypot(np.hypot(part * typical, smallest), size)
        relative = float(np.sqrt(((left / rod[d.free]) ** 2).mean()))
        return -np.log(max(relative, 1e-30)) - np.log(rod[d.free]).mean(), relative, rod

    part = max(_PARTS, key=lambda p: likeliness(p)[0])
    _, relative, rod = likeliness(part)
    return dataclasses.replace(
        d, noise=rod / np.exp(np.log(rod).mean()), additive=relative * part * typical, relative=relative,
        constant=part > 1,
    )  # fmt: skip


def _nodes_device(theta: Array, d: _Steps) -> dict[str, Any]:
    theta = np.maximum(theta, 0.0)  # the least-squares solver stays within its bounds but for a rounding
    up, down = np.split(theta, 2)
    size = float(theta.mean())
    if size <= 0:
        raise _Unsuitable("they do not go the way of the pulses")
    return {
        "up": size,
        "down": size,
        **_extremes(d),
        "piecewise_up": up / size,
        "piecewise_down": down / size,
    }


def _piecewise(nodes: int) -> _Kind:
    return _Kind(
        starts=lambda d: _node_starts(d, nodes),
        size=lambda theta, d: np.where(
            d.up, _hats(d, nodes) @ theta[:nodes], _hats(d, nodes) @ theta[nodes:]
        ),
        device=_nodes_device,
        limits=lambda d: ([-1e-9] * (2 * nodes), [np.inf] * (2 * nodes)),
    )


KINDS: dict[str, _Kind] = {
    "ConstantStep": _Kind(
        starts=lambda d: [[d.line(True)[0], d.line(False)[0]]],
        size=lambda theta, d: np.where(d.up, theta[0], theta[1]),
        device=lambda theta, d: {"up": theta[0], "down": theta[1], **_extremes(d)},
        limits=lambda d: ([1e-9] * 2, [np.inf] * 2),
    ),
    "SoftBounds": _Kind(_line_starts, _line, _soft_device, _line_limits, stops=False),
    "LinearStep": _Kind(_line_starts, _line, _linear_device, _line_limits),
    "PowStep": _Kind(
        _pow_starts, _pow_size, lambda theta, d: dict(zip(_POW, theta)),
        lambda d: ([1e-9, 0.0, 1e-9, 0.0, d.high, -np.inf], [np.inf, 20.0, np.inf, 20.0, np.inf, d.low]), stops=False,
    ),
    "ExpStep": _Kind(
        _exp_starts, _exp_size, _exp_device, lambda d: ([1e-9, -1e3, -15.0] * 2, [np.inf, 0.999, 15.0] * 2)
    ),
    "PiecewiseStep": _piecewise(NODES),
}  # fmt: skip
"""How each type is fitted; of equally good ones the first of this list is taken."""
