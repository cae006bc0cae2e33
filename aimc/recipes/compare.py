"""Algorithms side by side: the same cells, images, order, initial weights and budget, over several seeds."""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from aimc.algorithms import ALGORITHMS
from aimc.config import differences
from aimc.errors import AimcError, BusyError, suggest
from aimc.files import read_config, read_records, writable, write_atomic
from aimc.hardware import PulsedHardware
from aimc.jobs import carried_out, stop_workers
from aimc.recipes.in_memory import InSituExperiment
from aimc.recipes.overrides import configure, configured
from aimc.recipes.recipe import Recipe
from aimc.recipes.running import run_experiment
from aimc.report import draw_comparison, load_run
from aimc.report.budget import budgets, pulses_so_far, total
from aimc.train import Progress
from aimc.train.progress import Advance

DIGITAL = "digital"
_COMMON = (
    "dataset",
    "network",
    "epochs",
    "batch_size",
    "schedule",
    "baseline",
    "baseline_lr",
    "digital",
    "chips",
    "momentum",
    "weight_decay",
    "label_smoothing",
    "seed",
    "threads",
    "torch_device",
    "backend",
    "hardware",
)
"""Fields that make the budget, the task and the device; no algorithm may have its own."""
_OWN = ("hardware.algorithm", "hardware.mapping")
"""But for these parts of them."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One run of a comparison.

    Attributes:
        name: of its directory.
        config: complete.
    """

    name: str
    config: InSituExperiment


def cases(
    recipe: Recipe,
    algorithms: Sequence[str],
    *,
    states: Sequence[float] = (),
    tiles: Sequence[int] = (),
    seeds: int = 1,
    flags: Sequence[tuple[str, str]] = (),
    own: Sequence[str] = (),
    baseline: bool = True,
) -> list[Case]:
    """Every run of a comparison: the digital baseline, and each algorithm, once a seed.

    Args:
        recipe: returns an :class:`InSituExperiment` and takes ``algorithm``, ``states`` and ``tiles``.
        algorithms: keys of :data:`aimc.algorithms.ALGORITHMS`.
        states: numbers of states; empty takes the recipe's own.
        tiles: tile counts of the algorithms that leave it open; empty takes their own.
        seeds: so many, counted from the recipe's.
        flags: changes of every run, dotted path and YAML text.
        own: changes for one algorithm, ``residual.lr=0.05`` each.
        baseline: with the digital baseline.

    Raises:
        AimcError: an unknown algorithm or field; a number of seeds below 1; a setting of one algorithm that has to be
            common.

    Example:
        >>> from aimc.recipes import RECIPES
        >>> [c.name for c in cases(RECIPES["lenet_mnist_insitu"], ["mp", "residual"], states=[4], tiles=[3, 4])]
        ['digital-seed0', 'mp-4states-seed0', 'residual-4states-3tiles-seed0', 'residual-4states-4tiles-seed0']
    """
    missing = [name for name in ("algorithm", "states", "tiles") if name not in recipe.arguments]
    if missing:
        raise AimcError(f"{recipe.name} has no argument {missing[0]!r} to compare by", field="recipe")
    if seeds < 1:
        raise AimcError(f"must be at least 1, got {seeds}", field="seeds")
    for path, _ in flags:
        if path in ("algorithm", "baseline"):
            raise AimcError(f"--{path} is for a single run, a comparison has several", field=path)
    changes = _own_changes(own, algorithms)
    first, found = getattr(configured(recipe, None, flags), "seed", 0), []
    for seed in range(first, first + seeds):
        common = [*flags, ("seed", str(seed))]
        if baseline:
            base: Any = configured(recipe, None, common)
            # Nothing that is analog, so that it stays the same run when more algorithms join later.
            base = base.replace(hardware=None, lr=base.baseline_lr, digital=(), chips=None, baseline=True)
            base = configure(base, None, changes.get(DIGITAL, []))
            found.append(Case(f"{DIGITAL}-seed{seed}", base))
        for algorithm in algorithms:
            for s, t in itertools.product(states or (None,), _tile_counts(algorithm, tiles)):
                chosen = {"algorithm": algorithm, "states": s, "tiles": t}
                words = [(name, str(value)) for name, value in chosen.items() if value is not None]
                config: Any = configured(recipe, None, [*common, *words])
                config = configure(config.replace(baseline=False), None, changes.get(algorithm, []))
                parts = ("" if s is None else f"-{s:g}states") + ("" if t is None else f"-{t}tiles")
                found.append(Case(f"{algorithm}{parts}-seed{seed}", config))
    return list({case.name: case for case in found}.values())


