"""Files that are written whole or not at all, and the files of a run directory read back."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

from aimc.config import Config
from aimc.errors import AimcError


def write_atomic(path: str | os.PathLike[str], data: bytes | str | Callable[[str], None]) -> None:
    """Write a file through a temporary neighbour: write, fsync, rename.

    Args:
        path: the file; an old one is replaced.
        data: bytes, text that is written as UTF-8, or a function that writes the file of a name.

    Raises:
        AimcError: the folder is missing, full, or not writable.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomic(f"{folder}/note.txt", "hello")
        ...     os.listdir(folder)
        ['note.txt']
    """
    path = os.fspath(path)
    data = data.encode() if isinstance(data, str) else data
    folder = os.path.dirname(path) or "."
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", suffix=".part", dir=folder)
        try:
            os.close(handle)
            if callable(data):
                data(temporary)
            with open(temporary, "r+b") as file:  # who writes by name may have put another file there
                if not callable(data):
                    file.write(data)
                    file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o666 & ~_umask())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync_folder(folder)
    except OSError as error:
        raise AimcError(f"cannot write {path}: {error.strerror or error}", field="path") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: str) -> None:
    """Make the rename itself durable, where the system can open a folder."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_config(path: str | os.PathLike[str], kind: type[Config] = Config) -> Any:
    """The configuration of a run.

    Raises:
        AimcError: the directory is no run, or its configuration is not readable by this version.
    """
    place = pathlib.Path(path) / "config.yaml"
    try:
        text = place.read_text()
    except OSError:
        raise AimcError(f"{path} is no run directory (it has no config.yaml)", field="run") from None
    except ValueError:
        raise AimcError(f"{place} is damaged: it is no text", field="run") from None
    try:
        return kind.from_yaml(text)
    except AimcError as error:
        raise AimcError(f"{place}: {error}", field="run") from None


def record_line(record: dict[str, Any]) -> str:
    """A record as a line of ``records.jsonl``, with a checksum.

    Example:
        >>> record_line({"kind": "note", "text": "hello"})
        '{"kind": "note", "text": "hello", "check": "0ccbca93"}\\n'
    """
    record = json.loads(json.dumps(record, allow_nan=False))
    return json.dumps({**record, "check": _check(record)}) + "\n"


def _check(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:8]


def read_records(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The records of a run, without their checksums; a last line that was cut short is left out.

    Raises:
        AimcError: a line in the middle is damaged.
    """
    place = pathlib.Path(path) / "records.jsonl"
    if not place.exists():
        return []
    lines = place.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or "kind" not in record or record.pop("check", "") != _check(record):
            raise AimcError(f"line {number} of {place} is damaged (its checksum does not fit)", field="run")
        found.append(record)
    return found


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON file of a run."""
    try:
        content = json.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise AimcError(f"{path} is not readable: {error}", field="run") from None
    if not isinstance(content, dict):
        raise AimcError(f"{path} is damaged: it holds no names and values", field="run")
    return content
