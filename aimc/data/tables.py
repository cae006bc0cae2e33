"""Files of rows (parquet, lines of JSON), decoded so that a damaged one can do no harm."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

from aimc.data import table_reader
from aimc.errors import AimcError


def decode_parquet(data: bytes) -> Any:
    """A ``pyarrow.Table`` of the rows of a parquet file.

    A damaged file can end the process that decodes it (a segmentation fault inside of Arrow). So a process of its own
    decodes, and hands over rows that are known to be whole. A frozen program, which has no Python to start, decodes
    itself.

    Args:
        data: content of the file.

    Raises:
        AimcError: for anything that is no whole parquet file, whatever it does to its reader.

    Example:
        >>> import io, pyarrow, pyarrow.parquet
        >>> file = io.BytesIO()
        >>> pyarrow.parquet.write_table(pyarrow.table({"label": [3]}), file)
        >>> decode_parquet(file.getvalue()).to_pylist()
        [{'label': 3}]
    """
    import pyarrow

    alone = not sys.executable or getattr(sys, "frozen", False)
    whole, answer = table_reader.answer(data) if alone else _ask(data)
    if not whole:
        raise AimcError(f"cannot be read as parquet: {answer.decode()}")
    return pyarrow.ipc.open_stream(answer).read_all()


def _ask(data: bytes) -> tuple[bool, bytes]:
    """Whether the file was read, and the rows as an Arrow stream or the reason why not."""
    places = json.dumps([place for place in sys.path if isinstance(place, str)])
    try:
        done = subprocess.run(
            [sys.executable, str(table_reader.__file__)],
            input=places.encode() + b"\n" + data,
            capture_output=True,
        )
    except OSError as error:
        raise AimcError(f"there is no process to read parquet in: {error}") from None
    _, found, answer = done.stdout.partition(table_reader.ANSWER)
    head = table_reader.HEAD.size
    if found and len(answer) >= head:
        whole, length = table_reader.HEAD.unpack(answer[:head])
        if len(answer) - head == length:
            return whole, answer[head:]
    raise AimcError(
        f"reading it as parquet ends the process: {_end(done)}; the file is damaged, or memory is short"
    )


def _end(done: subprocess.CompletedProcess[bytes]) -> str:
    """What a process came to."""
    if done.returncode < 0:
        return signal.strsignal(-done.returncode) or f"signal {-done.returncode}"
    words = done.stderr.decode(errors="replace").strip().splitlines()
    return words[-1] if words else f"status {done.returncode}"


def decode_lines(data: bytes) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, or of one array.

    Args:
        data: content of the file, UTF-8.

    Raises:
        AimcError: a line is no JSON object.

    Example:
        >>> decode_lines(b'{"text": "a"}')
        [{'text': 'a'}]
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise AimcError(f"is not UTF-8: {error}") from None
    if text.lstrip()[:1] == "[":
        rows = _parsed(text, "the array")
    else:
        lines = ((number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
        rows = [_parsed(line, f"line {number}") for number, line in lines]
    odd = next((place for place, row in enumerate(rows) if not isinstance(row, dict)), None)
    if odd is not None:
        raise AimcError(f"row {odd} is no JSON object, but {str(rows[odd])[:40]!r}")
    return rows


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AimcError(f"{where} is no JSON: {error}") from None
