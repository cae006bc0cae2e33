"""One training stage: digital, or hardware-aware with a teacher. Resumable at any step, to the bit."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from aimc import processes
from aimc.arguments import checked, expect_between
from aimc.config import LARGEST
from aimc.convert import evaluating, gpus, set_noise_strength
from aimc.data import Inputs
from aimc.errors import AimcError
from aimc.nn import analog_layers
from aimc.random import Key, torch_draws
from aimc.train.checkpoint import (
    generators,
    load_moments,
    load_state,
    moments,
    prefixed,
    set_generators,
    under,
)
from aimc.train.config import Optimizer, Stage
from aimc.train.objective import Classification, Objective
from aimc.train.progress import Progress
from aimc.train.run import Run
from aimc.train.stages import EPOCHS, Checkpoints

Metric = Callable[[nn.Module], float]
_SELECTED = EPOCHS | {"chosen": int}


class Batches(Protocol):
    """Training data: batches ``(inputs, targets)`` whose order is a function of the epoch. Inputs may be a tuple."""

    def __len__(self) -> int:
        """Batches per epoch."""
        ...

    def __call__(self, epoch: int) -> Iterator[tuple[Inputs, Tensor]]:
        """The batches of an epoch, counted from 0."""
        ...


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What a stage did.

    Attributes:
        history: one dict per epoch: loss, accuracy (of a classifier), validation, learning rate, seconds.
        chosen: the epoch whose weights were kept, counted from 1.
    """

    history: tuple[dict[str, Any], ...]
    chosen: int

    @property
    def validation(self) -> float:
        """Validation metric of the epoch that was kept."""
        return self.history[self.chosen - 1]["validation"]

    @property
    def seconds(self) -> float:
        """Wall time of all epochs, over every session that worked on them."""
        return sum(h["seconds"] for h in self.history)


@dataclasses.dataclass
class EpochState:
    """What an epoch under way has gathered; a part of the checkpoint.

    Attributes:
        batches: done so far.
        seen: targets.
        right: of them answered correctly in training; None where nobody counts.
        total: sum of their losses.
        seconds: spent, over every session that worked on the epoch.
    """

    batches: int = 0
    seen: int = 0
    right: int | None = 0
    total: float = 0.0
    seconds: float = 0.0


@checked
def noisy(metric: Metric, repeats: int = 3) -> Metric:
    """A metric of an analog network as it is in training: weight noise on, averaged over so many fresh draws.

    The network itself is left alone: weights, counters, ranges and modes. Repeat k draws the same noise
    whenever the metric is called, from keys that no training step uses.

    Example:
        >>> import aimc
        >>> net = aimc.convert(nn.Linear(4, 2), aimc.presets.pcm().replace(**{"input_range.value": 1.0}))
        >>> metric = aimc.Accuracy(torch.eye(4), torch.tensor([0, 1, 0, 1]))
        >>> 0.0 <= noisy(metric, repeats=2)(net) <= 1.0
        True
    """

    def measure(net: nn.Module) -> float:
        return sum(metric(_noisy_copy(net, repeat)) for repeat in range(repeats)) / repeats

    measure.__dict__["higher_is_better"] = getattr(metric, "higher_is_better", True)
    return measure


def _noisy_copy(net: nn.Module, repeat: int) -> nn.Module:
    """A copy in evaluation mode whose analog layers compute as in training."""
    net = copy.deepcopy(net).eval()
    for layer in analog_layers(net).values():
        layer.training = True
        # The same noise, and the same ages of a chip, after every epoch: they differ by their weights alone.
        layer.key = layer.key.fold("validation", repeat)
        layer.network_seed = Key(layer.network_seed).fold("validation", repeat).seed
        layer._step = 0
        layer.noise_strength = 1.0
        if layer.input_range is not None:
            layer.set_input_range(
                layer.input_range.detach().clone()
            )  # an early range must not move on validation data
    return net


@checked
def build_optimizer(net: nn.Module, config: Optimizer) -> torch.optim.Optimizer:
    """The torch optimizer of a configuration; weight decay acts on parameters of two or more dimensions.

    Example:
        >>> [g["weight_decay"] for g in build_optimizer(nn.Linear(2, 2), Optimizer(weight_decay=0.1)).param_groups]
        [0.1, 0.0]
    """
    trained = [p for p in net.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if not groups:
        raise AimcError("the network has no parameter to train", field="net")
    if config.kind == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999))
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)


