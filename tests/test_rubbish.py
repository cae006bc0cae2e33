"""Bad input of every kind is taken or refused with a message; ``make soak`` tries thousands more."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import aimc
from aimc.algorithms import ALGORITHMS
from aimc.errors import AimcError
from aimc.files import read_config, read_records, record_line
from aimc.recipes import RECIPES, Encoder, evaluate_run, run_experiment
from aimc.report import load_comparison
from aimc.report.cell_figures import read_pulses
from aimc.train import load_checkpoint, save_checkpoint
from tests import rubbish
from tools import soak

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return rubbish.finished_runs(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("start", range(0, 40, 10))
def test_configurations(start):
    taken = [rubbish.try_configuration(seed) for seed in range(start, start + 10)]
    assert not all(taken)


# From 80 and 280: among them are numbers that are refused, and would end a run in an error of torch or numba.
@pytest.mark.parametrize("start", (0, 80, 280))
def test_settings_that_are_run(start):
    taken = [rubbish.try_settings(seed) for seed in range(start, start + 20)]
    assert any(taken) and not all(taken)


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


def test_texts(tmp_path):
    pytest.importorskip("datasets", reason="texts need aimc[language]")
    files = rubbish.text_files(tmp_path)
    assert len(files) == 4
    taken = [rubbish.try_text(seed, files[seed % 4]) for seed in range(60)]
    assert any(taken) and not all(taken)


def test_measured_pulses(tmp_path):
    file = rubbish.pulses_file(tmp_path)
    taken = [rubbish.try_pulses(seed, file) for seed in range(60)]
    assert any(taken) and not all(taken)


def test_comparisons(tmp_path):
    file = rubbish.comparison_file(tmp_path)
    taken = [rubbish.try_comparison(seed, file) for seed in range(60)]
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


def test_a_hang_of_a_compiled_loop_is_found():
    code = """
import numba
from tests import rubbish
rubbish.LIMIT = rubbish.GRACE = 1
@numba.njit
def forever(n):
    while n > 0:
        n += 1
        if n > 1000:
            n = 1
forever(0)
rubbish.accepted("something", lambda: forever(1))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 1 and "Timeout" in done.stderr and "in judged" not in done.stdout, done.stderr
    assert "line 12 in <lambda>" in done.stderr


def _encoder_of(place, part):
    """An encoder whose folder holds one file of these bytes, in a place where transformers looks for weights."""
    from tests.recipes.tasks import tiny_encoder

    folder = tiny_encoder(place.parent / f"encoder {part}")
    if part.startswith("pytorch_model"):
        (folder / "model.safetensors").unlink()
    shutil.copy(place, folder / part)
    network = Encoder(name=str(folder))
    return network.tokenizer(8) if part == "tokenizer.json" else network.build((), 2)


def _data_of(place, name):
    folder = place.parent / "data" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    for old in folder.parent.iterdir():
        old.unlink()
    shutil.copy(place, folder)
    return aimc.data.load("mnist", "test", root=folder.parents[1])


TAKERS = {
    "checkpoint": lambda place: aimc.train.load_checkpoint(place),
    "chip": lambda place: aimc.Chip.load(place, rubbish.programmed(place.parent)[0]),
    "result": lambda place: aimc.DriftResult.load(place),
    "pulses": lambda place: read_pulses(place),
    "comparison": lambda place: load_comparison(shutil.copy(place, place.parent / "comparison.json") and place.parent),
    "configuration": lambda place: read_config(shutil.copy(place, place.parent / "config.yaml") and place.parent),
    "npz": lambda place: _data_of(place, "mnist/test.npz"),
    "parquet": lambda place: _data_of(place, "mnist/test-00000-of-00001.parquet"),
    "idx": lambda place: _data_of(place, "mnist/t10k-images-idx3-ubyte"),
    "encoder, weights": lambda place: _encoder_of(place, "model.safetensors"),
    "encoder, old weights": lambda place: _encoder_of(place, "pytorch_model.bin"),
    "encoder, tokenizer": lambda place: _encoder_of(place, "tokenizer.json"),
}  # fmt: skip


