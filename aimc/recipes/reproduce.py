"""Running a run again and comparing everything it recorded, and the weights it came to."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from aimc.arguments import checked
from aimc.config import Config
from aimc.errors import AimcError
from aimc.files import NUMBER, misfit, read_config, read_environment, read_records, writable
from aimc.recipes.running import run_experiment
from aimc.train import Progress, load_checkpoint
from aimc.train.run import environment
from aimc.units import seconds

_CLOCKS = ("seconds",)
_NAMES = ("kind", "stage", "name", "epoch", "times", "chips", "seed", "compensation")
_COMPARED = ("epoch", "digital", "evaluation")
_ASKED = {"times": [NUMBER], "chips": int, "seed": int, "compensation?": (dict, type(None))}
_CIRCUMSTANCES = (
    "aimc",
    "git",
    "code",
    "python",
    "torch",
    "numpy",
    "numba",
    "system",
    "cpu",
    "vectors",
    "threads",
    "backend",
    "data",
)


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """What a second run came to.

    Attributes:
        output: directory of the second run.
        compared: numbers that were compared, bit by bit.
        differing: those that differ, as ``record, field: first -> second``, and records that the second run lacks.
        missing: evaluations that were added to the first run later, with settings of their own.
        circumstances: what was another when the second one was run, as ``name: first -> second``.
        checkpoints: of finished stages, which were compared, too; none if the first run has none any more.
        tensors: how many these hold. Those that differ are in ``differing``.
    """

    output: Path
    compared: int
    differing: tuple[str, ...]
    missing: tuple[str, ...]
    circumstances: tuple[str, ...]
    checkpoints: tuple[str, ...] = ()
    tensors: int = 0

    def __str__(self) -> str:
        lines = [*self.differing[:20], *(["..."] if len(self.differing) > 20 else [])]
        lines += [f"{name}: not a part of the configuration, not compared" for name in self.missing]
        if self.differing and self.circumstances:
            lines += ["made under other circumstances:", *(f"  {line}" for line in self.circumstances)]
        if self.checkpoints:
            lines.append(f"{self.tensors} tensors compared, of the checkpoints {', '.join(self.checkpoints)}")
        else:
            lines.append("no weights compared: the first run holds no checkpoint of a finished stage")
        return "\n".join(
            [*lines, f"{self.compared} numbers compared, {len(self.differing)} differ ({self.output})"]
        )


@checked
def reproduce_run(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    data: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Reproduction:
    """Run the configuration of a finished run once more, in another directory, and compare what both recorded.

    The weights that both came to are compared, too, where the first one still has its folder ``checkpoints``.

    Args:
        path: run directory.
        output: directory of the second run, by default ``PATH-again``. One that was interrupted goes on, unless aimc
            has changed since.
        data: folder of the data sets.
        progress: where lines and bars go.

    Raises:
        AimcError: no run, one without records, a second run that other code has begun, or whatever running it raises.

    Example:
        >>> print(reproduce_run("runs/demo"))      # doctest: +SKIP
        38 tensors compared, of the checkpoints student, teacher
        1312 numbers compared, 0 differ (runs/demo-again)
    """
    first = Path(path)
    if first.name in ("", ".."):  # the run is where one stands, or above
        first = first.resolve()
    config = read_config(path)
    before = [r for r in read_records(first) if r["kind"] in _COMPARED]
    if not before:
        raise AimcError(f"{first} has no records to compare with; finish it with aimc run", field="run")
    for record in before:
        wrong = misfit(record, _ASKED) if record["kind"] == "evaluation" else None
        if wrong:
            raise AimcError(
                f"{first / 'records.jsonl'}, evaluation {record['name']!r}: {wrong}; nothing to compare it by",
                field="run",
            )
    read_environment(first)  # before the work, not after it
    finished = _finished(first)
    for place in finished.values():
        load_checkpoint(place)  # likewise: is it whole?
    second = Path(writable(output if output is not None else first.with_name(f"{first.name}-again")))
    if second.resolve() == first.resolve():
        raise AimcError("is the run itself; give another directory", field="output")
    _refuse_other_code(second)
    run_experiment(config, second, data=data, tensorboard=False, progress=progress)
    found = {_name(r): r for r in read_records(second)}
    compared, differing, missing = 0, [], []
    for record in before:
        name = _name(record)
        if name not in found:
            if _added(record, config):
                missing.append(name)
            else:
                differing.append(f"{name}: is missing from the second run")
            continue
        theirs = dict(_numbers(found[name]))
        for place, value in _numbers(record):
            compared += 1
            other = theirs.pop(place, None)
            if other != value:
                differing.append(f"{name}, {place}: {value!r} -> {other!r}")
        differing += [f"{name}, {place}: missing -> {value!r}" for place, value in theirs.items()]
    known = {_name(r) for r in before}
    differing += [
        f"{name}: is missing from the first run, which was not finished"
        for name, record in found.items()
        if record["kind"] in _COMPARED and name not in known
    ]
    tensors = 0
    for stage, place in finished.items():
        held, other = load_checkpoint(place)[0], _finished(second).get(stage)
        if other is None:
            differing.append(f"checkpoint {stage}: is missing from the second run")
            continue
        again = load_checkpoint(other)[0]
        tensors += len(held)
        for name in sorted(held.keys() | again.keys()):
            change = _change(held.get(name), again.get(name))
            differing += [f"checkpoint {stage}, {name}: {change}"] if change else []
    here, there = (read_environment(p) for p in (first, second))
    changed = [f"{k}: {here.get(k)} -> {there.get(k)}" for k in _CIRCUMSTANCES if here.get(k) != there.get(k)]
    return Reproduction(
        second, compared, tuple(differing), tuple(missing), tuple(changed), tuple(finished), tensors
    )


def _finished(run: Path) -> dict[str, Path]:
    """Checkpoints of the finished stages of a run, by stage; not those of stages under way."""
    found = sorted((run / "checkpoints").glob("*.safetensors"))
    return {place.stem: place for place in found if ".epoch" not in place.stem}


def _change(before: Tensor | None, after: Tensor | None) -> str | None:
    """How a tensor of two checkpoints differs, if it does."""
    if before is None or after is None:
        return f"is missing from the {'first' if before is None else 'second'} run"
    if before.dtype != after.dtype or before.shape != after.shape:
        told = [f"{t.dtype} {list(t.shape)}" for t in (before, after)]
        return " -> ".join(told)
    bits = [t.contiguous().view(-1).view(torch.uint8).view(t.numel(), -1) for t in (before, after)]
    differ = int((bits[0] != bits[1]).any(1).sum()) if before.numel() else 0
    return f"{differ} of {before.numel()} values differ" if differ else None


def _refuse_other_code(second: Path) -> None:
    """A second run is evidence only if the present code has made all of it."""
    if not (second / "environment.json").exists():
        return
    before, now = read_environment(second), environment()
    code = {(e.get("aimc"), e.get("git"), e.get("code")) for e in (before, *before.get("resumed", []), now)}
    if len(code) > 1 or str(now["git"]).endswith("+changes"):
        raise AimcError(
            f"{second} was begun by another state of aimc, or an edited one; delete it, or give another directory",
            field="output",
        )


def _added(record: dict[str, Any], config: Config) -> bool:
    """Whether an evaluation has settings that the configuration does not ask for."""
    if record["kind"] != "evaluation":
        return False
    chips = getattr(config, "chips", None)
    setting = getattr(config, "evaluation", None) or getattr(chips, "evaluation", None)
    if setting is None:
        return True
    wanted = [seconds(t) for t in setting.times], setting.chips, setting.seed
    compensation = record.get("compensation")
    return (record["times"], record["chips"], record["seed"]) != wanted or compensation not in (
        None,
        setting.compensation.to_dict(),
    )


def _name(record: dict[str, Any]) -> str:
    return " ".join(str(record[key]) for key in _NAMES if record.get(key) is not None)


def _numbers(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every plain value below, with its place; clocks left out."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in _CLOCKS and not (place == "" and key in _NAMES):
                yield from _numbers(inner, f"{place}.{key}" if place else str(key))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from _numbers(inner, f"{place}[{i}]")
    else:
        yield place, value
