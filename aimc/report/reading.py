"""A run directory as a report sees it."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any

from aimc.arguments import checked
from aimc.chip import Compensation, DriftResult
from aimc.config import Config
from aimc.errors import AimcError
from aimc.files import read_config, read_environment, read_records
from aimc.units import seconds


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """One evaluation over time.

    Attributes:
        name: variant and whether it was compensated.
        result: the values of every chip.
        seconds: wall time.
    """

    name: str
    result: DriftResult
    seconds: float

    @property
    def compensated(self) -> bool:
        """Whether drift was compensated."""
        return self.result.compensation is not None

    @property
    def protocol(self) -> tuple[Any, ...]:
        """What evaluations of one table have in common: times, number of chips, seed."""
        return self.result.times, self.result.chips, self.result.seed


@dataclasses.dataclass(frozen=True)
class RunReport:
    """What a run directory holds.

    Attributes:
        path: the directory.
        config: the run's configuration.
        environment: versions, machine, data.
        records: every line, in order.
    """

    path: pathlib.Path
    config: Config
    environment: dict[str, Any]
    records: tuple[dict[str, Any], ...]

    @property
    def digital(self) -> dict[str, float]:
        """Test accuracy without hardware, by network."""
        return {r["name"]: r["value"] for r in self.records if r["kind"] == "digital"}

    @property
    def evaluations(self) -> list[Evaluated]:
        """Every evaluation over time, in the order they were made.

        An estimator that the run did not ask for is named.
        """
        asked = getattr(self.config, "evaluation", None)
        found = []
        for r in self.records:
            if r["kind"] != "evaluation":
                continue
            name, used = r["name"], r.get("compensation")
            try:
                if asked is not None and used is not None:
                    estimator = Compensation.from_dict(used)
                    if estimator != asked.compensation:
                        name = f"{name} by {_named(estimator)}"
                found.append(Evaluated(name, DriftResult.from_dict(r["result"]), r["seconds"]))
            except AimcError as error:
                place = self.path / "records.jsonl"
                raise AimcError(f"{place}, evaluation {r['name']!r}: {error}", field="run") from None
        return found

    @property
    def groups(self) -> list[list[Evaluated]]:
        """Evaluations on the same chips at the same times belong into one table; the run's own come first."""
        found: dict[tuple[Any, ...], list[Evaluated]] = {}
        for evaluation in self.evaluations:
            found.setdefault(evaluation.protocol, []).append(evaluation)
        return sorted(found.values(), key=lambda group: group[0].protocol != self._asked)

    @property
    def _asked(self) -> tuple[Any, ...] | None:
        """The protocol of the run's configuration, where it has one."""
        asked = getattr(self.config, "evaluation", None)
        if asked is None:
            return None
        return tuple(seconds(t) for t in asked.times), asked.chips, asked.seed

    @property
    def own(self) -> list[Evaluated]:
        """The evaluations that the run's configuration asked for; all of the first kind where it asked for none."""
        groups = self.groups
        if not groups:
            return []
        return groups[0] if self._asked in (None, groups[0][0].protocol) else []

    @property
    def parts(self) -> list[tuple[str, float]]:
        """How long each part of the run took, seconds, over every session; later evaluations do not count."""
        found: dict[str, float] = {}
        for r in self.records:
            if r["kind"] == "epoch":
                name = f"training {r['stage']}"
                found[name] = found.get(name, 0.0) + r["seconds"]
        return [*found.items(), *((f"evaluating {e.name}", e.seconds) for e in self.own)]

    def epochs(self, stage: str) -> list[dict[str, Any]]:
        """The epochs of a training stage."""
        return [r for r in self.records if r["kind"] == "epoch" and r["stage"] == stage]

    @property
    def curves(self) -> dict[str, list[dict[str, Any]]]:
        """Epochs of the trainings whose every epoch was measured on the test set: in memory, and its baseline."""
        found: dict[str, list[dict[str, Any]]] = {}
        for r in self.records:
            if r["kind"] == "epoch" and "test" in r:
                found.setdefault(r["stage"], []).append(r)
        return found

    @property
    def last(self) -> dict[str, float]:
        """Test accuracy after the last epoch of each of these trainings that is finished; never the best epoch."""
        return {
            stage: rows[-1]["test"]
            for stage, rows in self.curves.items()
            if rows[-1]["epoch"] == rows[-1]["epochs"]
        }

    def results(self) -> dict[str, Any]:
        """The numbers as plain data: accuracies, evaluations of the run's own protocol, times of the parts."""
        last = {"last_epoch": self.last} if self.last else {}
        return last | {
            "digital": self.digital,
            "evaluations": {e.name: e.result.to_dict() for e in self.own},
            "seconds": dict(self.parts),
        }


def _named(estimator: Config) -> str:
    """Type and the fields that are not the defaults."""
    usual = type(estimator)()
    other = [n for n in estimator.field_names() if getattr(estimator, n) != getattr(usual, n)]
    fields = ", ".join(f"{n}={getattr(estimator, n)}" for n in other)
    return f"{type(estimator).__name__}({fields})" if fields else type(estimator).__name__


@checked
def load_run(path: str | os.PathLike[str]) -> RunReport:
    """Read a run directory.

    Raises:
        AimcError: no run, damaged records, or nothing recorded yet.

    Example:
        >>> load_run("no such run")
        Traceback (most recent call last):
        ...
        aimc.errors.AimcError: field 'run': no such run is no run directory (it has no config.yaml)
    """
    place = pathlib.Path(path)
    config = read_config(place)
    records = read_records(place)
    if not records:
        raise AimcError(f"{path} has no records yet", field="run")
    return RunReport(place, config, read_environment(place), tuple(records))