class Evil:
    """Leaves a file where it is unpickled."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (Path.touch, (self.place,))


@pytest.mark.parametrize("taker", TAKERS)
def test_no_pickle_is_loaded(taker, tmp_path):
    """A file that would run code when unpickled is refused wherever a file is taken."""
    if taker.startswith("encoder"):
        pytest.importorskip("transformers", reason="encoders need aimc[language]")
    ran, file = tmp_path / "ran", tmp_path / "evil"
    objects = np.array([Evil(ran)], dtype=object)
    for write in (
        lambda: file.write_bytes(pickle.dumps(Evil(ran))),
        lambda: torch.save({"weight": torch.ones(1), "x": Evil(ran)}, file),
        lambda: np.savez(file.open("wb"), x=objects, y=objects),
    ):
        write()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(AimcError):
                TAKERS[taker](file)
        assert not ran.exists()
    pickle.loads(pickle.dumps(Evil(ran)))  # noqa: S301
    assert ran.exists()  # as it is where a pickle is loaded


def test_no_tag_of_yaml_runs_code(tmp_path):
    with pytest.raises(AimcError):
        aimc.config.Config.from_yaml(f"!!python/object/apply:pathlib.Path.touch ['{tmp_path}/ran']")
    assert not (tmp_path / "ran").exists()


def forever(*args):
    """Longer than every limit here; without one the tests fail all the same, and do not hang."""
    time.sleep(20)


def fails(*args):
    raise KeyError("x")


def unseeded(texts):
    return [re.sub(r"seed \d+", "seed N", text) for text in texts]


def soaked(*words):
    return subprocess.run(
        [sys.executable, "-m", "tools.soak", *words], capture_output=True, text=True, timeout=600, cwd=ROOT
    )


def test_a_soak_sees_what_differs(tmp_path, monkeypatch):
    """In the records, the configuration, and a checkpoint's numbers, type, shape and details, byte by byte."""
    places = []
    for value, other in ((1.0, {}), (1.5, {}), (1.0, {"epoch": 2})):
        place = tmp_path / str(len(places))
        (place / "checkpoints").mkdir(parents=True)
        (place / "config.yaml").write_text("type: x\n")
        record = {"kind": "digital", "name": "digital", "value": 1.0, "seconds": len(places)}
        (place / "records.jsonl").write_text(record_line(record))
        save_checkpoint(place / "checkpoints" / "a", {"w": torch.full((2,), value)}, other)
        places.append(place)
    first, second, third = map(soak.contents, places)
    assert soak.differing(first, first) == 0
    assert soak.differing(first, second) == 2  # a byte of each number
    assert soak.differing(first, third) > 0
    (places[0] / "config.yaml").write_text("type: y\n")
    assert soak.differing(first, soak.contents(places[0])) == 1
    (places[2] / "records.jsonl").write_text("")
    assert soak.differing(third, soak.contents(places[2])) == len(third["record 0"])
    one, other = ({"w": soak.as_bytes(t)} for t in (torch.zeros(4), torch.zeros(2, 2)))
    assert soak.differing(one, other) > 0 < soak.differing(one, {"w": soak.as_bytes(torch.zeros(4).int())})
    count = soak.Count()
    victim = soak.Victim("sgd", RECIPES["demo"].config(), places[1], first, 1.0, 0)
    victim.end(count)
    assert count.bytes == 2 and count.wrong == ["2 bytes of sgd differ from a run left alone"]
    assert not places[1].exists()


def test_an_input_that_takes_all_memory_is_wrong_and_no_end(tmp_path, monkeypatch):
    pytest.importorskip("resource", reason="no limits on this system")
    monkeypatch.setattr(soak, "_MUCH", 1 << 30)
    with soak.bounded_memory(), pytest.raises(rubbish.Wrong, match="MemoryError"):
        rubbish.accepted("something", lambda: bytearray(4 << 30))
    assert len(bytearray(2 << 30)) == 2 << 30


