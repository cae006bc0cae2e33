"""Time and memory of a hardware-aware training step over the same step of plain PyTorch.

Plain torch and one setting take turns in a process of their own, on one thread; the figure is the median over rounds of
the ratio, with its spread. Absolute times depend on the machine. The step is forward, loss, backward and an SGD update.

    python benchmarks/hwa_step.py [--rounds 15] [--networks lenet,mlp,wideresnet] [--memory]

Settings:
  matched   8-bit converters, learned input range, output noise, additive weight noise, 512-row tiles: what other
            simulators are usually timed with
  peer      the settings of "matched" in aihwkit-lightning, where that is installed
  preset    everything of presets.pcm(): the above with three times the programming error as weight noise, clipping at
            2.5 standard deviations, learned output gains, short-term noise and IR drop (three more products a layer)
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import aimc
from aimc import data
from aimc.models import MODELS

NETWORKS = {
    "lenet": (lambda: MODELS["lenet5"](), (64, 1, 28, 28), 10),
    "mlp": (lambda: nn.Sequential(*_mlp()), (256, 2048), 2048),
    "wideresnet": (lambda: MODELS["wideresnet"](), (32, 3, 32, 32), 100),
}


def _mlp() -> list[nn.Module]:
    return [nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 2048), nn.ReLU(), nn.Linear(2048, 2048)]


def settings() -> dict[str, aimc.Hardware]:
    """The timed hardware; ranges start at once so that the learned range is in use from the first step."""
    preset = aimc.presets.pcm().replace(**{"input_range.init_batches": 1})
    matched = preset.replace(
        short_term_noise=0.0,
        ir_drop=None,
        training=aimc.hwa.HardwareAware(modifiers=(aimc.hwa.AddNormal(std=0.1),)),
        **{"mapping.learned_gain": False},
    )
    return {"matched": matched, "preset": preset}


def peer(net: nn.Module) -> Any:
    """The network converted by aihwkit-lightning with the settings of "matched"."""
    from aihwkit_lightning.nn.conversion import convert_to_analog  # pyright: ignore[reportMissingImports]
    from aihwkit_lightning.simulator.configs import TorchInferenceRPUConfig  # pyright: ignore[reportMissingImports]
    from aihwkit_lightning.simulator.parameters.enums import WeightNoiseInjectionType  # pyright: ignore[reportMissingImports]

    config = TorchInferenceRPUConfig()
    config.forward.inp_res = config.forward.out_res = 2**8 - 2
    config.forward.out_bound, config.forward.out_noise = 10.0, 0.04
    config.forward.out_noise_per_channel = True
    config.mapping.max_input_size = 512
    config.pre_post.input_range.enable = True
    config.pre_post.input_range.init_from_data = 1
    config.modifier.noise_type = WeightNoiseInjectionType.ADD_NORMAL_PER_CHANNEL
    config.modifier.std_dev = 0.1
    return convert_to_analog(net, config)


def variants() -> list[str]:
    has_peer = importlib.util.find_spec("aihwkit_lightning") is not None
    return [*settings(), *(["peer"] if has_peer else [])]


def stepper(net: nn.Module, x: torch.Tensor, y: torch.Tensor):
    """A function that makes one training step."""
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()

    return step


def build(name: str, setting: str | None):
    torch.manual_seed(0)
    make, shape, classes = NETWORKS[name]
    net = make()
    if setting == "peer":
        net = peer(net)
    elif setting is not None:
        net = aimc.convert(net, settings()[setting], seed=0)
    if name == "lenet":
        images = data.load("mnist_small", "train", limit=shape[0])
        return stepper(net, images.inputs, images.targets)
    # Standard normal activations, or pixels that fill the range of normalised photographs.
    x = torch.randn(shape) if name == "mlp" else torch.rand(shape) * 3.9 - 1.9
    return stepper(net, x, torch.randint(classes, (shape[0],)))


def measure(name: str, setting: str, rounds: int) -> dict[str, float]:
    """Interleaved rounds of plain torch and one setting; the first two of each are warm-up."""
    steps = [build(name, None), build(name, setting)]
    repeat = 10 if name == "lenet" else 1
    times: list[list[float]] = [[], []]
    for r in range(rounds + 2):
        for step, taken in zip(steps, times, strict=True):
            start = time.perf_counter()
            for _ in range(repeat):
                step()
            if r >= 2:
                taken.append((time.perf_counter() - start) / repeat)
    ratios = sorted(a / b for a, b in zip(times[1], times[0], strict=True))
    return {
        "plain": 1e3 * statistics.median(times[0]),
        "ms": 1e3 * statistics.median(times[1]),
        "ratio": statistics.median(ratios),
        "low": ratios[len(ratios) // 10],
        "high": ratios[-1 - len(ratios) // 10],
    }


def peak_memory(name: str, setting: str | None) -> float:
    """MiB that three steps add to this process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step = build(name, setting)
    for _ in range(3):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def alone(call: str) -> Any:
    """What a function of this file returns in a process of its own, whose memory no other network has touched."""
    code = (
        "import sys, json; sys.path.insert(0, sys.argv[1])\nimport hwa_step, torch\ntorch.set_num_threads(1)\n"
        f"print(json.dumps(hwa_step.{call}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--networks", default="lenet,mlp,wideresnet")
    parser.add_argument(
        "--memory", action="store_true", help="also measure peak memory, each in a process of its own"
    )
    options = parser.parse_args()
    print(
        f"torch {torch.__version__}, {platform.machine()}, one thread, {options.rounds} interleaved rounds a pair"
    )
    print("| network | setting | plain, ms | time, ms | over plain torch | 10-90 % of rounds |", end="")
    print(" memory over plain, MiB |" if options.memory else "")
    print("|---|---|---|---|---|---|" + ("---|" if options.memory else ""))
    for name in options.networks.split(","):
        for setting in variants():
            row = alone(f"measure({name!r}, {setting!r}, {options.rounds})")
            line = (
                f"| {name} | {setting} | {row['plain']:.1f} | {row['ms']:.1f} | {row['ratio']:.2f} | "
                f"{row['low']:.2f}-{row['high']:.2f} |"
            )
            if options.memory:
                plain, own = (alone(f"peak_memory({name!r}, {s!r})") for s in (None, setting))
                line += f" {own - plain:.0f} |"
            print(line, flush=True)


if __name__ == "__main__":
    main()
