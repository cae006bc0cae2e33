"""A checkpoint is taken only where it belongs: in its run, its stage, and as what it is."""

import re
import shutil
import warnings

import pytest
import torch
import yaml
from torch import nn

from aimc.errors import AimcError
from aimc.files import read_records
from aimc.recipes import MLP, RECIPES, evaluate_run, hwa, in_memory, run_experiment
from aimc.train import Run, Stage, fit, load_checkpoint, load_weights, save_checkpoint
from aimc.train.stages import Checkpoints
from tests.helpers import Watch

SMALL = {
    "dataset.train_images": 60, "dataset.validation_images": 20, "dataset.test_images": 20,
    "network": MLP(hidden=(6,)), "threads": 1,
}  # fmt: skip
AWARE = (
    RECIPES["demo"].config()
    .replace(**SMALL, **{"teacher.epochs": 1, "student.epochs": 2, "evaluation.chips": 1, "evaluation.times": ("1h",)})
)  # fmt: skip
CELLS = RECIPES["demo_insitu"].config(algorithm="sgd").replace(**SMALL, epochs=2)
HALVES = {"hardware-aware": (AWARE, "teacher", "student"), "in memory": (CELLS, "digital", "analog")}
"""A configuration of each half, and its two stages."""


def trained(config, place, progress=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cells that cannot hold their weights
        return run_experiment(config, place, tensorboard=False, progress=progress)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of each half: a finished run, one of another seed, and both again, stopped in their last stage."""
    folder, patch = tmp_path_factory.mktemp("runs"), pytest.MonkeyPatch()
    for module, names in ((hwa, ("draw",)), (in_memory, ("draw", "draw_accuracy", "draw_telemetry"))):
        for name in names:
            patch.setattr(module, name, lambda *args, **options: None)
    for half, (config, _, last) in HALVES.items():
        for seed in (0, 5):
            trained(config.replace(seed=seed), folder / half / f"finished {seed}")
            with pytest.raises(KeyboardInterrupt):
                trained(
                    config.replace(seed=seed), folder / half / f"stopped {seed}", Watch(f"{last} epoch 1/")
                )
    yield folder
    patch.undo()


def put(source, target):
    """Copy the checkpoint of one run over that of another."""
    shutil.copy(source, target)
    return target


def refused(config, place, *said):
    """The run does not go on, says all of this, and stays as it is."""
    before = read_records(place), {p: p.read_bytes() for p in (place / "checkpoints").iterdir()}
    with pytest.raises(AimcError, match="".join(f"(?=.*{re.escape(text)})" for text in said)) as caught:
        trained(config, place)
    assert caught.value.field == "checkpoint"
    after = {p: p.read_bytes() for p in (place / "checkpoints").iterdir()}
    assert (read_records(place), after) == before


@pytest.mark.parametrize("half", HALVES)
def test_another_stage_of_the_same_run_is_refused(runs, tmp_path, half):
    config, first, last = HALVES[half]
    place = tmp_path / "run"
    shutil.copytree(runs / half / "finished 0", place)
    file = put(place / "checkpoints" / f"{first}.safetensors", place / "checkpoints" / f"{last}.safetensors")
    said = f"{file} holds the stage {first!r}, finished; here belongs {last!r}, finished"
    refused(config, place, said, f"delete {file}, and the same aimc run trains {last!r} again")
    with pytest.raises(AimcError, match=re.escape(said)):
        evaluate_run(place)
    file.unlink()
    trained(config, place)
    ours, truth = (
        load_checkpoint(p / "checkpoints" / file.name)[0] for p in (place, runs / half / "finished 0")
    )
    assert ours.keys() == truth.keys() and all(torch.equal(ours[n], t) for n, t in truth.items())


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("kind", ["finished", "stopped"])
def test_files_of_a_run_of_another_seed_are_refused(runs, tmp_path, half, kind):
    config, _, last = HALVES[half]
    place = tmp_path / "run"
    shutil.copytree(runs / half / f"{kind} 0", place)
    name = f"{last}.safetensors" if kind == "finished" else f"{last}.epoch.safetensors"
    file = put(runs / half / f"{kind} 5" / "checkpoints" / name, place / "checkpoints" / name)
    refused(
        config, place, f"{file} is of another run, with another configuration (seed: 5 there, 0 here)",
        f"delete {file}",
    )  # fmt: skip


@pytest.mark.parametrize("half", HALVES)
def test_a_finished_stage_is_no_stage_under_way_and_the_other_way_round(runs, tmp_path, half):
    config, _, last = HALVES[half]
    finished, stopped = (runs / half / f"{kind} 0" / "checkpoints" for kind in ("finished", "stopped"))
    place = tmp_path / "stopped"
    shutil.copytree(stopped.parent, place)
    file = put(finished / f"{last}.safetensors", place / "checkpoints" / f"{last}.epoch.safetensors")
    said = f"{file} holds the stage {last!r}, finished; here belongs {last!r}, under way"
    refused(config, place, said, f"There is no whole one before it: delete {file} to start over")
    place = tmp_path / "finished"
    shutil.copytree(finished.parent, place)
    file = put(stopped / f"{last}.epoch.safetensors", place / "checkpoints" / f"{last}.safetensors")
    refused(config, place, f"{file} holds the stage {last!r}, under way; here belongs {last!r}, finished")


def test_a_foreign_file_is_not_offered_as_the_one_before(runs, tmp_path):
    config, _, last = HALVES["hardware-aware"]
    place = tmp_path / "run"
    shutil.copytree(runs / "hardware-aware" / "stopped 0", place)
    latest = place / "checkpoints" / f"{last}.epoch.safetensors"
    older = place / "checkpoints" / f"{last}.epoch.1.safetensors"
    whole = latest.read_bytes()
    put(runs / "hardware-aware" / "stopped 5" / "checkpoints" / latest.name, older)
    latest.write_bytes(b"cut")
    refused(config, place, f"There is no whole one before it: delete {latest} and those before it")
    older.write_bytes(whole)
    refused(config, place, f"delete {latest}, and the run goes on from {older} (after epoch 1)")


class Once:
    def __len__(self):
        return 1

    def __call__(self, epoch):
        yield torch.eye(4), torch.arange(4)


def test_a_run_on_other_data_is_another_run(tmp_path):
    for name in "ab":
        with Run(tmp_path / name, Stage(epochs=1), data={"train": name}, tensorboard=False) as run:
            fit(nn.Linear(4, 4), Stage(epochs=1), Once(), lambda net: 0.0, run=run, name="s")
    file = put(tmp_path / "a/checkpoints/s.safetensors", tmp_path / "b/checkpoints/s.safetensors")
    said = re.escape(f"{file} is of a run on other data (the checksum of train differs)")
    for held in (str(tmp_path / "b"), tmp_path / "b"):
        with pytest.raises(AimcError, match=f"{said}.*delete {file}"):
            load_weights(nn.Linear(4, 4), held, "s")
    load_weights(nn.Linear(4, 4), str(tmp_path / "a"), "s")
    (tmp_path / "b" / "config.yaml").unlink()
    (tmp_path / "b" / "environment.json").unlink()
    load_weights(nn.Linear(4, 4), str(tmp_path / "b"), "s")  # a folder that says nothing of itself


def _older(file, *names):
    """The file as an aimc wrote it that did not yet say the kind and the run."""
    tensors, details = load_checkpoint(file)
    for name in ("version", "kind", "run", *names):
        del details[name]
    save_checkpoint(file, tensors, details)


@pytest.mark.parametrize("half", HALVES)
def test_files_of_an_older_aimc_are_gone_on_with_and_their_names_compared(runs, tmp_path, half):
    config, first, last = HALVES[half]
    place, truth = tmp_path / "run", runs / half / "finished 0"
    shutil.copytree(runs / half / "stopped 0", place)
    for file in (place / "checkpoints").iterdir():
        _older(file)
    trained(config, place)
    ours, theirs = (load_checkpoint(p / "checkpoints" / f"{last}.safetensors")[0] for p in (place, truth))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[n], t) for n, t in theirs.items())
    _older(place / "checkpoints" / f"{last}.safetensors")
    trained(config, place)
    file = place / "checkpoints" / f"{last}.safetensors"
    put(file, place / "checkpoints" / f"{last}.epoch.safetensors")
    put(place / "checkpoints" / f"{first}.safetensors", file)
    refused(config, place, f"{file} holds the stage {first!r}, finished")
    file.unlink()
    refused(config, place, f"holds the stage {last!r}, finished; here belongs {last!r}, under way")


STATE = {"model/w": torch.ones(1), "generator": torch.get_rng_state(), "best/w": torch.ones(1)}
ROW = {"epoch": 1, "validation": 0.5, "seconds": 1.0}
GOOD = {"history": [ROW], "chosen": 1}


@pytest.mark.parametrize(
    "tensors, details, said",
    [
        (STATE, {}, "history is missing"),
        (STATE, {"history": [{}], "chosen": 1}, "history[0].epoch is missing"),
        (STATE, {"history": "x", "chosen": 1}, "history must be a list"),
        (STATE, {"history": [ROW]}, "chosen is missing"),
        (STATE, {"history": [ROW], "chosen": 2}, "epoch 2 was chosen of 1"),
        (STATE, GOOD | {"current": {"batches": "3"}}, "current.batches must be a whole number"),
        (STATE, GOOD | {"version": 7}, "another version of aimc (7; this one knows 2)"),
        (STATE, GOOD | {"version": 2}, "name is missing"),
        ({"generator": STATE["generator"]}, GOOD, "it has no model"),
        ({n: t for n, t in STATE.items() if n != "best/w"}, GOOD, "the chosen epoch are not whole"),
        ({**STATE, "generator": torch.ones(3)}, GOOD, "no state of torch's generator"),
    ],
)
def test_a_checkpoint_that_lacks_what_a_stage_reads_is_named(tmp_path, tensors, details, said):
    class W(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.ones(1))

    with Run(tmp_path, Stage(), tensorboard=False) as run:
        file = run.checkpoint("s.epoch")
        save_checkpoint(file, tensors, details)
        with pytest.raises(AimcError, match=f"{file} .*{re.escape(said)}"):
            fit(W(), Stage(epochs=3), Once(), lambda net: 0.0, run=run, name="s")


def test_a_configuration_is_compared_by_its_values_and_not_by_the_layout_of_its_file(tmp_path):
    with Run(tmp_path, Stage(epochs=3), tensorboard=False) as run:
        run.save_finished("s", {"model/w": torch.ones(1)}, {})
    config = tmp_path / "config.yaml"
    config.write_text("# a remark\n" + yaml.safe_dump(yaml.safe_load(config.read_text()), sort_keys=True))
    assert Checkpoints(tmp_path).load_finished("s")[0].keys() == {"model/w"}
    config.write_text(config.read_text().replace("epochs: 3", "epochs: 4"))
    with pytest.raises(AimcError, match="epochs: 3 there, 4 here"):
        Checkpoints(tmp_path).load_finished("s")
    config.write_text("a: [")
    with pytest.raises(AimcError, match=f"{config} is not readable") as caught:
        Checkpoints(tmp_path).load_finished("s")
    assert "delete" not in str(caught.value)  # the checkpoint is not at fault
