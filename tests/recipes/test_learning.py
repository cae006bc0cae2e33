"""Every recipe learns: a few steps of teacher and student lower the loss. Data is made here or embedded."""

import copy
import json
import math

import pytest
import torch

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
from aimc.train import fit, load_checkpoint
from tests.helpers import assert_close
from tests.other_device import DEVICE, OtherDevice
from tests.recipes.tasks import shrunk

HWA = {
    name: config for name, config in ((n, r.config()) for n, r in RECIPES.items()) if isinstance(config, HwaExperiment)
} | {
    "lstm_wikitext2 tied": RECIPES["lstm_wikitext2"].config(tied=True),
    "wideresnet_cifar100_small by fan-in": RECIPES["wideresnet_cifar100_small"].config(scale="fan_in", remap_every=0),
}  # fmt: skip


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
    epochs = 5
    if isinstance(config.network, ResNet):
        # and a rate for so few steps, at which momentum does not throw the loss up again
        epochs, config = 10, config.replace(**{"network.width": 4, "baseline_lr": 0.03})
    few = {"epochs": epochs, "batch_size": 8, "label_smoothing": 0.0, "dataset.augment": "none"}
    config = config.replace(**few)
    run_experiment(config, tmp_path / "run", data=tmp_path, tensorboard=False)
    losses = load_run(tmp_path / "run").curves
    for stage in ("digital", "analog"):
        first, *_, last = (row["loss"] for row in losses[stage])
        assert last < 0.9 * first, (stage, first, last)


@pytest.mark.parametrize(
    "arguments",
    [
        {"io": "noisy"}, {"algorithm": "ttv1", "io": "noisy"}, {"algorithm": "ttv3"}, {"algorithm": "ttv4"},
        {"tiles": 8},
    ],
)  # fmt: skip
def test_a_residual_network_takes_steps_in_every_setting(arguments, tmp_path):
    config = shrunk(RECIPES["resnet18_insitu"].config(**arguments), tmp_path, images=24)
    config = config.replace(
        epochs=1, batch_size=8, baseline=False, **{"network.width": 2, "network.depth": 10}
    )
    assert (config.hardware.forward is None) == (arguments.get("io") != "noisy")
    assert config.hardware.algorithm.tile_count == arguments.get(
        "tiles", config.hardware.algorithm.tile_count
    )
    run_experiment(config, tmp_path / "run", data=tmp_path, tensorboard=False)
    (row,) = load_run(tmp_path / "run").curves["analog"]
    held = load_checkpoint(tmp_path / "run" / "checkpoints" / "analog.safetensors")[0]
    counts = {name: int(value.sum()) for name, value in held.items() if name.endswith("cells.counts")}
    assert math.isfinite(row["loss"]) and len(counts) == 7 and all(counts.values())


def test_a_student_learns_what_its_teacher_says(tmp_path):
    """With the temperature and the weight of the published recipe, and noise that rises. It starts from other weights,
    and the teacher has learned nothing, so that the labels do not bring the student nearer to it."""
    config = shrunk(RECIPES["wideresnet_cifar100_small"].config(), tmp_path, images=16)
    stage = config.student.replace(epochs=6, batch_size=4, noise_ramp=2, **{"optimizer.lr": 0.05})
    assert (stage.temperature, stage.distillation) == (4.0, 0.9)
    loaded = config.dataset.load(tmp_path, config.network)
    teacher = fresh_network(config.network, loaded, seed=0).eval()
    *_, last = teacher.modules()
    last.weight.data *= 20  # it is sure of itself
    student = _analog(config, fresh_network(config.network, loaded, seed=1), loaded, aware=True)
    (images,) = loaded.calibration(16)

    @torch.no_grad()
    def distance():
        ours, theirs = (net(images).log_softmax(1) for net in (student.train(), teacher))
        return float(torch.nn.functional.kl_div(ours, theirs, log_target=True, reduction="batchmean"))

    before = distance()
    batches = loaded.batches(stage.batch_size, 0)
    done = fit(
        student, stage, batches, loaded.metric("validation"), objective=loaded.objective(), teacher=teacher
    )
    losses = [row["loss"] for row in done.history]
    assert losses[-1] < 0.7 * losses[0] and distance() < 0.5 * before


