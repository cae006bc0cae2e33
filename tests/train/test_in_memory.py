"""Training in memory: the same to the bit after an interruption, and with any number of threads."""

import warnings

import pytest
import torch
from torch import nn

import aimc
import aimc.random
from aimc.ops.convert_input import cpu as convert_input
from aimc.ops.read_out import cpu as read_out
from aimc.random import Key, _pool, normal, permutation
from aimc.recipes import MLP, RECIPES, in_memory, run_experiment
from aimc.train import Run, Stage, fit_in_memory
from tests.helpers import assert_same_run

X = normal(Key(1), (96, 12))
Y = (X[:, 0] > 0).long() + 2 * (X[:, 1] > 0).long()
METRIC = aimc.Accuracy(X[:40], Y[:40])


class Batches:
    """Three batches of 32; Ctrl-C at a batch, counted over all epochs."""

    def __init__(self, at=None):
        self.left = at

    def __len__(self):
        return 3

    def __call__(self, epoch):
        for rows in permutation(Key(5).fold(epoch), len(X)).split(32):
            if self.left is not None:
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left -= 1
            yield X[rows], Y[rows]


def _fit(run, batches, dropout=0.3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights beyond what cells hold
        net = aimc.convert(net, aimc.presets.reram(states=100), seed=3)
    options = {"epochs": 3, "lr": 0.05, "seed": 7, "run": run, "save_every": 0}
    done = fit_in_memory(net, batches, METRIC, METRIC, **options)
    return [row["loss"] for row in done.history]


def test_dropout_goes_on_where_it_was_after_an_interruption_within_an_epoch(tmp_path):
    with Run(tmp_path / "alone", Stage(), tensorboard=False) as run:
        expected = _fit(run, Batches())
    with Run(tmp_path / "without", Stage(), tensorboard=False) as run:
        assert _fit(run, Batches(), dropout=0.0) != expected  # the masks matter
    with Run(tmp_path / "run", Stage(), tensorboard=False) as run:
        for at in (2, 4, 1):  # trains 2 batches, passes over 2 and trains 2, passes over 1 and trains none
            torch.manual_seed(at)  # what else happened to the generator must not matter
            with pytest.raises(KeyboardInterrupt):
                _fit(run, Batches(at))
        _fit(run, Batches())
    assert_same_run(tmp_path / "run", tmp_path / "alone")


@pytest.mark.parametrize("algorithm", ["sgd", "ttv4", "residual"])
def test_a_whole_training_is_the_same_with_one_thread_and_with_two(tmp_path, monkeypatch, algorithm):
    """Not for mixed precision: it adds gradients by torch's own product, whose last bits follow the threads."""
    divided = []
    for name in ("draw", "draw_accuracy", "draw_telemetry"):
        monkeypatch.setattr(in_memory, name, lambda *args, **options: None)
    monkeypatch.setattr(aimc.random, "_THREAD_CHUNK", 64)  # however small, it is divided
    for body in (convert_input, read_out):
        monkeypatch.setattr(body, "_MINIMUM_CHUNK", 64)
    get_pool = _pool._get_pool
    monkeypatch.setattr(_pool, "_get_pool", lambda count: divided.append(count) or get_pool(count))
    config = RECIPES["demo_insitu"].config(algorithm=algorithm, io="noisy").replace(
        epochs=1, baseline=False, network=MLP(hidden=(64,)),
        **{"dataset.train_images": 60, "dataset.validation_images": 20, "dataset.test_images": 20},
    )  # fmt: skip
    for threads in (1, 2):
        assert not divided
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run_experiment(config.replace(threads=threads), tmp_path / str(threads), tensorboard=False)
    assert set(divided) == {1} and len(divided) > 20  # one thread beside the caller's
    assert_same_run(tmp_path / "2", tmp_path / "1")
