"""Files of rows, read where a damaged one can do no harm."""

import io
import os
import signal
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aimc.data.tables import decode_lines, decode_parquet
from aimc.errors import AimcError

ROWS = {"text": ["a b", "", "ß"], "label": [1, 0, 1]}


def parquet(table):
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def test_rows_types_and_metadata_come_through():
    table = pa.table({**ROWS, "image": [{"bytes": b"\x00\n", "path": None}] * 3})
    table = table.replace_schema_metadata({b"huggingface": b"{}"})
    assert decode_parquet(parquet(table)).equals(table, check_metadata=True)


def test_a_table_that_is_damaged_inside_is_refused():
    bad = pa.Array.from_buffers(
        pa.utf8(), 1, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0"), pa.py_buffer(b"\xff")]
    )
    with pytest.raises(AimcError, match="cannot be read as parquet: ArrowInvalid.*UTF8"):
        decode_parquet(parquet(pa.table({"text": bad})))


def test_what_is_no_parquet_is_refused():
    for data in (b"", b"{", b"PAR1", bytes(100), b"\n\n"):
        with pytest.raises(AimcError, match="cannot be read as parquet: Arrow"):
            decode_parquet(data)


GOOD = parquet(pa.table(ROWS))


def reader(monkeypatch, folder, text):
    """Put something in place of what the reader imports first."""
    (folder / "pyarrow.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_what_ends_its_reader_is_an_error_of_ours(monkeypatch, tmp_path):
    reader(monkeypatch, tmp_path, "import os\nos.kill(os.getpid(), 11)")
    with pytest.raises(AimcError, match=f"ends the process: {signal.strsignal(11)}; the file is damaged"):
        decode_parquet(GOOD)


def test_half_an_answer_is_none(monkeypatch):
    """Also where the system does not say what a process came to, as where SIGCHLD is ignored."""
    real = subprocess.run

    def cut(*args, **options):
        done = real(*args, **options)
        return subprocess.CompletedProcess(done.args, 0, done.stdout[:-8], done.stderr)

    monkeypatch.setattr(subprocess, "run", cut)
    with pytest.raises(AimcError, match="ends the process: status 0"):
        decode_parquet(GOOD)


def test_what_others_print_is_no_answer(monkeypatch, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('welcome')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert decode_parquet(GOOD).to_pydict() == ROWS


def test_a_reader_that_does_not_begin_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    with pytest.raises(AimcError, match="no process to read parquet in: .*none"):
        decode_parquet(GOOD)


@pytest.mark.parametrize("name, value", [("frozen", True), ("executable", None)])
def test_a_program_without_a_python_reads_by_itself(monkeypatch, name, value):
    monkeypatch.setattr(sys, name, value, raising=False)
    monkeypatch.setattr(subprocess, "run", None)
    assert decode_parquet(GOOD).to_pydict() == ROWS
    with pytest.raises(AimcError, match="cannot be read as parquet: Arrow"):
        decode_parquet(GOOD[:-1])


def test_the_reader_finds_what_this_process_finds(monkeypatch, tmp_path):
    """Not what lies in the folder that it is started in, nor beside its own file; whatever else is in the path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pyarrow.py").write_text("raise SystemExit('a stranger')")
    long = [str(tmp_path / ("x" * 200)) for _ in range(2000)]
    own = ["a\n\nb", tmp_path, *sys.path, *long]  # a Path, which Python passes over
    monkeypatch.setattr(sys, "path", own)
    assert decode_parquet(GOOD).num_rows == 3
    monkeypatch.setattr(sys, "path", [str(tmp_path), *own])
    with pytest.raises(AimcError, match="ends the process: a stranger"):
        decode_parquet(GOOD)


def test_lines_of_json_and_one_array():
    lines = '{"text": "a\u2028b", "label": 1}\n\n{"text": "2026-11-30", "label": "x"}\r\n{"more": [1]}'
    rows = [{"text": "a\u2028b", "label": 1}, {"text": "2026-11-30", "label": "x"}, {"more": [1]}]
    assert decode_lines(lines.encode()) == rows
    assert decode_lines(b"\xef\xbb\xbf" + lines.encode()) == rows
    assert decode_lines(b' [{"text": "a"},\n {"text": "b"}]') == [{"text": "a"}, {"text": "b"}]
    assert decode_lines(b"") == []


@pytest.mark.parametrize(
    "data, message",
    [
        (b"null", "row 0 is no JSON object, but 'None'"),  # pyarrow.json meets a segmentation fault here
        (b'{"a": 1}\n[]', "row 1 is no JSON object"),
        (b'{"a": 1}\n{', "line 2 is no JSON: Expecting property name"),
        (b"[1, 2", "the array is no JSON"),
        (b"\xff", "is not UTF-8"),
        (b'{"a": ' + b"[" * 100_000, "line 1 is no JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "line 1 is no JSON: Exceeds the limit"),
    ],
)
def test_what_is_no_json_is_refused(data, message):
    with pytest.raises(AimcError, match=message):
        decode_lines(data)
