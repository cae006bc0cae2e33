"""Every recipe learns: a few steps of teacher and student lower the loss. Data is made here or embedded."""

import json

import pytest

from aimc.files import read_records
from aimc.recipes import (
    LSTM,
    RECIPES,
    Encoder,
    Evaluation,
    HwaExperiment,
    InSituExperiment,
    ResNet,
    Text,
    evaluate_run,
    run_experiment,
)
from aimc.recipes.hwa import VARIANTS, _analog
from aimc.recipes.parts import fresh_network
from aimc.report import load_run, markdown
from aimc.train import fit
from tests.other_device import DEVICE, OtherDevice
from tests.recipes.tasks import shrunk

HWA = {
    name: config for name, config in ((n, r.config()) for n, r in RECIPES.items()) if isinstance(config, HwaExperiment)
} | {"lstm_wikitext2 tied": RECIPES["lstm_wikitext2"].config(tied=True)}  # fmt: skip


@pytest.mark.parametrize("name", HWA)
def test_a_few_steps_lower_the_loss(name, tmp_path):
    """The student starts from fresh weights and learns from the labels here: from the teacher's weights there is
    little left to learn."""
    config = shrunk(
        HWA[name], tmp_path, images=8 if name == "wideresnet_cifar100" else 16
    )  # a second an image
    few = {"epochs": 4, "batch_size": 4, "distillation": 0.0, "noise_ramp": 0.0, "optimizer.warmup": 0.0}
    if isinstance(
        config.network, (LSTM, Encoder)
    ):  # small networks, and nothing in the encoder is pretrained
        few |= {"epochs": 8, "optimizer.lr": 0.03 if isinstance(config.network, LSTM) else 0.01}
    config = config.replace(teacher=config.teacher.replace(**few), student=config.student.replace(**few))
    loaded = config.dataset.load(tmp_path, config.network)
    teacher = fresh_network(config.network, loaded, seed=0)
    student = _analog(config, fresh_network(config.network, loaded, seed=1), loaded, aware=True)
    for stage, net in ((config.teacher, teacher), (config.student, student)):
        batches = loaded.batches(stage.batch_size, 0)
        done = fit(net, stage, batches, loaded.metric("validation"), objective=loaded.objective())
        assert done.history[-1]["loss"] < 0.9 * done.history[0]["loss"]


IN_MEMORY = [name for name, recipe in RECIPES.items() if isinstance(recipe.config(), InSituExperiment)]


@pytest.mark.parametrize("name", IN_MEMORY)
def test_a_few_steps_in_memory_lower_the_loss(name, tmp_path):
    """In cells and in the baseline. Residual networks have few channels, and images as they are: through AutoAugment
    it takes more than a few steps."""
    config = shrunk(RECIPES[name].config(), tmp_path, images=24)
    if isinstance(config.network, ResNet):
        config = config.replace(**{"network.width": 4})
    few = {"epochs": 5, "batch_size": 8, "label_smoothing": 0.0, "dataset.augment": "none"}
    config = config.replace(**few)
    run_experiment(config, tmp_path / "run", data=tmp_path, tensorboard=False)
    losses = load_run(tmp_path / "run").curves
    for stage in ("digital", "analog"):
        first, *_, last = (row["loss"] for row in losses[stage])
        assert last < 0.9 * first, (stage, first, last)


@pytest.mark.parametrize("name", ["lstm_wikitext2_small", "bert_sst2_small"])
def test_texts_run_are_evaluated_again_and_reported(name, tmp_path):
    config = shrunk(RECIPES[name].config(), tmp_path)
    few = {"epochs": 1, "batch_size": 8}
    config = config.replace(
        teacher=config.teacher.replace(**few), student=config.student.replace(**few),
        evaluation=Evaluation(times=("1s", "1y"), chips=2),
    )  # fmt: skip
    results = run_experiment(config, tmp_path / "run", data=tmp_path, tensorboard=False)
    again = evaluate_run(tmp_path / "run", times=("1h",), chips=1, compensation=None, data=tmp_path)
    text = markdown([load_run(tmp_path / "run")])
    metric = "perplexity" if isinstance(config.dataset, Text) else "accuracy"
    assert [r.metric for r in again] == [metric] * 2
    assert len(results["evaluations"]) == 2 * len(VARIANTS)
    for held in results["evaluations"].values():
        assert held["metric"] == metric and held["reference"] == results["digital"]["digital"]
        assert held["logarithmic"] == (metric == "perplexity") != held["higher_is_better"]
    assert f"test {metric}{'' if metric == 'perplexity' else ', %'}: mean" in text
    assert ("of the cross entropy" in text) == (metric == "perplexity")
    rows = [r for r in read_records(tmp_path / "run") if r["kind"] == "epoch"]
    assert len(rows) == 2 and all(("accuracy" in r) == (metric == "accuracy") for r in rows)
    json.dumps(results, allow_nan=False)


@pytest.mark.parametrize("name", ["lenet_mnist_hwa", "lstm_wikitext2"])
def test_a_hardware_aware_run_keeps_to_its_device(name, tmp_path):
    """The whole of it elsewhere, where mixing devices is an error, with the values of the CPU up to rounding."""
    few = {"epochs": 1, "batch_size": 4, "optimizer.warmup": 0.0, "optimizer.clip_norm": 1.0}
    config = shrunk(RECIPES[name].config(), tmp_path, images=8)
    config = config.replace(
        backend="reference", teacher=config.teacher.replace(**few),
        student=config.student.replace(**few, noise_ramp=0.0),
        evaluation=Evaluation(times=("1d",), chips=1, batch_size=4),
    )  # fmt: skip
    expected = run_experiment(config, tmp_path / "here", data=tmp_path, tensorboard=False)
    with OtherDevice():
        elsewhere = config.replace(torch_device=str(DEVICE))
        found = run_experiment(elsewhere, tmp_path / "there", data=tmp_path, tensorboard=False)
    losses = [
        [r["loss"] for r in read_records(tmp_path / p) if r["kind"] == "epoch"] for p in ("here", "there")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert found["evaluations"].keys() == expected["evaluations"].keys()
