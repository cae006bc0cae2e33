"""The examples run, and what they train has learned something."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"


def _main(name: str):
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert os.listdir(tmp_path) == []


def test_lightning():
    pytest.importorskip("lightning", reason="needs lightning")
    found = _main("lightning_module")(images=600, epochs=2)
    assert len(found) == 2 and all(value > 0.5 for value in found.values()), found


def test_the_trainer_of_transformers():
    pytest.importorskip("transformers", reason="needs aimc[language]")
    pytest.importorskip("accelerate", reason="needs accelerate")
    found = _main("huggingface_trainer")(count=400, epochs=6)
    assert len(found) == 3 and all(value > 0.8 for value in found.values()), found


def test_data_parallel_in_two_processes(tmp_path):
    """As it is started from a command line; both processes have to end well."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, *words, str(FOLDER / "data_parallel.py")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.findall(r"^(.*), 2 processes: ([\d.]+) %$", done.stdout, re.MULTILINE)
    assert [name for name, _ in found] == ["hardware-aware, after a year", "in cells"], done.stdout
    assert all(float(value) > 60 for _, value in found), found
