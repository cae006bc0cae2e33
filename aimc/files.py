"""Files that are written whole or not at all, and the files of a run directory read back."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import pathlib
import stat
import sys
import tempfile
from collections.abc import Callable
from typing import Any

from aimc.config import Config
from aimc.errors import AimcError


def usable(path: str | os.PathLike[str], field: str = "path") -> str:
    """A path as text, one that the system can take.

    Raises:
        AimcError: it is empty, or holds a null byte, with which names end.

    Example:
        >>> usable("runs/a")
        'runs/a'
    """
    place = os.fspath(path)
    if not place:
        raise AimcError("is empty; name a path (is a variable of the shell not set?)", field=field)
    if "\0" in place:
        raise AimcError(f"{place!r} is no path: it holds a null byte", field=field)
    return place


def writable(path: str | os.PathLike[str], field: str = "output") -> str:
    """A path as text, one that everything that writes files can take; the check of every place that is written to.

    Raises:
        AimcError: as :func:`usable`, or it is not UTF-8, which safetensors and matplotlib need.

    Example:
        >>> writable("runs/a")
        'runs/a'
    """
    place = usable(path, field)
    try:
        os.path.abspath(place).encode()
    except UnicodeEncodeError:
        raise AimcError(
            f"{place!r} is not UTF-8 here; give another name, or set PYTHONUTF8=1 where the name is right and the "
            "locale is not",
            field=field,
        ) from None
    return place


def write_atomic(path: str | os.PathLike[str], data: bytes | str | Callable[[str], None]) -> None:
    """Write a file through a temporary neighbour: write, fsync, rename.

    Args:
        path: the file; an old one is replaced, and of a link what it points to.
        data: bytes, text that is written as UTF-8, or a function that writes the file of a name.

    Raises:
        AimcError: the folder is missing, full, or not writable, or a device, pipe or socket is there.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomic(f"{folder}/note.txt", "hello")
        ...     os.listdir(folder)
        ['note.txt']
    """
    path = writable(path, "path")
    data = data.encode() if isinstance(data, str) else data
    try:
        _refuse_special(path)
        target = os.path.realpath(path) if os.path.islink(path) else path
        folder = os.path.dirname(target) or "."
        handle, temporary = tempfile.mkstemp(
            prefix=f".{os.path.basename(target)}.", suffix=".part", dir=folder
        )
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
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync_folder(folder)
    except OSError as error:
        raise AimcError(f"cannot write {path}: {error.strerror or error}", field="path") from None


def load_matplotlib() -> None:
    """Import matplotlib, also where MPLBACKEND names no backend that it has: figures that become files need none.

    Call it before whatever is imported from matplotlib.
    """
    if "matplotlib" in sys.modules:
        return
    asked = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if asked is not None:
            os.environ["MPLBACKEND"] = asked
    if asked:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = asked  # as the import itself would do, or fail to


def figure_path(path: str | os.PathLike[str]) -> str:
    """The file of a figure: ``path``, with ``.png`` where it has no suffix.

    Raises:
        AimcError: a suffix that matplotlib does not know.

    Example:
        >>> figure_path("drift"), figure_path("drift.svg")
        ('drift.png', 'drift.svg')
    """
    load_matplotlib()
    from matplotlib.backend_bases import FigureCanvasBase

    place = writable(path, "path")
    suffix = os.path.splitext(place)[1]
    kinds = FigureCanvasBase.get_supported_filetypes()
    if suffix and suffix[1:].lower() not in kinds:
        raise AimcError(f"no image ends in {suffix!r}; use one of {', '.join(sorted(kinds))}", field="path")
    return place if suffix else f"{place}.png"


def write_figure(figure: Any, path: str | os.PathLike[str], dpi: int, drawn: str | None = None) -> str:
    """Write a figure of matplotlib in the format that its suffix says, whole or not at all, and return its file.

    Args:
        figure: what to write.
        path: where; without a suffix it is a PNG.
        dpi: dots per inch.
        drawn: sha256 of what is drawn, for the description within a PNG; other formats have other names for such a
            thing, and it is left out.

    Raises:
        AimcError: as :func:`figure_path`, or the place cannot be written.
    """
    place, picture = figure_path(path), io.BytesIO()
    try:
        kind = os.path.splitext(place)[1][1:].lower()
        held = (
            {"Description": f"sha256 of what is drawn: {drawn}"}
            if kind == "png" and drawn is not None
            else None
        )
        figure.savefig(picture, dpi=dpi, format=kind, metadata=held)
    except (OSError, ImportError, RuntimeError) as error:  # some formats need programs that may be missing
        raise AimcError(f"cannot draw {place}: {error}", field="path") from None
    write_atomic(place, picture.getvalue())
    return place


def _refuse_special(path: str) -> None:
    """A rename would put a file in the place of a device; a folder the system refuses itself."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise AimcError(
            f"cannot write {path}: it is no file but a device, pipe or socket; give another name",
            field="path",
        )


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
    place = pathlib.Path(usable(path, "run")) / "config.yaml"
    try:
        text = place.read_text(encoding="utf-8")
    except OSError:
        why = "is no run directory (it has no config.yaml)"
        if place.with_name("comparison.json").exists():
            why = "is a comparison: name one of the runs in it"
        raise AimcError(f"{path} {why}", field="run") from None
    except ValueError:
        raise AimcError(f"{place} is damaged: it is no text", field="run") from None
    try:
        return kind.from_yaml(text)
    except AimcError as error:
        raise AimcError(f"{place}: {error}", field="run") from None


