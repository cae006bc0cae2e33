"""Training in memory with a digital baseline beside it, as one configuration and one function."""

from __future__ import annotations

import json
import os
import time
import warnings
from typing import Any, ClassVar, Literal

from torch import nn

from aimc import presets
from aimc.chip import Compensation, DriftResult
from aimc.config import Config
from aimc.convert import convert, evaluating, to_digital
from aimc.errors import AimcError, suggest
from aimc.files import read_config, write_atomic
from aimc.hardware import Hardware, PulsedHardware
from aimc.ops import check_backend
from aimc.random import Key
from aimc.recipes.chips import (
    Calibration,
    Evaluation,
    evaluate_variant,
    measure_ranges,
)
from aimc.recipes.networks import Network
from aimc.recipes.parts import Dataset, Images, find_device, fresh_network, limited_threads, load_images
from aimc.report import Table, draw, draw_accuracy, draw_telemetry, load_run, transfer_table
from aimc.train import (
    Progress,
    Run,
    Schedule,
    fit_in_memory,
    load_weights,
    schedule_table,
    schedule_warnings,
)
from aimc.train.checkpoint import prefixed

BASELINE, ANALOG, COMPOSITE = "digital", "analog", "composite"
"""The trainings of a run, and the checkpoint of what the cells amount to."""


class OntoChips(Config):
    """After the training in memory: what the cells amount to is programmed onto chips for inference, and ages there.

    Fields:
        hardware: of the chips.
        calibration: of their input ranges.
        evaluation: chips and times.
    """

    hardware: Hardware = presets.pcm()
    calibration: Calibration = Calibration()
    evaluation: Evaluation = Evaluation()


