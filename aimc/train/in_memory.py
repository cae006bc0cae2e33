"""Training where the weights live in cells: SGD, whatever is digital by torch. Resumable after any epoch."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aimc import processes
from aimc.algorithms import Transfers
from aimc.arguments import checked, expect_between
from aimc.config import LARGEST, MOST, SMALLEST
from aimc.convert import evaluating, gpus
from aimc.data import Inputs
from aimc.errors import AimcError
from aimc.nn import PulsedLayer, pulsed_layers
from aimc.nn.pulsed import CellWeight
from aimc.optim import observe, wrap
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
from aimc.train.config import Schedule
from aimc.train.loop import Batches, EpochState, Fitted, Metric
from aimc.train.progress import Progress
from aimc.train.run import Run
from aimc.train.stages import EPOCHS


@checked
def fit_in_memory(
    net: nn.Module,
    batches: Batches,
    validate: Metric,
    test: Metric,
    *,
    epochs: int,
    lr: float,
    schedule: Schedule = Schedule(),
    momentum: float = 0.0,
    weight_decay: float = 0.0,
    label_smoothing: float = 0.0,
    seed: int = 0,
    run: Run,
    name: str = "analog",
    save_every: float = 600.0,
    progress: Progress | None = None,
) -> Fitted:
    """Train a classifier in place by SGD: pulsed layers by pulses, without momentum, and what is digital by torch.

    The weights that stay are those of the last epoch; nothing is selected. Every epoch is recorded and saved, with the
    telemetry of each pulsed layer. A training that the run has finished is loaded instead, and one that was interrupted
    goes on where it was saved last, after an epoch or within it, and ends bit for bit where it would have ended.

    Args:
        net: from :func:`aimc.convert` with a :class:`aimc.PulsedHardware`, or digital (a baseline).
        batches: ``batches(epoch)`` yields inputs and class numbers.
        validate: measured after each epoch.
        test: likewise, for the curve; nothing depends on it.
        epochs: passes over the training data.
        lr: learning rate of cells and digital parameters.
        schedule: how it falls.
        momentum: of digital parameters.
        weight_decay: of digital matrices and kernels; not of biases and norms.
        label_smoothing: share of the target that is spread evenly over all classes, 0 to 1.
        seed: of torch's generator during the training (dropout).
        run: run directory.
        name: of the training in records and checkpoints.
        save_every: seconds between two checkpoints within an epoch; the result does not depend on it.
        progress: where lines and bars go.

    Raises:
        AimcError: a loss that is not finite, no batches, several processes of ``torch.distributed``, or a checkpoint
            that is damaged or of another network, stage or run.

    Example:
        >>> import tempfile
        >>> from aimc import convert, presets
        >>> from aimc.config import Config
        >>> class Two:
        ...     def __len__(self): return 1
        ...     def __call__(self, epoch): yield torch.eye(2), torch.tensor([0, 1])
        >>> net = convert(nn.Linear(2, 2), presets.reram(states=100), seed=0)
        >>> with tempfile.TemporaryDirectory() as folder, Run(folder, Schedule(), tensorboard=False) as run:
        ...     done = fit_in_memory(net, Two(), lambda net: 0.0, lambda net: 0.0, epochs=3, lr=0.1, run=run)
        >>> [row["layers"][""]["active_tile"] for row in done.history]
        [None, None, None]
    """
    processes.refuse_several("aimc.train.fit_in_memory")
    progress = progress or Progress()
    if len(batches) == 0:
        raise AimcError("there is no training data", field="batches")
    expect_between(1, MOST, epochs=epochs)
    expect_between(SMALLEST, LARGEST, lr=lr)
    expect_between(0, 1, momentum=momentum, label_smoothing=label_smoothing)
    expect_between(0, LARGEST, weight_decay=weight_decay, save_every=save_every)
    final = run.checkpoint(name)
    if final.exists():
        tensors, details = run.load_finished(name, EPOCHS)
        load_state(net, under("model", tensors), str(final))
        run.settle(name, details["history"])
        run.forget_progress(name)
        progress.line(f"{name}: finished earlier")
        return Fitted(tuple(details["history"]), len(details["history"]))
    optimizer = _optimizer(net, lr, momentum, weight_decay)
    with torch_draws(Key(seed).fold("torch", name), gpus(net)):
        training = _Training(
            net, optimizer, batches, epochs, label_smoothing, run, name, save_every, progress
        )
        training.resume()
        for epoch in range(len(training.history), epochs):
            row = training.epoch(epoch, schedule.rate(lr, epoch, epochs), validate, test)
            training.settle(row)
    run.save_finished(name, prefixed("model", net.state_dict()), {"history": training.history})
    run.forget_progress(name)
    return Fitted(tuple(training.history), epochs)


def _optimizer(net: nn.Module, lr: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """SGD for what is digital, wrapped where the network has cells; their pulses know neither momentum nor decay."""
    trained = [p for p in net.parameters() if p.requires_grad]
    digital = [p for p in trained if not isinstance(p, CellWeight)]
    if not trained:
        raise AimcError("the network has no parameters that could be trained", field="net")
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if isinstance(p, CellWeight)]},
        {"params": [p for p in digital if p.dim() >= 2], "momentum": momentum, "weight_decay": weight_decay},
        {"params": [p for p in digital if p.dim() < 2], "momentum": momentum},
    ]
    optimizer = torch.optim.SGD([group for group in groups if group["params"]], lr=lr)
    return wrap(optimizer, net) if pulsed_layers(net) else optimizer


@dataclasses.dataclass
class _Training:
    """A training under way. Attributes as for :func:`fit_in_memory`, and what it has come to."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Batches
    epochs: int
    label_smoothing: float
    run: Run
    name: str
    save_every: float
    progress: Progress
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    current: EpochState = dataclasses.field(default_factory=EpochState)

    def resume(self) -> None:
        """Go on from the run's checkpoint, if there is one; the records follow it."""
        found = self.run.load_progress(self.name)
        if found is not None:
            place, tensors, details = found
            load_state(self.net, under("model", tensors), str(place))
            load_moments(self.optimizer, under("optimizer", tensors))
            set_generators(self.net, tensors, str(place))
            self.history = details["history"]
            self.current = EpochState(
                **details.get("current", {})
            )  # older runs saved after whole epochs only
            within = f" and {self.current.batches} batches" if self.current.batches else ""
            self.progress.line(
                f"{self.name}: goes on after epoch {len(self.history)}{within} of {self.epochs}"
            )
        self.run.settle(self.name, self.history)

    def save(self) -> None:
        """Write everything that the rest of the training depends on."""
        tensors = prefixed("model", self.net.state_dict()) | prefixed("optimizer", moments(self.optimizer))
        tensors |= generators(self.net)
        details = {"history": self.history, "current": dataclasses.asdict(self.current)}
        self.run.save_progress(self.name, tensors, details)

    def epoch(self, epoch: int, rate: float, validate: Metric, test: Metric) -> dict[str, Any]:
        """Train for what is left of an epoch, tell the algorithms its loss, measure and describe it."""
        current, count = self.current, len(self.batches)
        before, started = current.seconds, time.perf_counter()
        saved = started
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.net.train()
        with self.progress.bar(f"{self.name} {epoch + 1}/{self.epochs}") as advance:
            for inputs, targets in itertools.islice(self.batches(epoch), current.batches, None):
                self.step(epoch, inputs, targets)
                now = time.perf_counter()
                current.seconds = before + now - started
                if now - saved >= self.save_every and current.batches < count:
                    self.save()
                    saved = time.perf_counter()
                advance(current.batches, count)
        row = {
            "epoch": epoch + 1, "epochs": self.epochs, "lr": rate, "loss": current.total / current.seen,
            "accuracy": (current.right or 0) / current.seen, "samples": current.seen,
        }  # fmt: skip
        if pulsed_layers(self.net):
            observe(self.net, row["loss"])
        with evaluating(self.net):
            row |= {"validation": float(validate(self.net)), "test": float(test(self.net))}
        telemetry = {name: layer.telemetry() for name, layer in pulsed_layers(self.net).items()}
        return row | {"seconds": before + time.perf_counter() - started, "layers": telemetry}

    def step(self, epoch: int, inputs: Inputs, targets: Tensor) -> None:
        """One update of the network."""
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.net(inputs)
        loss = F.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise AimcError(
                f"the loss of {self.name!r} became {value} in epoch {epoch + 1}; lower the learning rate",
                field="lr",
            )
        loss.backward()
        self.optimizer.step()
        self.current.batches += 1
        self.current.seen += len(targets)
        self.current.right = (self.current.right or 0) + int((logits.detach().argmax(-1) == targets).sum())
        self.current.total += value * len(targets)

    def settle(self, row: dict[str, Any]) -> None:
        """Take a finished epoch into the history, save and say it."""
        self.history.append(row)
        self.current = EpochState()
        self.save()
        self.run.settle(self.name, self.history)
        for key in ("loss", "accuracy", "validation", "test", "lr"):
            self.run.scalar(f"{self.name}/{key}", row[key], row["epoch"])
        self.progress.line(
            f"{self.name} epoch {row['epoch']}/{row['epochs']}: loss {row['loss']:.4f}, "
            f"accuracy {row['accuracy']:.4f}, validation {row['validation']:.4f}, test {row['test']:.4f}, "
            f"{row['seconds']:.1f} s"
        )


