"""Accuracy of many chips over time, with what a decision needs: spread, worst chip, intervals, a test."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import itertools
import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aimc import jobs, processes
from aimc.arguments import checked, expect_between
from aimc.chip.chip import program
from aimc.chip.compensation import Compensation, LeastSquares
from aimc.convert import evaluating, gpus, require_analog, to_digital
from aimc.errors import AimcError, warn
from aimc.files import NUMBER, load_matplotlib, misfit, write_atomic, write_figure
from aimc.random import Key, torch_draws
from aimc.units import readable, seconds

Metric = Callable[[nn.Module], float]
ISO = 0.99
"""Iso-accuracy: at least this normalised accuracy."""


class Accuracy:
    """Share of correct answers on a fixed set; a metric that knows its chance level.

    Args:
        inputs: passed to the network in batches, ``[samples, ...]``; a tuple of such tensors as several arguments.
        targets: class numbers ``[samples]``.
        batch_size: changes memory and time; of the result at most what the order of a sum in floating point
            decides, and the draws of a layer that one forward pass calls several times.
        classes: number of classes; None takes the largest target plus one.

    Example:
        >>> metric = Accuracy(torch.eye(3), torch.tensor([0, 1, 2]))
        >>> metric(nn.Identity()), round(metric.chance, 4)
        (1.0, 0.3333)
    """

    name = "accuracy"
    higher_is_better = True

    @checked
    def __init__(
        self,
        inputs: Tensor | tuple[Tensor, ...],
        targets: Tensor,
        batch_size: int = 1000,
        classes: int | None = None,
    ):
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        if not inputs or any(t.dim() == 0 for t in (*inputs, targets)):
            raise AimcError("needs inputs and targets of several samples", field="inputs")
        if any(len(x) != len(targets) for x in inputs) or len(targets) == 0:
            raise AimcError(
                f"needs as many inputs as targets, at least one; got {', '.join(str(len(x)) for x in inputs)} and "
                f"{len(targets)}",
                field="inputs",
            )
        if batch_size < 1:
            raise AimcError(f"must be at least 1, got {batch_size}", field="batch_size")
        if classes is not None and classes < 2:
            raise AimcError(f"must be at least 2, got {classes}", field="classes")
        self.inputs: tuple[Tensor, ...] = inputs
        self.targets, self.batch_size = targets, batch_size
        self.chance = 1.0 / (classes if classes is not None else int(targets.max()) + 1)

    @torch.no_grad()
    def __call__(self, net: nn.Module) -> float:
        right = 0
        for *x, y in zip(*(t.split(self.batch_size) for t in (*self.inputs, self.targets)), strict=True):
            guess = net(*x).argmax(-1)
            if guess.shape != y.shape:
                raise AimcError(
                    f"the network answers for {list(guess.shape)}, the targets are {list(y.shape)}"
                )
            right += int((guess == y).sum())
        return right / len(self.targets)


class Perplexity:
    """``exp`` of the mean cross entropy of each token given all tokens before it; a metric where lower is better.

    The text is read as parallel streams, each a run of consecutive tokens, in windows between which the state is
    carried. All tokens but the first are predicted, each once; only a stream's first tokens lack a context.

    Args:
        tokens: a text as numbers, int64 ``[tokens]``, at least two.
        streams: at most so many.
        window: tokens of a forward pass. It changes memory and time; and what hardware holds for a forward pass, such
            as weight noise in training mode, it holds for so many tokens.
        chance: perplexity of predicting without the context, for the normalised metric; None if not known.

    The network is called as ``net(tokens, state, targets)`` with tokens and targets ``[streams, window]`` and a state
    that is None at first, and returns scores and the next state. Scores are logits ``[streams, window, vocabulary]``,
    or a list of pairs ``(logits [n, k], targets [n])`` whose cross entropies add up, as an adaptive softmax has them.

    Example:
        >>> def uniform(tokens, state, targets):
        ...     return torch.zeros(*tokens.shape, 7), state
        >>> round(Perplexity(torch.arange(50) % 7, streams=4, window=5)(uniform), 3)
        7.0
    """

    name = "perplexity"
    higher_is_better = False
    logarithmic = True

    @checked
    def __init__(self, tokens: Tensor, streams: int = 50, window: int = 35, chance: float | None = None):
        if tokens.dim() != 1 or len(tokens) < 2:
            raise AimcError("needs the tokens of a text, at least two", field="tokens", shape=tokens.shape)
        for field, value in (("streams", streams), ("window", window)):
            if value < 1:
                raise AimcError(f"must be at least 1, got {value}", field=field)
        self.tokens, self.window, self.chance = tokens, window, chance
        self.streams = min(streams, len(tokens) - 1)

    @torch.no_grad()
    def __call__(self, net: nn.Module) -> float:
        predicted = len(self.tokens) - 1
        length = predicted // self.streams
        rest = predicted - length * self.streams  # goes on the last stream
        total, state = 0.0, None
        for start in range(0, length, self.window):
            end = min(start + self.window, length)
            rows = torch.arange(start, end) + length * torch.arange(self.streams)[:, None]
            part, state = self._cross_entropy(net, rows.to(self.tokens.device), state)
            total += part
        if rest:
            rows = torch.arange(predicted - rest, predicted, device=self.tokens.device)[None]
            total += self._cross_entropy(net, rows, last_stream(state))[0]
        return math.exp(min(total / predicted, 700.0))  # beyond it a double overflows

    def _cross_entropy(self, net: nn.Module, rows: Tensor, state: Any) -> tuple[float, Any]:
        """Summed over the tokens that follow those at ``rows`` ``[streams, window]``."""
        targets = self.tokens[rows + 1]
        scores, state = net(self.tokens[rows], state, targets)
        if isinstance(scores, Tensor):
            scores = [(scores.flatten(0, 1), targets.flatten())]
        return sum(float(F.cross_entropy(s, t, reduction="sum")) for s, t in scores), state


def last_stream(state: Any) -> Any:
    """Of a recurrent state, nested tuples of ``[layers, streams, width]``, what belongs to the last stream."""
    if isinstance(state, Tensor):
        return state[:, -1:].contiguous()
    return None if state is None else tuple(last_stream(s) for s in state)


@dataclasses.dataclass(frozen=True, eq=False)
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
        metric: what the values are, such as ``accuracy`` or ``perplexity``.
        logarithmic: whether the metric is normalised by its logarithm, as a perplexity is, whose logarithm is the
            cross entropy.
    """

    times: tuple[float, ...]
    values: np.ndarray
    seed: int
    reference: float | None = None
    chance: float | None = None
    higher_is_better: bool = True
    compensation: str | None = None
    metric: str = "metric"
    logarithmic: bool = False

    @property
    def chips(self) -> int:
        return self.values.shape[1]

    def __eq__(self, other: object) -> bool:
        """Whether all of it is the same; a value that is NaN is equal to itself."""
        if not isinstance(other, DriftResult):
            return NotImplemented
        names = [field.name for field in dataclasses.fields(self) if field.name != "values"]
        alike = all(getattr(self, name) == getattr(other, name) for name in names)
        return alike and np.array_equal(self.values, other.values, equal_nan=True)

    __hash__ = None  # type: ignore[assignment]  (it holds an array)

    @property
    def percent(self) -> bool:
        """Whether the values are shares, to be shown in per cent."""
        return self.chance is not None and not self.logarithmic

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
    def _draws(self) -> np.ndarray:
        """Chips of each bootstrap sample, ``[2000, chips]``."""
        generator = np.random.Generator(
            np.random.Philox(key=Key(self.seed).at("bootstrap").fold("chips").seed)
        )
        return generator.integers(0, self.chips, (2000, self.chips))

    def _interval(self, values: np.ndarray) -> np.ndarray | None:
        if self.chips < 2:
            return None  # one chip says nothing about others
        from scipy import stats

        # Expanded percentiles: those of the bootstrap itself are too narrow for few chips, by n for n - 1 and by the
        # normal for Student's distribution (Hesterberg 2015, The American Statistician 69, 371, section 4.3).
        wide = math.sqrt(self.chips / (self.chips - 1)) * stats.t.ppf(0.975, self.chips - 1)
        tail = stats.norm.sf(wide)
        return np.quantile(values[:, self._draws].mean(2), (tail, 1 - tail), axis=1).T

    @property
    def interval(self) -> np.ndarray | None:
        """95 % interval of the mean over chips, ``[times, 2]``: expanded bootstrap percentiles; None for one chip."""
        return self._interval(self.values)

    @property
    def normalised_values(self) -> np.ndarray | None:
        """A* of every chip, ``[times, chips]``; None if not known.

        ``(value - chance) / (reference - chance)``, the share of the digital network's lead over guessing that is
        left; of the logarithms for a perplexity. A perplexity's chance is that of predicting without context: by its
        own size a vocabulary would make every network look flawless.
        """
        if self.reference is None or self.chance is None:
            return None
        values, reference, chance = self.values, self.reference, self.chance
        if self.logarithmic:
            values, reference, chance = np.log(values), np.log(reference), np.log(chance)
        span = reference - chance
        if not np.isfinite(span) or (span <= 0 if self.higher_is_better else span >= 0):
            return None  # a reference no better than guessing normalises nothing
        return (values - chance) / span

    @property
    def normalised(self) -> np.ndarray | None:
        """Mean A*, ``[times]``."""
        values = self.normalised_values
        return values.mean(1) if values is not None else None

    @property
    def normalised_interval(self) -> np.ndarray | None:
        """95 % bootstrap interval of the mean A*, ``[times, 2]``; None for a single chip."""
        values = self.normalised_values
        return self._interval(values) if values is not None else None

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
        """The inverse of :meth:`to_dict`; statistics are computed again.

        Raises:
            AimcError: naming the entry that is missing or not what a result has there.
        """
        wrong = misfit(data, _SAVED, "the result")
        if wrong:
            raise AimcError(wrong, field="result")
        times, rows = data["times"], data["values"]
        if not times or not all(0 <= t < math.inf for t in times):
            raise AimcError("must be seconds, at least one", field="result.times")
        if len(rows) != len(times) or not rows[0] or len({len(row) for row in rows}) > 1:
            raise AimcError(f"needs a row of chips for each of {len(times)} times", field="result.values")
        # Earlier records do not name their metric; with a chance level it was an accuracy.
        data = {"metric": "accuracy" if data["chance"] is not None else "metric", "logarithmic": False} | data
        fields = {f.name: data[f.name] for f in dataclasses.fields(cls)}
        return cls(**{**fields, "times": tuple(times), "values": np.array(rows, dtype=float)})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` as JSON, atomically."""
        write_atomic(path, json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> DriftResult:
        try:
            with open(path) as file:
                return cls.from_dict(json.load(file))
        except (OSError, ValueError, RecursionError) as error:
            raise AimcError(f"{os.fspath(path)} is not a saved result: {error}", field="path") from None

    def __str__(self) -> str:
        head = ["time", "mean", "chip std", "worst", "95 % interval"]
        lines = []
        interval, star, inside, p = self.interval, self.normalised, self.normalised_interval, self.iso_p

        def number(value: float) -> str:
            return f"{value:.4f}" if math.isfinite(value) else "-"

        def between(edges: np.ndarray | None) -> str:
            return f"{edges[0]:.4f}-{edges[1]:.4f}" if edges is not None else "-"

        if star is not None:
            head += ["A*", "A* interval", f"A* >= {ISO:.0%}"]
        for i, time in enumerate(self.times):
            row = [readable(time), *(number(v) for v in (self.mean[i], self.std[i], self.worst[i]))]
            row.append(between(interval[i] if interval is not None else None))
            if star is not None:
                row += [f"{star[i]:.4f}", between(inside[i] if inside is not None else None)]
                row.append("-" if p is None else f"{'yes' if p[i] < 0.05 else 'not shown'} (p={p[i]:.2g})")
            lines.append(row)
        widths = [max(len(r[c]) for r in [head, *lines]) for c in range(len(head))]
        text = "\n".join(
            "  ".join(v.ljust(w) for v, w in zip(r, widths, strict=True)).rstrip() for r in [head, *lines]
        )
        note = f"\n{self.chips} chips, seed {self.seed}, compensation: {self.compensation or 'none'}"
        if self.reference is not None:
            note += f", digital {self.reference:.4f}"
        if 1 < self.chips < 5:
            note += "\nfewer than 5 chips: the intervals are too narrow, they hold the truth in less than 90 % of cases"
        if star is None:
            note += "\nno A*: give evaluate_over_time a metric with a chance level, or chance="
        return text + note

    def plot(self, path: str | os.PathLike[str], label: str = "compensated") -> None:
        """Draw mean, chip-to-chip spread and worst chip over time.

        Args:
            path: image file; without a suffix ``.png`` is added.
            label: of the line.

        Raises:
            AimcError: a suffix that matplotlib does not know, or a place that cannot be written.
        """
        load_matplotlib()
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
        if self.logarithmic:
            axes.set_yscale("log")
        axes.set_ylabel(self.metric)
        axes.legend()
        write_figure(figure, path, dpi=150)


_OPTIONAL = (int, float, type(None))
_SAVED = {
    "times": [NUMBER], "values": [[NUMBER]], "seed": int, "reference": _OPTIONAL, "chance": _OPTIONAL,
    "higher_is_better": bool, "compensation": (str, type(None)), "metric?": str, "logarithmic?": bool,
}  # fmt: skip


def _number(value: Any, when: str) -> float:
    """What a metric returned, which has to be a finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise AimcError(f"returned {value!r} {when}, not a finite number", field="metric")
    return number


class _Watch:
    """Tells whether anything was drawn from torch's generators, which threads share, since it was made."""

    def __init__(self, devices: Sequence[torch.device]):
        self._devices, self._drawn = devices, False
        self._before = self._states()

    def _states(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(d) for d in self._devices)]

    def drawn(self) -> bool:
        self._drawn = self._drawn or not all(map(torch.equal, self._before, self._states()))
        return self._drawn

    def restore(self) -> None:
        """Give the generators the states that they had."""
        torch.set_rng_state(self._before[0])
        for device, state in zip(self._devices, self._before[1:]):
            torch.cuda.set_rng_state(state, device)


def _on_one_chip(
    net: nn.Module,
    metric: Metric,
    moments: tuple[float, ...],
    seed: int,
    compensation: Compensation | None,
    alone: bool,
    tell: Callable[[], None] | None,
    watch: _Watch | None,
    c: int,
    known: Sequence[float] = (),
) -> list[float]:
    """The metric of chip ``c`` at every time; ``alone`` if no other chip is evaluated with this network meanwhile.

    With a watch, of threads that share torch's generators, only up to the first time at which one of them was drawn
    from; ``known`` are such values, to be gone on from.
    """
    if not alone:
        net = copy.deepcopy(net)
        # Two torch threads on one small network gain less than two networks.
        torch.set_num_threads(1)
    chip, values = program(net, Key(seed).fold("chip", c).seed, compensation), list(known)
    for moment in moments[len(values) :]:
        key = Key(seed).fold("metric", c, repr(moment))
        draws = torch_draws(key, gpus(net)) if watch is None else contextlib.nullcontext()
        # All of the test set, so that every process finds the same.
        with processes.alone(), chip.at(moment), torch.no_grad(), draws:
            value = metric(net)
        if watch is not None and watch.drawn():
            break
        if c == 0 and not values:
            _warn_of_saturation(net)
        values.append(_number(value, f"for chip {c} at {readable(moment)}"))
        if tell is not None:
            tell()
    return values


_MUCH = 0.1
"""Share of a tile's outputs beyond its ADC that is worth a word: a network that is trained for it stays far below."""


def _warn_of_saturation(net: nn.Module) -> None:
    """Say it where outputs of the last batch were cut off: nothing else shows why such a chip computes badly."""
    found = {}
    for name, layer in require_analog(net).items():
        share = max(layer.statistics.saturated, default=0.0) if layer.statistics is not None else 0.0
        if share > _MUCH:
            found[name] = share
    if found:
        worst = sorted(found.items(), key=lambda item: -item[1])
        names = ", ".join(f"{name} ({share:.0%})" for name, share in worst[:5])
        warn(
            f"outputs saturate their ADC in {len(found)} layers: {names}{', ...' if len(found) > 5 else ''}. Train the "
            "network hardware-aware on these converters, or give them a larger adc.bound",
        )


@contextlib.contextmanager
def _threads_kept() -> Iterator[None]:
    """The number of torch's threads stays the caller's."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


@checked
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
    known: Mapping[int, Sequence[float]] | None = None,
    on_chip: Callable[[int, list[float]], None] | None = None,
) -> DriftResult:
    """Program many chips, age each, and evaluate it at several times.

    The same seed gives the same chips whatever the network's training or the compensation, so variants are compared on
    common chips.

    Args:
        net: an analog network; put into evaluation mode and back.
        metric: called as ``metric(net)`` with a chip in place, returns a number; attributes ``name``, ``chance``,
            ``higher_is_better`` and ``logarithmic`` are used if present. See :class:`Accuracy`, :class:`Perplexity`.
        times: seconds after programming, or text such as ``"1h"``.
        chips: number of chips.
        seed: of the set of chips and of every read. It alone rules an evaluation, so that one made again is the same;
            ``torch.manual_seed`` does not, unlike in :func:`aimc.program`. ``seed=torch.initial_seed()`` follows torch.
            What a metric draws from torch's generators follows from this seed, the chip and the time, whatever the
            number and order of chips, times and workers; the generators themselves are left as they were.
        compensation: drift compensation, or None.
        reference: metric of the digital network that A* compares with, as a rule the one that training began with; None
            measures :func:`aimc.to_digital` of this one: A* then shows what the hardware costs, not what training did.
        chance: metric of guessing, if the metric does not know it.
        progress: called with evaluations done and to do.
        workers: chips evaluated at the same time, each on a copy of the network, with torch's own threads set to one
            meanwhile: on threads, or on the engine of a surrounding :func:`aimc.jobs.engine` (processes, a cluster).
            The metric must allow it and look only at the network it is given. A chip whose worker dies is evaluated
            again. Threads share torch's generators, so that there a metric that draws from them, as every pass over a
            ``DataLoader`` without a ``generator`` does, is evaluated on one chip after the other, with a warning.
        known: values that chips have given earlier, by number of the chip, one for each time; they are not evaluated.
        on_chip: called with each further chip's number and values, in the order in which they are done.

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
    expect_between(1, 1_000_000, chips=chips, workers=workers)
    known = {c: list(row) for c, row in (known or {}).items() if c < chips}
    for c, row in known.items():
        if c < 0:
            raise AimcError(f"chips count from 0, got {c}", field="known")
        if len(row) != len(moments):
            raise AimcError(f"has {len(row)} values of chip {c} for {len(moments)} times", field="known")
        if not all(math.isfinite(v) for v in row):
            raise AimcError(f"has a value of chip {c} that is not finite", field="known")
    values = np.empty((len(moments), chips))
    for c, row in known.items():
        values[:, c] = row
    left = [c for c in range(chips) if c not in known]
    total, counter, lock = (
        chips * len(moments),
        itertools.count(1 + len(known) * len(moments)),
        threading.Lock(),
    )

    def tell() -> None:
        with lock:
            done = next(counter)
            if progress is not None:
                progress(done, total)

    with evaluating(net):
        if reference is None:
            with processes.alone(), torch_draws(Key(seed).fold("metric"), gpus(net)):
                reference = _number(metric(to_digital(net)), "for the digital network")
        workers = min(workers, len(left))
        alone, here = workers <= 1, jobs.shares_process("threads")
        watch = _Watch(gpus(net)) if here and not alone else None
        told = tell if alone or here else None
        work = functools.partial(_on_one_chip, net, metric, moments, seed, compensation, alone, told, watch)
        begun: dict[int, list[float]] = {}
        with _threads_kept():
            for number, found in jobs.carried_out(work, left, max(workers, 1), "threads"):
                if isinstance(found, AimcError):
                    raise found
                if len(found) < len(moments):
                    begun[left[number]] = found
                    continue
                values[:, left[number]] = found
                if not (alone or here):
                    for _ in moments:
                        tell()
                if on_chip is not None:
                    on_chip(left[number], found)
        if watch is not None and begun:
            watch.restore()
            warn(
                "the metric draws from torch's generator, which threads share: its chips are evaluated one after the "
                "other. Give what draws, such as a DataLoader, a generator=torch.Generator() of its own, or evaluate "
                "on processes, with aimc.jobs.engine"
            )
        for c, found in sorted(begun.items()):
            found = _on_one_chip(net, metric, moments, seed, compensation, True, tell, None, c, found)
            values[:, c] = found
            if on_chip is not None:
                on_chip(c, found)
    return DriftResult(
        times=moments,
        values=values,
        seed=seed,
        reference=reference,
        chance=chance if chance is not None else getattr(metric, "chance", None),
        higher_is_better=getattr(metric, "higher_is_better", True),
        compensation=compensation.to_json(None) if compensation is not None else None,
        metric=str(getattr(metric, "name", "metric")),
        logarithmic=bool(getattr(metric, "logarithmic", False)),
    )
