"""Run directories: what they hold, and what they refuse."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from aimc.config import Config
from aimc.errors import AimcError, BusyError
from aimc.files import read_config, read_records, write_atomic
from aimc.train import Run, Stage
from aimc.train.run import code_hash, environment

ROOT = Path(__file__).parents[2]


def _open(path, config=None, **options):
    return Run(path, config or Stage(epochs=3), tensorboard=False, **options)


def test_a_new_run_holds_its_configuration_and_environment(tmp_path):
    with _open(tmp_path / "deep" / "run", data={"train": "abc"}, backend="cpu") as run:
        pass
    assert read_config(run.path) == Stage(epochs=3)
    known = json.loads((run.path / "environment.json").read_text())
    for name in ("aimc", "python", "torch", "numpy", "numba", "cpu", "command", "started", "git"):
        assert name in known
    assert known["threads"] >= 1 and known["backend"] == "cpu" and known["data"] == {"train": "abc"}


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    with Run(tmp_path, Stage(), tensorboard=False):
        pass
    for place in (
        tmp_path / ".config.yaml.x.part",
        *(tmp_path / "checkpoints" / n for n in (".a.part", ".tmpEXw")),
    ):
        place.write_text("half")
    with Run(tmp_path, Stage(), tensorboard=False):
        assert sorted(p.name for p in tmp_path.rglob(".*")) == [".lock"]


def test_another_configuration_is_refused_with_the_fields_that_differ(tmp_path):
    _open(tmp_path / "a").close()
    with pytest.raises(AimcError, match=r"epochs: 3 -> 4; optimizer\.lr: 0\.05 -> 0\.1"):
        _open(tmp_path / "a", Stage(epochs=4).replace(**{"optimizer.lr": 0.1}))
    assert read_config(tmp_path / "a") == Stage(epochs=3)
    _open(tmp_path / "a").close()  # the refusal released the directory


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(AimcError, match=r"thesis\.tex"):
        _open(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "x" and not (tmp_path / "config.yaml").exists()


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "a").write_text("x")
    with pytest.raises(AimcError, match="cannot make"):
        _open(tmp_path / "a")


def test_other_data_is_refused(tmp_path):
    _open(tmp_path, data={"train": "abc", "test": "x"}).close()
    with pytest.raises(AimcError, match="checksum of train differs"):
        _open(tmp_path, data={"train": "abd", "test": "x"})


def test_two_processes_do_not_share_a_directory(tmp_path):
    pytest.importorskip("fcntl")
    with _open(tmp_path), pytest.raises(AimcError, match="another Run of this process"):
        _open(tmp_path)


_HOLD = """
import os, sys
from tests.train.test_run import _open
run = _open(sys.argv[1])
if os.fork() == 0:
    if "--child-closes" in sys.argv:
        run.close()
        print("child", flush=True)
    sys.stdin.read()
    os._exit(0)
if "--close" in sys.argv:
    run.close()
print("parent", flush=True)
if "--stay" in sys.argv:
    sys.stdin.read()
os._exit(0)
"""


@pytest.mark.parametrize("words", ["--close --stay", "", "--child-closes --stay"])
def test_a_forked_process_neither_keeps_nor_takes_the_lock(tmp_path, words):
    """What forks, such as a worker that loads data, holds the same lock."""
    pytest.importorskip("fcntl")
    command = [sys.executable, "-c", _HOLD, str(tmp_path), *words.split()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout is not None
        for _ in range(1 + words.count("child")):
            assert other.stdout.readline()
        if "--close" in words:
            _open(tmp_path).close()
        elif not words:  # the parent is gone, and its child lives
            other.wait(10)
            with pytest.raises(BusyError, match=rf"started by one that is gone.*process {other.pid}"):
                _open(tmp_path)
        else:
            with pytest.raises(BusyError, match="another process"):
                _open(tmp_path)


def test_the_process_at_work_is_named_and_one_that_was_killed_holds_nobody_up(tmp_path):
    pytest.importorskip("fcntl")
    code = f"""
