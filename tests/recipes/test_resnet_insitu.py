"""Residual networks in memory: which blocks are in cells, what trains what is digital, and the whole way of a run."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from aimc import cli
from aimc.algorithms import Residual, WarmStart
from aimc.errors import AimcError
from aimc.files import read_config, read_records
from aimc.nn import PulsedConv2d, PulsedLinear, pulsed_layers
from aimc.recipes import RECIPES, Dataset, InSituExperiment, evaluate_run, run_experiment
from aimc.recipes.compare import cases
from aimc.recipes.in_memory import _in_cells
from aimc.recipes.overrides import configured
from aimc.recipes.parts import fresh_network, load_images
from aimc.recipes.resnet_insitu import digital_parts
from aimc.train import Progress, Run, fit_in_memory, load_checkpoint, load_weights
from tests.helpers import Watch

RECIPE = RECIPES["resnet18_insitu"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with CIFAR-10 and CIFAR-100 of a few images each."""
    folder, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for name, classes in (("cifar10", 10), ("cifar100", 100)):
        (folder / name).mkdir()
        for part in ("train", "test"):
            pixels = generator.integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
            np.savez(folder / name / f"{part}.npz", x=pixels, y=np.arange(60) * (classes // 10) % classes)
    return folder


def _tiny(name="resnet18_insitu", **arguments) -> InSituExperiment:
    config: Any = RECIPES[name].config(**arguments)
    return config.replace(
        dataset=config.dataset.replace(train_images=24, validation_images=4, test_images=6),
        epochs=2, batch_size=8, **{"network.width": 2, "network.depth": 10},
    )  # fmt: skip


def _network(config, folder, path):
    images = load_images(config.dataset, folder)
    with Run(path, config, tensorboard=False) as run:
        return _in_cells(config, config.hardware, images, run, Progress())


def test_the_setting_of_the_full_length():
    config = RECIPE.config()
    assert (config.epochs, config.batch_size, config.label_smoothing) == (200, 128, 0.1)
    assert (config.lr, config.baseline_lr, config.momentum, config.weight_decay) == (0.1, 0.2, 0.9, 5e-4)
    assert config.dataset == Dataset(name="cifar10", pixels="centred", augment="auto_augment")
    assert [config.schedule.rate(1.0, epoch, 200) for epoch in (0, 99, 100, 199)] == [1.0, 1.0, 0.1, 0.1]
    assert config.digital == ("stem", "stages.0", "stages.1") and config.network.depth == 18
    assert RECIPES["resnet34_insitu"].config(dataset="cifar100").network.depth == 34


@pytest.mark.parametrize("name", ["resnet18_insitu_small", "resnet34_insitu_small"])
def test_a_small_recipe_sees_the_pixels_of_its_record(name):
    recorded = read_config(Path(__file__).parents[2] / "docs" / "runs" / name, InSituExperiment)
    assert RECIPES[name].config() == recorded


@pytest.mark.parametrize("blocks", ["D D D A A A", "A D A D A D", "A A A A A A", "D D D D D A"])
def test_blocks_choose_what_is_in_cells(pictures, tmp_path, blocks):
    config = _tiny(blocks=tuple(blocks.split()))
    net = _network(config, pictures, tmp_path)
    parts = {
        "stem": net.stem,
        **{f"stages.{i}": stage for i, stage in enumerate(net.stages)},
        "head": net.head,
    }
    for (name, part), kind in zip(parts.items(), blocks.split(), strict=True):
        products = [m for m in part.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
        in_cells = [isinstance(m, (PulsedConv2d, PulsedLinear)) for m in products]
        assert products and all(in_cells) == any(in_cells) == (kind == "A"), name


def test_94_percent_of_resnet18_are_in_cells():
    config = RECIPE.config()
    net = config.network.build((3, 32, 32), 10)
    matrices = {n: p.numel() for n, p in net.named_parameters() if p.dim() > 1}
    kept = sum(v for n, v in matrices.items() if n.startswith(tuple(f"{part}." for part in config.digital)))
    assert 1 - kept / sum(matrices.values()) == pytest.approx(0.94, abs=0.005)


@pytest.mark.parametrize(
    "blocks, message",
    [
        (("D", "A"), "the stem, the four stages and the head.*got 'D A'"),
        (("D", "D", "D", "A", "A", "X"), "A .analog. or D .digital."),
        (("D",) * 6, "nothing in cells"),
    ],
)
def test_blocks_that_make_no_network_are_refused(blocks, message):
    with pytest.raises(AimcError, match=f"'blocks'.*{message}"):
        digital_parts(blocks)


# What trains what ----------------------------------------------------------------------------------------------------


def _trained(config, folder, path, **changes):
    run_experiment(config.replace(**changes), path, data=folder, tensorboard=False)
    return load_checkpoint(path / "checkpoints" / "analog.safetensors")[0]


def test_cells_take_pulses_and_the_rest_is_torchs(pictures, tmp_path):
    """A single step from the same start: torch's own SGD on what is digital, pulses on what is not."""
    config = _tiny().replace(epochs=1, batch_size=24, baseline=False, **{"dataset.augment": "none"})
    after = _trained(config, pictures, tmp_path / "a")
    net = _network(config, pictures, tmp_path / "b")
    start = {name: value.clone() for name, value in net.state_dict().items()}
    images = load_images(config.dataset, pictures)
    net.train()
    loss = torch.nn.functional.cross_entropy(
        net(images.train.inputs), images.train.targets, label_smoothing=0.1
    )
    loss.backward()
    digital = {
        n: p for n, p in net.named_parameters() if not n.startswith(("stages.2", "stages.3", "head.w"))
    }
    assert any("norm" in n for n in digital) and "head.bias" in digital
    norms = {n: p for n, p in net.named_parameters() if n.startswith("stages.2") and p.dim() == 1}
    for name, p in {**digital, **norms}.items():
        decay = 5e-4 * p.detach() if p.dim() > 1 else 0.0
        expected = p.detach() - 0.1 * (p.grad + decay)
        assert torch.allclose(after[f"model/{name}"], expected, atol=1e-5), name
    for name, layer in pulsed_layers(net).items():
        assert not torch.equal(after[f"model/{name}.cells.held"], start[f"{name}.cells.held"]), name
        assert int(after[f"model/{name}.cells.counts"].sum()) > 0 and layer.weight.grad is not None
    mean = "stages.3.0.norm1.running_mean"
    assert not torch.equal(after[f"model/{mean}"], start[mean])  # statistics of a digital norm behind cells


def test_momentum_is_of_what_is_digital_alone(pictures, tmp_path):
    config = _tiny().replace(baseline=False, epochs=1, weight_decay=0.0)
    still = {"lr": 1e-12, "momentum": 0.9}
    a = _trained(config, pictures, tmp_path / "a", **still)
    b = _trained(config, pictures, tmp_path / "b", **{**still, "momentum": 0.0})
    assert all(torch.equal(a[n], b[n]) for n in a if ".cells." in n)
    c = _trained(config, pictures, tmp_path / "c", momentum=0.0)
    d = _trained(config, pictures, tmp_path / "d", momentum=0.9)
    assert not torch.equal(c["model/stem.0.weight"], d["model/stem.0.weight"])


def test_no_warning_of_settings_that_miss_the_cells(pictures, tmp_path):
    """Momentum and decay are not asked of the cells, so there is nothing to warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _trained(_tiny(algorithm="sgd").replace(epochs=1, baseline=False), pictures, tmp_path)


@pytest.mark.parametrize("smoothing", [0.1, 0.9])
def test_the_labels_of_any_number_of_classes_are_smoothed(pictures, tmp_path, smoothing):
    """The loss of a single step is torch's own, over 100 classes."""
    config = _tiny(dataset="cifar100", algorithm="mp").replace(
        epochs=1, batch_size=24, baseline=False, label_smoothing=smoothing, **{"dataset.augment": "none"}
    )
    run_experiment(config, tmp_path / "a", data=pictures, tensorboard=False)
    images = load_images(config.dataset, pictures)
    logits = _network(config, pictures, tmp_path / "b").train()(images.train.inputs)
    assert logits.shape == (24, 100)
    expected = torch.nn.functional.cross_entropy(logits, images.train.targets, label_smoothing=smoothing)
    (row,) = [r for r in read_records(tmp_path / "a") if r["kind"] == "epoch"]
    assert row["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_a_run_goes_on_to_the_bit_with_momentum_and_augmentation(pictures, tmp_path):
    config = _tiny(tiles=3).replace(epochs=3)
    run_experiment(config, tmp_path / "a", data=pictures, tensorboard=False)
    for stop in ("digital epoch 1/", "analog epoch 2/"):
        with pytest.raises(KeyboardInterrupt):
            run_experiment(config, tmp_path / "b", data=pictures, tensorboard=False, progress=Watch(stop))
    run_experiment(config, tmp_path / "b", data=pictures, tensorboard=False)
    for stage in ("digital", "analog"):
        one, other = (
            load_checkpoint(tmp_path / run / "checkpoints" / f"{stage}.safetensors")[0] for run in "ab"
        )
        assert one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


class Interrupted:
    """The batches of a data set, and Ctrl-C at one of them, counted over all epochs."""

    def __init__(self, batches, at=None):
        self.batches, self.left = batches, at

    def __len__(self):
        return len(self.batches)

    def __call__(self, epoch):
        for batch in self.batches(epoch):
            if self.left is not None:
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left -= 1
            yield batch


def _fit(config, folder, run, at=None, **options):
    """Train what is in cells, from the start or from where the run was left."""
    images = load_images(config.dataset, folder)
    net = _in_cells(config, config.hardware, images, run, Progress())
    done = fit_in_memory(
        net, Interrupted(images.batches(8, 0), at), images.metric("validation"), images.metric("test"), epochs=3,
        lr=config.lr, momentum=0.9, label_smoothing=0.1, run=run, **options,
    )  # fmt: skip
    return net, done


def test_a_run_interrupted_within_an_epoch_ends_the_same(pictures, tmp_path):
    """Cells, moments of what is digital, loss and accuracy; a warm start moves on as if nothing had happened."""
    hardware = _tiny().hardware.replace(algorithm=Residual(tiles=3, order="paper", warm_start=WarmStart()))
    config = _tiny().replace(hardware=hardware)
    with Run(tmp_path / "a", config, tensorboard=False) as run:
        straight, expected = _fit(config, pictures, run)
    with Run(tmp_path / "b", config, tensorboard=False) as run:
        for at in (2, 4, 3, 1):  # trains 2 batches of 3, passes over 2 and trains 2, over 1 and 2, 1
            with pytest.raises(KeyboardInterrupt):
                _fit(config, pictures, run, at, save_every=0)
        net, done = _fit(config, pictures, run, save_every=0)
    assert all(torch.equal(v, straight.state_dict()[n]) for n, v in net.state_dict().items())
    for ours, theirs in zip(done.history, expected.history, strict=True):
        assert {k: v for k, v in ours.items() if k != "seconds"} == {
            k: v for k, v in theirs.items() if k != "seconds"
        }


def test_checkpoints_within_an_epoch_are_made_at_times(pictures, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Run, "save_progress", lambda self, stage, tensors, details: saved.append(details))
    config = _tiny(algorithm="mp")
    for every, within in ((0, 2), (1e9, 0)):
        saved.clear()
        with Run(tmp_path / str(within), config, tensorboard=False) as run:
            _fit(config, pictures, run, save_every=every)
        marks = [d["current"]["batches"] for d in saved if "current" in d]
        assert marks == [*range(1, within + 1), 0] * 3


def test_what_was_trained_goes_onto_chips_block_by_block(pictures, tmp_path):
    config = _tiny(algorithm="mp").replace(epochs=1)
    run_experiment(config, tmp_path, data=pictures, tensorboard=False)
    results = evaluate_run(tmp_path, onto="pcm", chips=1, times=("1s",), data=pictures)
    assert [r.values.shape for r in results] == [(1, 1), (1, 1)]
    images = load_images(config.dataset, pictures)
    digital = fresh_network(config.network, images, config.seed)
    load_weights(digital, str(tmp_path), "composite")
    assert results[0].reference == images.metric("test")(digital.eval())


# The command line ----------------------------------------------------------------------------------------------------

FLAGS = [
    "--dataset.train_images", "24", "--dataset.validation_images", "4", "--dataset.test_images", "6", "--epochs", "1",
    "--batch_size", "8", "--network.width", "2", "--network.depth", "10",
]  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        ["--blocks", "D", "D", "D", "D", "A", "A", "--epochs", "3"],
        ["--epochs", "3", "--blocks", "D", "D", "D", "D", "A", "A"],
        ["--blocks", "D,D,D,D,A,A", "--epochs", "3"],
        ["--blocks=[D, D, D, D, A, A]", "--epochs=3"],
    ],
)
def test_a_list_on_the_command_line(words):
    plain, flags = cli._split(["resnet18_insitu", *words], [], False, cli._lists(["run", "resnet18_insitu"]))
    config = configured(RECIPE, None, flags)
    assert plain == ["resnet18_insitu"] and config.epochs == 3
    assert config.digital == ("stem", "stages.0", "stages.1", "stages.2")


def test_only_lists_take_several_words(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "resnet18_insitu", "--tiles", "4", "6"]) == 2
    assert "'6'" in capsys.readouterr().err
    assert cli.main(["run", "resnet18_insitu", "--blocks", "D", "D"]) == 2
    assert "'blocks'" in capsys.readouterr().err
    assert cli.main(["run", "resnet18_insitu", "--blocks"]) == 2
    assert "--blocks needs a value" in capsys.readouterr().err
    assert cli.main(["run", "resnet18_insitu", "--help"]) == 0
    assert "--blocks D D D A A A" in capsys.readouterr().out


def test_a_comparison_of_algorithms_on_chosen_blocks(pictures, tmp_path, capsys):
    words = ["compare", "--recipe", "resnet18_insitu_small", "--algorithms", "mp", "ttv2", "--states", "10",
             "--blocks", "D", "D", "D", "D", "D", "A", "--output", str(tmp_path), "--data", str(pictures)]  # fmt: skip
    assert cli.main([*words, *FLAGS]) == 0
    out = capsys.readouterr().out
    assert "digital" in out and "mp" in out and "ttv2" in out
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [
        "digital-seed0", "mp-10states-seed0", "ttv2-10states-seed0",
    ]  # fmt: skip
    made = cases(RECIPE, ["mp"], flags=[("blocks", "A,A,A,A,A,A")])
    assert [case.config.digital for case in made] == [(), ()]


def test_the_schedule_of_transfers_names_every_layer(pictures, capsys):
    words = ["run", "resnet18_insitu", "--algorithm", "ttv1", "--schedule-table", "--data", str(pictures)]
    assert cli.main([*words, *FLAGS]) == 0
    out = capsys.readouterr().out
    names = [f"stages.{s}.0.{m}" for s in (2, 3) for m in ("conv1", "conv2", "shortcut.0")]
    assert all(name in out for name in (*names, "head")) and "stages.1" not in out
