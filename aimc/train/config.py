"""Configuration of a training stage."""

from __future__ import annotations

import math
from typing import Literal

from aimc.config import Config


class Optimizer(Config):
    """How the digital copy of the weights is updated.

    Fields:
        kind: ``sgd`` (with momentum) or ``adamw``.
        lr: learning rate after the warm-up.
        momentum: of sgd; the first beta of adamw.
        weight_decay: applied to weight matrices and kernels only, not to biases, norms, gains and input ranges.
        schedule: ``cosine`` to zero, ``constant``, or ``step``: times ``factor`` at each of ``milestones``.
        milestones: shares of the stage's steps, used by ``step``.
        factor: used by ``step``.
        warmup: epochs over which the learning rate rises linearly from near zero.
        clip_norm: largest norm of the gradient, or null for no limit.

    Example:
        >>> [round(Optimizer(lr=1.0).rate(step, 100, 10), 3) for step in (0, 50, 99)]
        [1.0, 0.5, 0.0]
    """

    kind: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "constant", "step"] = "cosine"
    milestones: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1
    warmup: float = 0.0
    clip_norm: float | None = None

    def validate(self):
        self.require(self.lr > 0, "lr", f"must be positive, got {self.lr}")
        self.require(0 <= self.momentum < 1, "momentum", f"is in [0, 1), got {self.momentum}")
        self.require(self.weight_decay >= 0, "weight_decay", "must not be negative")
        self.require(all(0 < m < 1 for m in self.milestones), "milestones", "are shares between 0 and 1")
        self.require(0 < self.factor <= 1, "factor", f"is in (0, 1], got {self.factor}")
        self.require(self.warmup >= 0, "warmup", "must not be negative")
        self.require(self.clip_norm is None or self.clip_norm > 0, "clip_norm", "must be positive")
        if self.schedule != "step":
            self.unused(f"with schedule {self.schedule!r}", "milestones", "factor")

    def rate(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """Learning rate at a step of a stage; a pure function, so that a resumed stage needs no state for it."""
        warm = self.warmup * steps_per_epoch
        rise = min(1.0, (step + 1) / (warm + 1)) if warm else 1.0
        share = step / max(1, steps)
        if self.schedule == "cosine":
            fall = 0.5 * (1 + math.cos(math.pi * share))
        elif self.schedule == "step":
            fall = self.factor ** sum(share >= m for m in self.milestones)
        else:
            fall = 1.0
        return self.lr * rise * fall


class Stage(Config):
    """One training stage, of a digital teacher or of a hardware-aware student.

    Fields:
        epochs: passes over the training data.
        batch_size: samples per step.
        optimizer: see :class:`Optimizer`.
        temperature: of the distillation, used where there is a teacher.
        distillation: share of the teacher in a student's loss, 0 to 1; 0 learns from the labels alone.
        noise_ramp: epochs over which the weight noise of hardware-aware training rises from none to full.
        selection: ``best`` keeps the epoch with the best validation (with weight noise, for a student), ``last`` the
            last one. The test set takes no part.
        validation_repeats: passes over the validation set with fresh weight noise, averaged, for a student.

    Example:
        >>> Stage(epochs=3).replace(**{"optimizer.lr": 0.1}).optimizer.lr
        0.1
    """

    epochs: int = 10
    batch_size: int = 128
    optimizer: Optimizer = Optimizer()
    temperature: float = 4.0
    distillation: float = 0.9
    noise_ramp: float = 0.0
    selection: Literal["best", "last"] = "best"
    validation_repeats: int = 3

    def validate(self):
        self.require(self.epochs >= 1, "epochs", f"must be at least 1, got {self.epochs}")
        self.require(self.batch_size >= 1, "batch_size", f"must be at least 1, got {self.batch_size}")
        self.require(self.temperature > 0, "temperature", f"must be positive, got {self.temperature}")
        self.require(0 <= self.distillation <= 1, "distillation", f"is in [0, 1], got {self.distillation}")
        self.require(self.noise_ramp >= 0, "noise_ramp", "must not be negative")
        self.require(self.validation_repeats >= 1, "validation_repeats", "must be at least 1")


class Schedule(Config):
    """Learning rate over the epochs of in-memory training.

    Fields:
        kind: ``constant``; ``step``: times ``factor`` after every ``every`` epochs; or ``cosine``: to zero.
        every: epochs between two steps.
        factor: of one step.

    Example:
        >>> [Schedule(kind="step", every=2).rate(1.0, epoch, 5) for epoch in range(5)]
        [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    kind: Literal["constant", "step", "cosine"] = "constant"
    every: int = 30
    factor: float = 0.5

    def validate(self):
        self.require(self.every >= 1, "every", f"must be at least 1, got {self.every}")
        self.require(0 < self.factor <= 1, "factor", f"is in (0, 1], got {self.factor}")
        if self.kind != "step":
            self.unused(f"with kind {self.kind!r}", "every", "factor")

    def rate(self, lr: float, epoch: int, epochs: int) -> float:
        """Learning rate of an epoch, counted from 0."""
        if self.kind == "step":
            return lr * self.factor ** (epoch // self.every)
        return lr * (0.5 * (1 + math.cos(math.pi * epoch / epochs)) if self.kind == "cosine" else 1.0)
