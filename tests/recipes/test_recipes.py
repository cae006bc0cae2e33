"""Recipes say what to expect and build; an experiment runs, resumes and writes what it found."""

import contextlib
import json
from pathlib import Path

import pytest
import torch

from aimc import cells, data, presets
from aimc.chip import DriftResult, evaluation
from aimc.errors import AimcError
from aimc.files import read_config, read_records
from aimc.recipes import (
    MLP,
    RECIPES,
    Dataset,
    Encoder,
    Evaluation,
    HwaExperiment,
    InSituExperiment,
    chips,
    evaluate_run,
    run_experiment,
)
from aimc.recipes.hwa import VARIANTS
from aimc.train import Optimizer, Progress, Stage, load_checkpoint
from aimc.train.checkpoint import under
from tests.helpers import Watch

TINY = HwaExperiment(
    dataset=Dataset(name="mnist_small", train_images=300, validation_images=60, test_images=100),
    network=MLP(hidden=(12,)),
    teacher=Stage(epochs=2, batch_size=50, optimizer=Optimizer(lr=0.1)),
    student=Stage(epochs=2, batch_size=50, optimizer=Optimizer(lr=0.02, clip_norm=5.0), validation_repeats=1),
    hardware=presets.pcm(),
    evaluation=Evaluation(times=("1s", "1d"), chips=2),
    threads=1,
)
PARTS = [f"{v}, {c}" for v in VARIANTS for c in ("compensated", "not compensated")]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    path = tmp_path_factory.mktemp("straight") / "run"
    return path, run_experiment(TINY, path, tensorboard=False)


