"""A comparison: which runs it is made of, that nothing finished is lost, and that it shows what the runs hold."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from aimc.algorithms import ALGORITHMS
from aimc.errors import AimcError
from aimc.files import read_config
from aimc.recipes import MLP, RECIPES, Dataset, InSituExperiment, Recipe
from aimc.recipes.compare import cases, compare
from aimc.recipes.named import RATES, named_algorithm, named_hardware
from aimc.recipes.parts import Images
from aimc.report import load_run
from aimc.train import Run, load_checkpoint
from tests.helpers import Watch


def tiny(
    algorithm: str = "mp", states: float | None = None, tiles: int | None = None, io: str = "perfect"
) -> InSituExperiment:
    """A network of one hidden layer on a few images."""
    return InSituExperiment(
        dataset=Dataset(
            name="mnist_small", train_images=80, validation_images=20, test_images=30, pixels="unit"
        ),
        network=MLP(hidden=(4,)),
        hardware=named_hardware("reram", named_algorithm(algorithm, tiles), io, states),
        epochs=2,
        batch_size=20,
        lr=RATES[algorithm],
        threads=1,
    )


RECIPE = Recipe(tiny)


def _names(*args, **kwargs):
    return [case.name for case in cases(RECIPE, *args, **kwargs)]


def test_the_runs_of_a_comparison():
    assert _names(["mp", "residual"], states=[4, 10], tiles=[3, 4], seeds=2) == [
        name
        for seed in (0, 1)
        for name in (
            f"digital-seed{seed}", f"mp-4states-seed{seed}", f"mp-10states-seed{seed}",
            f"residual-4states-3tiles-seed{seed}", f"residual-4states-4tiles-seed{seed}",
            f"residual-10states-3tiles-seed{seed}", f"residual-10states-4tiles-seed{seed}",
        )
    ]  # fmt: skip
    assert _names(["mp"], baseline=False, flags=[("seed", "5")]) == ["mp-seed5"]


def test_everything_but_the_algorithm_is_the_same_at_one_seed():
    made = {
        c.name: c.config
        for c in cases(RECIPE, list(ALGORITHMS), states=[4], seeds=2, flags=[("epochs", "5")])
    }
    assert len(made) == 2 * (1 + len(ALGORITHMS))
    for name, config in made.items():
        assert config.epochs == 5 and config.seed == int(name[-1])
        assert (config.dataset, config.network, config.batch_size) == (
            tiny().dataset, tiny().network, tiny().batch_size,
        )  # fmt: skip
        if config.hardware is not None:
            assert not config.baseline and config.hardware.cell == tiny(states=4).hardware.cell
            assert config.hardware.forward is None
    # More algorithms later, or at other rates: the baseline stays the run that it is.
    later = cases(
        RECIPE, ["residual"], states=[10], flags=[("epochs", "5"), ("lr", "0.7"), ("digital", "layers.0")]
    )
    assert later[0].config == made["digital-seed0"] and later[1].config.lr == 0.7


def test_settings_of_one_algorithm():
    own = ["residual.lr=0.3", "residual.hardware.algorithm.columns=7", "digital.baseline_lr=0.7"]
    made = {c.name: c.config for c in cases(RECIPE, ["mp", "residual"], own=own)}
    assert made["residual-seed0"].lr == 0.3 and made["residual-seed0"].hardware.algorithm.columns == 7
    assert made["mp-seed0"].lr == RATES["mp"] and made["digital-seed0"].baseline_lr == 0.7
    assert made["residual-seed0"].baseline_lr == tiny().baseline_lr


@pytest.mark.parametrize(
    "own, message",
    [
        ("residual.lr", "NAME.FIELD=VALUE"),
        ("lr=3", "NAME.FIELD=VALUE"),
        ("residul.lr=3", "did you mean 'residual'"),
        ("ttv2.lr=3", "'ttv2' is not compared"),
        ("residual.lrr=3", "'--lrr'; did you mean '--lr'"),
        ("residual.epochs=3", "epochs is the same for all algorithms of a comparison; give --epochs 3"),
        ("residual.dataset.train_images=3", "the same for all"),
        ("mp.hardware.cell.dw_min=0.001", "hardware.cell.dw_min is the same for all"),
        ("mp.hardware.forward=null", "the same for all"),
        ("mp.hardware={}", "the same for all"),
        ("mp.momentum=0.9", "the same for all"),
        ("digital.epochs=3", "the same for all"),
    ],
)
def test_settings_that_do_not_fit_are_named(own, message):
    with pytest.raises(AimcError, match=message):
        cases(RECIPE, ["mp", "residual"], own=[own])


def test_requests_that_make_no_sense():
    with pytest.raises(AimcError, match="'algorithms'.*did you mean 'residual'"):
        cases(RECIPE, ["residul"])
    with pytest.raises(AimcError, match="'seeds'"):
        cases(RECIPE, ["mp"], seeds=0)
    with pytest.raises(AimcError, match="--algorithm is for a single run"):
        cases(RECIPE, ["mp"], flags=[("algorithm", "sgd")])
    with pytest.raises(AimcError, match="'recipe': demo has no argument 'algorithm' to compare by"):
        cases(RECIPES["demo"], ["mp"])
    with pytest.raises(AimcError, match="'jobs'"):
        compare(cases(RECIPE, ["mp"]), "x", jobs=0)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    path = tmp_path_factory.mktemp("compare") / "c"
    wanted = cases(RECIPE, ["mp", "residual"], states=[10], tiles=[2, 3])
    return path, wanted, compare(wanted, path)


def test_the_records_hold_what_the_runs_hold(compared):
    path, wanted, found = compared
    assert (
        json.loads((path / "comparison.json").read_text())["runs"] == found["runs"] and found["failed"] == {}
    )
    assert [e["name"] for e in found["runs"]] == sorted(c.name for c in wanted)
    for entry in found["runs"]:
        run = load_run(path / entry["name"])
        (stage,) = run.curves
        assert entry["test"] == run.last[stage] == entry["curve"]["test"][-1]
        assert len(entry["curve"]["loss"]) == 2 and entry["seconds"] > 0
    digital, mp, small, large = found["runs"]
    assert (
        digital["algorithm"] == "digital"
        and digital["states"] is None
        and digital["lr"] == tiny().baseline_lr
    )
    assert mp["algorithm"] == "mp" and mp["tiles"] == 1 and mp["states"] == 10 and mp["lr"] == RATES["mp"]
    assert (small["tiles"], large["tiles"]) == (2, 3) and large["settings"]["tiles"] == 3
    assert len({e["config_sha256"] for e in found["runs"]}) == 4
    assert (path / "comparison.png").stat().st_size > 0


def test_the_last_epoch_counts_and_not_the_best(tmp_path, monkeypatch):
    tests = iter([0.9, 0.3])
    monkeypatch.setattr(
        Images, "metric", lambda self, split: lambda net: next(tests) if split == "test" else 0.7
    )
    (entry,) = compare(cases(RECIPE, ["mp"])[:1], tmp_path)["runs"]
    assert entry["test"] == 0.3 and entry["curve"]["test"] == [0.9, 0.3]


def test_all_start_from_the_same_weights(compared, tmp_path):
    """With a rate of next to nothing the digital network stays what the cells were programmed with."""
    wanted = cases(RECIPE, ["mp", "sgd"], states=[1000], flags=[("baseline_lr", "1e-12"), ("lr", "1e-12")])
    wide = {"hardware.cell.w_max_dtod": 0.0, "hardware.cell.w_min_dtod": 0.0}
    compare(
        [c if c.config.hardware is None else type(c)(c.name, c.config.replace(**wide)) for c in wanted],
        tmp_path,
    )
    held = []
    for case in wanted:
        stage = "digital" if case.config.hardware is None else "analog"
        tensors, _ = load_checkpoint(tmp_path / case.name / "checkpoints" / f"{stage}.safetensors")
        held.append(tensors["model/layers.0.weight"].numpy())
    for other in held[1:]:
        np.testing.assert_allclose(other, held[0], atol=1e-6)


def test_finished_runs_are_kept_and_more_can_be_asked_for(compared):
    path, wanted, found = compared
    stamps = {c.name: (path / c.name / "records.jsonl").stat().st_mtime_ns for c in wanted}
    watch = Watch()
    more = compare(cases(RECIPE, ["sgd"], states=[10]), path, progress=watch)
    assert watch.lines[0] == "2 runs, 1 of them finished earlier"
    assert [e for e in more["runs"] if e["algorithm"] != "sgd"] == found["runs"] and len(more["runs"]) == 5
    assert all((path / name / "records.jsonl").stat().st_mtime_ns == stamp for name, stamp in stamps.items())


def test_other_settings_in_the_same_directory_are_refused_before_anything_starts(compared):
    path, _, _ = compared
    wanted = cases(RECIPE, ["ttv1", "mp"], states=[10], own=["mp.lr=0.7"])
    with pytest.raises(
        AimcError, match=r"mp-10states-seed0 holds a run with other settings \(lr: 0\.2 -> 0\.7\)"
    ):
        compare(wanted, path)
    assert not (path / "ttv1-10states-seed0").exists()


def test_an_interrupted_comparison_goes_on(compared, tmp_path):
    path, wanted, found = compared
    with pytest.raises(KeyboardInterrupt):
        compare(wanted, tmp_path, progress=Watch("residual-10states-2tiles-seed0: analog epoch 1/"))
    assert len(json.loads((tmp_path / "comparison.json").read_text())["runs"]) == 2
    watch = Watch()
    again = compare(wanted, tmp_path, progress=watch)
    assert "residual-10states-2tiles-seed0: analog: goes on after epoch 1 of 2" in watch.lines
    assert [_timeless(e) for e in again["runs"]] == [
        _timeless(e) for e in found["runs"] if e["algorithm"] != "sgd"
    ]


def _timeless(entry):
    return {k: v for k, v in entry.items() if k != "seconds"}


def test_a_run_that_fails_does_not_stop_the_others_and_is_tried_again(tmp_path):
    wanted = cases(RECIPE, ["mp"], flags=[("weight_decay", "1e18")], own=["digital.baseline_lr=1e18"])
    found = compare(wanted, tmp_path)
    assert (
        list(found["failed"]) == ["digital-seed0"]
        and "lower the learning rate" in found["failed"]["digital-seed0"]
    )
    assert [e["name"] for e in found["runs"]] == ["mp-seed0"]
    assert list(compare(wanted, tmp_path)["failed"]) == ["digital-seed0"]
    with pytest.raises(AimcError, match="no run was finished: digital-seed0"):
        compare(wanted[:1], tmp_path / "b")


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_another_comparison_is_at_is_left_to_it(jobs, tmp_path):
    pytest.importorskip("fcntl")
    wanted, watch = cases(RECIPE, ["mp", "sgd"], baseline=False), Watch()
    mine, theirs = (case.name for case in wanted)
    with Run(tmp_path / theirs, wanted[1].config, tensorboard=False):
        before = {p.name: p.read_bytes() for p in (tmp_path / theirs).iterdir() if p.is_file()}
        found = compare(wanted, tmp_path, jobs=jobs, progress=watch)
        after = {p.name: p.read_bytes() for p in (tmp_path / theirs).iterdir() if p.is_file()}
    assert [r["name"] for r in found["runs"]] == [mine] and not found["failed"] and before == after
    assert f"process {os.getpid()} on" in found["busy"][theirs]
    who = "another Run of this process" if jobs == 1 else "another process is at work"
    assert any(line.startswith(f"{theirs}: {who}") for line in watch.lines)
    found = compare(wanted, tmp_path)
    assert len(found["runs"]) == 2 and not found["busy"]


@pytest.mark.slow
def test_processes_side_by_side_give_the_same(compared, tmp_path):
    path, wanted, found = compared
    watch = Watch()
    again = compare(wanted, tmp_path, jobs=2, progress=watch)
    assert [_timeless(e) for e in again["runs"]] == [
        _timeless(e) for e in found["runs"] if e["algorithm"] != "sgd"
    ]
    assert sum(" epoch " in line for line in watch.lines) == 2 * len(wanted)
    assert read_config(tmp_path / wanted[0].name) == wanted[0].config


ON_TWO_NODES = """
import os, sys
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from aimc import cli, jobs
from aimc.recipes.compare import compare
from aimc.train import Progress
from tests.recipes import test_compare as these

