"""One classification stage: digital, or hardware-aware with a teacher. Resumable after any epoch, to the bit."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aimc.convert import evaluating, set_noise_strength
from aimc.errors import AimcError
from aimc.hwa import distillation_loss
from aimc.nn import analog_layers
from aimc.random import Key
from aimc.train.checkpoint import (
    load_checkpoint,
    load_moments,
    load_state,
    moments,
    prefixed,
    save_checkpoint,
    under,
)
from aimc.train.config import Optimizer, Stage
from aimc.train.progress import Progress
from aimc.train.run import Run

Metric = Callable[[nn.Module], float]


class Batches(Protocol):
    """Training data: batches ``(inputs, targets)`` whose order is a function of the epoch."""

    def __len__(self) -> int:
        """Batches per epoch."""
        ...

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of an epoch, counted from 0."""
        ...


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What a stage did.

    Attributes:
        history: one dict per epoch: loss, accuracy, validation, learning rate, seconds.
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


def noisy(metric: Metric, repeats: int = 3) -> Metric:
    """A metric of an analog network as it is in training: weight noise on, averaged over so many fresh draws.

    The network itself is left alone: weights, counters, ranges and modes. Repeat k draws the same noise whenever the
    metric is called at the same training step, from keys that no training step uses.

    Example:
        >>> import aimc
        >>> net = aimc.convert(nn.Linear(4, 2), aimc.presets.pcm().replace(**{"input_range.value": 1.0}))
        >>> metric = aimc.Accuracy(torch.eye(4), torch.tensor([0, 1, 0, 1]))
        >>> 0.0 <= noisy(metric, repeats=2)(net) <= 1.0
        True
    """

    def measure(net: nn.Module) -> float:
        return sum(metric(_noisy_copy(net, repeat)) for repeat in range(repeats)) / repeats

    return measure


def _noisy_copy(net: nn.Module, repeat: int) -> nn.Module:
    """A copy in evaluation mode whose analog layers compute as in training."""
    net = copy.deepcopy(net).eval()
    for layer in analog_layers(net).values():
        layer.training = True
        layer.key = layer.key.fold("validation", repeat)
        layer.noise_strength = 1.0
        if layer.input_range is not None:
            layer.set_input_range(
                layer.input_range.detach().clone()
            )  # an early range must not move on validation data
    return net


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


def fit(
    net: nn.Module,
    stage: Stage,
    batches: Batches,
    validate: Metric,
    *,
    teacher: nn.Module | None = None,
    seed: int = 0,
    run: Run | None = None,
    name: str = "model",
    progress: Progress | None = None,
) -> Fitted:
    """Train a classifier in place; on return it holds the weights of the chosen epoch.

    With a ``run``, every epoch is recorded and saved. A stage that the run has finished is loaded instead, and one
    that was interrupted goes on after its last epoch and ends bit for bit where it would have ended.

    Args:
        net: digital or analog; an analog one feels its hardware's noise, clipping and converters by itself.
        stage: epochs, optimizer, distillation, selection.
        batches: ``batches(epoch)`` yields inputs and class numbers.
        validate: called in evaluation mode after each epoch, higher is better; :func:`noisy` wraps one for a student.
        teacher: digital network to learn from.
        seed: of torch's generator during the stage (dropout); the caller's generator is not touched.
        run: run directory.
        name: of the stage in records and checkpoints.
        progress: where lines and bars go.

    Raises:
        AimcError: a loss that is not finite, no batches, or a checkpoint that is damaged or of another network.

    Example:
        >>> class Two:
        ...     def __len__(self): return 1
        ...     def __call__(self, epoch): yield torch.eye(2), torch.tensor([0, 1])
        >>> net = nn.Linear(2, 2)
        >>> done = fit(net, Stage(epochs=5), Two(), lambda net: float(net.weight.detach().trace()))
        >>> len(done.history), done.chosen
        (5, 5)
    """
    progress = progress or Progress()
    if len(batches) == 0:
        raise AimcError("there is no training data", field="batches")
    if run is not None and run.checkpoint(name).exists():
        tensors, details = load_checkpoint(run.checkpoint(name))
        load_state(net, under("model", tensors), str(run.checkpoint(name)))
        run.settle(name, details["history"])
        run.checkpoint(f"{name}.epoch").unlink(missing_ok=True)
        progress.line(f"{name}: finished earlier, kept epoch {details['chosen']}")
        return Fitted(tuple(details["history"]), details["chosen"])

    steps = stage.epochs * len(batches)
    optimizer = build_optimizer(net, stage.optimizer)
    history: list[dict[str, Any]] = []
    chosen, best = 0, {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Key(seed).fold("torch", name).seed)
        if run is not None and run.checkpoint(f"{name}.epoch").exists():
            tensors, details = load_checkpoint(run.checkpoint(f"{name}.epoch"))
            load_state(net, under("model", tensors), str(run.checkpoint(f"{name}.epoch")))
            load_moments(optimizer, under("optimizer", tensors))
            torch.set_rng_state(tensors["generator"])
            history, chosen, best = details["history"], details["chosen"], under("best", tensors)
            run.settle(name, history)
            progress.line(f"{name}: goes on after epoch {len(history)} of {stage.epochs}")
        elif run is not None:
            run.settle(name, [])
        if teacher is not None:
            teacher.eval()
        ramped = stage.noise_ramp > 0 and bool(analog_layers(net))
        try:
            for epoch in range(len(history), stage.epochs):
                with progress.bar(f"{name} {epoch + 1}/{stage.epochs}") as advance:
                    row = _epoch(
                        net, stage, batches, optimizer, teacher, epoch, steps, ramped, name, advance, validate
                    )
                history.append(row)
                if (
                    stage.selection == "last"
                    or not best
                    or row["validation"] > history[chosen - 1]["validation"]
                ):
                    chosen, best = epoch + 1, copy.deepcopy(net.state_dict())
                if run is not None:
                    _save_epoch(run, name, net, optimizer, best, history, chosen)
                    run.settle(name, history)
                    for key in ("loss", "accuracy", "validation", "lr"):
                        run.scalar(f"{name}/{key}", row[key], epoch + 1)
                progress.line(
                    f"{name} epoch {epoch + 1}/{stage.epochs}: loss {row['loss']:.4f}, accuracy {row['accuracy']:.4f}, "
                    f"validation {row['validation']:.4f}, {row['seconds']:.1f} s"
                )
        finally:
            if ramped:
                set_noise_strength(net, None)
    load_state(net, best, name)
    if run is not None:
        details = {"name": name, "history": history, "chosen": chosen, "stage": stage.to_dict()}
        save_checkpoint(run.checkpoint(name), prefixed("model", net.state_dict()), details)
        run.checkpoint(f"{name}.epoch").unlink(missing_ok=True)
    return Fitted(tuple(history), chosen)