NUMBER = (int, float)
ATOM = (str, int, float, bool, type(None))
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "null",
          list: "a list", dict: "names and values"}  # fmt: skip


def misfit(value: Any, shape: Any, place: str = "it") -> str | None:
    """What is wrong with plain data from a file, as a sentence; None where it has the shape.

    Args:
        value: from JSON.
        shape: a type or several; ``[shape]`` for a list; ``{name: shape}`` for fields that must be there, or may be
            where the name ends in ``?``; ``{str: shape}`` for any names.
        place: how to call it.

    Example:
        >>> misfit({"a": [1, "b"]}, {"a": [int], "c?": str})
        'a[1] must be a whole number'
    """
    if isinstance(shape, list):
        if not isinstance(value, list):
            return f"{place} must be a list"
        found = (misfit(inner, shape[0], f"{place}[{i}]") for i, inner in enumerate(value))
        return next((wrong for wrong in found if wrong), None)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return f"{place} must hold names and values"
        above = "" if place == "it" else f"{place}."
        for name, inner in shape.items():
            fields = list(value) if name is str else [str(name).removesuffix("?")]
            for field in fields:
                if field in value:
                    wrong = misfit(value[field], inner, f"{above}{field}")
                else:
                    wrong = None if str(name).endswith("?") else f"{above}{field} is missing"
                if wrong:
                    return wrong
        return None
    kinds = shape if isinstance(shape, tuple) else (shape,)
    fits = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
    if fits and isinstance(value, int) and abs(value) > sys.float_info.max:
        return f"{place} is too large"
    return None if fits else f"{place} must be {' or '.join(_WORDS[k] for k in kinds)}"


_TILE = dict.fromkeys(
    ("pulses_mean", "pulses_p999", "pulses_max", "clipped", "beyond_budget", "saturated", "share", "reads"), NUMBER
)  # fmt: skip
_MAYBE = (int, float, type(None))
_TILE |= {"pulses?": int, "unanswered?": _MAYBE}
_LAYERS = {str: {
    "active_tile": (int, type(None)), "tiles": [_TILE], "updates?": int, "vectors?": int, "lost?": _MAYBE,
    "waiting?": _MAYBE, "digital?": dict.fromkeys(("kept", "passing", "products"), int),
}}  # fmt: skip
_RECORDS: dict[str, Any] = {
    "epoch": {"stage": str, "epoch": int, "seconds": NUMBER, "samples?": int},
    "digital": {"name": str, "value": NUMBER},
    "again": {"name": str, "value": NUMBER, "seconds": NUMBER},
    "evaluation": {"name": str, "result": {str: (*ATOM, list, dict)}, "seconds": NUMBER},
    "chip": {"name": str, "chip": int, "values": [NUMBER]},
}
_MEASURED = {
    "epochs": int, "accuracy": NUMBER, "validation": NUMBER, "test": NUMBER, "layers": _LAYERS,
}  # fmt: skip
"""What an epoch has besides where it was measured on the test set."""


