"""A run directory: configuration, environment, records, checkpoints. Everything a report needs is in it.

::

    config.yaml        the whole configuration
    environment.json   versions, machine, data, command line; later sessions under "resumed"
    records.jsonl      one line per epoch and per evaluation
    checkpoints/       NAME.safetensors of a finished stage, NAME.epoch.safetensors of one under way
    tensorboard/       the same numbers as scalars
"""

from __future__ import annotations

import datetime
import json
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

from aimc.config import Config, differences
from aimc.errors import AimcError
from aimc.files import read_config, read_json, read_records, write_atomic

try:
    import fcntl
except ImportError:  # Windows: two processes in one run directory are then not noticed
    fcntl = None


def environment(backend: str = "auto", data: dict[str, str] | None = None) -> dict[str, Any]:
    """What a result may depend on besides its configuration.

    Args:
        backend: the one that was asked for.
        data: sha256 of each data set, by split.

    Example:
        >>> sorted(environment())[:4]
        ['aimc', 'backend', 'command', 'cores']
    """
    import importlib.metadata

    import numba
    import numpy
    import torch

    try:
        version = importlib.metadata.version("aimc")
    except importlib.metadata.PackageNotFoundError:
        version = "not installed"
    return {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": sys.argv,
        "aimc": version,
        "git": _git_hash(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "numba": numba.__version__,
        "system": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "backend": backend,
        "data": data or {},
    }


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _git_hash() -> str | None:
    """Commit of the checkout that aimc runs from, with ``+changes`` if it was edited; None if it is no checkout."""
    folder = pathlib.Path(__file__).resolve().parent.parent

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", "errors.py"
        )  # an installed copy inside some other repository does not count
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return None


class Run:
    """A run directory that is being written. Use as a context manager.

    Args:
        path: the directory; made if missing, gone on with if it holds a run of the same configuration.
        config: the whole configuration.
        data: sha256 of each data set, by split.
        backend: noted in the environment.
        tensorboard: also write scalars for TensorBoard.

    Raises:
        AimcError: the directory holds other files, a run of a different configuration (the fields are named) or on
            different data, or another process is at work in it.

    Example:
        >>> import tempfile
        >>> from aimc.train import Stage
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with Run(f"{folder}/a", Stage(), tensorboard=False) as run:
        ...         run.record("note", text="hello")
        ...     with Run(f"{folder}/a", Stage(), tensorboard=False) as run:
        ...         run.records[0]["text"]
        'hello'
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        config: Config,
        *,
        data: dict[str, str] | None = None,
        backend: str = "auto",
        tensorboard: bool = True,
    ):
        self.path = pathlib.Path(path)
        self.config = config
        self._tensorboard, self._writer, self._lock = tensorboard, None, None
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AimcError(f"cannot make {self.path}: {error.strerror}", field="output") from None
        self._take_lock()
        try:
            self._open(config, environment(backend, data))
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> None:
        if fcntl is None:
            return
        try:
            self._lock = open(self.path / ".lock", "w")  # noqa: SIM115  (held until close)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()  # type: ignore[union-attr]
            raise AimcError(f"another process is at work in {self.path}", field="output") from None
        except OSError as error:
            raise AimcError(f"cannot write to {self.path}: {error.strerror}", field="output") from None

    def _open(self, config: Config, now: dict[str, Any]) -> None:
        place = self.path / "config.yaml"
        if place.exists():
            old = read_config(self.path, type(config))
            changed = differences(old, config)
            if changed:
                raise AimcError(
                    f"{self.path} holds a run with another configuration ({'; '.join(changed)}); give another "
                    "--output, or the old values",
                    field="output",
                )
        else:
            others = sorted(p.name for p in self.path.iterdir() if not p.name.startswith("."))
            if others:
                raise AimcError(
                    f"{self.path} is no run directory and not empty (it holds {', '.join(others[:3])}); give another "
                    "--output",
                    field="output",
                )
            write_atomic(place, config.to_yaml())
        (self.path / "checkpoints").mkdir(exist_ok=True)
        before = self.path / "environment.json"
        if before.exists():
            known = read_json(before)
            moved = [k for k, v in now["data"].items() if known.get("data", {}).get(k, v) != v]
            if moved:
                raise AimcError(
                    f"{self.path} was run on other data (the checksum of {', '.join(moved)} differs)",
                    field="data",
                )
            now = known | {"resumed": [*known.get("resumed", ()), now]}
        write_atomic(before, json.dumps(now, indent=1) + "\n")
        self.records = read_records(self.path)
        self._rewrite_if_torn()

    def _rewrite_if_torn(self) -> None:
        """A line that a crash cut short is taken out before anything is appended to it."""
        place = self.path / "records.jsonl"
        if place.exists() and not place.read_bytes().endswith(b"\n"):
            self._rewrite()

    def _rewrite(self) -> None:
        write_atomic(self.path / "records.jsonl", "".join(json.dumps(r) + "\n" for r in self.records))

    def record(self, kind: str, **fields: Any) -> None:
        """Append one line to the records, on disk before this returns."""
        entry = {"kind": kind, **fields}
        line = (json.dumps(entry, allow_nan=False) + "\n").encode()
        try:
            with open(self.path / "records.jsonl", "ab") as file:
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise AimcError(f"cannot write to {self.path}: {error.strerror}", field="output") from None
        self.records.append(json.loads(line))

    def find(self, kind: str, **fields: Any) -> dict[str, Any] | None:
        """The last record of a kind with these values."""
        for entry in reversed(self.records):
            if entry["kind"] == kind and all(entry.get(k) == v for k, v in fields.items()):
                return entry
        return None

    def settle(self, stage: str, history: list[dict[str, Any]]) -> None:
        """Make the epoch records of a stage equal to what its checkpoint holds: append, or take back what was lost."""
        wanted = [{"kind": "epoch", "stage": stage, **row} for row in history]
        held = [r for r in self.records if r["kind"] == "epoch" and r["stage"] == stage]
        if held == wanted[: len(held)]:
            for row in wanted[len(held) :]:
                self.record(**row)
        else:
            rest = [r for r in self.records if r not in held]
            self.records = rest + wanted
            self._rewrite()

    def checkpoint(self, name: str) -> pathlib.Path:
        """Where a checkpoint of this name lies."""
        return self.path / "checkpoints" / f"{name}.safetensors"

    def scalar(self, tag: str, value: float, step: int) -> None:
        """One point of a TensorBoard curve."""
        if not self._tensorboard:
            return
        if self._writer is None:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._writer = SummaryWriter(str(self.path / "tensorboard"))
        self._writer.add_scalar(tag, value, step)

    def close(self) -> None:
        """Release the directory."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error) -> None:
        self.close()
