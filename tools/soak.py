"""Kill runs, feed rubbish and compare seeds: python -m tools.soak [--minutes 10] [--seed 0]

Prints kills survived, bad inputs tried, seeds compared and bytes differing, and fails if anything went wrong or the
time did not suffice for the kills. It begins with every run once, left alone, which compiles what is not compiled yet
and counts as no minutes of it:

- runs of both halves, one of every algorithm, are killed with SIGKILL at random moments and in the middle of
  checkpoints, gone on with, and compared to the bit with a run left alone;
- configurations, files and layers of :mod:`tests.rubbish` are tried, as many as the time allows;
- runs of the same seed are made on one core and on all of them, in memory with one thread and with two and by the
  compiled and the plain body as well, and trainings of both halves on data of this process and of worker processes; all
  are compared to the bit.

A run or an input that fails or never ends is counted and named at the end, and the rest goes on. It needs Linux.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch

import aimc
from aimc import presets
from aimc.algorithms import ALGORITHMS
from aimc.config import Config
from aimc.files import read_records
from aimc.recipes import MLP, RECIPES, hwa, in_memory, run_experiment
from aimc.train import Progress, fit, fit_in_memory, load_checkpoint
from tests import rubbish
from tests.helpers import timeless
from tests.train.test_loader_workers import Drawn, trained

SMALL = {
    "dataset.train_images": 160, "dataset.validation_images": 20, "dataset.test_images": 20,
    "network": MLP(hidden=(12,)), "threads": 1,
}  # fmt: skip


def experiments() -> dict[str, Config]:
    """Trainings of a second or two: hardware-aware, and in memory by every algorithm."""
    found: dict[str, Config] = {
        "hardware-aware": RECIPES["demo"].config().replace(
            **SMALL, **{"teacher.epochs": 2, "student.epochs": 2, "evaluation.chips": 2, "evaluation.times": ("1h",)}
        )
    }  # fmt: skip
    for name in sorted(ALGORITHMS):
        tiles = {"tiles": 3} if name == "residual" else {}
        config = RECIPES["demo_insitu"].config(algorithm=name, io="noisy", **tiles)
        found[name] = config.replace(**SMALL, epochs=2, baseline=False)
    return found


# Children -------------------------------------------------------------------------------------------------------------


def child(work: Callable[[], Any], core: int | None = None) -> int:
    """Run something in a process of its own, which finds everything loaded already."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            with open(os.devnull, "w") as nowhere, warnings.catch_warnings():
                os.dup2(nowhere.fileno(), 1)
                warnings.simplefilter("ignore")
                if core is not None:
                    os.sched_setaffinity(0, {core})
                work()
            status = 0
        except BaseException:  # a child ends here whatever it was, and its status says how
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


_PATIENCE, _TIMES = 60.0, 20
"""Seconds that a child may take, or times what it takes alone: beyond the longer of them it hangs."""
_LONG = 600.0
"""Seconds that a run may take whose time alone is not known, and which may have to compile."""


def patience(alone: float) -> float:
    """Seconds after which a run hangs that takes so many alone."""
    return max(_PATIENCE, _TIMES * alone)


def kill(pid: int) -> int:
    """End a child; returns its status, its own one if it was faster."""
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_hanging(pid: int, limit: float) -> NoReturn:
    """End a child that has had its time."""
    kill(pid)
    raise rubbish.Wrong(f"hangs: no end in {limit:.0f} s")


def require_well(status: int) -> None:
    """Raise unless a child ended well."""
    rubbish.require(status == 0, f"ended with status {status}")


def ended(pid: int) -> bool:
    """Whether a child has come to its end, by itself and well; raises if badly."""
    done, status = os.waitpid(pid, os.WNOHANG)
    require_well(os.waitstatus_to_exitcode(status))
    return bool(done)


def finish(pid: int, limit: float) -> None:
    """Wait for a child; raises if it ends badly, or not in so many seconds."""
    until = time.perf_counter() + limit
    while not ended(pid):
        if time.perf_counter() >= until:
            kill_hanging(pid, limit)
        time.sleep(0.002)