@checked
def fit(
    net: nn.Module,
    stage: Stage,
    batches: Batches,
    validate: Metric,
    *,
    objective: Objective | None = None,
    teacher: nn.Module | None = None,
    seed: int = 0,
    run: Run | None = None,
    name: str = "model",
    save_every: float = 300.0,
    progress: Progress | None = None,
) -> Fitted:
    """Train a network in place; on return it holds the weights of the chosen epoch.

    With a ``run``, every epoch is recorded, and the stage is saved after it and every few minutes within it. A stage
    that the run has finished is loaded instead, and one that was interrupted goes on after the last step that was
    saved and ends bit for bit where it would have ended.

    Args:
        net: digital or analog; an analog one feels its hardware's noise, clipping and converters by itself.
        stage: epochs, optimizer, distillation, selection.
        batches: ``batches(epoch)`` yields inputs and targets.
        validate: called in evaluation mode after each epoch; higher is better unless its attribute
            ``higher_is_better`` is False. :func:`noisy` wraps one for a student.
        objective: the loss; None is :class:`Classification`.
        teacher: digital network to learn from.
        seed: of torch's generator during the stage (dropout); the caller's generator is not touched.
        run: run directory.
        name: of the stage in records and checkpoints.
        save_every: seconds between two checkpoints within an epoch; the result does not depend on it.
        progress: where lines and bars go.

    Raises:
        AimcError: a loss that is not finite, no batches, several processes of ``torch.distributed``, or a checkpoint
            that is damaged or of another network, stage or run.

    Example:
        >>> class Two:
        ...     def __len__(self): return 1
        ...     def __call__(self, epoch): yield torch.eye(2), torch.tensor([0, 1])
        >>> net = nn.Linear(2, 2)
        >>> done = fit(net, Stage(epochs=5), Two(), lambda net: float(net.weight.detach().trace()))
        >>> len(done.history), done.chosen
        (5, 5)
    """
    processes.refuse_several("aimc.train.fit")
    progress = progress or Progress()
    if len(batches) == 0:
        raise AimcError("there is no training data", field="batches")
    expect_between(0, LARGEST, save_every=save_every)
    if run is not None and run.checkpoint(name).exists():
        tensors, details = run.load_finished(name, _SELECTED)
        load_state(net, under("model", tensors), str(run.checkpoint(name)))
        run.settle(name, details["history"])
        run.forget_progress(name)
        progress.line(f"{name}: finished earlier, kept epoch {details['chosen']}")
        return Fitted(tuple(details["history"]), details["chosen"])

    with torch_draws(Key(seed).fold("torch", name), gpus(net)):
        training = _Training(
            net,
            stage,
            batches,
            validate,
            objective or Classification(),
            teacher,
            run,
            name,
            save_every,
            progress,
        )
        training.resume()
        training.all()
    load_state(net, training.best, name)
    history, chosen = training.history, training.chosen
    if run is not None:
        details = {"history": history, "chosen": chosen, "stage": stage.to_dict()}
        run.save_finished(name, prefixed("model", net.state_dict()), details)
        run.forget_progress(name)
    return Fitted(tuple(history), chosen)