def _without_time(value):
    if isinstance(value, dict):
        return {k: _without_time(v) for k, v in value.items() if k != "seconds"}
    return [_without_time(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_says_what_to_expect_and_builds(name):
    recipe = RECIPES[name]
    assert recipe.name == name
    assert recipe.summary and recipe.expected and recipe.machine and recipe.time
    config = recipe.config()
    assert isinstance(config, (HwaExperiment, InSituExperiment))
    assert type(config).from_yaml(config.to_yaml()) == config == type(config).from_json(config.to_json())
    if isinstance(config.network, Encoder):
        return  # pretrained weights are not everywhere; test_learning.py builds one
    shape, classes = (), 33_278
    if isinstance(config.dataset, Dataset):
        source = data.DATASETS[config.dataset.name]
        shape, classes = source.shape, len(source.classes)
    net = config.network.build(shape, classes)
    assert sum(p.numel() for p in net.parameters()) > 0


def test_the_results_are_in_the_directory(straight):
    path, results = straight
    for name in ("config.yaml", "environment.json", "records.jsonl", "results.json", "drift.png"):
        assert (path / name).stat().st_size > 0, name
    assert sorted(p.name for p in (path / "checkpoints").iterdir()) == [
        "student.safetensors",
        "teacher.safetensors",
    ]
    assert not list(path.rglob("*.part"))
    assert json.loads((path / "results.json").read_text()) == results
    assert list(results["evaluations"]) == PARTS
    for name, held in results["evaluations"].items():
        result = DriftResult.from_dict(held)
        assert result.values.shape == (2, 2) and result.times == (1.0, 86400.0), name
        assert result.reference == results["digital"]["digital"] and result.chance == 0.1
        assert (result.compensation is None) == ("not" in name)
    assert results["digital"]["digital"] > 0.5
    assert read_config(path) == TINY


def test_a_finished_run_is_not_repeated(straight):
    path, results = straight
    before = (path / "records.jsonl").read_bytes()
    assert run_experiment(TINY, path, tensorboard=False) == results
    assert (path / "records.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "stops",
    [
        ["teacher epoch 1/", "teacher: goes on"],
        ["teacher epoch 2/", "student epoch 1/", "student epoch 2/"],
        ["digital", "student, digital", *PARTS],
    ],
    ids=["teacher", "student", "between evaluations"],
)
def test_an_interrupted_experiment_ends_like_a_straight_one(straight, tmp_path, stops):
    path, expected = straight
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            run_experiment(TINY, tmp_path / "run", tensorboard=False, progress=Watch(stop))
        torch.rand(3)
    results = run_experiment(TINY, tmp_path / "run", tensorboard=False)
    assert _without_time(results) == _without_time(expected)
    assert _without_time(read_records(tmp_path / "run")) == _without_time(read_records(path))
    for stage in ("teacher", "student"):
        ours, _ = load_checkpoint(tmp_path / "run" / "checkpoints" / f"{stage}.safetensors")
        theirs, _ = load_checkpoint(path / "checkpoints" / f"{stage}.safetensors")
        assert all(torch.equal(ours[n], t) for n, t in theirs.items()) and ours.keys() == theirs.keys()


class StopAtChip(Progress):
    """Ctrl-C once so many evaluations of a bar are done."""

    def __init__(self, label, count):
        self.label, self.count = label, count

    @contextlib.contextmanager
    def bar(self, label):
        def advance(done, _total):
            if label == self.label and done > self.count:
                raise KeyboardInterrupt

        yield advance


def test_chips_that_were_measured_before_an_interruption_are_kept(straight, tmp_path, monkeypatch):
    path, expected = straight
    measured = []
    programmed = evaluation.program
    monkeypatch.setattr(
        evaluation, "program", lambda net, seed, *rest: measured.append(seed) or programmed(net, seed, *rest)
    )
    monkeypatch.setattr(chips, "available_cores", lambda: 1)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(
            TINY, tmp_path, tensorboard=False, progress=StopAtChip(PARTS[1], len(TINY.evaluation.times))
        )
    kept = [r for r in read_records(tmp_path) if r["kind"] == "chip"]
    assert [r["chip"] for r in kept] == [0]
    assert kept[0]["values"] == [row[0] for row in expected["evaluations"][PARTS[1]]["values"]]
    results = run_experiment(TINY, tmp_path, tensorboard=False)
    assert _without_time(results) == _without_time(expected)
    assert _without_time(read_records(tmp_path)) == _without_time(read_records(path))
    # Of the second evaluation the second chip was begun twice; everything else once.
    assert len(measured) == len(PARTS) * TINY.evaluation.chips + 1


def test_training_and_selection_do_not_see_the_test_set(tmp_path, straight):
    other = TINY.replace(**{"dataset.test_images": 50})
    with pytest.raises(KeyboardInterrupt):
        run_experiment(other, tmp_path, tensorboard=False, progress=Watch("student, digital"))
    for stage in ("teacher", "student"):
        ours, _ = load_checkpoint(tmp_path / "checkpoints" / f"{stage}.safetensors")
        theirs, _ = load_checkpoint(straight[0] / "checkpoints" / f"{stage}.safetensors")
        assert all(torch.equal(ours[n], t) for n, t in theirs.items())
    ours, theirs = ([r for r in read_records(p) if r["kind"] == "epoch"] for p in (tmp_path, straight[0]))
    assert _without_time(ours) == _without_time(theirs) and len(ours) == 4


def test_the_mapped_baseline_keeps_the_teachers_weights(straight):
    from aimc.recipes.hwa import _analog
    from aimc.recipes.parts import fresh_network, load_images
    from aimc.train import load_weights

    loaded = load_images(TINY.dataset, None)
    teacher = fresh_network(TINY.network, loaded, TINY.seed)
    load_weights(teacher, str(straight[0]), "teacher")
    mapped = _analog(TINY, teacher, loaded, aware=False)
    for name, value in teacher.state_dict().items():
        assert torch.equal(mapped.state_dict()[name], value)
    assert mapped.state_dict()["layers.0.input_range"].isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hardware.cell": presets.ideal().cell}, "evaluation.times"),
        ({"evaluation.times": ("1s", "100000000y")}, "e-folds"),
        ({"digital": ("nothing*",)}, "no module, parameter or buffer matches"),
    ],
)
def test_what_the_hardware_cannot_do_is_said_before_training(tmp_path, changes, message):
    with pytest.raises(AimcError, match=message):
        run_experiment(TINY.replace(**changes), tmp_path, tensorboard=False)
    assert not read_records(tmp_path)


def test_the_teacher_is_plain_torch(straight):
    """Its recorded accuracy is that of its saved weights in two products and a ReLU of torch's own."""
    weights, _ = load_checkpoint(straight[0] / "checkpoints" / "teacher.safetensors")
    w = under("model", weights)
    test = data.load("mnist_small", "test", limit=100)
    hidden = torch.relu(test.inputs.flatten(1) @ w["layers.0.weight"].T + w["layers.0.bias"])
    logits = hidden @ w["layers.1.weight"].T + w["layers.1.bias"]
    accuracy = float((logits.argmax(1) == test.targets).float().mean())
    (record,) = [r for r in read_records(straight[0]) if r["kind"] == "digital" and r["name"] == "digital"]
    assert record["value"] == pytest.approx(accuracy, abs=1e-6)
    assert not any("input_range" in name or "analog" in name for name in weights)


def test_another_configuration_in_the_same_directory_is_refused(straight):
    with pytest.raises(AimcError, match=r"student\.epochs: 2 -> 3"):
        run_experiment(TINY.replace(**{"student.epochs": 3}), straight[0], tensorboard=False)


def test_a_run_can_be_evaluated_again(straight):
    path, results = straight
    same = evaluate_run(path)
    assert [r.values.tolist() for r in same] == [e["values"] for e in results["evaluations"].values()]
    alone = evaluate_run(path, times=("1s",), chips=1)
    assert [r.values[0, 0] for r in alone] == [r.values[0, 0] for r in same]
    count = len(read_records(path))
    new = evaluate_run(path, times=("1h",), chips=1, seed=5, compensation=None)
    assert [r.values.shape for r in new] == [(1, 1), (1, 1)] and all(r.compensation is None for r in new)
    assert new[0].reference == pytest.approx(results["digital"]["digital"])
    assert len(read_records(path)) == count + 2
    assert run_experiment(TINY, path, tensorboard=False) == results  # the run's own results stay


