from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

hypothesis.settings.register_profile(
    "aimc",
    max_examples=40,
    deadline=None,  # the first call may compile
    derandomize=True,  # the same examples on every machine: what fails in one place can be looked at in another
    suppress_health_check=[
        hypothesis.HealthCheck.function_scoped_fixture
    ],  # the poison holds for every example
)
hypothesis.settings.load_profile("aimc")

torch.set_num_threads(1)  # pytest-xdist brings the processes; a test about threads sets its own number


def _poison(function):
    """The same allocator, but floating tensors come filled with NaN: an element never written is never small noise."""

    def poisoned(*args, **kwargs):
        tensor = function(*args, **kwargs)
        plain = tensor.layout == torch.strided and tensor.device.type != "meta"
        if plain and type(tensor) is torch.Tensor and (tensor.is_floating_point() or tensor.is_complex()):
            with torch.no_grad():
                tensor.fill_(float("nan"))
        return tensor

    return poisoned


@pytest.fixture(autouse=True)
def poison_uninitialised_memory(monkeypatch):
    """Applies to what Python code allocates; torch's own kernels allocate in C++ and are not touched."""
    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, _poison(getattr(torch, name)))
    for name in ("new_empty", "new_empty_strided"):
        monkeypatch.setattr(torch.Tensor, name, _poison(getattr(torch.Tensor, name)))


@pytest.fixture(autouse=True)
def private_cache(monkeypatch, tmp_path_factory):
    """Tests share one cache of decoded images a session and leave the user's alone."""
    if "AIMC_TEST_CACHE" not in os.environ:
        os.environ["AIMC_TEST_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", os.environ["AIMC_TEST_CACHE"])


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """A folder with the real data sets, from AIMC_DATA or beside the repository; skips where there is none."""
    for place in (os.environ.get("AIMC_DATA"), ROOT.parent / "shared" / "data"):
        if place and (Path(place) / "mnist").is_dir():
            return Path(place)
    pytest.skip("no data sets: set AIMC_DATA to a folder with mnist/, cifar10/, ...")