def unfit_record(record: dict[str, Any]) -> str | None:
    """What a record lacks of the fields that reports and later sessions read; None if nothing.

    Example:
        >>> unfit_record({"kind": "digital", "name": "digital"}), unfit_record({"kind": "note"})
        ('value is missing', None)
    """
    kind = record["kind"]
    shape = _RECORDS.get(kind, {}) if isinstance(kind, str) else {"kind": str}
    return misfit(record, shape | _MEASURED if kind == "epoch" and "test" in record else shape)


_SESSION: dict[str, Any] = {
    **dict.fromkeys(("aimc?", "git?", "code?"), (str, type(None))),
    **dict.fromkeys(("started?", "python?", "torch?", "numpy?", "numba?", "cpu?", "threads?", "backend?"), ATOM),
    "command?": [str],
    "data?": {str: str},
}  # fmt: skip


def read_environment(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The ``environment.json`` of a run directory.

    Raises:
        AimcError: it is missing or damaged.
    """
    place = pathlib.Path(path) / "environment.json"
    found = read_json(place)
    wrong = misfit(found, _SESSION | {"resumed?": [_SESSION]})
    if wrong:
        raise AimcError(f"{place} is damaged: {wrong}", field="run")
    return found


def not_json(value: Any, place: str = "") -> str | None:
    """Which entry of plain data JSON cannot hold, as a sentence; None where it can hold all of it.

    Example:
        >>> not_json({"a": [1, math.nan]}), not_json({"a": (1, None)})
        ('a[1] is nan, and JSON has finite numbers only', None)
    """
    try:
        return _not_json(value, place)
    except RecursionError:
        return f"{place or 'it'} is nested too deeply"


def _not_json(value: Any, place: str) -> str | None:
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                return f"{place or 'it'} has the key {key!r}, and names in JSON are text"
            wrong = _not_json(inner, f"{place}.{key}" if place else key)
            if wrong:
                return wrong
        return None
    if isinstance(value, (list, tuple)):
        found = (_not_json(inner, f"{place}[{i}]") for i, inner in enumerate(value))
        return next((wrong for wrong in found if wrong), None)
    if isinstance(value, float) and not math.isfinite(value):
        return f"{place or 'it'} is {value}, and JSON has finite numbers only"
    if isinstance(value, ATOM):
        return None
    return f"{place or 'it'} is a {type(value).__name__}; JSON has numbers, text, true, false, null, lists and dicts"


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
        AimcError: a line in the middle is damaged, or lacks a field that its kind has; or the file cannot be read.
    """
    place = pathlib.Path(path) / "records.jsonl"
    try:
        lines = place.read_bytes().split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise AimcError(f"{place} is not readable: {error.strerror}", field="run") from None
    found = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            record = json.loads(line)
            whole = (
                isinstance(record, dict) and "kind" in record and record.pop("check", "") == _check(record)
            )
        except (ValueError, RecursionError):  # RecursionError: nested too deeply
            whole = False
        if not whole:
            raise AimcError(f"line {number} of {place} is damaged (its checksum does not fit)", field="run")
        wrong = unfit_record(record)
        if wrong:
            raise AimcError(
                f"line {number} of {place} is no record of {record['kind']!r}: {wrong}", field="run"
            )
        found.append(record)
    return found


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A JSON file of a run."""
    try:
        content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AimcError(f"{path} is not readable: {error}", field="run") from None
    if not isinstance(content, dict):
        raise AimcError(f"{path} is damaged: it holds no names and values", field="run")
    return content
