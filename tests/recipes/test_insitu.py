"""Training in memory: a run with its baseline, resumed to the bit; arguments of the recipe; chips afterwards."""

import json

import pytest
import torch

from aimc import presets, to_digital
from aimc.algorithms import ALGORITHMS, Residual, WarmStart
from aimc.data import load
from aimc.errors import AimcError
from aimc.files import read_records
from aimc.presets import reram
from aimc.random import Key
from aimc.recipes import (
    MLP,
    RECIPES,
    Dataset,
    Evaluation,
    InSituExperiment,
    LeNet5,
    OntoChips,
    evaluate_run,
    run_experiment,
)
from aimc.recipes.in_memory import _in_cells
from aimc.recipes.named import RATES, named_algorithm, named_hardware
from aimc.recipes.overrides import configured
from aimc.recipes.parts import Images, Shuffled, fresh_network, load_images
from aimc.train import Progress, Run, load_checkpoint, load_weights
from aimc.train.checkpoint import under
from tests.helpers import Watch, assert_close

RECIPE = RECIPES["lenet_mnist_insitu"]
TINY = InSituExperiment(
    dataset=Dataset(
        name="mnist_small", train_images=120, validation_images=30, test_images=40, pixels="unit"
    ),
    network=MLP(hidden=(6,)),
    hardware=reram(states=20, algorithm=Residual(tiles=3), io="noisy"),
    epochs=3,
    batch_size=20,
    lr=0.1,
    baseline_lr=0.2,
    threads=1,
)


def _run(config, path, **options):
    return run_experiment(config, path, tensorboard=False, **options)


def _without_time(value):
    if isinstance(value, dict):
        return {k: _without_time(v) for k, v in value.items() if k != "seconds"}
    return [_without_time(v) for v in value] if isinstance(value, list) else value


def _same_weights(a, b, stage):
    ours, _ = load_checkpoint(a / "checkpoints" / f"{stage}.safetensors")
    theirs, _ = load_checkpoint(b / "checkpoints" / f"{stage}.safetensors")
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], t) for n, t in theirs.items())


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    path = tmp_path_factory.mktemp("insitu") / "run"
    return path, _run(TINY, path)


def test_a_run_holds_its_numbers_and_figures(straight):
    path, results = straight
    for name in ("config.yaml", "results.json", "records.jsonl", "accuracy.png", "telemetry.png"):
        assert (path / name).stat().st_size > 0, name
    assert json.loads((path / "results.json").read_text()) == results
    rows = [r for r in read_records(path) if r["kind"] == "epoch"]
    assert [(r["stage"], r["epoch"]) for r in rows] == [
        (s, e) for s in ("digital", "analog") for e in (1, 2, 3)
    ]
    for row in rows:
        assert {"loss", "accuracy", "validation", "test", "lr", "seconds", "layers"} <= set(row)
    assert rows[0]["layers"] == {} and set(rows[-1]["layers"]) == {"layers.0", "layers.1"}
    tiles = rows[-1]["layers"]["layers.0"]["tiles"]
    assert len(tiles) == 3 and sum(t["pulses_mean"] for t in tiles) > 0
    assert tiles[0]["pulses_mean"] >= rows[3]["layers"]["layers.0"]["tiles"][0]["pulses_mean"]
    assert rows[0]["lr"] == 0.2 and rows[-1]["lr"] == 0.1


def test_what_counts_is_the_last_epoch_and_not_the_best(tmp_path, monkeypatch):
    tests = iter([0.9, 0.5, 0.3])
    monkeypatch.setattr(
        Images, "metric", lambda self, split: lambda net: next(tests) if split == "test" else 0.7
    )
    results = _run(TINY.replace(hardware=None), tmp_path)
    assert results["last_epoch"] == {"digital": 0.3} and results["digital"] == {"digital baseline": 0.3}


