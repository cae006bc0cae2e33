"""The numbers of runs as tables, for a terminal or in Markdown."""

from __future__ import annotations

import dataclasses
import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from aimc.algorithms import Transfers
from aimc.arguments import checked
from aimc.chip import DriftResult
from aimc.errors import AimcError
from aimc.report.budget import Budget, budgets, share, total
from aimc.report.reading import Evaluated, RunReport
from aimc.units import readable


@dataclasses.dataclass(frozen=True)
class Table:
    """A title, a head and rows of text."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def _share(result: DriftResult, value: float) -> str:
    """Per cent for a share such as an accuracy, else a plain number."""
    if value is None or not math.isfinite(value):
        return "-"
    return f"{100 * value:.2f}" if result.percent else f"{value:.4g}"


def _mean(result: DriftResult, i: int) -> str:
    text = _share(result, result.mean[i])
    return f"{text} ± {_share(result, result.std[i])}" if result.chips > 1 else text


def _worst(result: DriftResult, i: int) -> str:
    return _share(result, result.worst[i])


def _star(result: DriftResult, i: int) -> str:
    star, inside, p = result.normalised, result.normalised_interval, result.iso_p
    if star is None:
        return "-"
    if inside is None:
        return f"{100 * star[i]:.2f}"
    mark = " *" if p is not None and p[i] < 0.05 else ""
    return f"{100 * star[i]:.2f} ({100 * inside[i][0]:.2f} to {100 * inside[i][1]:.2f}){mark}"


@checked
def tables(run: RunReport, groups: Sequence[Sequence[Evaluated]] | None = None) -> list[Table]:
    """All tables of a run, or those of some of its evaluations.

    Of training in memory the accuracy and the cells; of chips, for each protocol, the mean and spread over chips, the
    worst chip, and A*.

    A* is the share of the digital network's lead over guessing that is left, of a perplexity in cross entropy; a star
    marks iso-accuracy (A* of at least 99 %) shown at the 5 % level.
    """
    found = _training(run) if groups is None else []
    for group in run.groups if groups is None else groups:
        first = group[0].result
        chips = f"{first.chips} chip{'s' if first.chips > 1 else ''}, seed {first.seed}"
        title = f"test {first.metric}{', %' if first.percent else ''}"
        digital = [(n, *(_share(first, v) for _ in first.times)) for n, v in run.digital.items()]
        head = ("network", *map(readable, first.times))
        found.append(
            Table(f"{title}: mean ± chip-to-chip spread ({chips})", head,
                  (*digital, *_rows(group, _mean)))
        )  # fmt: skip
        found.append(Table(f"{title}: worst chip ({chips})", head, _rows(group, _worst)))
        if first.normalised is not None:
            of = " of the cross entropy" if first.logarithmic else ""
            found.append(
                Table(
                    f"A*{of}, % (95 % bootstrap interval of the mean over chips; "
                    "* at least 99 % by a one-sided t-test)",
                    head,
                    _rows(group, _star),
                )
            )
    return found


_SIZES = ("name", "depth", "width", "widths", "layers", "hidden")
"""Fields of a network that say how large it is."""

_SUMMARY = ("mapped, not compensated", "mapped, compensated", "hardware-aware, compensated")


@checked
def summary_table(runs: Sequence[RunReport]) -> Table:
    """One row for each run on chips: network, epochs of its stages (teacher + student), how long it took in all, the
    accuracy of the digital network, what is left of it at the last time without hardware-aware training, and the
    hardware-aware network at every time. A run that has not evaluated all of these has a dash there.

    Raises:
        AimcError: a run has no chips, or other times than the first.
    """
    if not runs:
        raise AimcError("there is no run to sum up", field="runs")
    times, rows = None, []
    for run in runs:
        if not run.groups:
            raise AimcError(f"{run.path} evaluated no chips: nothing to sum up", field="run")
        found = {e.name: e.result for e in run.groups[0]}
        first = next(iter(found.values()))
        times = times or first.times
        if first.times != times:
            raise AimcError(f"{run.path} was evaluated at other times than {runs[0].path}", field="run")
        plain, mapped, aware = (found.get(name) for name in _SUMMARY)
        last = len(times) - 1
        unit = ", %" if first.percent else ""
        rows.append((
            f"{run.path.name} ({first.metric}{unit}, {first.chips} chip{'s' if first.chips > 1 else ''})",
            _network(run),
            _epochs(run),
            _minutes(sum(seconds for _, seconds in run.parts)),
            _share(first, run.digital["digital"]) if "digital" in run.digital else "-",
            *("-" if r is None else _mean(r, last) for r in (plain, mapped)),
            *("-" if aware is None else _mean(aware, i) for i in range(len(times))),
        ))  # fmt: skip
    assert times is not None
    when = [readable(t) for t in times]
    head = (
        "run",
        "network",
        "epochs",
        "time",
        "digital",
        *(f"{name}, {when[-1]}" for name in _SUMMARY[:2]),
        *(f"{_SUMMARY[2]}, {w}" for w in when),
    )
    return Table("test set, mean ± chip-to-chip spread", head, tuple(rows))


def _network(run: RunReport) -> str:
    """Type and size of a run's network."""
    network = getattr(run.config, "network", None)
    if network is None:
        return "-"
    words = [type(network).__name__]
    for name in _SIZES:
        if name in network.field_names():
            value = getattr(network, name)
            size = "/".join(map(str, value)) if isinstance(value, tuple) else str(value)
            words.append(size if name == "name" else f"{name} {size}")
    return ", ".join(words)


