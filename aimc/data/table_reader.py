"""A program of :mod:`aimc.data.tables`: a file of rows from its input to its output, as an Arrow stream.

It imports nothing of aimc, which would take longer than the reading.
"""

from __future__ import annotations

import io
import os
import sys

REFUSED = 3
"""What it ends with where the file is at fault; its output then says why."""


def read_table(kind: str, data: bytes) -> bytes:
    """Rows as an Arrow stream.

    Args:
        kind: ``parquet`` or ``jsonl``.
        data: content of the file.

    Raises:
        Exception: of pyarrow, for anything that is no whole file of the kind.

    Example:
        >>> import pyarrow
        >>> pyarrow.ipc.open_stream(read_table("jsonl", b'{"text": "a"}')).read_all().to_pylist()
        [{'text': 'a'}]
    """
    import pyarrow
    import pyarrow.json
    import pyarrow.parquet

    source = io.BytesIO(data)
    if kind == "parquet":
        table = pyarrow.parquet.read_table(source)
    else:
        # One block, so that a column has one type and a line may have any length.
        whole = pyarrow.json.ReadOptions(block_size=min(len(data) + 1, (1 << 31) - 1))
        table = pyarrow.json.read_json(source, whole)
    table.validate(full=True)  # what is damaged inside crashes its user, not its reader
    stream = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(stream, table.schema) as writer:
        writer.write_table(table)
    return stream.getvalue().to_pybytes()


def main() -> int:
    """Read the kind that the first argument names."""
    try:
        answer, status = read_table(sys.argv[1], sys.stdin.buffer.read()), 0
    except Exception as error:  # of many kinds, and the file's in any case
        answer, status = f"{type(error).__name__}: {error}".encode(), REFUSED
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
    return status


if __name__ == "__main__":
    os._exit(main())  # now and then Arrow's threads are still there, whose end is an abort