def test_an_input_that_ends_its_process_or_never_ends_is_wrong_and_no_end(monkeypatch):
    def wrong(seed):
        raise rubbish.Wrong(f"strange, seed {seed}")

    def raises(seed):
        raise ValueError("no error of ours, nor one that was looked for")

    kinds = {
        "refused": lambda seed: False,
        "killed": lambda seed: os.kill(os.getpid(), signal.SIGKILL),
        "wrong": wrong,
        "endless": forever,
        "ended": raises,
        "taken": lambda seed: True,
    }
    monkeypatch.setattr(soak, "_SILENCE", 3)
    count = soak.Count()
    soak.try_apart(count, kinds, soak.random.Random(0))
    assert (count.accepted, count.refused) == (1, 1) and not count.wrong
    assert unseeded(count.wrong_inputs) == [
        "killed, seed N, ends its process (-9)",
        "wrong, seed N: strange, seed N",
        "endless, seed N, hangs: no answer in 3 s",
        "ended, seed N, ends its process (1)",
    ]


def test_the_judge_of_an_endless_input_comes_before_the_soak(monkeypatch):
    """It knows the place; the soak waits longer, for what hangs elsewhere."""
    assert soak._SILENCE > rubbish.LIMIT + rubbish.GRACE
    monkeypatch.setattr(rubbish, "LIMIT", 1)
    kinds = {
        "endless": lambda seed: rubbish.accepted("somewhere", forever),
        "taken": lambda seed: rubbish.accepted("something", lambda: None),
    }
    count = soak.Count()
    soak.try_apart(count, kinds, soak.random.Random(0))
    assert unseeded(count.wrong_inputs) == ["endless, seed N: hangs: somewhere"] and count.accepted == 1


def scripted(monkeypatch, tmp_path, works, left):
    """A victim whose runs do one thing after the other; nothing differs."""
    works = iter(works)

    def run(self):
        self.under_way = True
        (self.place / "checkpoints").mkdir(parents=True, exist_ok=True)
        return soak.child(next(works))

    monkeypatch.setattr(soak, "_PATIENCE", 3)
    monkeypatch.setattr(soak.Victim, "run", run)
    monkeypatch.setattr(soak, "contents", lambda place: {})
    (tmp_path / "sgd").mkdir()
    return soak.Victim("sgd", RECIPES["demo"].config(), tmp_path / "sgd", {}, 0.001, left)


def writing(place):
    (place / "checkpoints" / "a.part").touch()
    time.sleep(60)


@pytest.mark.parametrize(
    "work, told", [(forever, "sgd hangs: no end in 3 s"), (fails, "sgd ended with status 1")]
)
@pytest.mark.parametrize("killed_before", (False, True))
def test_a_run_that_hangs_or_fails_is_wrong_and_begun_anew(work, told, killed_before, tmp_path, monkeypatch):
    """Where it is to be killed while it writes, and where it is to end after its last kill."""
    place, begin, pids = tmp_path / "sgd", soak.child, []
    monkeypatch.setattr(soak, "child", lambda *what: pids.append(begin(*what)) or pids[-1])
    kill = lambda: writing(place)
    victim = scripted(monkeypatch, tmp_path, (kill, work) if killed_before else (work, kill, int), 1)
    count = soak.Count()
    soak.kills(count, [victim], float("inf"), soak.random.Random(0))
    assert count.wrong == [told] and count.kills == {"sgd": 1} and count.in_checkpoints == 1
    assert count.ended == (1 if killed_before else 2) and not place.exists() and len(pids) >= 2
    for pid in pids:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # none is left


def test_the_patience_with_a_run_is_long():
    assert soak.patience(0.1) == 60 and soak.patience(10) == 200 and soak._LONG >= 600


def test_a_run_that_is_begun_anew_has_nothing_left(tmp_path, monkeypatch):
    found = []

    def looked(self):
        found.append(self.place.exists())
        return run(self)

    victim = scripted(monkeypatch, tmp_path, (fails, lambda: writing(tmp_path / "sgd"), int), 1)
    run = soak.Victim.run
    monkeypatch.setattr(soak.Victim, "run", looked)
    soak.kills(soak.Count(), [victim], float("inf"), soak.random.Random(0))
    assert found == [False, False, True]


def test_a_run_that_cannot_be_read_is_wrong_and_no_end(tmp_path, monkeypatch):
    victim = scripted(monkeypatch, tmp_path, (), 0)
    monkeypatch.setattr(soak, "contents", fails)
    count = soak.Count()
    soak.kills(count, [victim], float("inf"), soak.random.Random(0))
    assert count.wrong == ["sgd ends in KeyError: 'x'"] and not victim.place.exists()