def _epochs(run: RunReport) -> str:
    """How many epochs each stage has, in the order of the stages."""
    last = {r["stage"]: r["epoch"] for r in run.records if r["kind"] == "epoch"}
    return " + ".join(map(str, last.values())) or "-"


def _minutes(seconds: float) -> str:
    """A time for a table."""
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes >= 10 else f"{minutes:.1f} min"


@checked
def command_of(run: RunReport) -> str:
    """The command that the run was started with, without the folders of the machine that it ran on.

    Example:
        >>> from pathlib import Path
        >>> from aimc.cells import PCM
        >>> command = ["/a/cli.py", "run", "demo", "--threads", "1", "--output", "/b/c", "--no-tensorboard"]
        >>> command_of(RunReport(Path(), PCM(), {"command": command}, ()))
        'aimc run demo --threads 1 --no-tensorboard'
    """
    words, kept = iter(run.environment.get("command", ())[1:]), ["aimc"]
    for word in words:
        name, equals, _ = word.partition("=")
        if name in ("--output", "--data"):
            if not equals:
                next(words, None)
        else:
            kept.append(word)
    return shlex.join(kept)


def _training(run: RunReport) -> list[Table]:
    """What training in memory came to."""
    found = []
    if run.curves:
        head = ("training", "epochs", "training images", "validation", "test", "time")
        rows = tuple(
            (
                stage, f"{rows[-1]['epoch']} of {rows[-1]['epochs']}",
                *(f"{100 * rows[-1][key]:.2f}" for key in ("accuracy", "validation", "test")),
                f"{sum(row['seconds'] for row in rows):.0f} s",
            )
            for stage, rows in run.curves.items()
        )  # fmt: skip
        again = tuple(
            (
                f"{r['name']}, measured again",
                "-",
                "-",
                "-",
                f"{100 * r['value']:.2f}",
                f"{r['seconds']:.0f} s",
            )
            for r in run.records
            if r["kind"] == "again"
        )
        found.append(Table("accuracy after the last epoch, %", head, rows + again))
    layers = next((rows[-1]["layers"] for rows in run.curves.values() if rows[-1]["layers"]), {})
    head = ("layer", "tile", "pulses a device", "99.9 %", "most", "saturated, %", "share, %", "column reads")
    rows = tuple(
        (
            layer, f"{tile}{' (filling)' if tile == held['active_tile'] else ''}", f"{t['pulses_mean']:.1f}",
            f"{t['pulses_p999']}", f"{t['pulses_max']}", f"{100 * t['saturated']:.1f}", f"{100 * t['share']:.1f}",
            f"{t['reads']}",
        )
        for layer, held in layers.items()
        for tile, t in enumerate(held["tiles"])
    )  # fmt: skip
    if rows:
        found.append(Table("cells after the last epoch", head, rows))
    return found + _used(run)


