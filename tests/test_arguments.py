"""Whatever a user passes to a public function, it is either done or refused by name."""

import functools
import importlib
import inspect
import itertools
import tempfile
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

import aimc
from aimc.arguments import checked, fits
from aimc.data import TensorData, batches
from aimc.errors import AimcError, warn
from aimc.recipes import MLP, Dataset, InSituExperiment
from aimc.report import Table, load_run
from aimc.train import Batches, Optimizer, Run, Stage
from tests.rubbish import finished_runs

PACKAGES = (
    "aimc", "aimc.cells", "aimc.chip", "aimc.data", "aimc.optim", "aimc.recipes", "aimc.report", "aimc.train",
)  # fmt: skip


def _functions():
    found = {}
    for package in PACKAGES:
        module = importlib.import_module(package)
        own = [n for n, v in vars(module).items() if getattr(v, "__module__", None) == package]
        for name in getattr(module, "__all__", [n for n in own if not n.startswith("_")]):
            if inspect.isfunction(getattr(module, name)):
                found[name] = getattr(module, name)
    return found


def _inference():
    return aimc.convert(nn.Linear(4, 2), aimc.presets.pcm().replace(**{"input_range.value": 1.0})).eval()


def _in_memory():
    return aimc.convert(nn.Linear(4, 2), aimc.presets.reram(), seed=0)


def _accuracy():
    return aimc.Accuracy(torch.eye(4), torch.tensor([0, 1, 0, 1]))


def _data():
    return TensorData(torch.eye(4), torch.tensor([0, 1, 0, 1]), ("even", "odd"), "eye", "train", "")


class _Batches:
    def __len__(self):
        return 1

    def __call__(self, epoch):
        return batches(_data(), 4)


_COUNT = itertools.count()


@functools.cache
def _run():
    with tempfile.TemporaryDirectory() as folder:
        return load_run(finished_runs(Path(folder))[0])


def _schedule():
    return {
        "net": _in_memory(), "digital": nn.Linear(4, 2), "inputs": torch.eye(4), "updates_per_epoch": 10, "lr": 0.1,
    }  # fmt: skip


