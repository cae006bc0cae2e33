"""Accuracy of many chips over time, with what a decision needs: spread, worst chip, intervals, a test."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import json
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from aimc.chip.chip import program
from aimc.chip.compensation import Compensation, LeastSquares
from aimc.convert import evaluating, require_analog, to_digital
from aimc.errors import AimcError
from aimc.files import write_atomic
from aimc.random import Key
from aimc.units import readable, seconds

Metric = Callable[[nn.Module], float]
ISO = 0.99
"""Iso-accuracy: at least this normalised accuracy."""


class Accuracy:
    """Share of correct answers on a fixed set; a metric that knows its chance level.

    Args:
        inputs: passed to the network in batches, ``[samples, ...]``.
        targets: class numbers ``[samples]``.
        batch_size: changes memory and time; of the result at most what the order of a sum in floating point
            decides, and the draws of a layer that one forward pass calls several times.
        classes: number of classes; None takes the largest target plus one.

    Example:
        >>> metric = Accuracy(torch.eye(3), torch.tensor([0, 1, 2]))
        >>> metric(nn.Identity()), round(metric.chance, 4)
        (1.0, 0.3333)
    """

    higher_is_better = True

    def __init__(self, inputs: Tensor, targets: Tensor, batch_size: int = 1000, classes: int | None = None):
        if len(inputs) != len(targets) or len(inputs) == 0:
            raise AimcError(
                f"needs as many inputs as targets, at least one; got {len(inputs)} and {len(targets)}"
            )
        if batch_size < 1:
            raise AimcError(f"must be at least 1, got {batch_size}", field="batch_size")
        if classes is not None and classes < 2:
            raise AimcError(f"must be at least 2, got {classes}", field="classes")
        self.inputs, self.targets, self.batch_size = inputs, targets, batch_size
        self.chance = 1.0 / (classes if classes is not None else int(targets.max()) + 1)

    @torch.no_grad()
    def __call__(self, net: nn.Module) -> float:
        right = 0
        for x, y in zip(self.inputs.split(self.batch_size), self.targets.split(self.batch_size), strict=True):
            guess = net(x).argmax(-1)
            if guess.shape != y.shape:
                raise AimcError(
                    f"the network answers for {list(guess.shape)}, the targets are {list(y.shape)}"
                )
            right += int((guess == y).sum())
        return right / len(self.targets)


@dataclasses.dataclass(frozen=True)
class DriftResult:
    """The metric of every chip at every time.

    Attributes:
        times: seconds after programming.
        values: ``[times, chips]``.
        seed: of the first chip and the bootstrap.
        reference: the metric of the digital network, for the normalised accuracy; None if not known.
        chance: the metric of guessing; None if not known.
        higher_is_better: False for a perplexity or a loss.
        compensation: the estimator's configuration as text, or None.
    """

    times: tuple[float, ...]
    values: np.ndarray
    seed: int
    reference: float | None = None
    chance: float | None = None
    higher_is_better: bool = True
    compensation: str | None = None

    @property
    def chips(self) -> int:
        return self.values.shape[1]

    @property
    def mean(self) -> np.ndarray:
        """Mean over the chips, ``[times]``."""
        return self.values.mean(1)

    @property
    def std(self) -> np.ndarray:
        """Chip-to-chip standard deviation (n - 1), ``[times]``; NaN for one chip."""
        return self.values.std(1, ddof=1) if self.chips > 1 else np.full(len(self.times), np.nan)

    @property
    def worst(self) -> np.ndarray:
        """The worst chip, ``[times]``."""
        return self.values.min(1) if self.higher_is_better else self.values.max(1)

    @functools.cached_property
    def _resampled(self) -> np.ndarray:
        generator = np.random.Generator(
            np.random.Philox(key=Key(self.seed).at("bootstrap").fold("chips").seed)
        )
        draws = generator.integers(0, self.chips, (2000, self.chips))
        return self.values[:, draws].mean(2)

    @property
    def interval(self) -> np.ndarray:
        """95 % bootstrap interval of the mean over chips, ``[times, 2]``."""
        return np.quantile(self._resampled, (0.025, 0.975), axis=1).T

    @property
    def normalised_values(self) -> np.ndarray | None:
        """A* of every chip, ``(value - chance) / (reference - chance)``, ``[times, chips]``; None if not known."""
        if self.reference is None or self.chance is None:
            return None
        span = self.reference - self.chance
        if not np.isfinite(span) or (span <= 0 if self.higher_is_better else span >= 0):
            return None  # a reference no better than guessing normalises nothing
        return (self.values - self.chance) / (self.reference - self.chance)

    @property
    def normalised(self) -> np.ndarray | None:
        """Mean A*, ``[times]``."""
        values = self.normalised_values
        return values.mean(1) if values is not None else None

    @property
    def normalised_interval(self) -> np.ndarray | None:
        """95 % bootstrap interval of the mean A*, ``[times, 2]``."""
        if self.normalised_values is None or self.reference is None or self.chance is None:
            return None
        return np.sort((self.interval - self.chance) / (self.reference - self.chance), axis=1)

    @property
    def iso_p(self) -> np.ndarray | None:
        """One-sided t-test over chips: probability of such a mean if the true A* were at most 99 %, ``[times]``."""
        from scipy import stats

        values = self.normalised_values
        if values is None or self.chips < 2:
            return None
        result = []
        for row in values:
            spread = row.std(ddof=1)
            if spread < 1e-9:
                result.append(1.0)  # chips that do not differ say nothing about chips that were not tried
            else:
                result.append(
                    float(stats.t.sf((row.mean() - ISO) / (spread / len(row) ** 0.5), len(row) - 1))
                )
        return np.array(result)

    @property
    def iso(self) -> np.ndarray | None:
        """Whether iso-accuracy is shown at the 5 % level, ``[times]``."""
        p = self.iso_p
        return p < 0.05 if p is not None else None

    def to_dict(self) -> dict[str, Any]:
        """Plain data, with the statistics beside the values they come from."""

        def plain(value):
            return value.tolist() if value is not None else None

        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["times"], data["values"] = list(self.times), self.values.tolist()
        names = ("mean", "std", "worst", "interval", "normalised", "normalised_interval", "iso_p")
        std = {} if self.chips > 1 else {"std": None}
        return data | {"statistics": {n: plain(getattr(self, n)) for n in names} | std}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> DriftResult:
        """The inverse of :meth:`to_dict`; statistics are computed again."""
        fields = {f.name: data[f.name] for f in dataclasses.fields(cls)}
        return cls(
            **{**fields, "times": tuple(data["times"]), "values": np.array(data["values"], dtype=float)}
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` as JSON, atomically."""
        write_atomic(path, json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DriftResult:
        try:
            with open(path) as file:
                return cls.from_dict(json.load(file))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AimcError(f"{os.fspath(path)} is not a saved result: {error}", field="path") from None

    def __str__(self) -> str:
        head = ["time", "mean", "chip std", "worst", "95 % interval"]
        lines = []
        star, inside, p = self.normalised, self.normalised_interval, self.iso_p
        if star is not None:
            head += ["A*", "A* interval", f"A* >= {ISO:.0%}"]
        for i, time in enumerate(self.times):
            low, high = self.interval[i]
            row = [readable(time), *(f"{v:.4f}" for v in (self.mean[i], self.std[i], self.worst[i]))]
            row.append(f"{low:.4f}-{high:.4f}")
            if star is not None and inside is not None:
                row += [f"{star[i]:.4f}", f"{inside[i][0]:.4f}-{inside[i][1]:.4f}"]
                row.append("-" if p is None else f"{'yes' if p[i] < 0.05 else 'not shown'} (p={p[i]:.2g})")
            lines.append(row)
        widths = [max(len(r[c]) for r in [head, *lines]) for c in range(len(head))]
        text = "\n".join(
            "  ".join(v.ljust(w) for v, w in zip(r, widths, strict=True)).rstrip() for r in [head, *lines]
        )
        note = f"\n{self.chips} chips, seed {self.seed}, compensation: {self.compensation or 'none'}"
        if self.reference is not None:
            note += f", digital {self.reference:.4f}"
        if star is None:
            note += "\nno A*: give evaluate_over_time a metric with a chance level, or chance="
        return text + note

    def plot(self, path: str | os.PathLike[str], label: str = "compensated") -> None:
        """Draw mean, chip-to-chip spread and worst chip over time."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(6, 4), layout="constrained")
        axes = figure.add_subplot()
        times, spread = np.array(self.times), np.nan_to_num(self.std)
        times = np.maximum(times, 1e-1)
        axes.fill_between(times, self.mean - spread, self.mean + spread, alpha=0.25, linewidth=0)
        axes.plot(times, self.mean, "o-", label=f"{label}, mean of {self.chips} chips (band: 1 std)")
        axes.plot(times, self.worst, ":", color="tab:blue", label="worst chip")
        if self.reference is not None:
            axes.axhline(self.reference, color="black", linewidth=1, label="digital")
        axes.set_xscale("log")
        axes.set_xticks(times, [readable(t) for t in self.times])
        axes.minorticks_off()
        axes.set_xlabel("time after programming")
        axes.set_ylabel("metric")
        axes.legend()
        figure.savefig(os.fspath(path), dpi=150)


def _share(evaluate: Callable[[nn.Module, int], None], nets: list[nn.Module], chips: int) -> None:
    """Run the chips on one thread per network. Two torch threads on one small network gain less than two networks."""

    def work(index: int) -> None:
        torch.set_num_threads(1)
        for c in range(index, chips, len(nets)):
            if stop.is_set():
                return
            try:
                evaluate(nets[index], c)
            except BaseException:
                stop.set()
                raise

    stop, before = threading.Event(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(len(nets)) as pool:
            try:
                for future in [pool.submit(work, i) for i in range(len(nets))]:
                    future.result()
            finally:
                stop.set()  # before the pool waits for its threads
    finally:
        torch.set_num_threads(before)


def evaluate_over_time(
    net: nn.Module,
    metric: Metric,
    times: Sequence[float | str] = ("1s", "1h", "1d", "1y"),
    chips: int = 25,
    seed: int = 0,
    compensation: Compensation | None = LeastSquares(),
    reference: float | None = None,
    chance: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    workers: int = 1,
) -> DriftResult:
    """Program many chips, age each, and evaluate it at several times.

    The same seed gives the same chips whatever the network's training or the compensation, so variants are compared on
    common chips.

    Args:
        net: an analog network; put into evaluation mode and back.
        metric: called as ``metric(net)`` with a chip in place, returns a number; attributes ``chance`` and
            ``higher_is_better`` are used if present. See :class:`Accuracy`.
        times: seconds after programming, or text such as ``"1h"``.
        chips: number of chips.
        seed: of the set of chips.
        compensation: drift compensation, or None.
        reference: metric of the digital network that A* compares with, as a rule the one that training began with; None
            measures :func:`aimc.to_digital` of this one: A* then shows what the hardware costs, not what training did.
        chance: metric of guessing, if the metric does not know it.
        progress: called with evaluations done and to do.
        workers: chips evaluated at the same time, each on a thread and a copy of the network, with torch's own threads
            set to one meanwhile; the metric must allow it and look only at the network it is given.

    Raises:
        AimcError: no times, no chips, a metric that returns no finite number, or what :meth:`Chip.at` raises.

    Example:
        >>> import aimc
        >>> net = aimc.convert(nn.Linear(4, 2), aimc.presets.pcm().replace(**{"input_range.value": 1.0}))
        >>> metric = aimc.Accuracy(torch.eye(4), torch.tensor([0, 1, 0, 1]))
        >>> aimc.evaluate_over_time(net, metric, times=("1s", "1y"), chips=3).values.shape
        (2, 3)
    """
    require_analog(net)
    moments = tuple(seconds(t) for t in times)
    if not moments:
        raise AimcError("give at least one time", field="times")
    if chips < 1:
        raise AimcError(f"must be at least 1, got {chips}", field="chips")
    if workers < 1:
        raise AimcError(f"must be at least 1, got {workers}", field="workers")
    values = np.empty((len(moments), chips))
    counter, lock = itertools.count(1), threading.Lock()

    def evaluate(copy_of_net: nn.Module, c: int) -> None:
        chip = program(copy_of_net, Key(seed).fold("chip", c).seed, compensation)
        for i, moment in enumerate(moments):
            with chip.at(moment), torch.no_grad():
                value = float(metric(copy_of_net))
            if not np.isfinite(value):
                raise AimcError(f"returned {value} for chip {c} at {readable(moment)}", field="metric")
            values[i, c] = value
            with lock:
                done = next(counter)
                if progress is not None:
                    progress(done, chips * len(moments))

    with evaluating(net):
        if reference is None:
            reference = float(metric(to_digital(net)))
        workers = min(workers, chips)
        if workers == 1:
            for c in range(chips):
                evaluate(net, c)
        else:
            _share(evaluate, [net, *(copy.deepcopy(net) for _ in range(workers - 1))], chips)
    return DriftResult(
        times=moments,
        values=values,
        seed=seed,
        reference=reference,
        chance=chance if chance is not None else getattr(metric, "chance", None),
        higher_is_better=getattr(metric, "higher_is_better", True),
        compensation=compensation.to_json(None) if compensation is not None else None,
    )
