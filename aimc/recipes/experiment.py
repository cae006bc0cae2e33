"""Hardware-aware training from the digital teacher to a year on the chip, as one configuration and one function."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from aimc import data as datasets
from aimc.chip import Accuracy, Compensation, DriftResult, LeastSquares, calibrate, evaluate_over_time
from aimc.config import Config
from aimc.convert import convert, to_digital
from aimc.errors import AimcError
from aimc.files import read_config, write_atomic
from aimc.hardware import Hardware
from aimc.ops import check_backend
from aimc.random import Key
from aimc.recipes.networks import Network
from aimc.report import draw, load_run
from aimc.train import Progress, Run, Stage, fit, load_weights, noisy
from aimc.units import seconds


class Dataset(Config):
    """Which images, and how many of them.

    Fields:
        name: as :func:`aimc.data.load` knows it.
        train_images, validation_images, test_images: at most so many, or null for all.
    """

    name: str = "mnist"
    train_images: int | None = None
    validation_images: int | None = None
    test_images: int | None = None

    def validate(self):
        for name in ("train_images", "validation_images", "test_images"):
            value = getattr(self, name)
            self.require(value is None or value >= 1, name, f"must be at least 1, got {value}")


class Calibration(Config):
    """How input ranges are measured before the mapped teacher is evaluated, and before the student starts.

    Fields:
        images: training images used.
        method: ``quantile``, ``max`` or ``std``.
        quantile: of the magnitudes, for ``quantile``.
        stds: standard deviations, for ``std``.
    """

    images: int = 1000
    method: Literal["quantile", "max", "std"] = "quantile"
    quantile: float = 0.99995
    stds: float = 3.0

    def validate(self):
        self.require(self.images >= 1, "images", f"must be at least 1, got {self.images}")
        self.require(0 < self.quantile <= 1, "quantile", f"is a share between 0 and 1, got {self.quantile}")
        self.require(self.stds > 0, "stds", f"must be positive, got {self.stds}")


class Evaluation(Config):
    """Chips and times of the evaluation on the test set.

    Fields:
        times: after programming, such as ``1s``, ``1h``, ``1d``, ``1y``.
        chips: number of simulated chips.
        seed: of the set of chips; every variant is programmed onto the same ones.
        compensation: drift compensation of the compensated variants.
        batch_size: changes memory and time only.
    """

    times: tuple[str | float, ...] = ("1s", "1h", "1d", "1y")
    chips: int = 25
    seed: int = 0
    compensation: Compensation = LeastSquares()
    batch_size: int = 1000

    def validate(self):
        self.require(len(self.times) > 0, "times", "needs at least one time")
        for time_ in self.times:
            seconds(time_)
        self.require(self.chips >= 1, "chips", f"must be at least 1, got {self.chips}")
        self.require(self.batch_size >= 1, "batch_size", f"must be at least 1, got {self.batch_size}")


class HwaExperiment(Config):
    """A digital teacher, the teacher mapped onto chips as it is, and a hardware-aware student; all aged alike.

    Fields:
        dataset: images.
        network: architecture.
        teacher: training of the digital network.
        student: hardware-aware training that starts from the teacher.
        hardware: cells, converters, tiles, and the noise of the training.
        digital: name patterns of layers that stay digital.
        calibration: of the input ranges.
        evaluation: chips and times.
        seed: of initial weights, data order, training noise.
        threads: of torch, or null for torch's choice.
        backend: body of the operations.

    Example:
        >>> from aimc.recipes import MLP
        >>> HwaExperiment(network=MLP()).replace(**{"student.epochs": 5}).student.epochs
        5
    """

    dataset: Dataset = Dataset()
    network: Network
    teacher: Stage = Stage()
    student: Stage = Stage()
    hardware: Hardware = Hardware()
    digital: tuple[str, ...] = ()
    calibration: Calibration = Calibration()
    evaluation: Evaluation = Evaluation()
    seed: int = 0
    threads: int | None = None
    backend: str = "auto"

    def validate(self):
        self.require(0 <= self.seed < 2**63, "seed", f"is from 0 to 2^63 - 1, got {self.seed}")
        self.require(self.threads is None or self.threads >= 1, "threads", "must be at least 1")
        check_backend(self.backend)
        training = self.hardware.training
        self.require(
            training is not None, "hardware.training", "is null, so there is nothing to train a student with"
        )
        self.require(
            training is None or training.ramp_steps == 0 or self.student.noise_ramp == 0,
            "student.noise_ramp",
            "excludes hardware.training.ramp_steps; set one of them to 0",
        )


@dataclasses.dataclass
class _Data:
    train: datasets.TensorData
    validation: datasets.TensorData
    test: datasets.TensorData

    @property
    def hashes(self) -> dict[str, str]:
        return {n: getattr(self, n).sha256 for n in ("train", "validation", "test")}

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.train.inputs.shape[1:])

    def metric(self, split: str, batch_size: int = 1000) -> Accuracy:
        part = getattr(self, split)
        return Accuracy(part.inputs, part.targets, batch_size, classes=len(part.classes))


def _load(config: Dataset, root: str | os.PathLike[str] | None) -> _Data:
    return _Data(
        **{
            split: datasets.load(config.name, split, root=root, limit=getattr(config, f"{split}_images"))
            for split in ("train", "validation", "test")
        }
    )


class _Shuffled:
    """Training batches in an order given by (seed, epoch)."""

    def __init__(self, data: datasets.TensorData, batch_size: int, seed: int):
        self._data, self._batch_size, self._seed = data, batch_size, seed

    def __len__(self) -> int:
        return -(-len(self._data) // self._batch_size)

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return datasets.batches(self._data, self._batch_size, shuffle_seed=self._seed, epoch=epoch)


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _network(config: HwaExperiment, data: _Data) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Key(config.seed).fold("initial weights").seed)
        return config.network.build(data.shape, len(data.train.classes))


def _analog(config: HwaExperiment, net: nn.Module, data: _Data, aware: bool) -> nn.Module:
    """The network on analog layers with measured input ranges.

    Clipping is part of hardware-aware training and would change the weights right here, so the mapped baseline goes
    without.
    """
    hardware = config.hardware if aware else config.hardware.replace(training=None)
    net = convert(net, hardware, digital=config.digital, seed=config.seed, backend=config.backend)
    setting = config.calibration
    if config.hardware.dac is not None and config.hardware.input_range.mode != "dynamic":
        inputs = data.train.inputs[: setting.images].split(500)
        calibrate(net, inputs, setting.method, quantile=setting.quantile, stds=setting.stds)
    return net


VARIANTS = ("mapped", "hardware-aware")
"""The teacher on chips without hardware-aware training, and the student."""


def run_experiment(
    config: HwaExperiment,
    output: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    tensorboard: bool = True,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run an experiment, or what is left of it, and write everything it found into its directory.

    Finished parts are taken from the directory; an interrupted training goes on after its last epoch.

    Args:
        config: what to run.
        output: run directory.
        data: folder of the data sets.
        tensorboard: write scalars for TensorBoard.
        progress: where lines and bars go.

    Returns:
        The content of ``results.json``.

    Raises:
        AimcError: the directory holds another run, the data is missing, or anything the parts raise.

    Example:
        >>> from aimc.recipes import RECIPES
        >>> config = RECIPES["demo"].config()
        >>> results = run_experiment(config, "runs/demo")                      # doctest: +SKIP
        >>> results["evaluations"]["hardware-aware, compensated"]["statistics"]["mean"]   # doctest: +SKIP
    """
    progress = progress or Progress()
    with _threads(config.threads):
        loaded = _load(config.dataset, data)
        with Run(output, config, data=loaded.hashes, backend=config.backend, tensorboard=tensorboard) as run:
            _Experiment(config, loaded, run, progress).all()
            return finish(run.path, progress)


