"""Training where the weights live in cells: SGD, whatever is digital by torch. Resumable after any epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from aimc.algorithms import Transfers
from aimc.convert import evaluating
from aimc.errors import AimcError
from aimc.nn import PulsedLayer, pulsed_layers
from aimc.nn.pulsed import CellWeight
from aimc.optim import observe, wrap
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
from aimc.train.config import Schedule
from aimc.train.loop import Batches, Fitted, Metric
from aimc.train.progress import Advance, Progress
from aimc.train.run import Run


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
    progress: Progress | None = None,
) -> Fitted:
    """Train a classifier in place by SGD: pulsed layers by pulses, without momentum, and what is digital by torch.

    The weights that stay are those of the last epoch; nothing is selected. Every epoch is recorded and saved, with the
    telemetry of each pulsed layer. A training that the run has finished is loaded instead, and one that was interrupted
    goes on after its last epoch and ends bit for bit where it would have ended.

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
        progress: where lines and bars go.

    Raises:
        AimcError: a loss that is not finite, no batches, or a checkpoint that is damaged or of another network.

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
    progress = progress or Progress()
    if len(batches) == 0:
        raise AimcError("there is no training data", field="batches")
    final, current = run.checkpoint(name), run.checkpoint(f"{name}.epoch")
    if final.exists():
        tensors, details = load_checkpoint(final)
        load_state(net, under("model", tensors), str(final))
        run.settle(name, details["history"])
        current.unlink(missing_ok=True)
        progress.line(f"{name}: finished earlier")
        return Fitted(tuple(details["history"]), len(details["history"]))
    optimizer = _optimizer(net, lr, momentum, weight_decay)
    history: list[dict[str, Any]] = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(Key(seed).fold("torch", name).seed)
        if current.exists():
            tensors, details = load_checkpoint(current)
            load_state(net, under("model", tensors), str(current))
            load_moments(optimizer, under("optimizer", tensors))
            torch.set_rng_state(tensors["generator"])
            history = details["history"]
            progress.line(f"{name}: goes on after epoch {len(history)} of {epochs}")
        run.settle(name, history)
        for epoch in range(len(history), epochs):
            rate, started = schedule.rate(lr, epoch, epochs), time.perf_counter()
            with progress.bar(f"{name} {epoch + 1}/{epochs}") as advance:
                row = {"epoch": epoch + 1, "epochs": epochs, "lr": rate} | _epoch(
                    net, optimizer, batches, epoch, rate, label_smoothing, name, advance
                )
            with evaluating(net):
                row |= {"validation": float(validate(net)), "test": float(test(net))}
            row |= {"seconds": time.perf_counter() - started, "layers": _telemetry(net)}
            history.append(row)
            tensors = prefixed("model", net.state_dict()) | prefixed("optimizer", moments(optimizer))
            tensors["generator"] = torch.get_rng_state()
            save_checkpoint(current, tensors, {"name": name, "history": history})
            run.settle(name, history)
            for key in ("loss", "accuracy", "validation", "test", "lr"):
                run.scalar(f"{name}/{key}", row[key], epoch + 1)
            progress.line(
                f"{name} epoch {epoch + 1}/{epochs}: loss {row['loss']:.4f}, accuracy {row['accuracy']:.4f}, "
                f"validation {row['validation']:.4f}, test {row['test']:.4f}, {row['seconds']:.1f} s"
            )
    save_checkpoint(final, prefixed("model", net.state_dict()), {"name": name, "history": history})
    current.unlink(missing_ok=True)
    return Fitted(tuple(history), epochs)


def _optimizer(net: nn.Module, lr: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """SGD for what is digital, wrapped where the network has cells; their pulses know neither momentum nor decay."""
    trained = [p for p in net.parameters() if p.requires_grad]
    digital = [p for p in trained if not isinstance(p, CellWeight)]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if isinstance(p, CellWeight)]},
        {"params": [p for p in digital if p.dim() >= 2], "momentum": momentum, "weight_decay": weight_decay},
        {"params": [p for p in digital if p.dim() < 2], "momentum": momentum},
    ]
    optimizer = torch.optim.SGD([group for group in groups if group["params"]], lr=lr)
    return wrap(optimizer, net) if pulsed_layers(net) else optimizer


def _epoch(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Batches,
    epoch: int,
    rate: float,
    label_smoothing: float,
    name: str,
    advance: Advance,
) -> dict[str, float]:
    """Train for one epoch, tell the algorithms its loss, and return loss and accuracy."""
    seen, right, total = 0, 0, 0.0
    for group in optimizer.param_groups:
        group["lr"] = rate
    net.train()
    for number, (inputs, targets) in enumerate(batches(epoch)):
        optimizer.zero_grad(set_to_none=True)
        logits = net(inputs)
        loss = F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise AimcError(
                f"the loss of {name!r} became {value} in epoch {epoch + 1}; lower the learning rate",
                field="lr",
            )
        loss.backward()
        optimizer.step()
        seen += len(targets)
        right += int((logits.detach().argmax(-1) == targets).sum())
        total += value * len(targets)
        advance(number + 1, len(batches))
    if pulsed_layers(net):
        observe(net, total / seen)
    return {"loss": total / seen, "accuracy": right / seen}


def _telemetry(net: nn.Module) -> dict[str, dict[str, Any]]:
    return {name: layer.telemetry() for name, layer in pulsed_layers(net).items()}


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