def train(config: Config, place: Path) -> None:
    """An experiment, or what is left of it, with a checkpoint every few batches."""
    for function in (fit, fit_in_memory):
        defaults: dict[str, Any] = inspect.unwrap(function).__kwdefaults__  # type: ignore[assignment]  (both have some)
        defaults["save_every"] = 0.01
    for module, names in ((hwa, ("draw",)), (in_memory, ("draw", "draw_accuracy", "draw_telemetry"))):
        for name in names:  # pictures take longer than all the rest
            setattr(module, name, lambda *args, **options: None)
    run_experiment(config, place, tensorboard=False, progress=Progress())


# Comparisons ----------------------------------------------------------------------------------------------------------


def contents(place: Path, setting: bool = True) -> dict[str, bytes]:
    """What a run came to, byte for byte: the records without their clocks, and every tensor of its checkpoints with its
    type and shape.

    Args:
        place: run directory.
        setting: whether with the configuration, and with what checkpoints say besides, which names it.
    """
    records = timeless(read_records(place))
    found = {f"record {i}": json.dumps(r, sort_keys=True).encode() for i, r in enumerate(records)}
    if setting:
        found["config.yaml"] = (place / "config.yaml").read_bytes()
    for file in sorted((place / "checkpoints").iterdir()):
        tensors, details = load_checkpoint(file)
        if setting:
            found[file.name] = json.dumps(timeless(details), sort_keys=True).encode()
        found |= {f"{file.name} {name}": as_bytes(tensor) for name, tensor in tensors.items()}
    return found


def as_bytes(tensor: torch.Tensor) -> bytes:
    """Type, shape and content."""
    content = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {list(tensor.shape)} ".encode() + content


def differing(first: dict[str, bytes], second: dict[str, bytes]) -> int:
    """Bytes that differ, or that only one of them has."""
    total = 0
    for name in first.keys() | second.keys():
        a, b = first.get(name, b""), second.get(name, b"")
        total += sum(x != y for x, y in zip(a, b)) + abs(len(a) - len(b))
    return total


# The three parts ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Count:
    """What has been done so far, and what was wrong: of runs, and of bad inputs."""

    kills: dict[str, int] = dataclasses.field(default_factory=dict)  # by experiment
    in_checkpoints: int = 0
    ended: int = 0
    accepted: int = 0
    refused: int = 0
    seeds: int = 0  # tried
    ways: dict[str, int] = dataclasses.field(default_factory=dict)  # compared
    bytes: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)
    wrong_inputs: list[str] = dataclasses.field(default_factory=list)


@contextlib.contextmanager
def counted(count: Count, what: str, clear: Callable[[], None] = lambda: None) -> Iterator[None]:
    """What raises in here is counted as wrong, and cleared away; the soak goes on."""
    try:
        yield
    except rubbish.Wrong as error:
        count.wrong.append(f"{what} {error}")
        clear()
    except Exception as error:  # nothing that a run leaves behind may end the soak
        traceback.print_exc()
        count.wrong.append(f"{what} ends in {type(error).__name__}: {error}")
        clear()


def kill_at_random(
    pid: int, checkpoints: Path, within: float, aim: bool, rng: random.Random, limit: float
) -> str:
    """Kill a child at some moment, or from then on while it writes a checkpoint, where that is the aim: ``ended`` (too
    late), ``killed`` or ``writing``. One that neither writes nor ends within the limit hangs."""
    began = time.perf_counter()
    at = began + rng.uniform(0, within)
    while True:
        if ended(pid):
            return "ended"
        now = time.perf_counter()
        late = now >= at
        writing = late and checkpoints.is_dir() and any(n.endswith(".part") for n in os.listdir(checkpoints))
        if writing or (late and not aim):
            status = kill(pid)
            if status != -signal.SIGKILL:
                require_well(status)
                return "ended"
            return "writing" if writing else "killed"
        if now >= began + limit:
            kill_hanging(pid, limit)
        if not late:
            time.sleep(0.0005)


@dataclasses.dataclass
class Victim:
    """A run that is killed and gone on with, again and again.

    Attributes:
        place: where it runs.
        expected: what it comes to where it is left alone.
        seconds: that it takes then.
        left: kills to go.
        under_way: whether it has been begun, and not ended yet.
    """

    name: str
    config: Config
    place: Path
    expected: dict[str, bytes]
    seconds: float
    left: int
    under_way: bool = False

    def run(self) -> int:
        """Begin it or go on with it, in a child."""
        self.under_way = True
        return child(lambda: train(self.config, self.place))

    def clear(self) -> None:
        """Make room for the next one."""
        if self.place.exists():
            shutil.rmtree(self.place)
        self.under_way = False

    def end(self, count: Count) -> None:
        """Compare what it came to, and clear it away."""
        differ = differing(self.expected, contents(self.place))
        if differ:
            count.wrong.append(f"{differ} bytes of {self.name} differ from a run left alone")
        count.bytes += differ
        count.ended += 1
        self.clear()


