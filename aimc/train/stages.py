"""The checkpoints of a run directory: of finished stages and of ones under way, and whose they are."""

from __future__ import annotations

import functools
import itertools
import json
import os
import pathlib
from typing import TYPE_CHECKING, Any

from aimc.config import load_yaml
from aimc.errors import AimcError
from aimc.files import NUMBER, misfit, read_json, usable
from aimc.train.checkpoint import load_checkpoint, save_checkpoint, under

if TYPE_CHECKING:
    from torch import Tensor

DETAILS = 2
"""Version of what a stage writes beside its tensors. In version 1, which does not say so itself, nothing told the kind
and the run of a file. Of such a file the name is compared, its kind is told by its tensors, and whose it is is taken on
trust: a run that an older aimc has begun goes on."""

FINISHED, UNDER_WAY = "finished", "under way"
EPOCHS: dict[str, Any] = {"history": [{"epoch": int, "validation": NUMBER, "seconds": NUMBER}]}
"""What every training has to find in its checkpoint."""


def again(damaged: pathlib.Path, stage: str) -> str:
    """The way out where the checkpoint of a finished stage is damaged or foreign.

    Example:
        >>> again(pathlib.Path("student.safetensors"), "student")
        "Of a finished stage no others are kept: put a copy back, or delete student.safetensors, and the same aimc run
        trains 'student' again, to the same bits"
    """
    return (
        f"Of a finished stage no others are kept: put a copy back, or delete {damaged}, and the same aimc run trains "
        f"{stage!r} again, to the same bits"
    )