def test_a_finished_run_is_not_repeated(straight):
    path, results = straight
    before = (path / "records.jsonl").read_bytes()
    assert _run(TINY, path) == results
    assert (path / "records.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    "stops", [["digital epoch 1/", "analog epoch 1/", "analog epoch 2/"], ["analog epoch 3/"]]
)
def test_an_interrupted_run_ends_like_a_straight_one(straight, tmp_path, stops):
    path, expected = straight
    for stop in stops:
        with pytest.raises(KeyboardInterrupt):
            _run(TINY, tmp_path / "run", progress=Watch(stop))
        torch.rand(3)
    assert _without_time(_run(TINY, tmp_path / "run")) == _without_time(expected)
    assert _without_time(read_records(tmp_path / "run")) == _without_time(read_records(path))
    assert _same_weights(tmp_path / "run", path, "digital") and _same_weights(
        tmp_path / "run", path, "analog"
    )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_resumes_to_the_bit(tmp_path, name):
    algorithm = (
        Residual(tiles=3, order="paper", warm_start=WarmStart()) if name == "residual" else ALGORITHMS[name]()
    )
    config = TINY.replace(
        hardware=reram(states=20, algorithm=algorithm, io="noisy"), baseline=False, epochs=2
    )
    _run(config, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        _run(config, tmp_path / "b", progress=Watch("analog epoch 1/"))
    _run(config, tmp_path / "b")
    assert _same_weights(tmp_path / "b", tmp_path / "a", "analog")


def test_training_does_not_see_the_test_set(straight, tmp_path):
    _run(TINY.replace(**{"dataset.test_images": 17}), tmp_path / "run")
    rows, theirs = (
        [
            # Noisy reads of an evaluation are numbered on, so that another test set gives others to the validation.
            {k: v for k, v in r.items() if k not in ("test", "validation", "seconds")}
            for r in read_records(p)
            if r["kind"] == "epoch"
        ]
        for p in (tmp_path / "run", straight[0])
    )
    assert rows == theirs


def test_baseline_and_cells_start_alike_and_see_the_same_order(tmp_path):
    # Perfect cells without spread, updated exactly: then training in memory is digital training.
    from aimc.cells import LinearStep
    from aimc.hardware import PulsedHardware
    from aimc.ops.pulsed_update import PulseTrain

    cell = LinearStep(
        w_max=10.0,
        w_min=-10.0,
        dw_min=1e-4,
        **{n: 0.0 for n in LinearStep.field_names() if n.endswith("_dtod")},
    )
    hardware = PulsedHardware(cell=cell, algorithm=ALGORITHMS["sgd"](pulses=PulseTrain(kind="none")))
    config = TINY.replace(hardware=hardware, lr=0.2, schedule=TINY.schedule.replace(kind="step", every=1))
    _run(config, tmp_path)
    rows = [r for r in read_records(tmp_path) if r["kind"] == "epoch"]
    assert [r["lr"] for r in rows[3:]] == [0.2, 0.1, 0.05]
    for ours, theirs in zip(rows[3:], rows[:3]):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-4)


def test_the_baseline_is_plain_sgd_at_the_rates_of_the_schedule(tmp_path):
    config = TINY.replace(hardware=None, epochs=2, **{"schedule.kind": "step", "schedule.every": 1})
    _run(config, tmp_path)
    images = load_images(config.dataset, None)
    net = fresh_network(config.network, images, config.seed)
    order = Shuffled(images.train, config.batch_size, Key(config.seed).fold("order").seed)
    for epoch, lr in enumerate((0.2, 0.1)):
        for x, y in order(epoch):
            net.zero_grad()
            torch.nn.functional.cross_entropy(net(x), y).backward()
            with torch.no_grad():
                for p in net.parameters():
                    p -= lr * p.grad
    tensors, _ = load_checkpoint(tmp_path / "checkpoints" / "digital.safetensors")
    for name, value in under("model", tensors).items():
        assert_close(name, value, net.state_dict()[name], atol=1e-6)