small = {"num_cpus": 1, "object_store_memory": 100_000_000}
cluster = Cluster(initialize_head=True, head_node_args=small | {"include_dashboard": False})
other = cluster.add_node(**small)
os.environ["RAY_ADDRESS"] = cluster.address

class Watch(Progress):
    begun = 0

    def line(self, text):
        self.begun += " epoch 1/" in text
        if self.begun == 2 and other in cluster.worker_nodes:  # one run on each of them
            cluster.remove_node(other, allow_graceful=False)

place = Path(sys.argv[1])
with jobs.engine("ray"):
    assert jobs.most() == 2
    wanted = these.cases(these.RECIPE, ["mp", "residual"], states=[10], tiles=[2, 3])
    compare(wanted, place / "compared", jobs=2, progress=Watch())
assert other not in cluster.worker_nodes
flags = "--dataset.train_images 40 --dataset.validation_images 20 --dataset.test_images 20 --threads 1".split()
flags += "--teacher.epochs 1 --student.epochs 1 --evaluation.chips 2 --evaluation.times 1h".split()
assert cli.main(["run", "demo", *flags, "--output", str(place / "run"), "--engine", "ray"]) == 0
assert cli.main(["run", "demo", *flags, "--output", str(place / "alone")]) == 0
ray.shutdown()
cluster.shutdown()
print("all of it")
"""


@pytest.mark.slow
def test_a_ray_cluster_that_loses_a_machine_loses_no_run(compared, tmp_path):
    pytest.importorskip("ray", reason="ray is an extra")
    # In a folder of its own, or other tests would take this cluster for this machine's; its sockets need a short name.
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        done = subprocess.run(
            [sys.executable, "-c", ON_TWO_NODES, str(tmp_path)], capture_output=True, text=True, timeout=600,
            cwd=Path(__file__).parents[2], env=os.environ | {"RAY_TMPDIR": folder},
        )  # fmt: skip
    assert done.returncode == 0 and "all of it" in done.stdout, done.stdout[-2000:] + done.stderr[-4000:]
    _, _, alone = compared
    found = json.loads((tmp_path / "compared" / "comparison.json").read_text())["runs"]
    assert list(map(_timeless, found)) == list(map(_timeless, alone["runs"]))
    first, second = (
        [_timeless(r) for r in load_run(tmp_path / name).records if r["kind"] == "evaluation"]
        for name in ("run", "alone")
    )
    assert len(first) >= 2 and first[: len(second)] == second


@pytest.mark.parametrize(
    ("algorithm", "flags", "own", "message"),
    [
        ("ttv2", [("epochs", "3")], [], r"epochs: 2 -> 3"),
        ("ttv2", [("hardware.cell.w_max_dtod", "0")], [], r"hardware\.cell\.w_max_dtod: 0\.3 -> 0"),
        ("ttv2", [("io", "noisy")], [], r"hardware\.forward"),
        ("ttv2", [("hardware.cell", "{type: LinearStep}")], [], r"hardware\.cell"),
        ("mp", [("seed", "1")], ["mp.lr=0.7"], r"mp-10states-seed1 with another seed and other .*lr: 0.2 -> 0.7"),
    ],
)  # fmt: skip
def test_only_runs_of_one_task_and_device_stand_beside_each_other(
    compared, tmp_path, algorithm, flags, own, message
):
    path, _, _ = compared
    others = cases(RECIPE, [algorithm], states=[10], flags=flags, own=own, baseline=False)
    before = (path / "comparison.json").read_bytes()
    with pytest.raises(AimcError, match=f"field 'output'.*{message}.*another --output"):
        compare(others, path)
    assert (path / "comparison.json").read_bytes() == before and not (path / others[0].name).exists()


def test_the_baseline_in_front_does_not_hide_another_device(compared):
    path, _, _ = compared
    others = cases(RECIPE, ["ttv2"], states=[10], flags=[("hardware.cell.w_max_dtod", "0")])
    assert others[0].name.startswith("digital")
    with pytest.raises(AimcError, match=r"cannot stand beside ttv2.*hardware\.cell\.w_max_dtod: 0\.3 -> 0"):
        compare(others, path)


class Killer(Watch):
    """Kills a process of the comparison once a first epoch is over."""

    killed = 0

    def line(self, text):
        super().line(text)
        if " epoch 1/" in text and not self.killed:
            from joblib.externals.loky import reusable_executor

            self.killed = next(iter(reusable_executor._executor._processes))
            os.kill(self.killed, signal.SIGKILL)


def test_a_process_that_dies_takes_no_run_with_it(compared, tmp_path):
    _, wanted, found = compared
    watch = Killer()
    again = compare(wanted, tmp_path, jobs=2, progress=watch)
    assert watch.killed and again["failed"] == {}
    assert [_timeless(e) for e in again["runs"]] == [
        _timeless(e) for e in found["runs"] if e["algorithm"] != "sgd"
    ]