GOOD = {
    "Accuracy": lambda t: {"inputs": torch.eye(4), "targets": torch.tensor([0, 1, 0, 1])},
    "Perplexity": lambda t: {"tokens": torch.arange(9)},
    "analog_layers": lambda t: {"net": _inference()},
    "pulsed_layers": lambda t: {"net": _inference()},
    "calibrate": lambda t: {"net": _inference(), "batches": [torch.eye(4)]},
    "convert": lambda t: {"net": nn.Linear(4, 2), "hardware": aimc.presets.pcm()},
    "coverage": lambda t: {"net": _inference()},
    "summary": lambda t: {"net": _inference()},
    "evaluate_over_time": lambda t: {"net": _inference(), "metric": _accuracy(), "times": ("1s",), "chips": 1},
    "program": lambda t: {"net": _inference()},
    "remap": lambda t: {"net": _inference()},
    "register": lambda t: {},
    "register_products": lambda t: {"weights": ["nothing.like.it"]},
    "set_backend": lambda t: {"net": _inference(), "backend": "auto"},
    "set_check_finite": lambda t: {"net": _inference(), "check": True},
    "set_hardware": lambda t: {"net": _inference(), "hardware": aimc.presets.pcm()},
    "set_noise_strength": lambda t: {"net": _inference(), "strength": 0.5},
    "to_digital": lambda t: {"net": _inference()},
    "fit_cell": lambda t: {
        "values": np.linspace(0, 1, 20).tolist() + np.linspace(1, 0, 20).tolist()[1:],
        "directions": [1] * 19 + [-1] * 19, "kind": "linear_step",
    },
    "reram": lambda t: {},
    "soft_bounds_pmax": lambda t: {},
    "auto_augment": lambda t: {"images": torch.rand(2, 3, 32, 32), "words": torch.zeros(2, 16, dtype=torch.int64)},
    "crop_flip": lambda t: {"images": torch.rand(2, 3, 32, 32), "words": torch.zeros(2, 16, dtype=torch.int64)},
    "batches": lambda t: {"data": _data(), "batch_size": 2},
    "load": lambda t: {"name": "embedded", "split": "test"},
    "load_sentences": lambda t: {"name": "sst2", "split": "test", "tokenizer": str.split, "root": t},
    "load_tokens": lambda t: {"name": "wikitext2", "split": "test", "root": t},
    "observe": lambda t: {"net": _in_memory(), "loss": 1.0},
    "wrap": lambda t: (lambda net: {"optimizer": torch.optim.SGD(net.parameters(), lr=0.1), "net": net})(_in_memory()),
    "evaluate_run": lambda t: {"path": t / "nothing"},
    "reproduce_run": lambda t: {"path": t / "nothing"},
    "run_experiment": lambda t: {
        "config": InSituExperiment(
            dataset=Dataset(name="mnist_small", train_images=20, validation_images=4, test_images=4),
            network=MLP(), hardware=None, epochs=1,
        ),
        "output": t / "experiment",
    },
    "command_of": lambda t: {"run": _run()},
    "comparison_table": lambda t: {"entries": []},
    "draw": lambda t: {"runs": [], "path": t / "a.png"},
    "draw_accuracy": lambda t: {"runs": [], "path": t / "a.png"},
    "compared_sha256": lambda t: {"entries": []},
    "draw_comparison": lambda t: {"entries": [], "path": t / "a.png"},
    "draw_telemetry": lambda t: {"run": _run(), "path": t / "a.png"},
    "drawn_sha256": lambda t: {"runs": [_run()]},
    "load_comparison": lambda t: {"folder": t},
    "load_run": lambda t: {"path": t},
    "markdown": lambda t: {"runs": []},
    "markdown_table": lambda t: {"table": None},
    "provenance": lambda t: {"entries": []},
    "show": lambda t: {"runs": []},
    "show_evaluations": lambda t: {"run": _run(), "results": []},
    "show_table": lambda t: {"table": Table("a", ("b",), (("c",),))},
    "summary_table": lambda t: {"runs": []},
    "transfer_table": lambda t: {"lines": []},
    "tables": lambda t: {"run": _run()},
    "build_optimizer": lambda t: {"net": nn.Linear(2, 2), "config": Optimizer()},
    "choose_progress": lambda t: {},
    "environment": lambda t: {},
    "fit": lambda t: {"net": nn.Linear(4, 2), "stage": Stage(epochs=1), "batches": _Batches(), "validate": _accuracy()},
    "fit_in_memory": lambda t: {
        "net": _in_memory(), "batches": _Batches(), "validate": _accuracy(), "test": _accuracy(), "epochs": 1,
        "lr": 0.1, "run": Run(t / str(next(_COUNT)), Stage()),
    },
    "schedule_table": lambda t: {**_schedule()},
    "schedule_warnings": lambda t: {**_schedule()},
    "load_checkpoint": lambda t: {"path": t / "x"},
    "load_weights": lambda t: {"net": nn.Linear(2, 2), "run": str(t), "name": "x"},
    "noisy": lambda t: {"metric": _accuracy()},
    "save_checkpoint": lambda t: {"path": t / "x", "tensors": {"a": torch.ones(2)}, "details": {}},
}  # fmt: skip

WRONG = (
    None, 3, -1, 2.5, float("nan"), float("inf"), 10**30, True, "nonsense", b"x", object(), [], {}, [None], (1, 2),
    np.int64(-3), torch.tensor(1.0), torch.tensor(float("nan")), torch.empty(0), nn.ReLU(), nn.Linear, len,
)  # fmt: skip


def test_every_public_function_has_an_example_here():
    assert set(_functions()) | {"Accuracy", "Perplexity"} == set(GOOD)


