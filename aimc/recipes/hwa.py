"""Hardware-aware training from the digital teacher to a year on the chip, as one configuration and one function."""

from __future__ import annotations

import json
import os
import time
from typing import Any, ClassVar, Literal

from torch import nn

from aimc.chip import Compensation, DriftResult
from aimc.config import Config
from aimc.convert import convert, to_digital
from aimc.errors import AimcError
from aimc.files import read_config, write_atomic
from aimc.hardware import Hardware
from aimc.ops import check_backend
from aimc.random import Key
from aimc.recipes.chips import (
    Calibration,
    Evaluation,
    check_times,
    evaluate_variant,
    measure_ranges,
)
from aimc.recipes.networks import Network
from aimc.recipes.parts import Data, Dataset, Task, find_device, fresh_network, limited_threads
from aimc.report import draw, load_run
from aimc.train import Progress, Run, Stage, fit, load_weights, noisy


class HwaExperiment(Config):
    """A digital teacher, the teacher mapped onto chips as it is, and a hardware-aware student; all aged alike.

    Fields:
        dataset: images, a running text or sentences; it decides about loss and metric.
        network: architecture.
        teacher: training of the digital network.
        student: hardware-aware training that starts from the teacher.
        hardware: cells, converters, tiles, and the noise of the training.
        digital: name patterns of layers that stay digital.
        calibration: of the input ranges.
        evaluation: chips and times.
        seed: of initial weights, data order, training noise.
        threads: of torch, or null for torch's choice; chips are evaluated side by side, one a core that is available.
        torch_device: where torch computes, such as ``cpu`` or ``cuda``.
        backend: body of the operations.

    Example:
        >>> from aimc.recipes import MLP
        >>> HwaExperiment(network=MLP()).replace(**{"student.epochs": 5}).student.epochs
        5
    """

    dataset: Data = Dataset()
    network: Network
    teacher: Stage = Stage()
    student: Stage = Stage()
    hardware: Hardware = Hardware()
    digital: tuple[str, ...] = ()
    calibration: Calibration = Calibration()
    evaluation: Evaluation = Evaluation()
    seed: int = 0
    threads: int | None = None
    torch_device: str = "cpu"
    backend: str = "auto"

    WIDE: ClassVar[tuple[str, ...]] = ("seed",)

    def validate(self):
        self.require(0 <= self.seed < 2**63, "seed", f"is from 0 to 2^63 - 1, got {self.seed}")
        self.require(self.threads is None or self.threads >= 1, "threads", "must be at least 1")
        check_backend(self.backend)
        if self.hardware.dac is None or self.hardware.input_range.mode == "dynamic":
            self.require(
                self.calibration.method == Calibration().method, "calibration.method",
                "does nothing where no input ranges are measured: without a DAC, and with input_range.mode 'dynamic'",
            )  # fmt: skip
        plain = Stage()
        for name in ("noise_ramp", "distillation", "temperature", "validation_repeats"):
            self.require(
                getattr(self.teacher, name) in (0, getattr(plain, name)), f"teacher.{name}",
                "is of students; the teacher is digital and learns from the labels",
            )  # fmt: skip
        self.require(
            self.student.noise_ramp <= self.student.epochs, "student.noise_ramp",
            f"takes longer than the {self.student.epochs} epochs of training, which would never see the whole noise",
        )  # fmt: skip
        training = self.hardware.training
        self.require(
            training is not None, "hardware.training", "is null, so there is nothing to train a student with"
        )
        self.require(
            training is None or training.ramp_steps == 0 or self.student.noise_ramp == 0,
            "student.noise_ramp",
            "excludes hardware.training.ramp_steps; set one of them to 0",
        )


def _loaded(config: HwaExperiment, data: str | os.PathLike[str] | None) -> Task:
    """The run's data, where torch computes."""
    device = find_device(config.torch_device)
    return config.dataset.load(data, config.network).to(device)


def _fresh(config: HwaExperiment, data: Task) -> nn.Module:
    """The digital network with its initial weights, there too; they are the same for every device."""
    return fresh_network(config.network, data, config.seed).to(find_device(config.torch_device))