@checked
def schedule_table(
    net: nn.Module, digital: nn.Module, inputs: torch.Tensor, updates_per_epoch: int, lr: float
) -> list[tuple[str, Transfers]]:
    """How often each tile of each layer is read into the next one: layer and line, before training.

    Args:
        net, digital, inputs, updates_per_epoch, lr: as for :func:`schedule_warnings`.

    Example:
        >>> from aimc import algorithms, convert, presets
        >>> digital = nn.Linear(4, 2)
        >>> net = convert(digital, presets.reram(algorithm=algorithms.TikiTakaV1()), seed=0)
        >>> [(name, line.passes_per_epoch) for name, line in schedule_table(net, digital, torch.ones(8, 4), 10, 0.1)]
        [('', 2.5)]
    """
    return [
        (name, line)
        for name, layer, vectors in _fed(net, digital, inputs)
        for line in layer.hardware.algorithm.schedule(layer.array, updates_per_epoch, vectors, lr)
    ]


@checked
def schedule_warnings(
    net: nn.Module, digital: nn.Module, inputs: torch.Tensor, updates_per_epoch: int, lr: float
) -> list[str]:
    """What the algorithms of a network have to say about their schedule before training, a line each.

    Args:
        net: with pulsed layers.
        digital: the same network before it was converted; it is run once, so that ``net`` draws nothing.
        inputs: one mini-batch.
        updates_per_epoch: mini-batches in an epoch.
        lr: learning rate.

    Example:
        >>> from aimc import algorithms, convert, presets
        >>> digital = nn.Linear(4, 2)
        >>> net = convert(digital, presets.reram(algorithm=algorithms.TikiTakaV1()), seed=0)
        >>> [line.split(":")[0] for line in schedule_warnings(net, digital, torch.ones(8, 4), 2, 0.1)]
        ['layer ']
    """
    return [
        f"layer {name}: {text}"
        for name, layer, vectors in _fed(net, digital, inputs)
        for text in layer.hardware.algorithm.check(layer.array, updates_per_epoch, vectors, lr)
    ]


def _fed(net: nn.Module, digital: nn.Module, inputs: torch.Tensor) -> list[tuple[str, PulsedLayer, int]]:
    """The pulsed layers by name, each with the vectors that it sees in a mini-batch."""
    layers, vectors = pulsed_layers(net), {}

    def counter(name: str) -> Callable[..., None]:
        def count(module, given, output):
            vectors[name] = output.numel() // layers[name].shape[0]

        return count

    hooks = [digital.get_submodule(name).register_forward_hook(counter(name)) for name in layers]
    try:
        with torch.no_grad(), evaluating(digital):
            digital(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return [(name, layer, vectors.get(name, 0)) for name, layer in layers.items()]