def _epoch(
    net: nn.Module,
    stage: Stage,
    batches: Batches,
    optimizer: torch.optim.Optimizer,
    teacher: nn.Module | None,
    epoch: int,
    steps: int,
    ramped: bool,
    name: str,
    advance: Callable[[int, int], None],
    validate: Metric,
) -> dict[str, Any]:
    """Train for one epoch, validate, and describe it."""
    started, seen, right, total, rate = time.perf_counter(), 0, 0, 0.0, 0.0
    per_epoch = steps // stage.epochs
    net.train()
    for number, (inputs, targets) in enumerate(batches(epoch)):
        step = epoch * per_epoch + number
        rate = stage.optimizer.rate(step, steps, per_epoch)
        for group in optimizer.param_groups:
            group["lr"] = rate
        if ramped:
            set_noise_strength(net, min(1.0, step / (stage.noise_ramp * per_epoch)))
        optimizer.zero_grad(set_to_none=True)
        logits = net(inputs)
        if teacher is None:
            loss = F.cross_entropy(logits, targets)
        else:
            with torch.no_grad():
                hints = teacher(inputs)
            loss = distillation_loss(logits, hints, targets, stage.temperature, stage.distillation)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise AimcError(
                f"the loss of stage {name!r} became {value} in epoch {epoch + 1}; lower the learning rate "
                f"(--{name}.optimizer.lr) or limit the gradient (--{name}.optimizer.clip_norm)",
                field="loss",
            )
        loss.backward()
        if stage.optimizer.clip_norm is not None:
            nn.utils.clip_grad_norm_(net.parameters(), stage.optimizer.clip_norm)
        optimizer.step()
        seen += len(targets)
        right += int((logits.detach().argmax(-1) == targets).sum())
        total += value * len(targets)
        advance(number + 1, per_epoch)
    with evaluating(net):
        score = float(validate(net))
    return {
        "epoch": epoch + 1, "epochs": stage.epochs, "loss": total / seen, "accuracy": right / seen,
        "validation": score, "lr": rate, "seconds": time.perf_counter() - started,
    }  # fmt: skip


def _save_epoch(
    run: Run,
    name: str,
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    best: dict[str, Tensor],
    history: list[dict[str, Any]],
    chosen: int,
) -> None:
    tensors = prefixed("model", net.state_dict()) | prefixed("best", best)
    tensors |= prefixed("optimizer", moments(optimizer))
    tensors["generator"] = torch.get_rng_state()
    save_checkpoint(
        run.checkpoint(f"{name}.epoch"), tensors, {"name": name, "history": history, "chosen": chosen}
    )


def load_weights(net: nn.Module, run: Run | str, name: str) -> None:
    """Put the weights of a finished stage of a run into a network of the same layers.

    Args:
        net: as the run built it; its hardware stays as it is.
        run: a run, or the path of its directory.
        name: of the stage.

    Raises:
        AimcError: the run has not finished the stage, or the layers differ.
    """
    import pathlib

    path = (
        run.checkpoint(name)
        if isinstance(run, Run)
        else pathlib.Path(run, "checkpoints", f"{name}.safetensors")
    )
    tensors, _ = load_checkpoint(path)
    load_state(net, under("model", tensors), str(path))