def _analog(config: HwaExperiment, net: nn.Module, data: Task, aware: bool) -> nn.Module:
    """The network on analog layers with measured input ranges.

    Clipping is part of hardware-aware training and would change the weights right here, so the mapped baseline goes
    without.
    """
    hardware = config.hardware if aware else config.hardware.replace(training=None)
    net = convert(net, hardware, digital=config.digital, seed=config.seed, backend=config.backend)
    measure_ranges(net, config.hardware, config.calibration, data)
    return net


VARIANTS = ("mapped", "hardware-aware")
"""The teacher on chips without hardware-aware training, and the student."""


def run_hwa(
    config: HwaExperiment,
    output: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    tensorboard: bool = True,
    keep: int = 2,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run an experiment, or what is left of it; arguments and errors as for :func:`aimc.recipes.run_experiment`."""
    progress = progress or Progress()
    with limited_threads(config.threads):
        loaded = _loaded(config, data)
        options = {"backend": config.backend, "tensorboard": tensorboard, "keep": keep}
        with Run(output, config, data=loaded.hashes, **options) as run:
            _Experiment(config, loaded, run, progress).all()
            return finish(run.path, progress)


class _Experiment:
    """The parts of a run in order; each looks up first whether it has been done."""

    def __init__(self, config: HwaExperiment, data: Task, run: Run, progress: Progress):
        self.config, self.data, self.run, self.progress = config, data, run, progress
        self.test = data.metric("test", config.evaluation.batch_size)

    def all(self) -> None:
        config, data = self.config, self.data
        teacher = _fresh(config, data)
        # What the hardware cannot do is said before hours of training.
        convert(teacher, config.hardware, digital=config.digital, seed=config.seed, backend=config.backend)
        check_times(config.hardware.cell, config.evaluation.times)
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
        batches = self.data.batches(stage.batch_size, Key(self.config.seed).fold("order", name).seed)
        fit(
            net, stage, batches, metric, objective=self.data.objective(), teacher=teacher, seed=self.config.seed,
            run=self.run, name=name, progress=self.progress,
        )  # fmt: skip

    def digital(self, name: str, net: nn.Module) -> float:
        """The metric of the test set without hardware."""
        done = self.run.find("digital", name=name)
        if done is None:
            started = time.perf_counter()
            net.eval()
            value = self.test(net)
            self.run.record("digital", name=name, value=value, seconds=time.perf_counter() - started)
        else:
            value = done["value"]
        self.progress.line(f"{name}: test {self.test.name} {value:.4f}")
        return value

    def evaluate(
        self, variant: str, net: nn.Module, compensation: Compensation | None, reference: float
    ) -> None:
        """One line of the result: a variant with or without drift compensation."""
        evaluate_variant(
            self.run, variant, net, self.test, self.config.evaluation, compensation, reference, self.progress
        )


def finish(path: os.PathLike[str], progress: Progress) -> dict[str, Any]:
    """Write ``results.json`` and ``drift.png`` from the records, and return the former's content."""
    found = load_run(path)
    results = found.results()
    write_atomic(f"{os.fspath(path)}/results.json", json.dumps(results, indent=1) + "\n")
    draw([found], f"{os.fspath(path)}/drift.png")
    return results


def evaluate_hwa(
    path: str | os.PathLike[str],
    *,
    times: tuple[str | float, ...] | None = None,
    chips: int | None = None,
    seed: int | None = None,
    compensation: Compensation | None | Literal["configured"] = "configured",
    data: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[DriftResult]:
    """Evaluate a finished run again; arguments and errors as for :func:`aimc.recipes.evaluate_run`."""
    progress = progress or Progress()
    config: HwaExperiment = read_config(path, HwaExperiment)
    if not os.path.isdir(os.path.join(path, "checkpoints")):
        raise AimcError(f"{os.fspath(path)} has records, but no checkpoints to evaluate", field="run")
    changes = {"times": times, "chips": chips, "seed": seed}
    setting = config.evaluation.replace(**{k: v for k, v in changes.items() if v is not None})
    wanted = (setting.compensation, None) if compensation == "configured" else (compensation,)
    with limited_threads(config.threads):
        loaded = _loaded(config, data)
        with Run(path, config, data=loaded.hashes, backend=config.backend, tensorboard=False) as run:
            teacher = _fresh(config, loaded)
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
