"""A disk that is full or takes no writes ends a run with a clear error, and costs nothing that was written before.

The disks are real: a file system of a few megabytes where this process may mount one, and a limit on the size of files.
"""

import contextlib
import functools
import importlib.util
import inspect
import os
import resource
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import aimc
from aimc.cli import main
from aimc.errors import AimcError
from aimc.files import read_records, write_atomic
from aimc.recipes import MLP, RECIPES, evaluate_run, hwa, in_memory, run_experiment
from aimc.recipes.compare import Case, compare
from aimc.report import draw, load_run
from aimc.train import Progress, Run, Stage, fit, fit_in_memory, load_checkpoint, save_checkpoint
from tests.helpers import assert_same_run

FULL = "No space left on device|File too large"
UNWRITABLE = "Read-only file system|Not a directory|Permission denied"


def mounted(folder, *options) -> None:
    done = subprocess.run(["mount", *options, str(folder)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")


class SmallDisk:
    """A file system of its own."""

    def __init__(self, folder):
        self.folder = folder
        mounted(folder, "-t", "tmpfs", "-o", "size=16m", "none")

    def fill(self, left=0):
        with contextlib.suppress(OSError), open(self.folder / "filler", "ab", buffering=0) as file:
            while True:
                file.write(bytes(1 << 12))
        os.truncate(self.folder / "filler", os.path.getsize(self.folder / "filler") // 4096 * 4096 - left)

    def free(self):
        (self.folder / "filler").unlink(missing_ok=True)

    def end(self):
        subprocess.run(["umount", str(self.folder)], check=True)


class LimitedFiles:
    """Any folder, in which a write beyond a size fails in the middle, as on a full disk."""

    def __init__(self, folder):
        self.folder, self.before = folder, resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(self, left=0):
        resource.setrlimit(resource.RLIMIT_FSIZE, (left, self.before[1]))

    def free(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)

    end = free


@pytest.fixture(params=[SmallDisk, LimitedFiles])
def disk(request, tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    made = request.param(folder)
    yield made
    made.free()
    made.end()


def freed(test):
    """Ends the limit on files before pytest writes what came of the test, perhaps to a file."""

    @functools.wraps(test)
    def run(disk, **others):
        try:
            test(disk=disk, **others)
        finally:
            disk.free()

    return run


@pytest.fixture(params=["read-only", "below a file", "permissions"])
def unwritable(request, tmp_path):
    """A folder that takes no files: for root, too, or by its permissions, which bind ordinary users alone."""
    folder = tmp_path / "place"
    if request.param == "permissions":
        folder.mkdir()
        folder.chmod(0o555)
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write anywhere")
        yield folder
        folder.chmod(0o755)
        return
    if request.param == "below a file":
        folder.write_text("x")
        yield folder
        return
    folder.mkdir()
    mounted(folder, "-t", "tmpfs", "-o", "size=16m,ro", "none")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


SMALL = {
    "dataset.train_images": 120, "dataset.validation_images": 20, "dataset.test_images": 20,
    "network": MLP(hidden=(8,)), "threads": 1,
}  # fmt: skip
AWARE = (
    RECIPES["demo"].config()
    .replace(**SMALL, **{"teacher.epochs": 1, "student.epochs": 2, "evaluation.chips": 1, "evaluation.times": ("1h",)})
)  # fmt: skip
CELLS = RECIPES["demo_insitu"].config(algorithm="sgd").replace(**SMALL, epochs=2, baseline=False)
HALVES = {"hardware-aware": AWARE, "in memory": CELLS}


@pytest.fixture
def often(monkeypatch):
    """A checkpoint after every batch, and no pictures, which take longer than all the rest."""
    for function in (fit, fit_in_memory):
        monkeypatch.setitem(inspect.unwrap(function).__kwdefaults__, "save_every", 0.0)
    for module, names in ((hwa, ("draw",)), (in_memory, ("draw", "draw_accuracy", "draw_telemetry"))):
        for name in names:
            monkeypatch.setattr(module, name, lambda *args, **options: None)


def trained(config, place, progress=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cells that cannot hold their weights
        return run_experiment(config, place, tensorboard=False, progress=progress)


def hidden(place):
    """What somebody began to write and did not end."""
    return [p.name for p in place.rglob("*") if p.name.startswith(".") and p.name != ".lock"]


class FillsUp(Progress):
    """Fills a disk after a number of batches of a run's last stage, but for half a checkpoint."""

    def __init__(self, disk, place):
        self.disk, self.place, self.checkpoint, self.batches = disk, place, None, 0

    @contextlib.contextmanager
    def bar(self, label):
        def advance(done, total):
            found = sorted((self.place / "checkpoints").glob("*.epoch.safetensors"))
            if found and not found[0].name.startswith("teacher"):
                self.batches += 1
                if self.batches == 3:
                    self.checkpoint = found[0]
                    self.disk.fill(os.path.getsize(self.checkpoint) // 2)

        yield advance


@pytest.mark.parametrize("half", list(HALVES))
@freed
def test_a_run_that_meets_a_full_disk_keeps_its_last_checkpoint_and_goes_on_to_the_same_bits(
    tmp_path, disk, often, half
):
    config, place = HALVES[half], disk.folder / "run"
    trained(config, tmp_path / "alone")
    filling = FillsUp(disk, place)
    for _ in range(2):  # the second time it meets the full disk before it has done anything
        with pytest.raises(AimcError, match=f"cannot write {place}.*({FULL})"):
            trained(config, place, filling)
        assert filling.checkpoint is not None
        _, details = load_checkpoint(filling.checkpoint)
        assert details["current"]["batches"] + len(details["history"]) > 0 and hidden(place) == []
        read_records(place)
    disk.free()
    trained(config, place)
    assert_same_run(place, tmp_path / "alone")


@freed
def test_a_record_is_written_whole_or_not_at_all(disk):
    with Run(disk.folder / "run", Stage(), tensorboard=False) as run:
        run.record("note", text="a")
        place = run.path / "records.jsonl"
        before = place.read_bytes()
        disk.fill(len(before) + 20 if isinstance(disk, LimitedFiles) else 0)
        with pytest.raises(AimcError, match=f"cannot write {place}: ({FULL})"):
            run.record("note", text="b" * 5000)
        disk.free()
        assert place.read_bytes() == before and len(run.records) == 1
        run.record("note", text="c")
    assert [r["text"] for r in read_records(run.path)] == ["a", "c"]


@freed
def test_a_run_cannot_begin_on_a_full_disk_and_says_what_it_could_not_write(disk):
    disk.fill()
    with pytest.raises(AimcError, match=f"cannot (make|write) {disk.folder}.*({FULL})"):
        Run(disk.folder / "run", Stage(), tensorboard=False)
    disk.free()
    assert hidden(disk.folder) == []
    Run(disk.folder / "run", Stage(), tensorboard=False).close()


def test_a_file_in_the_place_of_a_folder_that_a_run_needs_is_named(tmp_path):
    Run(tmp_path, Stage(), tensorboard=False).close()
    (tmp_path / "checkpoints").rmdir()
    (tmp_path / "checkpoints").write_text("x")
    with pytest.raises(AimcError, match=f"cannot write {tmp_path / 'checkpoints'}: File exists"):
        Run(tmp_path, Stage(), tensorboard=False)


@pytest.fixture(scope="module")
def saved():
    """What the package can write to a file of a name."""
    torch.manual_seed(0)
    hardware = aimc.presets.pcm().replace(**{"input_range.value": 1.0})
    net = aimc.convert(nn.Linear(300, 20), hardware, seed=0).eval()
    chip = aimc.program(net, seed=0)
    metric = aimc.Accuracy(torch.eye(300)[:8], torch.arange(8))
    result = aimc.evaluate_over_time(net, metric, times=("1s", "1h"), chips=1)
    return {
        "checkpoint.safetensors": lambda path: save_checkpoint(path, net.state_dict(), {}),
        "chip.safetensors": chip.save,
        "result.json": result.save,
        "result.png": result.plot,
        "result.svg": result.plot,
        "text": lambda path: write_atomic(path, "x" * 9000),
    }


@pytest.mark.parametrize(
    "name",
    ["checkpoint.safetensors", "chip.safetensors", "result.json", "result.png", "result.svg", "text"],
)
@freed
def test_a_file_that_finds_no_room_leaves_the_old_one_and_nothing_else(disk, saved, name):
    place = disk.folder / name
    saved[name](place)
    before = place.read_bytes()
    disk.fill(0 if len(before) < 4096 else 2048)
    with pytest.raises(AimcError, match=f"cannot write {place}.*({FULL})"):
        saved[name](place)
    assert place.read_bytes() == before and hidden(disk.folder) == []
    disk.free()
    saved[name](place)


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "chip.safetensors", "result.png", "text"])
def test_a_file_where_none_may_be_written_is_named(unwritable, saved, name):
    with pytest.raises(AimcError, match=f"cannot write {unwritable / name}: ({UNWRITABLE})"):
        saved[name](unwritable / name)


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnhandledThreadExceptionWarning"
)  # TensorBoard's own thread
@freed
def test_a_run_goes_on_without_scalars_that_cannot_be_written(disk):
    with Run(disk.folder / "run", Stage()) as run:
        disk.fill()
        with pytest.warns(UserWarning, match=f"tensorboard: ({FULL}); the run goes on without"):
            run.scalar("loss", 1.0, 0)
        run.scalar("loss", 1.0, 1)
        disk.free()
        run.record("note", text="a")
    assert len(read_records(run.path)) == 1


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@freed
def test_scalars_that_wait_while_the_disk_fills_are_given_up_at_the_end(disk):
    with pytest.warns(UserWarning, match="the run goes on without"):
        with Run(disk.folder / "run", Stage()) as run:
            run.scalar("loss", 1.0, 0)
            disk.fill()
            for step in range(1000):
                run.scalar("loss", 1.0, step)
    disk.free()
    Run(run.path, Stage(), tensorboard=False).close()  # it was released


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    place = tmp_path_factory.mktemp("finished") / "run"
    trained(AWARE, place)
    return place


@freed
def test_an_evaluation_on_a_full_disk_leaves_the_run_as_it_was(disk, finished, capsys):
    place = disk.folder / "run"
    shutil.copytree(finished, place)
    before = read_records(place)
    disk.fill()
    with pytest.raises(AimcError, match=f"cannot write {place}.*({FULL})"):
        evaluate_run(place, chips=1, times=("1d",))
    assert main(["evaluate", str(place), "--chips", "1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("aimc: error: ") and str(place) in said
    with pytest.raises(AimcError, match="cannot write"):
        draw([load_run(place)], disk.folder / "drift.png")
    disk.free()
    assert read_records(place) == before and hidden(disk.folder) == []
    assert evaluate_run(place, chips=1, times=("1d",))


@freed
def test_a_comparison_on_a_full_disk_names_the_run_and_the_file(disk, often):
    disk.fill()
    with pytest.raises(AimcError, match=f"{disk.folder}.*({FULL})"):
        compare([Case("sgd-seed0", CELLS)], disk.folder / "compared")
    disk.free()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = compare([Case("sgd-seed0", CELLS)], disk.folder / "compared")
    assert len(found["runs"]) == 1 and hidden(disk.folder) == []


@pytest.mark.parametrize(
    "words",
    [["demo", "--output"], ["compare", "--algorithms", "sgd", "--recipe", "demo_insitu", "--output"]],
    ids=["run", "compare"],
)
def test_an_output_that_takes_no_files_is_a_mistake_with_a_message(unwritable, words, capsys):
    assert main([*words, str(unwritable / "out")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("aimc: error: ") and str(unwritable) in said


def test_a_run_that_may_only_be_read_is_reported_and_not_evaluated(tmp_path, finished, capsys):
    place = tmp_path / "run"
    shutil.copytree(finished, place)
    mounted(place, "--bind", str(place))
    try:
        mounted(place, "-o", "remount,bind,ro")
        assert main(["report", str(place)]) == 0
        assert main(["evaluate", str(place)]) == 2
        assert f"cannot write to {place}: Read-only file system" in capsys.readouterr().err
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_run_of_somebody_else_is_reported_and_not_evaluated(tmp_path, finished, capsys):
    """As above for ordinary users: by permissions, where nothing can be mounted."""
    place = tmp_path / "run"
    shutil.copytree(finished, place)
    held = [place, *place.rglob("*")]
    for path in held:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        if os.access(place, os.W_OK):
            pytest.skip("this user may write anywhere")
        before = read_records(place)
        assert main(["report", str(place)]) == 0
        assert main(["evaluate", str(place)]) == 2
        assert f"cannot write to {place}: Permission denied" in capsys.readouterr().err
        assert read_records(place) == before
    finally:
        for path in held:
            path.chmod(0o755)


def test_standard_output_that_takes_nothing_is_said_on_the_other():
    if not os.path.exists("/dev/full"):
        pytest.skip("there is no /dev/full")
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "aimc.cli", "list"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert done.stderr == "aimc: error: cannot write to standard output: No space left on device\n"


@freed
def test_compiled_functions_that_cannot_be_kept_are_compiled_all_the_same(disk, monkeypatch, tmp_path):
    (tmp_path / "twice.py").write_text(
        "from aimc.compiled import njit\n\n\n@njit(cache=True)\ndef twice(x):\n    return 2 * x\n"
    )
    monkeypatch.setattr("numba.config.CACHE_DIR", str(disk.folder))
    monkeypatch.setattr("aimc.compiled._warned", False)
    spec = importlib.util.spec_from_file_location("twice", tmp_path / "twice.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    disk.fill()
    with pytest.warns(UserWarning, match=f"cannot be kept .*({FULL}).*NUMBA_CACHE_DIR"):
        assert module.twice(3) == 6
    assert module.twice(1.5) == 3.0