def _used(run: RunReport) -> list[Table]:
    """What each layer in cells has used and lost, where the records are new enough to tell."""
    held = next((rows for rows in run.curves.values() if rows[-1]["layers"]), [])
    parts = budgets(held)
    if parts is None:
        return []
    layers = held[-1]["layers"]

    def row(name: str, used: Budget, *rest: str) -> tuple[str, ...]:
        counts = (f"{used[key]:.4g}" for key in ("pulses", "reads", "products"))
        return name, *counts, f"{used['kept']}", f"{used['passing']}", *rest

    def unanswered(tiles: Sequence[dict[str, Any]]) -> str:
        return "/".join(share(tile["unanswered"]) for tile in tiles)

    rows = [
        row(
            name,
            used,
            *(share(layers[name][key]) for key in ("lost", "waiting")),
            unanswered(layers[name]["tiles"]),
        )
        for name, used in parts.items()
    ]
    if len(rows) > 1:
        rows.append(row("all layers", total(parts.values()), "", "", ""))
    head = (
        "layer", "pulses", "column reads", "digital products", "digital numbers", "and within a step", "lost, %",
        "waiting, %", "unanswered by tile, %",
    )  # fmt: skip
    return [Table("what the training in cells used, a sample", head, tuple(rows))]


def _rows(group: Sequence[Evaluated], cell: Callable[[DriftResult, int], str]) -> tuple[tuple[str, ...], ...]:
    return tuple((e.name, *(cell(e.result, i) for i in range(len(e.result.times)))) for e in group)


def _heading(run: RunReport) -> str:
    e, seed = run.environment, getattr(run.config, "seed", None)
    parts = ["" if seed is None else f"seed {seed}", circumstances(e), f"started {e.get('started')}"]
    return ", ".join(part for part in parts if part) + "".join(
        f"; continued {later.get('started')} by {_version(later)}"
        for later in e.get("resumed", ())
        if _differs(e, later)
    )


def circumstances(environment: Mapping[str, Any]) -> str:
    """Versions, machine, and checksums of code and data, as far as a record names them.

    Example:
        >>> circumstances({"aimc": "0.1.0", "cpu": "A", "threads": 1, "data": {"train": "0123456789abcdef"}})
        'aimc 0.1.0, A (1 threads), sha256 of train 0123456789ab'
    """
    e = environment
    hashes = {"code": e.get("code"), **(e.get("data") or {})}
    backend = f", backend {e['backend']}" if e.get("backend") else ""
    parts = [
        f"aimc {_version(e)}",
        *(f"{name} {e[name]}" for name in ("python", "torch", "numpy", "numba") if e.get(name)),
        f"{e.get('cpu')} ({e.get('threads')} threads{backend})",
        "; ".join(f"sha256 of {name} {value[:12]}" for name, value in hashes.items() if value),
    ]
    return ", ".join(part for part in parts if part)


def _differs(first: dict[str, Any], later: dict[str, Any]) -> bool:
    """Whether a later session of a run was made by another aimc."""
    return _version(first) != _version(later)