class _Experiment:
    """The parts of a run in order; each looks up first whether it has been done."""

    def __init__(self, config: HwaExperiment, data: _Data, run: Run, progress: Progress):
        self.config, self.data, self.run, self.progress = config, data, run, progress
        self.test = data.metric("test", config.evaluation.batch_size)

    def all(self) -> None:
        config, data = self.config, self.data
        teacher = _network(config, data)
        self.fit("teacher", teacher, config.teacher, data.metric("validation"), None)
        student = _analog(config, teacher, data, aware=True)
        mapped = _analog(config, teacher, data, aware=False)
        metric = noisy(data.metric("validation"), config.student.validation_repeats)
        self.fit("student", student, config.student, metric, teacher)
        reference = self.digital("digital", teacher)
        self.digital("student, digital", to_digital(student))
        for variant, net in zip(VARIANTS, (mapped, student)):
            for compensation in (config.evaluation.compensation, None):
                self.evaluate(variant, net, compensation, reference)

    def fit(self, name: str, net: nn.Module, stage: Stage, metric, teacher: nn.Module | None) -> None:
        batches = _Shuffled(self.data.train, stage.batch_size, Key(self.config.seed).fold("order", name).seed)
        fit(
            net, stage, batches, metric, teacher=teacher, seed=self.config.seed, run=self.run, name=name,
            progress=self.progress,
        )  # fmt: skip

    def digital(self, name: str, net: nn.Module) -> float:
        """Test accuracy without hardware."""
        done = self.run.find("digital", name=name)
        if done is None:
            started = time.perf_counter()
            net.eval()
            value = self.test(net)
            self.run.record("digital", name=name, value=value, seconds=time.perf_counter() - started)
        else:
            value = done["value"]
        self.progress.line(f"{name}: test accuracy {value:.4f}")
        return value

    def evaluate(
        self, variant: str, net: nn.Module, compensation: Compensation | None, reference: float
    ) -> None:
        """One line of the result: a variant with or without drift compensation."""
        evaluate_variant(
            self.run, variant, net, self.test, self.config.evaluation, compensation, reference, self.progress
        )