def victims(folder: Path, each: int, names: list[str] | None = None) -> list[Victim]:
    """Every experiment, left alone once. Its kernels are then compiled, and loaded in the children."""
    found = []
    for name, config in experiments().items():
        if names and name not in names:
            continue
        try:
            found.append(left_alone(name, config, folder, each))
        except Exception as error:  # whatever it is, there is nothing to compare with
            traceback.print_exc()
            sys.exit(f"{name}, left alone: {error}")
    return found


def left_alone(name: str, config: Config, folder: Path, each: int) -> Victim:
    """Run an experiment here and once more in a child, which is the first to be compared."""
    alone = folder / f"{name} alone"
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(config, alone)
    limit = patience(time.perf_counter() - began)
    victim = Victim(name, config, folder / name, contents(alone), 0.0, each)
    began = time.perf_counter()
    finish(victim.run(), limit)
    victim.seconds = time.perf_counter() - began
    return victim


def kills(count: Count, running: list[Victim], until: float, rng: random.Random) -> None:
    """Kill the runs in turn until none has kills left or the time is up, and let them end and compare them."""
    for victim in running:
        count.kills[victim.name] = 0
        with counted(count, victim.name, victim.clear):
            victim.end(count)
    while any(v.left for v in running) and time.perf_counter() < until:
        for victim in running:
            if victim.left and time.perf_counter() < until:
                with counted(count, victim.name, victim.clear):
                    kill_or_end(count, victim, rng)
    for victim in running:
        if victim.under_way:
            with counted(count, victim.name, victim.clear):
                finish(victim.run(), patience(victim.seconds))
                victim.end(count)


def kill_or_end(count: Count, victim: Victim, rng: random.Random) -> None:
    """Go on with a run and kill it, or compare it where it was faster."""
    aim = sum(count.kills.values()) % 2 == 0  # every second one; the first, so that few suffice
    limit = patience(victim.seconds)
    how = kill_at_random(victim.run(), victim.place / "checkpoints", victim.seconds, aim, rng, limit)
    if how == "ended":
        victim.end(count)
        return
    victim.left -= 1
    count.kills[victim.name] += 1
    count.in_checkpoints += how == "writing"


def missed(count: Count, each: int) -> list[str]:
    """What the kills of a soak fall short of, a line each.

    Example:
        >>> missed(Count(kills={"sgd": 3, "mp": 20}), each=20)
        ['sgd was killed 3 times of 20: not enough time', 'no checkpoint was hit while it was written']
    """
    found = [
        f"{name} was killed {done} times of {each}: not enough time"
        for name, done in count.kills.items()
        if done < each
    ]
    return found if count.in_checkpoints else [*found, "no checkpoint was hit while it was written"]