def _version(environment: Mapping[str, Any]) -> str:
    """The installed version, the commit of a source tree, or both."""
    installed, commit = environment.get("aimc"), environment.get("git")
    if commit is None:
        return str(installed)
    changed = " with changes" if commit.endswith("+changes") else ""
    known = "" if installed in (None, "not installed") else f"{installed}, "
    return f"{known}commit {commit[:9]}{changed}"


@checked
def markdown_table(table: Table) -> str:
    """One table in Markdown."""
    lines = [f"**{table.title}**", "", f"| {' | '.join(table.head)} |", "|" + "---|" * len(table.head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in table.rows)])


@checked
def markdown(runs: Sequence[RunReport]) -> str:
    """The tables of some runs in Markdown."""
    lines = []
    for run in runs:
        lines += [f"### {run.path.name}", "", _heading(run), ""]
        for table in tables(run):
            lines += [markdown_table(table), ""]
        lines += ["Time: " + ", ".join(f"{name} {seconds:.1f} s" for name, seconds in run.parts) + ".", ""]
    return "\n".join(lines)


@checked
def show(runs: Sequence[RunReport]) -> None:
    """Print the tables of some runs to the terminal."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    for run in runs:
        console.print(f"\n{run.path}", style="bold", markup=False)
        console.print(_heading(run), markup=False)
        for table in tables(run):
            show_table(table)


@checked
def show_evaluations(run: RunReport, results: Sequence[DriftResult]) -> None:
    """Print the tables that some results of a run are in, with whatever else was evaluated on the same chips."""
    asked = [(r.times, r.chips, r.seed) for r in results]
    for table in tables(run, [group for group in run.groups if group[0].protocol in asked]):
        show_table(table)


@checked
def transfer_table(lines: Sequence[tuple[str, Transfers]]) -> Table:
    """How often each tile is read into the next one, as a table.

    Args:
        lines: layer and line, from :func:`aimc.train.schedule_table`.

    Example:
        >>> from aimc.algorithms import Transfers
        >>> transfer_table([("fc1", Transfers(0, 1, 100.0, 0.5, 2.0, 31))]).rows
        (('fc1', '0 to 1', '100', '0.5', '2 of 31', 'starved'),)
    """
    rows = []
    for layer, t in lines:
        notes = [t.when] * bool(t.when) + ["starved"] * (t.passes_per_epoch < 1)
        notes += ["beyond the budget"] * (t.kappa > t.budget)
        asked = f"{t.kappa:.3g} of {t.budget}" if t.kappa > 0 else f"at most {t.budget}"
        rows.append((
            layer, f"{t.source} to {t.target}", f"{t.columns_per_epoch:.3g}", f"{t.passes_per_epoch:.3g}", asked,
            ", ".join(notes),
        ))  # fmt: skip
    head = ("layer", "tiles", "columns per epoch", "passes per epoch", "largest read, pulses", "")
    return Table("schedule of transfers", head, tuple(rows))


@checked
def show_table(table: Table) -> None:
    """Print one table to the terminal; wider than that where it would lose letters, and as wide as it likes into a file
    or a pipe."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid

    console, rows, heads = Console(highlight=False), table.rows, table.head
    cells = [max((len(row[i]) for row in rows), default=0) for i in range(len(heads))]
    widths = [max(n, len(head)) for n, head in zip(cells, heads, strict=True)]

    def across(widths: list[int]) -> int:
        return sum(widths) + 3 * len(widths) + 1

    if not console.is_terminal:
        console.width = max(across(widths), len(table.title or ""))
    elif across(widths) > console.width:  # heads may wrap between words, cells may not
        widths = [max([n, *map(len, head.split())]) for n, head in zip(cells, heads, strict=True)]
        console.width = max(console.width, across(widths))
    grid = Grid(title=table.title, title_justify="left", box=box.SIMPLE_HEAD)
    for i, (name, width) in enumerate(zip(heads, widths, strict=True)):
        grid.add_column(name, justify="left" if i == 0 else "right", width=width)
    for row in rows:
        grid.add_row(*row)
    console.print(grid)