def test_evaluating_needs_a_finished_run(tmp_path):
    with pytest.raises(AimcError, match="no run directory"):
        evaluate_run(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(TINY, tmp_path / "a", tensorboard=False, progress=Watch("teacher epoch 1/"))
    with pytest.raises(AimcError, match="no such checkpoint"):
        evaluate_run(tmp_path / "a")


def test_a_student_needs_training_and_one_ramp():
    with pytest.raises(AimcError, match=r"hardware\.training"):
        TINY.replace(**{"hardware.training": None})
    with pytest.raises(AimcError, match="ramp_steps"):
        TINY.replace(**{"hardware.training.ramp_steps": 5, "student.noise_ramp": 1})


def test_other_hardware_runs(tmp_path):
    config = TINY.replace(
        hardware=TINY.hardware.replace(cell=cells.Hermes(parallel=2)),
        student=TINY.student.replace(epochs=1),
        teacher=TINY.teacher.replace(epochs=1),
        evaluation=Evaluation(times=("1h",), chips=1),
        digital=("layers.1",),
    )
    results = run_experiment(config, tmp_path, tensorboard=True)
    assert results["evaluations"][PARTS[0]]["statistics"]["std"] is None
    assert list((tmp_path / "tensorboard").iterdir())


def test_networks_refuse_data_that_does_not_fit(tmp_path):
    from aimc.recipes import LSTM, LeNet5, Sentences, ThinResNet, WideResNet

    with pytest.raises(AimcError, match="28x28"):
        LeNet5().build((3, 32, 32), 10)
    with pytest.raises(AimcError, match="depth"):
        WideResNet(depth=11)
    assert WideResNet(depth=10, width=1).build((3, 32, 32), 10)(torch.zeros(1, 3, 32, 32)).shape == (1, 10)

    for network in (WideResNet(), ThinResNet()):
        with pytest.raises(AimcError, match="takes images"):
            network.build((), 10)
    for network in (LSTM(), Encoder()):
        with pytest.raises(AimcError, match="takes tokens"):
            network.build((3, 32, 32), 10)
    with pytest.raises(AimcError, match="depth"):
        ThinResNet(depth=16)
    with pytest.raises(AimcError, match="widths"):
        ThinResNet(widths=(16, 32))
    with pytest.raises(AimcError, match="leave cutoffs empty"):
        LSTM(tied=True, cutoffs=(10,))
    for cutoffs in ((0, 5), (7, 5)):
        with pytest.raises(AimcError, match="cutoffs"):
            LSTM(cutoffs=cutoffs)
    with pytest.raises(AimcError, match="below the 9 words"):
        LSTM(cutoffs=(5, 9)).build((), 9)
    with pytest.raises(AimcError, match="field 'network': sentences need .* an Encoder; got LeNet5"):
        Sentences().load(tmp_path, LeNet5())


def test_a_record_of_an_earlier_version_is_read(tmp_path):
    """Its data set has no type of its own field, its metric no name."""
    text = TINY.to_yaml()
    for line in ("  augment: none\n", "  pixels: standardised\n"):
        assert line in text
        text = text.replace(line, "")
    assert HwaExperiment.from_yaml(text) == TINY


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("teacher.noise_ramp", 2.0, "the teacher is digital"),
        ("teacher.distillation", 0.1, "the teacher is digital"),
        ("teacher.validation_repeats", 9, "the teacher is digital"),
        ("student.noise_ramp", 99.0, "longer than the"),
    ],
)
def test_settings_that_could_do_nothing_are_refused(field, value, message):
    with pytest.raises(AimcError, match=message) as caught:
        RECIPES["demo"].config().replace(**{field: value})
    assert caught.value.field == field


def test_records_without_checkpoints_cannot_be_evaluated():
    path = Path(__file__).parents[2] / "docs" / "runs" / "lenet_mnist_hwa"
    with pytest.raises(AimcError, match="no checkpoints"):
        evaluate_run(path)


def test_the_scaling_of_a_wide_network_is_an_argument():
    for name in ("wideresnet_cifar100", "wideresnet_cifar100_small"):
        usual, other = RECIPES[name].config(), RECIPES[name].config(scale="fan_in", remap_every=0)
        assert (usual.hardware.mapping.scale, usual.hardware.training.remap_every) == ("column", 1)
        assert other == usual.replace(
            **{"hardware.mapping.scale": "fan_in", "hardware.training.remap_every": 0}
        )
        with pytest.raises(AimcError, match="scale"):
            RECIPES[name].config(scale="fanin")
