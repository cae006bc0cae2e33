"""Training in memory over plain PyTorch: images per second of LeNet-5, and updates of single layers.

Everything runs in this process, interleaved, on one thread; figures are ratios of medians. Absolute times depend on the
machine.

    python benchmarks/in_memory.py [--rounds 15] [--states 4] [--batch 8] [--algorithms sgd,residual] [--layers]

LeNet-5 is that of the papers on in-memory training (tanh, 80,016 weights, every matrix in cells, perfect periphery), on
the embedded MNIST images, at the rates of the recipes. Before the timing every variant has trained on some hundred
batches, so that gradients have the size that they have in training. A step is forward, loss, backward and update.

A layer's update is: pulses of all vectors onto one array (analog SGD), over the same vectors' dense gradient and its
subtraction in torch.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

import aimc
from aimc import data
from aimc.algorithms import ALGORITHMS
from aimc.cells import SoftBounds
from aimc.ops.pulsed_update import Vectors, pulsed_update
from aimc.random import Key

LR = 0.05


def lenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 5), nn.Tanh(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5), nn.Tanh(), nn.MaxPool2d(2), nn.Tanh(),
        nn.Flatten(), nn.Linear(512, 128), nn.Tanh(), nn.Linear(128, 10),
    )  # fmt: skip


def stepper(algorithm: str | None, states: float, batch: int) -> Callable[[], None]:
    """A function that makes one training step on the next batch."""
    images = data.load("mnist_small", "train")
    inputs, targets = images.inputs, images.targets
    torch.manual_seed(0)
    net = lenet()
    if algorithm is None:
        optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights beyond the bounds of some devices
            net = aimc.convert(net, aimc.presets.reram(states, ALGORITHMS[algorithm]()), seed=0)
        optimizer = aimc.optim.wrap(torch.optim.SGD(net.parameters(), lr=LR), net)
    count = 0

    def step() -> None:
        nonlocal count
        first = count * batch % (len(inputs) - batch + 1)
        count += 1
        optimizer.zero_grad()
        F.cross_entropy(net(inputs[first : first + batch]), targets[first : first + batch]).backward()
        optimizer.step()

    return step


def networks(names: list[str], states: float, batch: int, rounds: int, warm_up: int = 300) -> None:
    """Print the table of LeNet-5."""
    steps = {name: stepper(name, states, batch) for name in (None, *names)}
    for step in steps.values():
        for _ in range(warm_up):
            step()
    times: dict[str | None, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(10):
                step()
            times[name].append((time.perf_counter() - start) / 10)
    print(f"LeNet-5, batch {batch}, {states:g} states, medians of {rounds} interleaved rounds of 10 steps")
    print("| algorithm | images/s | over plain torch | 10-90 % of rounds |\n|---|---|---|---|")
    plain = statistics.median(times[None])
    for name, taken in times.items():
        ratios = sorted(b / a for a, b in zip(taken, times[None], strict=True))
        median = statistics.median(taken)
        print(
            f"| {name or 'plain torch'} | {batch / median:.0f} | {plain / median:.2f} | "
            f"{ratios[len(ratios) // 10]:.2f}-{ratios[-1 - len(ratios) // 10]:.2f} |",
            flush=True,
        )


def layers(rounds: int) -> None:
    """Print the table of single layers."""
    print("| layer | vectors | torch, ms | pulses, ms | pulses over torch | pulses per vector |")
    print("|---|---|---|---|---|---|")
    cell = SoftBounds.with_states(10, w_max=1.0, w_min=-1.0)
    for rows, columns in ((512, 512), (512, 4608)):
        parameters, held = cell.draw((rows, columns), Key(0)), torch.zeros(rows, columns)
        weight, counts = torch.zeros(rows, columns), torch.zeros(rows, columns, dtype=torch.int32)
        for count in (1, 8, 64, 512, 2048):
            torch.manual_seed(0)
            # Half the inputs are zero, as after a ReLU; gradients are of a mean over the vectors.
            vectors = Vectors(
                torch.randn(count, columns).relu_(), torch.randn(count, rows) / count**0.5 / 100
            )
            dense, pulsed, found = [], [], torch.zeros(7, dtype=torch.int64)
            for r in range(max(rounds if count < 512 else rounds // 3, 3) + 1):
                start = time.perf_counter()
                weight.sub_(vectors.gradient(), alpha=LR)
                middle = time.perf_counter()
                found = pulsed_update(
                    held, held, parameters, cell, vectors, LR, Key(1, step=r), counts=counts
                )
                if r:
                    dense.append(middle - start)
                    pulsed.append(time.perf_counter() - middle)
            a, b = statistics.median(dense), statistics.median(pulsed)
            print(
                f"| {rows}x{columns} | {count} | {a * 1e3:.2f} | {b * 1e3:.2f} | {b / a:.2f} | "
                f"{int(found[2]) / count:.1f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--states", type=float, default=4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--algorithms", default=",".join(ALGORITHMS))
    parser.add_argument("--layers", action="store_true", help="single layers instead of LeNet-5")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {platform.machine()}, one thread")
    if options.layers:
        layers(options.rounds)
    else:
        networks(options.algorithms.split(","), options.states, options.batch, options.rounds)


if __name__ == "__main__":
    main()
