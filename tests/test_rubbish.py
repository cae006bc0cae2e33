"""Bad input of every kind is taken or refused with a message; ``make soak`` tries thousands more."""

import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import aimc
from aimc.algorithms import ALGORITHMS
from aimc.errors import AimcError
from aimc.files import read_config, read_records
from aimc.recipes import evaluate_run, run_experiment
from aimc.train import load_checkpoint
from tests import rubbish

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return rubbish.finished_runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("start", range(0, 40, 10))
def test_configurations(start):
    taken = [rubbish.try_configuration(seed) for seed in range(start, start + 10)]
    assert not all(taken)


@pytest.mark.parametrize("start", range(0, 120, 20))
def test_layers(start):
    taken = [rubbish.try_layer(seed) for seed in range(start, start + 20)]
    assert any(taken) and not all(taken)


def test_checkpoints_and_chips(runs, tmp_path):
    net, chip = rubbish.programmed(tmp_path)
    file = runs[0] / "checkpoints" / "student.safetensors"
    for seed in range(60):
        rubbish.try_checkpoint(seed, file)
        rubbish.try_chip(seed, net, chip)


def test_data_sets(tmp_path):
    files = rubbish.data_files(tmp_path)
    assert len(files) == 4
    taken = [rubbish.try_data(seed, files[seed % 4]) for seed in range(160)]
    assert any(taken) and not all(taken)


def test_results(tmp_path):
    net, _ = rubbish.programmed(tmp_path)
    aimc.calibrate(net, [torch.randn(32, 6)])
    file = rubbish.saved_result(tmp_path, net)
    taken = [rubbish.try_result(seed, file) for seed in range(150)]
    assert any(taken) and not all(taken)


@pytest.mark.parametrize("start", range(0, 100, 25))
def test_states(start):
    taken = [rubbish.try_state(seed) for seed in range(start, start + 25)]
    assert any(taken) and not all(taken)


@pytest.mark.parametrize("start", range(0, 24, 8))
def test_run_directories(runs, start):
    taken = [rubbish.try_run_directory(seed, runs[seed % 2]) for seed in range(start, start + 8)]
    assert not all(taken)


@pytest.mark.parametrize("which, stage", [(0, "teacher"), (0, "student"), (1, "analog")])
def test_a_damaged_checkpoint_of_a_finished_stage_is_made_again(runs, which, stage, tmp_path):
    place, config = tmp_path / "run", read_config(runs[which])
    shutil.copytree(runs[which], place)
    file = place / "checkpoints" / f"{stage}.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    attempts = [lambda: run_experiment(config, place, tensorboard=False)]
    if stage == "student":
        attempts.append(lambda: evaluate_run(place, times=("1h",), chips=1, seed=5))
    for attempt in attempts:
        with pytest.raises(AimcError, match=rf"{file} .*delete {file}, and .* trains '{stage}' again"):
            attempt()
    file.unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_experiment(config, place, tensorboard=False)
    for name, tensor in load_checkpoint(runs[which] / "checkpoints" / file.name)[0].items():
        assert torch.equal(load_checkpoint(file)[0][name], tensor), name
    timeless = [
        sorted(
            json.dumps({k: v for k, v in r.items() if k != "seconds"}, sort_keys=True)
            for r in read_records(p)
        )
        for p in (runs[which], place)
    ]
    assert timeless[0] == timeless[1]


def test_what_is_neither_taken_nor_refused_is_found():
    """The judge itself: a crash, a refusal without a reason, nonsense and a hang."""

    def crash():
        raise KeyError("x")

    def silent():
        raise AimcError("no")

    def nonsense():
        rubbish.require(False, "nonsense")

    for attempt, found in ((crash, "KeyError"), (silent, "without a reason"), (nonsense, "nonsense")):
        with pytest.raises(rubbish.Wrong, match=found):
            rubbish.accepted("something", attempt)
    assert rubbish.accepted("something", lambda: None)


def test_a_hang_is_found(monkeypatch):
    monkeypatch.setattr(rubbish, "LIMIT", 1)

    def hang():
        while True:
            pass

    with pytest.raises(rubbish.Wrong, match="hangs"):
        rubbish.accepted("something", hang)


def test_no_pickle_is_loaded(tmp_path):
    """A file that would run code when unpickled is refused wherever a file is taken."""
    import pickle

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    file = tmp_path / "evil.safetensors"
    net, _ = rubbish.programmed(tmp_path)
    for data in (pickle.dumps(Evil()), None):
        if data is None:
            torch.save(Evil(), file)
        else:
            file.write_bytes(data)
        for load in (aimc.train.load_checkpoint, lambda place: aimc.Chip.load(place, net)):
            with pytest.raises(AimcError):
                load(file)
    with pytest.raises(AimcError):
        aimc.config.Config.from_yaml(f"!!python/object/apply:pathlib.Path.touch ['{tmp_path}/ran']")
    assert not (tmp_path / "ran").exists()


def soaked(*words):
    return subprocess.run(
        [sys.executable, "-m", "tools.soak", *words], capture_output=True, text=True, timeout=600, cwd=ROOT
    )


def test_a_short_soak():
    """Kills in both halves, and nothing that differs afterwards."""
    done = soaked("--only", "hardware-aware", "residual", "--kills", "2", "--most", "1", "--minutes", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kills survived" in done.stdout and "8 bad inputs tried" in done.stdout
    assert "2 hardware-aware, 2 residual" in done.stdout
    assert "0 wrong" in done.stdout and "\n0 bytes differ" in done.stdout


@pytest.mark.slow
def test_every_experiment_survives_a_kill():
    done = soaked("--kills", "1", "--most", "0", "--minutes", "9")
    assert done.returncode == 0, done.stdout + done.stderr
    killed = ", ".join(f"1 {name}" for name in ("hardware-aware", *sorted(ALGORITHMS)))
    assert re.search("8 kills survived, [4-8] of them while", done.stdout) and killed in done.stdout
    assert "\n0 bytes differ" in done.stdout


def test_a_soak_without_the_time_for_its_kills_fails_and_says_so():
    done = soaked("--only", "sgd", "--kills", "2", "--most", "0", "--minutes", "0")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "0 kills survived" in done.stdout and "\n0 bytes differ" in done.stdout
    assert "MISSED: sgd was killed 0 times of 2: not enough time" in done.stdout
    assert "MISSED: no checkpoint was hit while it was written" in done.stdout
