"""A run directory: configuration, environment, records, checkpoints. Everything a report needs is in it.

::

    config.yaml        the whole configuration
    environment.json   versions, machine, data, command line; later sessions under "resumed"
    records.jsonl      one line per epoch and per evaluation
    checkpoints/       NAME.safetensors of a finished stage; of one under way NAME.epoch.safetensors, and the ones
                       before it as NAME.epoch.1.safetensors and so on
    tensorboard/       the same numbers as scalars
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
from typing import Any

from aimc.arguments import checked
from aimc.config import Config, differences
from aimc.errors import AimcError, BusyError, warn
from aimc.files import (
    not_json,
    read_config,
    read_json,
    read_records,
    record_line,
    unfit_record,
    writable,
    write_atomic,
)
from aimc.train.stages import Checkpoints

try:
    import fcntl
except ImportError:  # Windows: two processes in one run directory are then not noticed
    fcntl = None


@checked
def environment(backend: str = "auto", data: dict[str, str] | None = None) -> dict[str, Any]:
    """What a result may depend on besides its configuration.

    Args:
        backend: the one that was asked for.
        data: sha256 of each data set, by split.

    Example:
        >>> sorted(environment())[:4]
        ['aimc', 'backend', 'code', 'command']
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
        "code": code_hash(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "numba": numba.__version__,
        "system": platform.platform(),
        "cpu": _cpu(),
        "vectors": torch.backends.cpu.get_cpu_capability(),  # torch's sums differ between them in their last bits
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
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


def code_hash(folder: str | os.PathLike[str] | None = None) -> str:
    """sha256 over the names and contents of aimc's own Python files, installed or edited or neither.

    Example:
        >>> len(code_hash())
        64
    """
    top = pathlib.Path(folder) if folder is not None else pathlib.Path(__file__).resolve().parent.parent
    found = hashlib.sha256()
    for file in sorted(top.rglob("*.py")):
        content = file.read_bytes()
        found.update(f"{file.relative_to(top).as_posix()} {len(content)}\n".encode() + content)
    return found.hexdigest()


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


def _holder(note: str) -> str:
    """Who holds a directory whose lock has this note; processes that were forked hold the lock of their parent."""
    found = re.fullmatch(r"process (\d+) on (.*)", note)
    if found is None or found[2] != platform.node():
        return "another process"
    if int(found[1]) == os.getpid():
        return "another Run of this process that was not closed, or a process that it has started,"
    try:
        os.kill(int(found[1]), 0)
    except ProcessLookupError:
        return "a process that was started by one that is gone"
    except OSError:  # it is another user's
        pass
    return "another process"


class Run(Checkpoints):
    """A run directory that is being written. Use as a context manager.

    Args:
        path: the directory; made if missing, gone on with if it holds a run of the same configuration.
        config: the whole configuration.
        data: sha256 of each data set, by split.
        backend: noted in the environment.
        tensorboard: also write scalars for TensorBoard.
        keep: checkpoints kept of a stage under way, the latest and those before it.

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
        keep: int = 2,
    ):
        if keep < 1:
            raise AimcError(f"keeps at least the latest checkpoint, got {keep}", field="keep")
        super().__init__(writable(path), keep)
        self.config = config
        self._tensorboard, self._writer, self._lock = tensorboard, None, None
        self._owner = os.getpid()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AimcError(f"cannot make {self.path}: {error.strerror}", field="output") from None
        self._take_lock()
        try:
            self._open(config, environment(backend, data))
        except OSError as error:
            self.close()
            place = error.filename or self.path
            raise AimcError(f"cannot write {place}: {error.strerror}", field="output") from None
        except BaseException:
            self.close()
            raise

    def _take_lock(self) -> None:
        if fcntl is None:
            return
        # The system lets go of the lock when the process that holds it ends, however it ends: what the file says of a
        # process that is gone holds nobody up.
        try:
            self._lock = open(self.path / ".lock", "ab+")  # noqa: SIM115  (held until close)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(OSError):  # only a note: a full disk is spoken of where it matters
                os.ftruncate(self._lock.fileno(), 0)
                os.write(self._lock.fileno(), f"process {os.getpid()} on {platform.node()}".encode())
        except BlockingIOError:
            assert self._lock is not None
            who = os.pread(self._lock.fileno(), 200, 0).decode(errors="replace") or "it has not said which"
            self._lock.close()
            raise BusyError(
                f"{_holder(who)} is at work in {self.path} ({who}); wait for it, stop it, or give another --output",
                field="output",
            ) from None
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
        # Left by a process that was killed; the lock says that no other writes here.
        for left in (*self.path.glob(".*.part"), *(self.path / "checkpoints").glob(".*")):
            left.unlink(missing_ok=True)
        before = self.path / "environment.json"
        if before.exists():
            known = read_json(before)
            if not isinstance(known.get("data", {}), dict) or not isinstance(known.get("resumed", []), list):
                raise AimcError(f"{before} is damaged: delete it to go on", field="run")
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
        write_atomic(self.path / "records.jsonl", "".join(map(record_line, self.records)))

    def record(self, kind: str, **fields: Any) -> None:
        """Append one line to the records, on disk before this returns.

        Raises:
            AimcError: the folder cannot be written, a record of one of aimc's own kinds lacks a field, or a field is
                nothing that JSON holds, or called ``check``, as the checksum of a line is.
        """
        if "check" in fields:
            raise AimcError("is the name of a line's checksum; give the field another name", field="check")
        for name, value in fields.items():
            wrong = not_json(value, name)
            if wrong:
                raise AimcError(wrong, field=name)
        wrong = unfit_record({"kind": kind, **fields})
        if wrong:
            raise AimcError(f"this is no record of {kind!r}: {wrong}", field="kind")
        line, place, before = (
            record_line({"kind": kind, **fields}).encode(),
            self.path / "records.jsonl",
            None,
        )
        try:
            with open(place, "ab", buffering=0) as file:
                before = file.tell()
                written = 0
                while written < len(line):  # a full disk takes a part of it, and refuses the rest
                    written += file.write(line[written:])
                os.fsync(file.fileno())
        except OSError as error:
            if before is not None:
                with contextlib.suppress(OSError):  # what is left is taken out when the run goes on
                    os.truncate(place, before)
            raise AimcError(f"cannot write {place}: {error.strerror}", field="output") from None
        entry = json.loads(line)
        del entry["check"]
        self.records.append(entry)

    def find(self, kind: str, **fields: Any) -> dict[str, Any] | None:
        """The last record of a kind with these values."""
        for entry in reversed(self.records):
            if entry["kind"] == kind and all(entry.get(k) == v for k, v in fields.items()):
                return entry
        return None

    def forget(self, kind: str, **fields: Any) -> None:
        """Take the records of a kind with these values out, where there are any."""
        left = [r for r in self.records if r["kind"] != kind or any(r.get(k) != v for k, v in fields.items())]
        if len(left) < len(self.records):
            self.records = left
            self._rewrite()

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

    def scalar(self, tag: str, value: float, step: int) -> None:
        """One point of a TensorBoard curve; where they cannot be written the run goes on without, and says so once."""
        if not self._tensorboard:
            return
        from torch.utils.tensorboard.writer import SummaryWriter

        try:
            if self._writer is None:
                self._writer = SummaryWriter(str(self.path / "tensorboard"))
            self._writer.add_scalar(tag, value, step)
        except OSError as error:
            self._without_scalars(error)

    def _without_scalars(self, error: OSError) -> None:
        self._tensorboard, self._writer = False, None
        warn(
            f"cannot write {self.path / 'tensorboard'}: {error.strerror}; the run goes on without it, the same numbers "
            "are in records.jsonl",
        )

    def close(self) -> None:
        """Release the directory, also where a process that this one has forked lives on."""
        if self._writer is not None:
            try:
                self._writer.flush()  # which tells what became of the thread that writes; close does not
                self._writer.close()
            except OSError as error:
                self._without_scalars(error)
            self._writer = None
        if self._lock is not None:
            # Forked processes share the lock: closing the file would leave it with them, and unlocking in one of them
            # would take it from the process that is at work.
            if fcntl is not None and os.getpid() == self._owner:
                fcntl.flock(self._lock, fcntl.LOCK_UN)
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *error) -> None:
        self.close()