@pytest.mark.parametrize(
    "work, limit, told", [(forever, 1, "hangs: no end in 1 s"), (fails, 60, "ended with status 1")]
)
def test_a_seed_that_hangs_or_fails_is_wrong_and_no_end(work, limit, told, tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "_LONG", limit)
    monkeypatch.setattr(soak, "train", work)
    monkeypatch.setattr(soak, "trained", work)
    monkeypatch.setattr(soak, "Drawn", lambda: None)
    sgd = soak.experiments()["sgd"]
    monkeypatch.setattr(soak, "experiments", lambda: {"sgd": sgd})
    count = soak.Count()
    soak.seeds(count, float("inf"), soak.random.Random(0), tmp_path, most=5)
    assert sorted(unseeded(count.wrong)) == [
        f"pcm, seed N, loader workers, {told}",
        f"reram, seed N, loader workers, {told}",
        *(f"sgd, seed N, {way}, {told}" for way in ("backends", "cores", "threads")),
    ]
    assert not count.ways and not list(tmp_path.iterdir())


def test_a_run_left_alone_that_fails_ends_the_soak_with_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "train", fails)
    with pytest.raises(SystemExit, match="sgd, left alone: 'x'"):
        soak.victims(tmp_path, 1, ["sgd"])


def test_a_soak_prints_what_came_of_it_whatever_fails(monkeypatch, capsys):
    """And tells bad inputs from runs."""

    def bad_inputs(count, *rest):
        count.refused += 3
        count.wrong_inputs += ["layer, seed 1: strange"]
        fails()

    for name, part in (("victims", lambda *rest: []), ("kills", fails), ("seeds", fails)):
        monkeypatch.setattr(soak, name, part)
    monkeypatch.setattr(soak, "bad_inputs", bad_inputs)
    assert soak.main([]) == 1
    told = capsys.readouterr().out.splitlines()
    assert "4 bad inputs tried: 3 refused with a reason, 0 taken, 1 wrong" in told
    assert [line for line in told if line.startswith("WRONG")] == [
        "WRONG: killing runs ends in KeyError: 'x'",
        "WRONG: comparing seeds ends in KeyError: 'x'",
        "WRONG: trying bad inputs ends in KeyError: 'x'",
        "WRONG: layer, seed 1: strange",
    ]


@pytest.mark.parametrize("wrong", ("wrong", "wrong_inputs"))
def test_a_soak_fails_where_anything_was_wrong(wrong, capsys):
    """All of it is told."""
    count = soak.Count(seeds=1, accepted=1, in_checkpoints=1)
    assert soak.summary(count, 0, True, 1.0) == 0
    getattr(count, wrong).extend(map(str, range(30)))
    assert soak.summary(count, 0, True, 1.0) == 1
    assert capsys.readouterr().out.count("WRONG") == 30


def test_a_soak_without_linux_says_so(monkeypatch):
    monkeypatch.setattr(soak, "victims", fails)  # it does not come so far
    for name in ("fork", "sched_getaffinity"):
        with monkeypatch.context() as without:
            without.delattr(os, name)
            with pytest.raises(SystemExit, match="needs Linux"):
                soak.main([])


def test_kills_go_round(tmp_path, monkeypatch):
    """Where the time is short all have some, not the first ones all."""
    turns = []
    monkeypatch.setattr(soak.Victim, "run", lambda self: turns.append(self.name))
    monkeypatch.setattr(soak.Victim, "end", lambda self, count: setattr(self, "under_way", False))
    monkeypatch.setattr(soak, "kill_at_random", lambda *rest: "killed")
    running = [soak.Victim(n, RECIPES["demo"].config(), tmp_path, {}, 1.0, 2) for n in "abc"]
    count = soak.Count()
    soak.kills(count, running, float("inf"), soak.random.Random(0))
    assert turns == list("abcabc") and count.kills == dict.fromkeys("abc", 2)


def test_a_short_soak():
    """Kills in both halves, and nothing that differs afterwards."""
    done = soaked("--only", "hardware-aware", "residual", "--kills", "2", "--most", "1", "--minutes", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kills survived" in done.stdout and "12 bad inputs tried" in done.stdout
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