def test_a_language_model_650_wide_takes_a_step(tmp_path):
    """The width of the published one; the vocabulary is small here."""
    config = RECIPES["lstm_wikitext2"].config(width=650)
    assert config.network.width == 650
    config = shrunk(config, tmp_path).replace(**{"network.width": 650, "dataset.train_tokens": 31})
    loaded = config.dataset.load(tmp_path, config.network)
    student = _analog(config, fresh_network(config.network, loaded, seed=0), loaded, aware=True)
    assert {m.hidden_size for m in student.modules() if hasattr(m, "hidden_size")} == {650}
    before = {name: p.detach().clone() for name, p in student.named_parameters()}
    one = {"epochs": 1, "distillation": 0.0, "noise_ramp": 0.0, "optimizer.warmup": 0.0}
    batches = loaded.batches(3, 0)
    assert len(batches) == 1
    done = fit(
        student, config.student.replace(**one), batches, loaded.metric("validation"),
        objective=loaded.objective(),
    )  # fmt: skip
    assert math.isfinite(done.history[0]["loss"])
    moved = {name for name, p in student.named_parameters() if not torch.equal(p, before[name])}
    assert {name for name in before if name.endswith(("weight_ih", "weight_hh"))} <= moved


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


def _here_and_elsewhere(config, folder):
    """What a run returned on the CPU and elsewhere, where mixing devices is an error; their losses are compared."""
    expected = run_experiment(config, folder / "here", data=folder, tensorboard=False)
    with OtherDevice():
        elsewhere = config.replace(torch_device=str(DEVICE))
        found = run_experiment(elsewhere, folder / "there", data=folder, tensorboard=False)
    losses = [
        [r["loss"] for r in read_records(folder / p) if r["kind"] == "epoch"] for p in ("here", "there")
    ]
    assert losses[0] and losses[0] == pytest.approx(losses[1], rel=1e-3)  # up to rounding
    return expected, found


@pytest.mark.parametrize(
    "name",
    [
        "lenet_mnist_hwa",
        "lstm_wikitext2",
        "wideresnet_cifar100_small",
        "resnet32_cifar10_small",
        "bert_sst2_small",
    ],
)
def test_a_hardware_aware_run_keeps_to_its_device(name, tmp_path, monkeypatch):
    few = {"epochs": 1, "batch_size": 4, "optimizer.warmup": 0.0, "optimizer.clip_norm": 1.0}
    config = shrunk(RECIPES[name].config(), tmp_path, images=8 if name == "lenet_mnist_hwa" else 4)
    if isinstance(config.network, Encoder):
        # What transformers does to load it is not looked at.
        config = config.replace(**{"dataset.train_sentences": 8, "dataset.test_sentences": 4})
        net, tokenizer = config.network.build((), 2), config.network.tokenizer(32)
        monkeypatch.setattr(Encoder, "build", lambda *given: copy.deepcopy(net))
        monkeypatch.setattr(Encoder, "tokenizer", lambda *given: tokenizer)
    config = config.replace(
        backend="reference", teacher=config.teacher.replace(**few),
        student=config.student.replace(**few, noise_ramp=0.0),
        evaluation=Evaluation(times=("1d",), chips=1, batch_size=4),
    )  # fmt: skip
    expected, found = _here_and_elsewhere(config, tmp_path)
    assert found["evaluations"].keys() == expected["evaluations"].keys()


@pytest.mark.filterwarnings("ignore:cells on 'meta'")  # that pulses are slow off the CPU
def test_a_run_in_memory_keeps_to_its_device(tmp_path):
    """With AutoAugment, momentum beside the cells, a stage of convolutions in cells, and a second step after pulses."""
    config = RECIPES["resnet18_insitu"].config(blocks=("D", "D", "D", "D", "A", "A"), tiles=2)
    small = {"network.width": 2, "network.depth": 10}
    config = shrunk(config, tmp_path, images=4).replace(epochs=1, batch_size=2, backend="reference", **small)
    expected, found = _here_and_elsewhere(config, tmp_path)
    assert found["last_epoch"] == expected["last_epoch"]
    ours, theirs = (
        load_checkpoint(tmp_path / place / "checkpoints" / "analog.safetensors")[0]
        for place in ("there", "here")
    )
    for name, value in theirs.items():  # the CPU's compiled random numbers round in another way
        assert_close(name, ours[name].double(), value.double(), atol=1e-3, rtol=1e-3)