_MUCH = 6 << 30
"""Bytes beyond what the process has when the rubbish begins: more ends in an error that is counted, not in the end of
everything."""


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """No more memory than that, where the system can say so."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + _MUCH, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def bad_inputs(count: Count, until: float, rng: random.Random, folder: Path, most: int | None = None) -> None:
    """Try rubbish of every kind in turn until the time is up, or so many of each."""
    runs = rubbish.finished_runs(folder)
    net, chip = rubbish.programmed(folder)
    files = rubbish.data_files(folder / "data")
    aimc.calibrate(net, [torch.randn(32, 6)])
    result = rubbish.saved_result(folder, net)
    texts, pulses = rubbish.text_files(folder / "texts"), rubbish.pulses_file(folder)
    comparison = rubbish.comparison_file(folder)
    checkpoints = [file for run in runs for file in sorted((run / "checkpoints").iterdir())]
    kinds: dict[str, Callable[[int], bool]] = {
        "configuration": rubbish.try_configuration,
        "layer": rubbish.try_layer,
        "state": rubbish.try_state,
        "checkpoint": lambda seed: rubbish.try_checkpoint(seed, checkpoints[seed % len(checkpoints)]),
        "chip": lambda seed: rubbish.try_chip(seed, net, chip),
        "run directory": lambda seed: rubbish.try_run_directory(seed, runs[seed % len(runs)]),
        "data": lambda seed: rubbish.try_data(seed, files[seed % len(files)]),
        "result": lambda seed: rubbish.try_result(seed, result),
        "settings": rubbish.try_settings,
        "text": lambda seed: rubbish.try_text(seed, texts[seed % len(texts)]),
        "pulses": lambda seed: rubbish.try_pulses(seed, pulses),
        "comparison": lambda seed: rubbish.try_comparison(seed, comparison),
    }
    tried = 0
    while time.perf_counter() < until and (most is None or tried < most):
        tried += 1
        try_apart(count, kinds, rng)


_SILENCE = 2.0 * (rubbish.LIMIT + rubbish.GRACE)
"""Seconds without an answer after which a bad input hangs. An input may be judged twice, and the judge knows better
where it hangs: this is for what hangs elsewhere."""


def try_apart(count: Count, kinds: dict[str, Callable[[int], bool]], rng: random.Random) -> None:
    """One input of every kind, in a child: one that ends its process, or that never ends, is wrong as well."""
    queue = [(name, rng.randrange(1 << 40)) for name in kinds]
    while queue:
        reader, writer = os.pipe()
        pid = child(lambda q=queue, w=writer: _try_all(q, kinds, w))
        os.close(writer)
        silent = False
        for (name, seed), answer in zip(queue[:], _answers(reader)):
            silent = answer is None
            if silent:
                break
            queue.pop(0)
            count.accepted += answer == "taken"
            count.refused += answer == "refused"
            if answer not in ("taken", "refused"):
                count.wrong_inputs.append(f"{name}, seed {seed}: {answer}")
        os.close(reader)
        status = kill(pid)  # it has ended, has nothing left to do, or hangs
        if queue:
            name, seed = queue.pop(0)
            end = f"hangs: no answer in {_SILENCE:.0f} s" if silent else f"ends its process ({status})"
            count.wrong_inputs.append(f"{name}, seed {seed}, {end}")


def _answers(reader: int) -> Iterator[str | None]:
    """What a child says of one input after the other, until it ends; none where it is silent for too long."""
    said = b""
    while select.select([reader], [], [], _SILENCE)[0]:
        more = os.read(reader, 1 << 16)
        if not more:
            return
        *whole, said = (said + more).split(b"\n")
        yield from map(json.loads, whole)
    yield None


def _try_all(queue: list[tuple[str, int]], kinds: dict[str, Callable[[int], bool]], writer: int) -> None:
    with bounded_memory():
        for name, seed in queue:
            try:
                answer = "taken" if kinds[name](seed) else "refused"
            except rubbish.Wrong as error:
                answer = str(error)
            os.write(writer, json.dumps(answer).encode() + b"\n")


def seeds(count: Count, until: float, rng: random.Random, folder: Path, most: int | None = None) -> None:
    """Make every run twice with one seed, in two ways that have to come to the same."""
    kinds = [(name, way, config) for name, config in experiments().items() for way in ways(config)]
    for name, hardware in (("pcm", presets.pcm()), ("reram", presets.reram(20, io="noisy"))):
        kinds.append((name, "loader workers", hardware))
    rng.shuffle(kinds)
    while time.perf_counter() < until and (most is None or count.seeds < most):
        name, way, config = kinds[count.seeds % len(kinds)]
        seed = rng.randrange(1 << 31)
        count.seeds += 1
        about = f"{name}, seed {seed}, {way},"
        with counted(count, about), tempfile.TemporaryDirectory(dir=folder) as place:
            differ = differing(*(outcome(way, config, seed, s, Path(place)) for s in (False, True)))
            if differ:
                count.wrong.append(f"{about} differs in {differ} bytes")
            count.bytes += differ
            count.ways[way] = count.ways.get(way, 0) + 1


def outcome(way: str, config: Any, seed: int, second: bool, folder: Path) -> dict[str, bytes]:
    """What a run comes to in one of two ways, in a child."""
    place = folder / str(second)
    if way == "loader workers":
        finish(child(lambda: torch.save(dict(trained(config, 2 * second, Drawn(), seed)), place)), _LONG)
        return {name: as_bytes(tensor) for name, tensor in torch.load(place, weights_only=True).items()}
    changed = config.replace(seed=seed, **ways(config)[way][second])
    core = min(os.sched_getaffinity(0)) if way == "cores" and not second else None
    finish(child(lambda: train(changed, place), core), _LONG)
    return contents(place, setting=False)  # it says which way it was


def ways(config: Config) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of settings that change nothing: on one core and on all of them, where chips are evaluated side by side,
    and others. Torch's own sums, of which a hardware-aware network has many, are other ones with other threads;
    those of mixed precision from some dozen hidden units on, which the networks here do not have."""
    found: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {"cores": ({}, {})}
    if isinstance(config, in_memory.InSituExperiment):
        found["threads"] = {"threads": 1}, {"threads": 2}
        # Reads through converters round a sum to one level or the next; the plain body is slow.
        small = {"hardware.forward": None, "hardware.backward": None, "hardware.transfer": None, "epochs": 1,
                 "dataset.train_images": 40}  # fmt: skip
        found["backends"] = {"backend": "cpu", **small}, {"backend": "reference", **small}
    return found


