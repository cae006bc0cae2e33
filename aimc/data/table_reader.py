"""A program of :mod:`aimc.data.tables`: a parquet file from its input to its output, as an Arrow stream.

It imports nothing of aimc, which would take longer than the reading.
"""

from __future__ import annotations

import os
import struct
import sys

ANSWER = b"\0answer of aimc\0"
"""What precedes an answer: whatever runs when a Python begins may have written something before it."""
HEAD = struct.Struct("<?Q")
"""Whether the answer is a table, not the reason why there is none; and its length."""


def as_stream(data: bytes) -> bytes:
    """The rows of a parquet file as an Arrow stream.

    Raises:
        Exception: of pyarrow, for anything that is no whole parquet file.

    Example:
        >>> import io, pyarrow, pyarrow.parquet
        >>> file = io.BytesIO()
        >>> pyarrow.parquet.write_table(pyarrow.table({"label": [3]}), file)
        >>> pyarrow.ipc.open_stream(as_stream(file.getvalue())).read_all().to_pylist()
        [{'label': 3}]
    """
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    table.validate(full=True)  # what is damaged inside crashes its user, not its reader
    stream = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue().to_pybytes()


def answer(data: bytes) -> tuple[bool, bytes]:
    """Whether a parquet file was read, and its rows as an Arrow stream or the reason why not.

    Example:
        >>> answer(b"")[0]
        False
    """
    try:
        return True, as_stream(data)
    except Exception as error:  # of many kinds, of pyarrow and those below it
        return False, f"{type(error).__name__}: {error}".encode(errors="replace")


def main() -> None:
    """Take a line with the places of modules as JSON, and then the file, and answer."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [place for place in sys.path if place != here]  # modules of aimc.data are nobody else's
    import json

    places, _, data = sys.stdin.buffer.read().partition(b"\n")
    sys.path[:] = json.loads(places)
    import pyarrow.parquet  # noqa: F401  (where it cannot be imported, the file is not at fault)

    whole, said = answer(data)
    for part in (ANSWER, HEAD.pack(whole, len(said)), said):
        sys.stdout.buffer.write(part)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
    os._exit(0)  # now and then threads of Arrow are still there, whose end would be an abort
