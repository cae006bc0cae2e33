"""Jobs on joblib's engines: all are done, each gives what it would give alone, and a dead worker loses nothing."""

import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch

from aimc import cli, jobs
from aimc.errors import AimcError


def _square(number: int) -> int:
    if number == 13:
        raise AimcError("is unlucky", field="number")
    return number * number


def _threads(_: int) -> int:
    return torch.get_num_threads()


def _die_once(place: str) -> str:
    """Kills its process the first time."""
    if not os.path.exists(place):
        Path(place).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def _die(word: str) -> str:
    if word == "poison":
        os.kill(os.getpid(), signal.SIGKILL)
    return word


def _wait_for(place: str) -> str:
    """Comes back once a file is there."""
    while not os.path.exists(place or "."):
        time.sleep(0.05)
    return "came"


@pytest.mark.parametrize("prefer", ["threads", "processes"])
@pytest.mark.parametrize("count", [1, 2])
def test_every_job_is_done_and_errors_are_handed_over(prefer, count):
    found = dict(jobs.carried_out(_square, [2, 13, 4], count, prefer))
    assert (found[0], found[2]) == (4, 16)
    assert isinstance(found[1], AimcError) and str(found[1]) == "field 'number': is unlucky"
    assert list(jobs.carried_out(_square, [], count, prefer)) == []


def test_a_mistake_in_the_code_is_raised():
    with pytest.raises(TypeError):
        list(jobs.carried_out(_square, ["a"], 2))


def test_torch_has_as_many_threads_as_here():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert dict(jobs.carried_out(_threads, [0, 1], 2)) == {0: 3, 1: 3}
    finally:
        torch.set_num_threads(before)


def test_a_job_whose_worker_dies_is_given_out_again(tmp_path):
    places = [str(tmp_path / name) for name in "abc"]
    Path(places[1]).touch()
    assert sorted(jobs.carried_out(_die_once, places, 2)) == [(n, "survived") for n in range(3)]


def test_a_job_that_kills_its_workers_does_not_take_the_others_along():
    found = dict(jobs.carried_out(_die, ["a", "poison", "b", "c"], 2))
    assert [found[n] for n in (0, 2, 3)] == ["a", "b", "c"]
    assert isinstance(found[1], AimcError) and "its process died, three times" in str(found[1])


def test_workers_end_with_the_process_that_was_killed(tmp_path):
    code = """
import sys
from aimc import jobs
from tests import test_jobs as these
list(jobs.carried_out(these._tell_and_wait, [sys.argv[1] + "/a", sys.argv[1] + "/b"], 2))
"""
    root = Path(__file__).parent.parent
    run = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=root)
    try:
        _until(lambda: all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in "ab"))
    finally:
        run.kill()
        run.wait()
    workers = [int((tmp_path / name).read_text()) for name in "ab"]
    _until(lambda: not any(_alive(pid) for pid in workers))


def test_a_worker_that_begins_when_the_process_is_gone_ends_too():
    code = "import time; from aimc import jobs; jobs._numbered(lambda n: n, 1, 1 << 22, 0, 0); time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1, done


def _tell_and_wait(place: str) -> None:
    Path(place).write_text(str(os.getpid()))
    time.sleep(600)


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def _until(found, seconds: float = 120.0) -> None:
    began = time.monotonic()
    while not found():
        assert time.monotonic() - began < seconds
        time.sleep(0.1)


def test_what_cannot_be_done_is_named():
    with pytest.raises(AimcError, match="'jobs': must be at least 1, got 0"):
        list(jobs.carried_out(_square, [1], 0))
    with pytest.raises(AimcError, match="no engine is called 'rya'; did you mean 'ray'"), jobs.engine("rya"):
        pass


def test_an_engine_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(AimcError, match=r"pip install 'aimc\[ray\]'"), jobs.engine("ray"):
        pass


@pytest.mark.parametrize("kind", [ConnectionError, RuntimeError, ValueError, TimeoutError])
@pytest.mark.parametrize("address", ["10.0.0.1:6379", "", None])
def test_a_cluster_that_cannot_be_reached_is_named(monkeypatch, capsys, kind, address):
    def init(**options):
        raise kind("Could not read '10.0.0.1'\nfrom GCS")

    stub = types.SimpleNamespace(is_initialized=lambda: False, init=init)
    monkeypatch.setitem(sys.modules, "ray", stub)
    if address is None:
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
    else:
        monkeypatch.setenv("RAY_ADDRESS", address)
    assert cli.main(["run", "demo", "--engine", "ray"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("aimc: error: field 'engine': ") and error.count("\n") == 1
    assert f"({kind.__name__}: Could not read '10.0.0.1' from GCS)" in error
    named = "on this machine" if address is None else f"RAY_ADDRESS={address} "
    assert named in error and ("unset it" in error) == (address is not None)


def test_the_engine_is_the_one_asked_for():
    assert jobs.shares_process("threads") and not jobs.shares_process("processes")
    with jobs.engine("processes"):
        assert not jobs.shares_process("threads")
    with jobs.engine("threads"):
        assert jobs.shares_process("processes")
    with jobs.engine(None):
        assert jobs.shares_process("threads")


@pytest.mark.slow
def test_a_ray_cluster(tmp_path):
    pytest.importorskip("ray", reason="ray is an extra")
    code = """
import sys, torch, aimc
from pathlib import Path
from aimc import jobs
from tests import test_jobs as these

net = aimc.convert(torch.nn.Linear(4, 3), aimc.presets.pcm().replace(**{"input_range.value": 1.0}), seed=0)
metric = aimc.Accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0]))
here = aimc.evaluate_over_time(net, metric, chips=3)
with jobs.engine("ray"):
    there = aimc.evaluate_over_time(net, metric, chips=3, workers=2)
    assert (here.values == there.values).all()
    assert jobs.most() >= 1 and not jobs.shares_process("threads")
    these.test_every_job_is_done_and_errors_are_handed_over("processes", 2)
    these.test_a_mistake_in_the_code_is_raised()
    these.test_torch_has_as_many_threads_as_here()
    these.test_a_job_whose_worker_dies_is_given_out_again(Path(sys.argv[1]))
    these.test_a_job_that_kills_its_workers_does_not_take_the_others_along()
    gone = jobs.carried_out(these._wait_for, [str(Path(sys.argv[1]) / "never"), ""], 2)
    assert next(gone) == (1, "came")
    gone.close()
    assert not jobs._on_cluster
print("all of it")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=300,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.returncode == 0 and "all of it" in done.stdout, done.stderr