def main(argv: list[str] | None = None) -> int:
    """Soak for some minutes and print what came of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="about how long (default: 10)")
    parser.add_argument("--kills", type=int, default=20, help="of every experiment (default: 20)")
    parser.add_argument(
        "--only", nargs="*", choices=list(experiments()), help="experiments to kill (default: all)"
    )
    parser.add_argument(
        "--most",
        type=int,
        help="of every kind of bad input, and of seeds; 0: kills alone (default: until the time is up)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the rubbish")
    asked = parser.parse_args(argv)
    if not (hasattr(os, "fork") and hasattr(os, "sched_getaffinity")):
        sys.exit("the soak needs Linux: this system cannot fork processes and keep them on one core")
    torch.set_num_threads(1)
    # What torch says of layers without inputs.
    warnings.filterwarnings("ignore", "Initializing zero-element tensors")
    rng, count, began = random.Random(asked.seed), Count(), time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        running = victims(folder, asked.kills, asked.only)
        print(f"{time.perf_counter() - began:.0f} s until every run had been left alone once", flush=True)
        minutes = time.perf_counter()
        # What is asked for by number comes first, and takes a third of the time on two idle cores. The rest is kept.
        with counted(count, "killing runs"):
            kills(count, running, minutes + 36 * asked.minutes, rng)
        print(f"{sum(count.kills.values())} kills survived, {count.in_checkpoints} of them while a checkpoint was "
              f"written, in {count.ended} runs that ended: "
              f"{', '.join(f'{n} {name}' for name, n in count.kills.items())}", flush=True)  # fmt: skip
        left = max(0.0, 60 * asked.minutes - (time.perf_counter() - minutes))
        with counted(count, "comparing seeds"):
            seeds(count, time.perf_counter() + 0.4 * left, rng, folder, asked.most)
        among = ", ".join(f"{n} {way}" for way, n in sorted(count.ways.items()))
        print(f"{sum(count.ways.values())} seeds compared: {among or 'none'}", flush=True)
        if asked.most != 0:
            with counted(count, "trying bad inputs"):
                bad_inputs(count, minutes + 60 * asked.minutes, rng, folder, asked.most)
    return summary(count, asked.kills, asked.most != 0, time.perf_counter() - began)


def summary(count: Count, each: int, everything: bool, seconds: float) -> int:
    """Print what came of bad inputs, all that was wrong and what was missed; returns the status to end with.

    Args:
        count: what was done.
        each: kills asked for of every experiment.
        everything: whether more than kills was asked for.
        seconds: that it took.
    """
    tried = count.accepted + count.refused + len(count.wrong_inputs)
    print(f"{tried} bad inputs tried: {count.refused} refused with a reason, {count.accepted} taken, "
          f"{len(count.wrong_inputs)} wrong")  # fmt: skip
    wrong = count.wrong + count.wrong_inputs
    for text in wrong:
        print(f"WRONG: {text}")
    print(f"{count.bytes} bytes differ")
    print(f"{seconds:.0f} s")
    undone = missed(count, each)
    undone += [
        f"no {name} was tried: not enough time"
        for name, done in (("seed", count.seeds), ("bad input", tried))
        if everything and not done
    ]
    for text in undone:
        print(f"MISSED: {text}")
    return 1 if wrong or count.bytes or undone else 0


if __name__ == "__main__":
    sys.exit(main())