import sys, time
from tests.train.test_run import _open
with _open({str(tmp_path)!r}):
    print("open", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as other:
        assert other.stdout is not None and other.stdout.readline() == b"open\n"
        said = rf"at work in {tmp_path} \(process {other.pid} on {platform.node()}\).*another --output"
        with pytest.raises(BusyError, match=said):
            _open(tmp_path)
        other.kill()
    with _open(tmp_path), pytest.raises(BusyError, match=f"process {os.getpid()} on"):
        _open(tmp_path)


def test_resuming_is_noted_in_the_environment(tmp_path):
    for _ in range(3):
        _open(tmp_path).close()
    known = json.loads((tmp_path / "environment.json").read_text())
    assert len(known["resumed"]) == 2 and known["resumed"][0]["started"] >= known["started"]


def test_a_torn_last_line_is_taken_out_before_the_next_is_written(tmp_path):
    with _open(tmp_path) as run:
        run.record("note", n=1)
    with open(tmp_path / "records.jsonl", "a") as file:
        file.write('{"kind": "no')
    with _open(tmp_path) as run:
        run.record("note", n=2)
        assert run.find("note", n=1) == {"kind": "note", "n": 1} and run.find("note", n=3) is None
    assert [r["n"] for r in read_records(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"x": float("nan")}, "'x': x is nan"),
        ({"x": torch.ones(1)}, "'x': x is a Tensor"),
        ({"x": [{"y": float("inf")}]}, r"x\[0\].y is inf"),
        ({"x": {3: 4}}, "x has the key 3"),
        ({"check": "hello"}, "'check': is the name of a line's checksum"),
    ],
)
def test_records_refuse_what_a_line_cannot_hold(tmp_path, fields, message):
    with _open(tmp_path) as run, pytest.raises(AimcError, match=message):
        run.record("note", **fields)
    assert read_records(tmp_path) == []
    _open(tmp_path).close()


def test_records_that_cannot_be_read_and_checkpoints_that_cannot_be_removed_are_named(tmp_path):
    with _open(tmp_path) as run:
        run.checkpoint("a.epoch").mkdir()
        with pytest.raises(AimcError, match=r"cannot remove .*a\.epoch\.safetensors.*Is a directory"):
            run.forget_progress("a")
    (tmp_path / "records.jsonl").mkdir()
    with pytest.raises(AimcError, match=r"records\.jsonl is not readable: Is a directory"):
        read_records(tmp_path)


@pytest.mark.parametrize("name, message", [("caf\udce9", "is not UTF-8"), ("", "is empty")])
def test_a_name_that_not_every_writer_takes_is_refused_before_anything_is_made(
    tmp_path, monkeypatch, name, message
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AimcError, match=message) as caught:
        _open(name)
    assert caught.value.field == "output" and os.listdir(tmp_path) == []
    with pytest.raises(AimcError, match=message):
        write_atomic(name, "text")


def test_settle_appends_what_is_missing_and_takes_back_what_was_lost(tmp_path):
    rows = [{"epoch": 1, "loss": 0.5, "seconds": 1.0}, {"epoch": 2, "loss": 0.4, "seconds": 1.0}]
    with _open(tmp_path) as run:
        run.settle("a", rows)
        run.record("note")
        run.settle("b", rows[:1])
        run.settle("a", rows)
        assert [r.get("stage") for r in read_records(tmp_path)] == ["a", "a", None, "b"]
        run.settle("a", rows[:1])
        held = read_records(tmp_path)
        assert held == run.records
        assert [(r.get("stage"), r.get("epoch")) for r in held] == [(None, None), ("b", 1), ("a", 1)]


def test_scalars_go_to_tensorboard_unless_switched_off(tmp_path):
    for name, wanted in (("on", True), ("off", False)):
        with Run(tmp_path / name, Stage(), tensorboard=wanted) as run:
            run.scalar("loss", 0.5, 1)
        assert (tmp_path / name / "tensorboard").exists() == wanted


def test_a_configuration_of_another_kind_is_refused(tmp_path):
    class AnotherKind(Config):
        epochs: int = 3

    _open(tmp_path).close()
    with pytest.raises(AimcError, match="Stage"):
        _open(tmp_path, AnotherKind())


def test_the_hash_of_the_code_follows_names_and_contents(tmp_path):
    (tmp_path / "a.py").write_text("x")
    (tmp_path / "notes.md").write_text("y")
    first = code_hash(tmp_path)
    (tmp_path / "notes.md").write_text("z")
    assert code_hash(tmp_path) == first and environment()["code"] == code_hash()
    (tmp_path / "a.py").write_text("z")
    second = code_hash(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, code_hash(tmp_path)}) == 3


def test_a_null_byte_in_a_path_is_named():
    for attempt, field in (
        (lambda: Run("x\0y", Stage(), tensorboard=False), "output"),
        (lambda: read_config("x\0y"), "run"),
        (lambda: write_atomic("x\0y", "text"), "path"),
    ):
        with pytest.raises(AimcError, match="is no path: it holds a null byte") as caught:
            attempt()
        assert caught.value.field == field