def evaluate_variant(
    run: Run,
    variant: str,
    net: nn.Module,
    metric: Accuracy,
    setting: Evaluation,
    compensation: Compensation | None,
    reference: float,
    progress: Progress,
) -> DriftResult:
    """Evaluate a network over time and record it, unless the run holds the same evaluation."""
    label = f"{variant}, {'compensated' if compensation is not None else 'not compensated'}"
    key = {
        "name": label,
        "times": [seconds(t) for t in setting.times],
        "chips": setting.chips,
        "seed": setting.seed,
        "compensation": compensation.to_dict() if compensation is not None else None,
    }
    done = run.find("evaluation", **key)
    if done is not None:
        progress.line(f"{label}: evaluated earlier")
        return DriftResult.from_dict(done["result"])
    started = time.perf_counter()
    with progress.bar(label) as advance:
        result = evaluate_over_time(
            net, metric, times=setting.times, chips=setting.chips, seed=setting.seed, compensation=compensation,
            reference=reference, progress=advance,
            workers=available_cores(),
        )  # fmt: skip
    spent = time.perf_counter() - started
    run.record("evaluation", **key, result=result.to_dict(), seconds=spent)
    for moment, mean in zip(result.times, result.mean):
        run.scalar(f"test accuracy over time/{label}", float(mean), max(1, round(moment)))
    progress.line(f"{label}: {' '.join(f'{v:.4f}' for v in result.mean)}, {spent:.1f} s")
    return result


def finish(path: os.PathLike[str], progress: Progress) -> dict[str, Any]:
    """Write ``results.json`` and ``drift.png`` from the records, and return the former's content."""
    found = load_run(path)
    results = found.results()
    write_atomic(f"{os.fspath(path)}/results.json", json.dumps(results, indent=1) + "\n")
    draw([found], f"{os.fspath(path)}/drift.png")
    return results


def evaluate_run(
    path: str | os.PathLike[str],
    *,
    times: tuple[str | float, ...] | None = None,
    chips: int | None = None,
    seed: int | None = None,
    compensation: Compensation | None | Literal["configured"] = "configured",
    data: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[DriftResult]:
    """Evaluate the networks of a finished run again, at other times or on other chips, and add it to its records.

    Args:
        path: run directory.
        times, chips, seed: None takes what the run's configuration says.
        compensation: an estimator; None for no compensation only; by default the configured one and none.
        data: folder of the data sets.
        progress: where lines and bars go.

    Raises:
        AimcError: no run, a run of another kind, or one that has not finished its training.
    """
    progress = progress or Progress()
    config = read_config(path)
    if not isinstance(config, HwaExperiment):
        raise AimcError(
            f"{path} holds a {type(config).__name__}, which has no chips to evaluate", field="run"
        )
    changes = {"times": times, "chips": chips, "seed": seed}
    setting = config.evaluation.replace(**{k: v for k, v in changes.items() if v is not None})
    wanted = (setting.compensation, None) if compensation == "configured" else (compensation,)
    with _threads(config.threads):
        loaded = _load(config.dataset, data)
        with Run(path, config, data=loaded.hashes, backend=config.backend, tensorboard=False) as run:
            teacher = _network(config, loaded)
            load_weights(teacher, run, "teacher")
            student = _analog(config, teacher, loaded, aware=True)
            mapped = _analog(config, teacher, loaded, aware=False)
            load_weights(student, run, "student")
            metric = loaded.metric("test", setting.batch_size)
            teacher.eval()
            reference = metric(teacher)
            return [
                evaluate_variant(run, variant, net, metric, setting, choice, reference, progress)
                for variant, net in zip(VARIANTS, (mapped, student))
                for choice in wanted
            ]