class InSituExperiment(Config):
    """A network trained in memory, and the same network trained digitally on the same images in the same order.

    Both take SGD, and what counts is the last epoch: nothing is selected. Momentum and weight decay are for digital
    parameters alone: cells take pulses.

    Fields:
        dataset: images.
        network: architecture.
        hardware: cells, algorithm, converters, digital scale; null for the baseline alone.
        epochs: passes over the training images.
        batch_size: images per step.
        lr: learning rate in memory, of cells and digital biases.
        schedule: how the learning rates fall.
        baseline: train the digital baseline, too.
        baseline_lr: learning rate of the baseline.
        momentum: of the baseline, and of what is digital beside the cells.
        weight_decay: likewise; of matrices and kernels only.
        label_smoothing: share of the target that is spread evenly over all classes, of both.
        digital: name patterns of layers that stay digital.
        chips: afterwards, onto chips for inference; null for no.
        seed: of initial weights, data order, devices and pulses.
        threads: of torch, or null for torch's choice.
        torch_device: where torch computes, such as ``cpu`` or ``cuda``; pulses have no body for GPUs yet and are slow
            there.
        backend: body of the operations.

    Example:
        >>> from aimc.recipes import MLP
        >>> InSituExperiment(network=MLP()).replace(**{"schedule.kind": "step"}).schedule.every
        30
    """

    dataset: Dataset = Dataset(pixels="unit")
    network: Network
    hardware: PulsedHardware | None = presets.reram()
    epochs: int = 20
    batch_size: int = 16
    lr: float = 0.05
    schedule: Schedule = Schedule()
    baseline: bool = True
    baseline_lr: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0
    label_smoothing: float = 0.0
    digital: tuple[str, ...] = ()
    chips: OntoChips | None = None
    seed: int = 0
    threads: int | None = None
    torch_device: str = "cpu"
    backend: str = "auto"

    WIDE: ClassVar[tuple[str, ...]] = ("seed",)

    def validate(self):
        for name in ("epochs", "batch_size"):
            self.require(getattr(self, name) >= 1, name, f"must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "baseline_lr"):
            self.require(getattr(self, name) > 0, name, f"must be positive, got {getattr(self, name)}")
        self.require(0 <= self.momentum < 1, "momentum", f"is in [0, 1), got {self.momentum}")
        self.require(self.weight_decay >= 0, "weight_decay", "must not be negative")
        self.require(
            0 <= self.label_smoothing < 1, "label_smoothing", f"is in [0, 1), got {self.label_smoothing}"
        )
        self.require(0 <= self.seed < 2**63, "seed", f"is from 0 to 2^63 - 1, got {self.seed}")
        self.require(self.threads is None or self.threads >= 1, "threads", "must be at least 1")
        check_backend(self.backend)
        self.require(
            self.baseline or self.hardware is not None,
            "hardware",
            "is null without a baseline: nothing to train",
        )


def run_in_situ(
    config: InSituExperiment,
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
        images = _images(config, data)
        options = {"backend": config.backend, "tensorboard": tensorboard, "keep": keep}
        with Run(output, config, data=images.hashes, **options) as run:
            if config.baseline:
                net = _fresh(config, images)
                value = _train(BASELINE, net, config.baseline_lr, config, images, run, progress)
                _note(run, "digital baseline", value)
            if config.hardware is not None:
                net = _in_cells(config, config.hardware, images, run, progress)
                _train(ANALOG, net, config.lr, config, images, run, progress)
                if config.chips is not None:
                    onto_chips(net, config.chips, "onto chips", config, images, run, progress)
            return _finish(run)


def _images(config: InSituExperiment, data: str | os.PathLike[str] | None) -> Images:
    """The run's images, where torch computes."""
    device = find_device(config.torch_device)
    return load_images(config.dataset, data).to(device)


def _fresh(config: InSituExperiment, images: Images) -> nn.Module:
    """The run's digital network with its initial weights, where the images are; the same for every device."""
    return fresh_network(config.network, images, config.seed).to(images.train.inputs.device)


def _train(
    name: str,
    net: nn.Module,
    lr: float,
    config: InSituExperiment,
    images: Images,
    run: Run,
    progress: Progress,
) -> float:
    """Train one network and return its test accuracy after the last epoch."""
    batches = images.batches(config.batch_size, Key(config.seed).fold("order").seed)
    done = fit_in_memory(
        net, batches, images.metric("validation"), images.metric("test"), epochs=config.epochs, lr=lr,
        schedule=config.schedule, momentum=config.momentum, weight_decay=config.weight_decay,
        label_smoothing=config.label_smoothing, seed=config.seed, run=run, name=name, progress=progress,
    )  # fmt: skip
    return done.history[-1]["test"]


def _in_cells(
    config: InSituExperiment, hardware: PulsedHardware, images: Images, run: Run, progress: Progress
) -> nn.Module:
    """The fresh network with its weights written into cells; what there is to warn of is said and recorded."""
    digital = _fresh(config, images)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        net = convert(digital, hardware, digital=config.digital, seed=config.seed, backend=config.backend)
    batches = images.batches(config.batch_size, 0)
    lines = list(dict.fromkeys(str(w.message) for w in caught)) + schedule_warnings(
        net, digital, images.train.inputs[: config.batch_size], len(batches), config.lr
    )
    for line in lines:
        progress.line(f"warning: {line}")
        if run.find("warning", text=line) is None:
            run.record("warning", text=line)
    return net


def planned_transfers(config: InSituExperiment, data: str | os.PathLike[str] | None = None) -> Table:
    """The schedule of transfers that a run would have, as a table; nothing is trained or written.

    Args:
        config: of the run.
        data: folder of the data sets.

    Raises:
        AimcError: the run has no cells.
    """
    if config.hardware is None:
        raise AimcError("is null: a digital baseline has no transfers", field="hardware")
    images = _images(config, data)
    digital = _fresh(config, images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of weights beyond their devices: the run says it
        net = convert(
            digital, config.hardware, digital=config.digital, seed=config.seed, backend=config.backend
        )
    updates = len(images.batches(config.batch_size, 0))
    return transfer_table(
        schedule_table(net, digital, images.train.inputs[: config.batch_size], updates, config.lr)
    )


def _note(run: Run, name: str, value: float) -> None:
    """Record a test accuracy without hardware, once."""
    if run.find("digital", name=name) is None:
        run.record("digital", name=name, value=value)


def onto_chips(
    net: nn.Module,
    setting: OntoChips,
    variant: str,
    config: InSituExperiment,
    images: Images,
    run: Run,
    progress: Progress,
    compensations: tuple[Compensation | None, ...] | None = None,
) -> list[DriftResult]:
    """Take what the cells amount to into digital weights, save these, program them onto chips and let the chips age.

    Args:
        net: trained in memory.
        setting: chips and times.
        variant: name of the chips in the records.
        config, images, run, progress: of the run.
        compensations: of drift; None takes the setting's and none.
    """
    digital = to_digital(net)
    run.save_finished(COMPOSITE, prefixed("model", digital.state_dict()), {})
    metric = images.metric("test", setting.evaluation.batch_size)
    with evaluating(digital):
        reference = metric(digital)
    _note(run, "composite, digital", reference)
    chips = convert(
        digital, setting.hardware.replace(training=None), digital=config.digital, seed=config.seed,
        backend=config.backend,
    )  # fmt: skip
    measure_ranges(chips, setting.hardware, setting.calibration, images)
    wanted = compensations if compensations is not None else (setting.evaluation.compensation, None)
    return [
        evaluate_variant(run, variant, chips, metric, setting.evaluation, choice, reference, progress)
        for choice in wanted
    ]


def _finish(run: Run) -> dict[str, Any]:
    """Write ``results.json`` and the figures from the records, and return the former's content."""
    found = load_run(run.path)
    results = found.results()
    write_atomic(run.path / "results.json", json.dumps(results, indent=1) + "\n")
    draw_accuracy([found], run.path / "accuracy.png")
    if ANALOG in found.curves:
        draw_telemetry(found, run.path / "telemetry.png")
    if found.groups:
        draw([found], run.path / "drift.png")
    return results


def evaluate_in_situ(
    path: str | os.PathLike[str],
    *,
    onto: str | None = None,
    times: tuple[str | float, ...] | None = None,
    chips: int | None = None,
    seed: int | None = None,
    compensation: Compensation | None | Literal["configured"] = "configured",
    data: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[DriftResult]:
    """Measure a network that was trained in memory on the test set again, and maybe take it onto chips.

    Args:
        path: run directory.
        onto: preset of the chips (:data:`aimc.presets.PRESETS`); None takes the run's own setting, where it has one.
        times, chips, seed, compensation, data, progress: as for :func:`aimc.recipes.evaluate_run`.

    Returns:
        What the chips gave; empty where there are none.

    Raises:
        AimcError: a run that has not finished its training, or settings of chips where there are none.
    """
    progress = progress or Progress()
    config: InSituExperiment = read_config(path, InSituExperiment)
    if config.hardware is None:
        raise AimcError(
            f"{path} holds a digital baseline alone, nothing that was trained in memory", field="run"
        )
    setting, variant = config.chips, "onto chips"
    if onto is not None:
        if onto not in presets.PRESETS:
            raise AimcError(f"no preset is called {onto!r}; {suggest(onto, presets.PRESETS)}", field="onto")
        setting, variant = OntoChips(hardware=presets.PRESETS[onto]()), f"onto {onto} chips"
    changes = {"times": times, "chips": chips, "seed": seed}
    changes = {k: v for k, v in changes.items() if v is not None}
    if setting is None and (changes or compensation != "configured"):
        raise AimcError(
            f"{path} was trained in memory and has no chips to evaluate; name some with onto (--onto pcm)",
            field=next(iter(changes), "compensation"),
        )
    with limited_threads(config.threads):
        images = _images(config, data)
        with Run(path, config, data=images.hashes, backend=config.backend, tensorboard=False) as run:
            net = _in_cells(config, config.hardware, images, run, progress)
            load_weights(net, run, ANALOG)
            started = time.perf_counter()
            with evaluating(net):
                value = images.metric("test")(net)
            run.record("again", name=ANALOG, value=value, seconds=time.perf_counter() - started)
            progress.line(f"{ANALOG}: test accuracy {value:.4f}, measured again")
            if setting is None:
                return []
            setting = setting.replace(evaluation=setting.evaluation.replace(**changes))
            wanted = None if compensation == "configured" else (compensation,)
            results = onto_chips(net, setting, variant, config, images, run, progress, wanted)
            draw([load_run(path)], run.path / "drift.png")
            return results