class _Training:
    """A stage under way. Arguments as for :func:`fit`."""

    def __init__(
        self,
        net: nn.Module,
        stage: Stage,
        batches: Batches,
        validate: Metric,
        objective: Objective,
        teacher: nn.Module | None,
        run: Run | None,
        name: str,
        save_every: float,
        progress: Progress,
    ):
        self.net, self.stage, self.batches, self.validate = net, stage, batches, validate
        self.objective, self.teacher = objective, teacher
        self.run, self.name, self.save_every, self.progress = run, name, save_every, progress
        self.optimizer = build_optimizer(net, stage.optimizer)
        self.history: list[dict[str, Any]] = []
        self.chosen, self.best = 0, {}
        self.current = EpochState()
        self.ramped = stage.noise_ramp > 0 and bool(analog_layers(net))

    def resume(self) -> None:
        """Go on from the run's checkpoint, if there is one; the records follow it."""
        if self.run is None:
            return
        found = self.run.load_progress(self.name, _SELECTED)
        if found is not None:
            place, tensors, details = found
            load_state(self.net, under("model", tensors), str(place))
            load_moments(self.optimizer, under("optimizer", tensors))
            set_generators(self.net, tensors, str(place))
            self.history, self.chosen = details["history"], details["chosen"]
            self.best = under("best", tensors)
            self.objective.carry_on(under("carried", tensors))
            self.current = EpochState(
                **details.get("current", {})
            )  # older runs saved after whole epochs only
            within = f" and {self.current.batches} batches" if self.current.batches else ""
            self.progress.line(
                f"{self.name}: goes on after epoch {len(self.history)}{within} of {self.stage.epochs}"
            )
        self.run.settle(self.name, self.history)

    def save(self) -> None:
        """Write everything that the rest of the stage depends on."""
        if self.run is None:
            return
        tensors = prefixed("model", self.net.state_dict()) | prefixed("best", self.best)
        tensors |= prefixed("optimizer", moments(self.optimizer)) | generators(self.net)
        if self.current.batches:
            tensors |= prefixed("carried", self.objective.carried())
        details = {
            "history": self.history, "chosen": self.chosen, "current": dataclasses.asdict(self.current),
        }  # fmt: skip
        self.run.save_progress(self.name, tensors, details)

    def all(self) -> None:
        """Every epoch that is left."""
        if self.teacher is not None:
            self.teacher.eval()
        try:
            for epoch in range(len(self.history), self.stage.epochs):
                label = f"{self.name} {epoch + 1}/{self.stage.epochs}"
                with self.progress.bar(label) as advance:
                    row = self.epoch(epoch, advance)
                self.settle(row)
        finally:
            if self.ramped:
                set_noise_strength(self.net, None)

    def epoch(self, epoch: int, advance: Callable[[int, int], None]) -> dict[str, Any]:
        """Train for what is left of one epoch, validate, and describe it."""
        current, count, rate = self.current, len(self.batches), 0.0
        before, started = current.seconds, time.perf_counter()
        saved = started
        if current.batches == 0:
            self.objective.carry_on({})
        self.net.train()
        for inputs, targets in itertools.islice(self.batches(epoch), current.batches, None):
            rate = self.step(epoch * count + current.batches, inputs, targets)
            current.batches += 1
            now = time.perf_counter()
            current.seconds = before + now - started
            if now - saved >= self.save_every and current.batches < count:
                self.save()
                saved = now
            advance(current.batches, count)
        with evaluating(self.net):
            score = float(self.validate(self.net))
        accuracy = {"accuracy": current.right / current.seen} if current.right is not None else {}
        return {
            "epoch": epoch + 1, "epochs": self.stage.epochs, "loss": current.total / current.seen, **accuracy,
            "validation": score, "lr": rate, "seconds": before + time.perf_counter() - started,
        }  # fmt: skip

    def step(self, step: int, inputs: Inputs, targets: Tensor) -> float:
        """One update; returns the learning rate it was made with."""
        stage, net, per_epoch = self.stage, self.net, len(self.batches)
        rate = stage.optimizer.rate(step, stage.epochs * per_epoch, per_epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        if self.ramped:
            set_noise_strength(net, min(1.0, step / (stage.noise_ramp * per_epoch)))
        self.optimizer.zero_grad(set_to_none=True)
        outcome = self.objective(net, self.teacher, inputs, targets, stage)
        value = float(outcome.loss.detach())
        if not math.isfinite(value):
            raise AimcError(
                f"the loss of stage {self.name!r} became {value} in epoch {step // per_epoch + 1}; lower the learning "
                f"rate (--{self.name}.optimizer.lr) or limit the gradient (--{self.name}.optimizer.clip_norm)",
                field="loss",
            )
        outcome.loss.backward()
        if stage.optimizer.clip_norm is not None:
            nn.utils.clip_grad_norm_(net.parameters(), stage.optimizer.clip_norm)
        self.optimizer.step()
        current = self.current
        current.seen += outcome.count
        current.right = (
            None if outcome.right is None or current.right is None else current.right + outcome.right
        )
        current.total += value * outcome.count
        return rate

    def settle(self, row: dict[str, Any]) -> None:
        """Take a finished epoch into the history, select, save and say it."""
        self.history.append(row)
        self.current = EpochState()
        sign = 1 if getattr(self.validate, "higher_is_better", True) else -1
        better = (
            not self.best or sign * row["validation"] > sign * self.history[self.chosen - 1]["validation"]
        )
        if self.stage.selection == "last" or better:
            self.chosen, self.best = len(self.history), copy.deepcopy(self.net.state_dict())
        if self.run is not None:
            self.save()
            self.run.settle(self.name, self.history)
            for key in row.keys() & {"loss", "accuracy", "validation", "lr"}:
                self.run.scalar(f"{self.name}/{key}", row[key], row["epoch"])
        accuracy = f"accuracy {row['accuracy']:.4f}, " if "accuracy" in row else ""
        self.progress.line(
            f"{self.name} epoch {row['epoch']}/{row['epochs']}: loss {row['loss']:.4f}, {accuracy}"
            f"validation {row['validation']:.4f}, {row['seconds']:.1f} s"
        )


@checked
def load_weights(net: nn.Module, run: Run | str | os.PathLike[str], name: str) -> None:
    """Put the weights of a finished stage of a run into a network of the same layers.

    Args:
        net: as the run built it; its hardware stays as it is.
        run: a run, or the path of its directory.
        name: of the stage.

    Raises:
        AimcError: the run has not finished the stage, its checkpoint is damaged or of another run, or the layers
            differ.
    """
    held = run if isinstance(run, Run) else Checkpoints(run)
    tensors, _ = held.load_finished(name)
    load_state(net, under("model", tensors), str(held.checkpoint(name)))