def _tile_counts(algorithm: str, tiles: Sequence[int]) -> Sequence[int | None]:
    """Those asked for, where the algorithm has a choice; otherwise its own."""
    if algorithm not in ALGORITHMS:
        raise AimcError(
            f"no algorithm is called {algorithm!r}; {suggest(algorithm, ALGORITHMS)}", field="algorithms"
        )
    return tiles if tiles and "tiles" in ALGORITHMS[algorithm].field_names() else (None,)


def _own_changes(own: Sequence[str], algorithms: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    """Flags by algorithm, from ``name.path=value``."""
    found: dict[str, list[tuple[str, str]]] = {}
    known = [*algorithms, DIGITAL]
    for setting in own:
        path, equals, text = setting.partition("=")
        name, dot, path = path.strip().partition(".")
        if not equals or not dot:
            raise AimcError(f"is NAME.FIELD=VALUE, such as residual.lr=0.05, got {setting!r}", field="set")
        if name not in known:
            raise AimcError(f"{name!r} is not compared; {suggest(name, known)}", field="set")
        head, own_part = path.split(".")[0], any(path == p or path.startswith(f"{p}.") for p in _OWN)
        if head in _COMMON and not own_part and not (name == DIGITAL and head == "baseline_lr"):
            raise AimcError(
                f"{path} is the same for all algorithms of a comparison; give --{path} {text}", field="set"
            )
        found.setdefault(name, []).append((path, text))
    return found


def compare(
    wanted: Sequence[Case],
    output: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    jobs: int = 1,
    tensorboard: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Carry out the runs of a comparison, or what is left of them, each in its own directory below ``output``.

    Finished runs are kept, interrupted ones go on. A run that fails is reported and tried again the next time; the
    others are carried out. One that another process is at, of a second comparison in the same directory, is left to
    it. ``comparison.json`` and ``comparison.png`` hold every finished run in the directory, those of earlier calls
    included.

    Args:
        wanted: see :func:`cases`.
        output: directory of the comparison.
        data: folder of the data sets.
        jobs: processes side by side, or as many jobs on the engine of a surrounding :func:`aimc.jobs.engine`. With Ray
            ``output`` has to be a folder that all machines share. A run whose process dies goes on from its last
            checkpoint in another.
        tensorboard: write scalars for TensorBoard.
        progress: where lines and bars go.

    Returns:
        The content of ``comparison.json``, with the messages of runs that ``failed``, and of those that are ``busy``,
        left to another process.

    Raises:
        AimcError: a directory holds a run with other settings (nothing is started then), or nothing was finished.
    """
    progress = progress or Progress()
    if jobs < 1:
        raise AimcError(f"must be at least 1, got {jobs}", field="jobs")
    folder = pathlib.Path(writable(output))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AimcError(f"cannot make {folder}: {error.strerror}", field="output") from None
    for case in wanted:
        if (folder / case.name / "config.yaml").exists():
            _refuse_others(folder / case.name, case.config)
    for place in sorted(p.parent for p in folder.glob("*/results.json")):
        _refuse_another_task(place, wanted)
    todo = [case for case in wanted if not _finished(folder / case.name)]
    progress.line(f"{len(wanted)} runs, {len(wanted) - len(todo)} of them finished earlier")
    failed: dict[str, str] = {}
    busy: dict[str, str] = {}
    outcomes = _side_by_side if jobs > 1 and todo else _one_by_one
    for number, (case, error) in enumerate(outcomes(todo, folder, data, jobs, tensorboard, progress), 1):
        if isinstance(error, Busy):
            busy[case.name] = error
        elif error is not None:
            failed[case.name] = error
        collect(folder)
        said = "done" if error is None else error if isinstance(error, Busy) else f"failed: {error}"
        progress.line(f"{case.name}: {said} ({number} of {len(todo)})")
    found = collect(folder)
    busy = {name: said for name, said in busy.items() if not _finished(folder / name)}
    if not found["runs"]:
        said = "; ".join(f"{n}: {e}" for n, e in (failed | busy).items())
        raise AimcError(f"no run was finished: {said}", field="output")
    draw_comparison(found["runs"], folder / "comparison.png")
    return found | {"failed": failed, "busy": busy}


def _refuse_others(place: pathlib.Path, config: InSituExperiment) -> None:
    changed = differences(read_config(place, InSituExperiment), config)
    _refuse(changed, f"{place} holds a run with other settings", "another --output, or the old values")


def _refuse_another_task(place: pathlib.Path, wanted: Sequence[Case]) -> None:
    """A finished run stands beside the others in the table, so that it has to have their task, budget and device."""
    held = read_config(place, InSituExperiment)
    for case in wanted:
        changed = differences(_shared(held, case.config), _shared(case.config, held))
        _refuse(changed, f"{place} holds a run that cannot stand beside {case.name}", "another --output")
        if place.name.rpartition("-seed")[0] == case.name.rpartition("-seed")[0]:
            changed = differences(held, case.config.replace(seed=held.seed))
            what = f"{place} is {case.name} with another seed and other settings"
            _refuse(changed, what, "another --output, or the old values")


def _refuse(changed: list[str], what: str, way_out: str) -> None:
    if changed:
        raise AimcError(f"{what} ({'; '.join(changed)}); give {way_out}", field="output")


def _shared(config: InSituExperiment, other: InSituExperiment) -> InSituExperiment:
    """A configuration without what its algorithm may have for itself, without its states, and, where the other one is
    the digital baseline, without what only cells have."""
    config = config.replace(seed=0, lr=1.0, baseline=True, baseline_lr=1.0)
    if config.hardware is None or other.hardware is None:
        return config.replace(hardware=None, digital=(), chips=None)
    plain, cell = PulsedHardware(), config.hardware.cell
    if "dw_min" in cell.field_names():
        cell = cell.replace(dw_min=1.0)
    return config.replace(**{
        "hardware.algorithm": plain.algorithm, "hardware.mapping": plain.mapping, "hardware.cell": cell,
    })  # fmt: skip


def _finished(place: pathlib.Path) -> bool:
    return (place / "results.json").exists()


class Busy(str):
    """The message of a run that another process is at."""


def _run(case: Case, folder: pathlib.Path, data: Any, tensorboard: bool, progress: Progress) -> str | None:
    """Carry out one run; the message where it failed or is another process's."""
    try:
        place = folder / case.name
        run_experiment(case.config, place, data=data, tensorboard=tensorboard, progress=progress)
    except BusyError as error:
        return Busy(error.message)
    except AimcError as error:
        return str(error)
    return None


Outcomes = Iterator[tuple[Case, "str | None"]]


def _one_by_one(
    todo: list[Case], folder: pathlib.Path, data: Any, jobs: int, tensorboard: bool, progress: Progress
) -> Outcomes:
    for case in todo:
        yield case, _run(case, folder, data, tensorboard, Labelled(case.name, progress))


def _side_by_side(
    todo: list[Case], folder: pathlib.Path, data: Any, jobs: int, tensorboard: bool, progress: Progress
) -> Outcomes:
    # Whole paths: a worker on a cluster has a working directory of its own.
    data = None if data is None else os.path.abspath(data)
    work = functools.partial(
        _run, folder=folder.absolute(), data=data, tensorboard=tensorboard, progress=Progress()
    )
    seen = {case.name: 0 for case in todo}
    with progress.bar("epochs") as advance:
        for found in _glancing(work, todo, jobs):
            for case in todo:
                _tell(case.name, folder, seen, progress)
            advance(sum(seen.values()), sum(case.config.epochs for case in todo))
            if found is not None:
                number, error = found
                yield todo[number], error if error is None or isinstance(error, str) else str(error)


def _glancing(work: Any, todo: list[Case], jobs: int) -> Iterator[tuple[int, Any] | None]:
    """What :func:`carried_out` yields, and None in between whenever it is time to look at the directories."""
    found: queue.SimpleQueue[Any] = queue.SimpleQueue()
    stop = threading.Event()

    def wait() -> None:
        try:
            for outcome in carried_out(work, todo, jobs):
                found.put(outcome)
                if stop.is_set():
                    return
            found.put(_END)
        except BaseException as error:
            found.put(error)

    # In this thread's context, which holds the engine.
    waiting = threading.Thread(target=contextvars.copy_context().run, args=(wait,), daemon=True)
    waiting.start()
    try:
        while True:
            try:
                outcome = found.get(timeout=_GLANCE)
            except queue.Empty:
                yield None
                continue
            if outcome is _END:
                return
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome
    finally:
        stop.set()
        if waiting.is_alive():
            stop_workers()


_END = object()
_GLANCE = 0.5
"""Seconds between looks at what the other processes have recorded."""


def _tell(name: str, folder: pathlib.Path, seen: dict[str, int], progress: Progress) -> None:
    """A line for every epoch that a run has recorded since the last look."""
    rows = [r for r in read_records(folder / name) if r["kind"] == "epoch"]
    for row in rows[seen[name] :]:
        progress.line(
            f"{name} epoch {row['epoch']}/{row['epochs']}: loss {row['loss']:.4f}, test {row['test']:.4f}"
        )
    seen[name] = len(rows)


class Labelled(Progress):
    """Another progress whose lines and bars begin with a name."""

    def __init__(self, label: str, inner: Progress):
        self.label, self.inner = label, inner

    def line(self, text: str) -> None:
        self.inner.line(f"{self.label}: {text}")

    @contextlib.contextmanager
    def bar(self, label: str) -> Iterator[Advance]:
        with self.inner.bar(f"{self.label}: {label}") as advance:
            yield advance


_NAMES = {kind: name for name, kind in ALGORITHMS.items()}


_ENVIRONMENT = (
    "aimc", "git", "code", "python", "torch", "numpy", "numba", "cpu", "vectors", "threads", "backend",
    "data",
)  # fmt: skip


def collect(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Write ``comparison.json`` of a directory from its finished runs, and return its content.

    Each entry has the algorithm and its settings, the hardware, states, tiles, seed, the checksum of the configuration,
    the accuracy of every epoch and of the last one, what it used of pulses, column reads and digital numbers, the time,
    and the code and machine that it ran with.
    """
    runs = []
    for place in sorted(p for p in pathlib.Path(folder).iterdir() if _finished(p)):
        run = load_run(place)
        config = run.config
        assert isinstance(config, InSituExperiment)
        hardware, stage = config.hardware, DIGITAL if config.hardware is None else "analog"
        rows = run.curves[stage]
        used, pulses = budgets(rows), pulses_so_far(rows)
        runs.append({
            "name": place.name,
            "algorithm": DIGITAL if hardware is None else _NAMES[type(hardware.algorithm)],
            "settings": None if hardware is None else hardware.algorithm.to_dict(),
            "cell": None if hardware is None else type(hardware.cell).__name__,
            "states": None if hardware is None else round(hardware.cell.states, 6),
            "tiles": None if hardware is None else hardware.algorithm.tile_count,
            "hardware": None if hardware is None else hardware.to_dict(),
            "io": None if hardware is None else "perfect" if hardware.forward is None else "noisy",
            "dataset": config.dataset.name,
            "seed": config.seed,
            "epochs": config.epochs,
            "batch_size": config.batch_size,
            "lr": config.baseline_lr if hardware is None else config.lr,
            "config_sha256": hashlib.sha256(config.to_json().encode()).hexdigest(),
            "validation": rows[-1]["validation"],
            "test": rows[-1]["test"],
            "budget": None if used is None else total(used.values()),
            "curve": {key: [row[key] for row in rows] for key in ("loss", "accuracy", "validation", "test")}
            | ({} if used is None else {"pulses": pulses}),
            "seconds": sum(row["seconds"] for row in rows),
            "environment": {key: run.environment.get(key) for key in _ENVIRONMENT},
        })  # fmt: skip
    found = {"format": "aimc-comparison", "version": 1, "runs": runs}
    write_atomic(pathlib.Path(folder) / "comparison.json", json.dumps(found, indent=1) + "\n")
    return found