def test_the_algorithm_is_told_the_loss_of_every_epoch(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(Residual, "observe", lambda self, array, state, loss: seen.append(loss))
    _run(TINY.replace(baseline=False), tmp_path)
    rows = [r for r in read_records(tmp_path) if r["kind"] == "epoch"]
    assert seen == [r["loss"] for r in rows for _ in range(2)]  # two layers


def test_warnings_of_the_schedule_are_said_and_recorded_once(tmp_path):
    config = TINY.replace(hardware=reram(states=20, algorithm=ALGORITHMS["ttv1"]()), baseline=False, epochs=1)
    watch = Watch()
    _run(config, tmp_path, progress=watch)
    _run(config, tmp_path)
    said = [line.removeprefix("warning: ") for line in watch.lines if line.startswith("warning: ")]
    recorded = [r["text"] for r in read_records(tmp_path) if r["kind"] == "warning"]
    assert said == recorded and len(set(recorded)) == len(recorded)
    # 6 updates an epoch move 6 of the 784 columns.
    assert any(text.startswith("layer layers.0: tile 1 is starved: 6 of 784 columns") for text in said)


def test_vectors_of_a_convolution_are_counted_for_the_schedule(tmp_path):
    algorithm = ALGORITHMS["ttv2"](unit="vectors", period=100)
    config = TINY.replace(network=LeNet5(activation="tanh"), hardware=reram(algorithm=algorithm))
    images = load_images(config.dataset, None)
    with Run(tmp_path, config, tensorboard=False) as run:
        _in_cells(config, config.hardware, images, run, Progress())
        texts = [r["text"] for r in run.records]
    # conv2: 6 updates of 20 images with 8 x 8 positions, a column every 100.
    assert any("layer conv2: tile 1 is starved: 76.8 of 400" in text for text in texts), texts


def test_a_loss_that_is_not_finite_is_refused(tmp_path):
    with pytest.raises(AimcError, match=r"'lr'.*'digital' became .* lower the learning rate"):
        _run(TINY.replace(baseline_lr=1e18, weight_decay=1e18), tmp_path)


# The recipe ----------------------------------------------------------------------------------------------------------


def test_the_arguments_of_the_recipe():
    config = RECIPE.config(algorithm="residual", states=10, tiles=4, io="noisy", dataset="fashion_mnist")
    assert config.dataset.name == "fashion_mnist" and config.hardware.algorithm == Residual(tiles=4)
    assert config.hardware.cell.states == pytest.approx(10) and config.hardware.transfer is not None
    assert RECIPE.config().hardware.forward is None and RECIPE.config().hardware.cell.states == pytest.approx(
        4
    )
    assert set(RATES) == set(ALGORITHMS)
    for name, kind in ALGORITHMS.items():
        config = RECIPE.config(algorithm=name)
        assert type(config.hardware.algorithm) is kind and config.lr == RATES[name]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"algorithm": "residul"}, "'algorithm'.*did you mean 'residual'"),
        ({"algorithm": "ttv2", "tiles": 4}, "'tiles': ttv2 has a fixed number of tiles, 2"),
        ({"tiles": 4.5}, "'tiles': expects a whole number or null"),
        ({"states": "few"}, "'states': expects a number or null"),
        ({"states": 0}, "states"),
        ({"io": "good"}, "'io': is 'perfect' or 'noisy'"),
        ({"device": "rram"}, "did you mean 'reram"),
        ({"device": "ecram", "states": 4}, "'states': ecram has the states it was measured with"),
        ({"stats": 4}, "did you mean 'states'"),
    ],
)
def test_arguments_that_do_not_fit_are_named(given, message):
    with pytest.raises(AimcError, match=message):
        RECIPE.config(**given)


def test_flags_win_over_arguments_and_a_file_may_not_contradict_them(tmp_path):
    config = configured(
        RECIPE, None, [("algorithm", "mp"), ("lr", "0.3"), ("hardware.algorithm.period", "2")]
    )
    assert config.lr == 0.3 and config.hardware.algorithm.period == 2
    file = tmp_path / "my.yaml"
    file.write_text("epochs: 7\nhardware: {algorithm: {type: Residual, tiles: 5}}\n")
    assert configured(RECIPE, file, []).hardware.algorithm.tiles == 5
    assert configured(RECIPE, file, [("io", "noisy")]).epochs == 7
    with pytest.raises(AimcError, match=r"my\.yaml sets hardware\.algorithm.*and so does.*--tiles"):
        configured(RECIPE, file, [("tiles", "4")])


def test_settings_that_make_no_run_are_refused():
    for change, field in (
        ({"epochs": 0}, "epochs"), ({"lr": 0.0}, "lr"), ({"batch_size": 0}, "batch_size"),
        ({"hardware": None, "baseline": False}, "hardware"), ({"schedule.every": 0}, "every"), ({"seed": -1}, "seed"),
    ):  # fmt: skip
        with pytest.raises(AimcError, match=field):
            TINY.replace(**change)


