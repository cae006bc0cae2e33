"""Every recipe learns: a few steps of teacher and student lower the loss. Data is made here or embedded."""

import numpy as np
import pytest

from aimc.data import DATASETS
from aimc.recipes import RECIPES, HwaExperiment, InSituExperiment, ResNet, run_experiment
from aimc.recipes.hwa import _analog
from aimc.recipes.parts import fresh_network
from aimc.report import load_run
from aimc.train import fit


def _patterns(folder, name):
    """A data set of that name with one noisy pattern per class, as npz files."""
    about = DATASETS[name]
    generator = np.random.default_rng(0)
    kinds = generator.integers(0, 256, (4, *about.shape))
    for part in ("train", "test"):
        labels = np.arange(40) % 4
        pixels = np.clip(kinds[labels] + generator.normal(0, 20, (40, *about.shape)), 0, 255)
        (folder / name).mkdir(parents=True, exist_ok=True)
        np.savez(folder / name / f"{part}.npz", x=pixels.astype(np.uint8), y=labels)


HWA = [name for name, recipe in RECIPES.items() if isinstance(recipe.config(), HwaExperiment)]


@pytest.mark.parametrize("name", HWA)
def test_a_few_steps_lower_the_loss(name, tmp_path):
    """The student starts from fresh weights and learns from the labels here: from the teacher's weights there is
    little left to learn."""
    config = RECIPES[name].config()
    if config.dataset.name != "mnist_small":
        _patterns(tmp_path, config.dataset.name)
    few = {"epochs": 4, "batch_size": 4, "distillation": 0.0, "noise_ramp": 0.0, "optimizer.warmup": 0.0}
    config = config.replace(
        dataset=config.dataset.replace(train_images=16, validation_images=4, test_images=4),
        teacher=config.teacher.replace(**few),
        student=config.student.replace(**few),
    )
    loaded = config.dataset.load(tmp_path)
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
    config = RECIPES[name].config()
    if config.dataset.name != "mnist_small":
        _patterns(tmp_path, config.dataset.name)
    if isinstance(config.network, ResNet):
        config = config.replace(**{"network.width": 4})
    config = config.replace(
        dataset=config.dataset.replace(train_images=24, validation_images=4, test_images=4, augment="none"),
        epochs=5,
        batch_size=8,
        label_smoothing=0.0,
    )
    run_experiment(config, tmp_path / "run", data=tmp_path, tensorboard=False)
    losses = load_run(tmp_path / "run").curves
    for stage in ("digital", "analog"):
        first, *_, last = (row["loss"] for row in losses[stage])
        assert last < 0.9 * first, (stage, first, last)
