"""From a trained network to many chips over time: input ranges, evaluation, records."""

from __future__ import annotations

import time
from typing import ClassVar

import torch
from torch import nn

from aimc import jobs
from aimc.cells import Cell
from aimc.chip import (
    Accuracy,
    Compensation,
    DriftResult,
    LeastSquares,
    Perplexity,
    calibrate,
    evaluate_over_time,
)
from aimc.chip.calibration import QUANTILE, STDS, Method, unused_setting
from aimc.config import Config
from aimc.errors import AimcError
from aimc.hardware import Hardware
from aimc.random import Key
from aimc.recipes.parts import Task, available_cores
from aimc.train import Progress, Run
from aimc.units import seconds


class Calibration(Config):
    """How input ranges are measured before the mapped teacher is evaluated, and before the student starts.

    Fields:
        images: training samples used: images, sentences, or tokens of a running text.
        method: ``quantile``, ``max``, ``std``, ``moving_quantile`` or ``moving_std``; see :func:`aimc.calibrate`.
        quantile: of the magnitudes, for the quantiles.
        stds: standard deviations, for ``std`` and ``moving_std``.
    """

    images: int = 1000
    method: Method = "quantile"
    quantile: float = QUANTILE
    stds: float = STDS

    def validate(self):
        self.require(self.images >= 1, "images", f"must be at least 1, got {self.images}")
        self.require(0 < self.quantile <= 1, "quantile", f"is a share between 0 and 1, got {self.quantile}")
        self.require(self.stds > 0, "stds", f"must be positive, got {self.stds}")
        unused = unused_setting(self.method, self.quantile, self.stds)
        self.require(
            unused is None, str(unused), f"does nothing with the method {self.method!r}; leave it out"
        )


class Evaluation(Config):
    """Chips and times of the evaluation on the test set.

    Fields:
        times: after programming, such as ``1s``, ``1h``, ``1d``, ``1y``.
        chips: number of simulated chips.
        seed: of the set of chips; every variant is programmed onto the same ones.
        compensation: drift compensation of the compensated variants.
        batch_size: of samples; changes memory and time only.
    """

    times: tuple[str | float, ...] = ("1s", "1h", "1d", "1y")
    chips: int = 25
    seed: int = 0
    compensation: Compensation = LeastSquares()
    batch_size: int = 1000

    WIDE: ClassVar[tuple[str, ...]] = ("seed",)

    def validate(self):
        self.require(len(self.times) > 0, "times", "needs at least one time")
        for time_ in self.times:
            try:
                seconds(time_)
            except AimcError as error:
                self.require(False, "times", error.message)
        self.require(self.chips >= 1, "chips", f"must be at least 1, got {self.chips}")
        self.require(self.batch_size >= 1, "batch_size", f"must be at least 1, got {self.batch_size}")


def check_times(cell: Cell, times: tuple[str | float, ...]) -> None:
    """Refuse a time to which the cells cannot be aged.

    Raises:
        AimcError: names the time.
    """
    cells = cell.program(torch.zeros(cell.devices, 1, 1), Key(0))
    for moment in times:
        try:
            cell.read(cells, seconds(moment), Key(0))
        except AimcError as error:
            raise AimcError(f"{moment}: {error.message}", field="evaluation.times") from None


def measure_ranges(net: nn.Module, hardware: Hardware, setting: Calibration, task: Task) -> None:
    """Set the input ranges of an analog network from training data, where the hardware has any to set."""
    if hardware.dac is not None and hardware.input_range.mode != "dynamic":
        inputs = task.calibration(setting.images)
        calibrate(net, inputs, setting.method, quantile=setting.quantile, stds=setting.stds)


def evaluate_variant(
    run: Run,
    variant: str,
    net: nn.Module,
    metric: Accuracy | Perplexity,
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
        run.forget("chip", **key)
        progress.line(f"{label}: evaluated earlier")
        return DriftResult.from_dict(done["result"])
    started = time.perf_counter()
    on_cpu = all(p.device.type == "cpu" for p in net.parameters())  # a GPU is busy with one chip
    # What is measured is kept chip by chip until all are there: a run that is stopped does not lose them.
    known = {r["chip"]: r["values"] for r in run.records if r["kind"] == "chip" and key.items() <= r.items()}
    with progress.bar(label) as advance:
        result = evaluate_over_time(
            net, metric, times=setting.times, chips=setting.chips, seed=setting.seed, compensation=compensation,
            reference=reference, progress=advance,
            workers=(available_cores() if jobs.shares_process("threads") else jobs.most()) if on_cpu else 1,
            known=known, on_chip=lambda c, values: run.record("chip", **key, chip=c, values=values),
        )  # fmt: skip
    spent = time.perf_counter() - started
    run.record("evaluation", **key, result=result.to_dict(), seconds=spent)
    run.forget("chip", **key)
    for moment, mean in zip(result.times, result.mean):
        run.scalar(f"test {result.metric} over time/{label}", float(mean), max(1, round(moment)))
    progress.line(f"{label}: {' '.join(f'{v:.4f}' for v in result.mean)}, {spent:.1f} s")
    return result
