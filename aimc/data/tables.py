"""Files of rows (parquet, lines of JSON) to Arrow tables.

A damaged parquet file can end the process that decodes it (a segmentation fault inside of Arrow). So a process of its
own decodes, and hands over rows that are known to be whole.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from aimc.data import table_reader
from aimc.errors import AimcError

_START = """
import sys
sys.path[:] = sys.argv.pop(1).split("\\n")
import runpy
runpy.run_path(sys.argv.pop(1), run_name="__main__")
"""


def decode_table(kind: str, data: bytes) -> Any:
    """A ``pyarrow.Table`` of the rows of a file.

    Args:
        kind: ``parquet`` or ``jsonl``.
        data: content of the file.

    Raises:
        AimcError: for anything that is no whole file of the kind, whatever it does to its reader.

    Example:
        >>> decode_table("jsonl", b'{"text": "a", "label": 1}').to_pylist()
        [{'text': 'a', 'label': 1}]
    """
    import pyarrow

    command = [sys.executable, "-c", _START, "\n".join(sys.path), str(Path(table_reader.__file__)), kind]
    try:
        done = subprocess.run(command, input=data, capture_output=True)
    except OSError as error:
        raise AimcError(f"no process to read a {kind} file in: {error}") from None
    if done.returncode == table_reader.REFUSED:
        raise AimcError(f"not a whole {kind} file: {done.stdout.decode(errors='replace')}")
    if done.returncode:
        raise AimcError(
            f"reading this {kind} file ends the process: {_end(done)}; it is damaged, or memory is short"
        )
    return pyarrow.ipc.open_stream(done.stdout).read_all()


def _end(done: subprocess.CompletedProcess[bytes]) -> str:
    """What a process came to."""
    if done.returncode < 0:
        return signal.strsignal(-done.returncode) or f"signal {-done.returncode}"
    words = done.stderr.decode(errors="replace").strip().splitlines()
    return words[-1] if words else f"status {done.returncode}"
