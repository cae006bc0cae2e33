"""Random numbers per second on one thread, over torch's own, in one process.

python benchmarks/random_numbers.py
"""

from __future__ import annotations

import statistics
import time

import torch

from aimc.random import Key, normal, uniform

COUNT, ROUNDS = 4 << 20, 15


def main() -> None:
    torch.set_num_threads(1)
    out, key = torch.empty(COUNT), Key(0)
    pairs = {
        "normal": (lambda: normal(key, (COUNT,)), lambda: out.normal_()),
        "uniform": (lambda: uniform(key, (COUNT,)), lambda: out.uniform_()),
    }
    print("| draw | aimc, M/s | torch, M/s | ratio |\n|---|---|---|---|")
    for name, functions in pairs.items():
        times: list[list[float]] = [[], []]
        for _ in range(ROUNDS):
            for f, kept in zip(functions, times):
                start = time.perf_counter()
                f()
                kept.append(time.perf_counter() - start)
        ours, theirs = (COUNT / statistics.median(t) / 1e6 for t in times)
        print(f"| {name} | {ours:.0f} | {theirs:.0f} | {ours / theirs:.2f} |")


if __name__ == "__main__":
    main()