def test_the_network_of_the_papers():
    torch.manual_seed(0)
    net = LeNet5(activation="tanh").build((1, 28, 28), 10)
    x = torch.rand(2, 1, 28, 28)
    h = torch.nn.functional.max_pool2d(torch.tanh(net.conv1(x)), 2)
    h = torch.tanh(torch.nn.functional.max_pool2d(torch.tanh(net.conv2(h)), 2))
    expected = net.fc2(torch.tanh(net.fc1(h.flatten(1))))
    assert torch.allclose(net(x), expected, atol=1e-6)
    assert sum(p.numel() for n, p in net.named_parameters() if "weight" in n) == 80_016


def test_pixels_run_from_0_to_1_or_as_they_are_told():
    images = load_images(TINY.dataset, None)
    assert float(images.train.inputs.min()) == 0.0 and float(images.train.inputs.max()) == 1.0
    other = load_images(TINY.dataset.replace(pixels="standardised"), None)
    assert float(other.train.inputs.min()) < -0.4 and other.hashes == images.hashes
    centred = load_images(TINY.dataset.replace(pixels="centred"), None)
    assert (
        torch.equal(centred.test.inputs, (images.test.inputs - 0.5) / 0.5) and centred.hashes == images.hashes
    )
    with pytest.raises(AimcError, match="did you mean 'unit'"):
        load("mnist_small", "test", pixels="units")


# Afterwards ----------------------------------------------------------------------------------------------------------


def test_a_run_is_measured_again_and_taken_onto_chips(tmp_path):
    config = TINY.replace(hardware=reram(states=20, algorithm=named_algorithm("mp")), baseline=False)
    results = _run(config, tmp_path)
    assert evaluate_run(tmp_path) == []
    again = read_records(tmp_path)[-1]
    assert again["kind"] == "again" and again["value"] == results["last_epoch"]["analog"]  # perfect reads
    with pytest.raises(AimcError, match=r"'chips'.*--onto pcm"):
        evaluate_run(tmp_path, chips=2)
    with pytest.raises(AimcError, match="did you mean 'pcm'"):
        evaluate_run(tmp_path, onto="pmc")
    first, second = evaluate_run(tmp_path, onto="pcm", chips=2, times=("1s", "1y"))
    assert first.values.shape == (2, 2) and first.compensation is not None and second.compensation is None
    assert (tmp_path / "drift.png").exists()

    images = load_images(config.dataset, None)
    with Run(tmp_path, config, tensorboard=False) as run:
        net = _in_cells(config, config.hardware, images, run, Progress())
        load_weights(net, run, "analog")
    digital = fresh_network(config.network, images, config.seed)
    load_weights(digital, str(tmp_path), "composite")
    composite = to_digital(net).state_dict()
    assert all(torch.equal(v, composite[n]) for n, v in digital.state_dict().items())
    assert first.reference == images.metric("test")(digital) == results["last_epoch"]["analog"]


def test_chips_may_be_part_of_the_run(tmp_path):
    chips = OntoChips(hardware=presets.ideal(), evaluation=Evaluation(times=("0s",), chips=1))
    config = TINY.replace(
        hardware=named_hardware("ecram", named_algorithm("mp"), "perfect"), chips=chips, epochs=1
    )
    results = _run(config, tmp_path)
    # Ideal chips compute what the cells amount to.
    name = "onto chips, not compensated"
    assert results["evaluations"][name]["values"] == [[results["last_epoch"]["analog"]]]
    assert results["digital"]["composite, digital"] == results["last_epoch"]["analog"]


def test_a_baseline_alone(tmp_path):
    results = _run(TINY.replace(hardware=None), tmp_path)
    assert list(results["last_epoch"]) == ["digital"] and not (tmp_path / "telemetry.png").exists()
    with pytest.raises(AimcError, match="digital baseline alone"):
        evaluate_run(tmp_path)


def test_only_runs_of_in_memory_training_are_taken_onto_other_chips(tmp_path):
    (tmp_path / "config.yaml").write_text(RECIPES["demo"].config().to_yaml())
    with pytest.raises(AimcError, match="'onto'"):
        evaluate_run(tmp_path, onto="pcm")