class Checkpoints:
    """The checkpoints of a run directory. Loading needs nothing but the folder; who saves holds the directory's lock.

    Args:
        path: run directory.
        keep: checkpoints kept of a stage under way, the latest and those before it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Checkpoints(folder).load_finished("student")
        Traceback (most recent call last):
        ...
        aimc.errors.AimcError: field 'checkpoint': no such checkpoint: ...student.safetensors
    """

    def __init__(self, path: str | os.PathLike[str], keep: int = 2):
        self.path, self.keep = pathlib.Path(usable(path, "run")), keep

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """What decides about the run's result, and is in every checkpoint: its configuration and data.

        The configuration is the file's, which is written once: what a newer aimc adds to it with a default makes no
        other run. All of it counts, because a run directory takes no other one when it is gone on with; what may change
        from session to session (``keep``, scalars, engines, the place of the data) is not in it.
        """
        config, environment = self.path / "config.yaml", self.path / "environment.json"
        data = read_json(environment).get("data") if environment.exists() else None
        try:
            plain = load_yaml(config.read_text(encoding="utf-8")) if config.exists() else None
        except (OSError, ValueError) as error:  # an AimcError is a ValueError
            raise AimcError(f"{config} is not readable: {error}", field="run") from None
        return {"config": plain, "data": data if isinstance(data, dict) else {}}

    def checkpoint(self, name: str) -> pathlib.Path:
        """Where a checkpoint of this name lies."""
        return self.path / "checkpoints" / f"{name}.safetensors"

    def save_progress(self, stage: str, tensors: dict[str, Tensor], details: dict[str, Any]) -> None:
        """Write how far a stage is. Until the new file is whole the latest one stays, and then becomes the one before.

        Args:
            stage: its name.
            tensors, details: as for :func:`aimc.train.save_checkpoint`.
        """
        new = self.checkpoint(f"{stage}.epoch.new")
        save_checkpoint(new, tensors, self._signed(stage, UNDER_WAY, details))
        places = [self._progress(stage, age) for age in range(self.keep)]
        try:
            for younger, older in reversed(list(itertools.pairwise(places))):
                if younger.exists():
                    os.replace(younger, older)
            os.replace(new, places[0])
        except OSError as error:
            raise AimcError(f"cannot write {places[0]}: {error.strerror}", field="output") from None

    def save_finished(self, stage: str, tensors: dict[str, Tensor], details: dict[str, Any]) -> None:
        """Write what a stage came to; arguments as for :meth:`save_progress`."""
        save_checkpoint(self.checkpoint(stage), tensors, self._signed(stage, FINISHED, details))

    def _signed(self, stage: str, kind: str, details: dict[str, Any]) -> dict[str, Any]:
        return {**details, "version": DETAILS, "name": stage, "kind": kind, "run": self.identity}

    def load_progress(
        self, stage: str, shape: dict[str, Any] = EPOCHS
    ) -> tuple[pathlib.Path, dict[str, Tensor], dict[str, Any]] | None:
        """File, tensors and details of the latest checkpoint of a stage under way; None if there is none.

        Args:
            stage: its name.
            shape: of the details, as for :func:`aimc.files.misfit`.

        Raises:
            AimcError: it is damaged, foreign, or of another run, stage or kind; says from where one could go on.
        """
        places = self._all_progress(stage)
        if not places:
            return None
        latest, *older = places
        self.identity  # noqa: B018  (where it is not readable, no checkpoint is at fault)
        try:
            return latest, *self._load(latest, stage, UNDER_WAY, shape)
        except AimcError as error:
            way_out = self._way_out(latest, older, stage, shape)
            raise AimcError(f"{error.message}. {way_out}", field="checkpoint") from None

    def load_finished(
        self, stage: str, shape: dict[str, Any] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and details of the checkpoint of a finished stage; arguments as for :meth:`load_progress`.

        Raises:
            AimcError: there is none, or it is damaged, foreign, or of another run, stage or kind; says what to delete,
                and from where the run goes on.
        """
        place = self.checkpoint(stage)
        self.identity  # noqa: B018  (likewise)
        try:
            return self._load(place, stage, FINISHED, shape or {})
        except AimcError as error:
            if not place.exists():
                raise
            older = self._all_progress(stage)  # of a process that was killed before it removed them
            way_out = self._way_out(place, older, stage) if older else again(place, stage)
            raise AimcError(f"{error.message}. {way_out}", field="checkpoint") from None

    def _load(
        self, place: pathlib.Path, stage: str, kind: str, shape: dict[str, Any]
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read a checkpoint and see that it is the one that its place says."""
        tensors, details = load_checkpoint(place)
        wrong = self._foreign(tensors, details, stage, kind) or _incomplete(tensors, details, kind, shape)
        if wrong:
            raise AimcError(f"{place} {wrong}", field="checkpoint")
        return tensors, details

    def _foreign(
        self, tensors: dict[str, Tensor], details: dict[str, Any], stage: str, kind: str
    ) -> str | None:
        """What a checkpoint is, where it is not the one that is wanted."""
        version = details.get("version", 1)
        if version not in range(1, DETAILS + 1):
            return f"was written by another version of aimc ({version!r}; this one knows {DETAILS})"
        told = {"name": str, "kind": str, "run": {"data": {str: str}}}
        wrong = misfit(details, told) if version > 1 else None
        if wrong:
            return f"is damaged: {wrong}"
        name = details.get("name", stage)
        found = details.get("kind", UNDER_WAY if "generator" in tensors else FINISHED)
        if (name, found) != (stage, kind):
            return f"holds the stage {name!r}, {found}; here belongs {stage!r}, {kind}"
        held, ours = details.get("run", {}), self.identity
        changed = _changes(held.get("config"), ours["config"])
        if changed:
            return f"is of another run, with another configuration ({'; '.join(changed[:3])})"
        moved = [split for split, sha in held.get("data", {}).items() if ours["data"].get(split, sha) != sha]
        return f"is of a run on other data (the checksum of {', '.join(moved)} differs)" if moved else None

    def _way_out(
        self,
        damaged: pathlib.Path,
        older: list[pathlib.Path],
        stage: str,
        shape: dict[str, Any] = EPOCHS,
    ) -> str:
        for place in older:
            try:
                _, details = self._load(place, stage, UNDER_WAY, shape)
            except AimcError:
                continue
            done, within = len(details["history"]), details.get("current", {}).get("batches", 0)
            newer = [damaged, *older[: older.index(place)]]
            return (
                f"The one before it is whole: delete {' and '.join(map(str, newer))}, and the run goes on from {place} "
                f"(after epoch {done}{f' and {within} batches' if within else ''})"
            )
        others = " and those before it" if older else ""
        return f"There is no whole one before it: delete {damaged}{others} to start over"

    def forget_progress(self, stage: str) -> None:
        """Remove the checkpoints of a stage that is finished.

        Raises:
            AimcError: one cannot be removed.
        """
        for place in (*self._all_progress(stage), self.checkpoint(f"{stage}.epoch.new")):
            try:
                place.unlink(missing_ok=True)
            except OSError as error:
                raise AimcError(
                    f"cannot remove {place}, which {stage!r} no longer needs: {error.strerror}; remove it yourself",
                    field="output",
                ) from None

    def _progress(self, stage: str, age: int) -> pathlib.Path:
        return self.checkpoint(f"{stage}.epoch.{age}" if age else f"{stage}.epoch")

    def _all_progress(self, stage: str) -> list[pathlib.Path]:
        """Latest first, however many were kept when they were written."""
        found = [self._progress(stage, 0)]
        prefix, suffix = f"{stage}.epoch.", ".safetensors"
        names = [p.name for p in (self.path / "checkpoints").iterdir()]
        ages = [n[len(prefix) : -len(suffix)] for n in names if n.startswith(prefix) and n.endswith(suffix)]
        found += [self._progress(stage, age) for age in sorted(int(a) for a in ages if a.isdecimal())]
        return [place for place in found if place.exists()]


def _incomplete(
    tensors: dict[str, Tensor], details: dict[str, Any], kind: str, shape: dict[str, Any]
) -> str | None:
    """What a checkpoint lacks of what the training that loads it reads."""
    current = {"batches": int, "seen": int, "right?": (int, type(None)), "total": NUMBER, "seconds": NUMBER}
    wrong = misfit(details, shape | ({"current?": current} if kind == UNDER_WAY else {}))
    if wrong:
        return f"is damaged: {wrong}"
    names = under("model", tensors).keys()
    if not names or (kind == UNDER_WAY and "generator" not in tensors):
        return f"is damaged: it has no {'generator' if names else 'model'}"
    if "chosen" in shape:
        least = 0 if kind == UNDER_WAY else 1
        if not least <= details["chosen"] <= len(details["history"]):
            return f"is damaged: epoch {details['chosen']} was chosen of {len(details['history'])}"
        if kind == UNDER_WAY and details["chosen"] and under("best", tensors).keys() != names:
            return "is damaged: the weights of the chosen epoch are not whole"
    return None


def _changes(theirs: Any, ours: Any, place: str = "") -> list[str]:
    """Where two plain configurations differ, as ``path: there -> here``; nothing where one of them is not known.

    Example:
        >>> _changes({"seed": 5, "adc": {"bits": 8}}, {"seed": 0, "adc": {"bits": 8}})
        ['seed: 5 there, 0 here']
    """
    if not place and (theirs is None or ours is None):
        return []
    if isinstance(theirs, dict) and isinstance(ours, dict):
        names = [*theirs, *(name for name in ours if name not in theirs)]
        above = f"{place}." if place else ""
        return [c for n in names for c in _changes(theirs.get(n), ours.get(n), f"{above}{n}")]
    a, b = json.dumps(theirs, default=str), json.dumps(ours, default=str)
    return [f"{place or 'type'}: {a} there, {b} here"] if a != b else []
