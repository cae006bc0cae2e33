"""Files of rows, read where a damaged one can do no harm."""

import io
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aimc.data.tables import decode_table
from aimc.errors import AimcError

ROWS = {"text": ["a b", "", "ß"], "label": [1, 0, 1]}


def parquet(table):
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def test_rows_types_and_metadata_come_through():
    table = pa.table({**ROWS, "image": [{"bytes": b"\x00\n", "path": None}] * 3})
    table = table.replace_schema_metadata({b"huggingface": b"{}"})
    found = decode_table("parquet", parquet(table))
    assert found.equals(table, check_metadata=True)
    lines = '{"text": "a b", "label": 1}\n{"text": "", "label": 0}\n{"text": "ß", "label": 1}'
    assert decode_table("jsonl", lines.encode()).to_pydict() == ROWS


def test_a_line_of_any_length_and_one_type_in_a_column():
    """Longer than a block of the reader; and a date among words, blocks later."""
    lines = ['{"text": "2026-11-30"}'] * 100_000 + ['{"text": "%s"}' % ("a" * 3_000_000)]
    found = decode_table("jsonl", "\n".join(lines).encode())["text"]
    assert str(found.type) == "string" and len(found) == 100_001 and len(found[-1].as_py()) == 3_000_000


def test_what_ends_its_reader_is_an_error_of_ours():
    """pyarrow.json meets a segmentation fault in this file."""
    with pytest.raises(
        AimcError, match="reading this jsonl file ends the process: Segmentation fault; it is d"
    ):
        decode_table("jsonl", b"null")


def test_a_table_that_is_damaged_inside_is_refused():
    bad = pa.Array.from_buffers(
        pa.utf8(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]
    )
    with pytest.raises(AimcError, match="not a whole parquet file: ArrowInvalid.*UTF8"):
        decode_table("parquet", parquet(pa.table({"text": bad})))


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_what_is_no_file_of_the_kind_is_refused(kind):
    for data in (b"", b"{", b"PAR1", bytes(100)):
        with pytest.raises(AimcError, match=f"not a whole {kind} file: Arrow"):
            decode_table(kind, data)


def test_a_reader_that_does_not_begin_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(AimcError, match="no process to read a jsonl file in: .*none"):
        decode_table("jsonl", b"{}")


def test_the_reader_finds_what_this_process_finds(monkeypatch, tmp_path):
    """Not what lies in the folder that it is started in, nor beside its own file."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyarrow.py").write_text("raise SystemExit('a stranger')")
    assert decode_table("jsonl", b"{}").num_rows == 1
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(AimcError, match="ends the process: a stranger"):
        decode_table("jsonl", b"{}")