@pytest.mark.parametrize("name", GOOD)
def test_a_wrong_argument_is_refused_by_name_or_taken(name, tmp_path, monkeypatch):
    monkeypatch.setenv("AIMC_DATA", str(tmp_path))  # nothing is fetched
    monkeypatch.chdir(tmp_path)  # and nothing left here
    function = _functions().get(name) or getattr(aimc, name)
    asked = inspect.unwrap(function if inspect.isfunction(function) else function.__init__)
    hints, refused = typing.get_type_hints(asked), 0
    for argument, parameter in inspect.signature(asked).parameters.items():
        if argument == "self" or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        for wrong in WRONG:
            if callable(wrong) and "Callable" in str(hints[argument]):
                continue  # what a function of the user's raises is the user's
            if name.startswith("schedule_") and argument == "inputs" and isinstance(wrong, torch.Tensor):
                continue  # it is given to a digital network of the user's first
            given = {**GOOD[name](tmp_path), argument: wrong}
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    function(**given)
                except AimcError as error:
                    refused += 1
                    assert error.message and (error.field or error.layer), f"{argument}={wrong!r}: {error}"
                except Exception as error:  # whatever else it is, it is not ours
                    raise AssertionError(f"{name}({argument}={wrong!r}): {error!r}") from error
    assert refused or not inspect.signature(asked).parameters


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(4, 2), nn.Conv1d(2, 2, 1), nn.ConvTranspose2d(2, 2, 1), nn.LSTM(4, 2), nn.GRUCell(4, 2),
        nn.MultiheadAttention(4, 2),
    ],
    ids=lambda layer: type(layer).__name__,
)  # fmt: skip
@pytest.mark.parametrize("half", ["pcm", "reram"])
@pytest.mark.parametrize(
    "wrong", [None, 3, [1.0], np.ones((2, 4), dtype=np.float32)], ids=lambda w: type(w).__name__
)
def test_what_is_no_tensor_is_no_input(layer, half, wrong):
    net = aimc.convert(nn.Sequential(layer), getattr(aimc.presets, half)())[0]
    with pytest.raises(AimcError, match="expects a tensor, got"):
        net(wrong, wrong, wrong) if isinstance(layer, nn.MultiheadAttention) else net(wrong)


@pytest.mark.parametrize(
    ("value", "hint", "fit"),
    [
        (1, float, True), (True, float, False), (True, int, False), (np.float32(1), float, True), (1.0, int, False),
        (np.int64(2), int, True), (None, int | None, True), ("a", Sequence[str], False), (["a"], Sequence[str], True),
        (["a", 1], Sequence[str], False), (("a", 1), tuple[str, int], True), (("a",), tuple[str, int], False),
        ({"a": 1}, Mapping[str, int], True), ({"a": "b"}, Mapping[str, int], False), ("b", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False), (len, Callable[[Any], int], True), (3, Callable[[Any], int], False),
        (nn.Linear, type[nn.Module], True), (int, type[nn.Module], False), (object(), Any, True),
        (iter([1]), Iterable[str], True), (torch.tensor(1.0), Iterable[Any], False), (_Batches(), Batches, True),
        (nn.ReLU(), Batches, False),
    ],
)  # fmt: skip
def test_what_fits(value, hint, fit):
    assert fits(value, hint) is fit


def test_python_speaks_for_itself_about_arguments_that_lack_or_have_no_name():
    @checked
    def double(number: float) -> float:
        return 2 * number

    assert double(2) == 4
    for given in ({}, {"numbr": 1}):
        with pytest.raises(TypeError, match="double"):
            double(**given)


def test_a_warning_points_at_the_line_that_a_user_wrote():
    hardware, layer = aimc.presets.reram().replace(**{"mapping.scale": 0.01}), nn.Linear(4, 2)
    nn.init.ones_(layer.weight)
    with pytest.warns(UserWarning) as direct:
        warn("here")
    with pytest.warns(UserWarning, match="beyond what their devices hold") as converted:
        net = aimc.convert(layer, hardware, seed=0)
    with pytest.warns(UserWarning, match="beyond what their devices hold") as loaded:
        net.load_state_dict(layer.state_dict())
    assert {w.filename for w in (*direct, *loaded, *converted)} == {__file__}
