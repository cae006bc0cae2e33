"""Break the code on purpose and see that the tests notice: python tools/mutants.py [WORD ...]

Each line of tools/mutants.txt is one mutant: file | old text | new text | tests to run. The old text must occur
exactly once in the file. All mutants are tried in copies of the tree, two at a time; one that the tests let live is a
failure, and so is one whose tests fail without it. With words, only mutants whose line holds one of them are tried.
"""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("aimc", "tests", "tools", "docs")
WORKERS = 2
TIMEOUT = 600  # seconds; a mutant that hangs is a mutant that was noticed


@dataclass(frozen=True)
class Mutant:
    """One line of the list; without a path it is the code as it is."""

    tests: str
    path: str = ""
    old: str = ""
    new: str = ""


def read_mutants(words: list[str]) -> list[Mutant]:
    """The mutants of the list that hold one of the words."""
    mutants = []
    for number, line in enumerate((ROOT / "tools" / "mutants.txt").read_text().splitlines(), 1):
        if not line.strip() or line.startswith("#") or (words and not any(w in line for w in words)):
            continue
        parts = [part.strip() for part in line.split(" | ")]
        if len(parts) != 4:
            sys.exit(f"mutants.txt:{number} has {len(parts)} parts, not: file | old | new | tests")
        path, old, new, tests = parts
        count = (ROOT / path).read_text().count(old)
        if count != 1:
            sys.exit(f"mutants.txt:{number}: {old!r} occurs {count} times in {path}")
        mutants.append(Mutant(tests, path, old, new))
    return mutants


def run_tests(tree: Path, tests: str, numba_cache: Path | None) -> int:
    """Run pytest in the copy and return its status; called in a child process."""
    import numba
    import pytest

    output = os.open(tree.parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    signal.alarm(TIMEOUT)
    os.chdir(tree)
    sys.path.insert(0, str(tree))
    os.environ["PYTHONPATH"] = str(tree)
    if numba_cache is not None:
        os.environ["NUMBA_CACHE_DIR"] = str(numba_cache)
        numba.config.reload_config()  # type: ignore[attr-defined]  (made at run time)
    return int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)]))


def attempts(mutants: Iterable[Mutant], trees: list[Path]) -> Iterator[tuple[Mutant, bool, float]]:
    """Try the mutants, one a tree at a time; yields mutant, whether its tests passed, and seconds."""
    free, waiting = list(trees), list(mutants)[::-1]
    running: dict[int, tuple] = {}
    while waiting or running:
        while waiting and free:
            tree, mutant = free.pop(), waiting.pop()
            file = tree / mutant.path if mutant.path else None
            original, cache = file.read_text() if file else "", None
            if "njit" in original:
                # Other files' kernels may hold an inlined copy, and their caches do not notice: compile anew.
                cache = tree.parent / "numba"
                shutil.rmtree(cache, ignore_errors=True)
            stamp = file.stat() if file else None
            if file:
                file.write_text(original.replace(mutant.old, mutant.new))
            child = os.fork()  # the child finds torch and numba loaded already
            if child == 0:
                status = 3
                try:
                    status = run_tests(tree, mutant.tests, cache)
                finally:
                    os._exit(status)
            running[child] = tree, mutant, file, original, stamp, time.perf_counter()
        child, raw = os.wait()
        tree, mutant, file, original, stamp, began = running.pop(child)
        if file and stamp:
            file.write_text(original)
            os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # compiled kernels stay valid
        free.append(tree)
        status = os.waitstatus_to_exitcode(raw)
        if status > 2 and mutant.path:  # 2: the mutant does not even import
            sys.exit(f"pytest {mutant.tests} did not run:\n{(tree.parent / 'output.txt').read_text()}")
        yield mutant, status == 0, time.perf_counter() - began


def main() -> None:
    """Try every mutant and print one line for each."""
    mutants = read_mutants(sys.argv[1:])
    for name in ("torch", "numba", "scipy.stats", "hypothesis", "safetensors", "_pytest.assertion.rewrite"):
        importlib.import_module(name)
    with tempfile.TemporaryDirectory() as folder:
        trees = [Path(folder) / str(worker) / "aimc" for worker in range(WORKERS)]
        for tree in trees:
            tree.mkdir(parents=True)
            for name in FOLDERS:
                shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            for name in ("pyproject.toml", "README.md"):
                shutil.copy(ROOT / name, tree)
        print("running the tests with nothing broken", flush=True)
        unbroken = [Mutant(tests) for tests in sorted({m.tests for m in mutants})]
        failing = {mutant.tests for mutant, passed, _ in attempts(unbroken, trees) if not passed}
        for tests in sorted(failing):
            print(f"cannot tell: {tests} fails before anything is broken", flush=True)
        mutants = [m for m in mutants if m.tests not in failing]
        alive = 0
        for mutant, lives, seconds in attempts(mutants, trees):
            alive += lives
            verdict = "LIVES" if lives else "killed"
            print(f"{verdict:6}  {seconds:5.1f} s  {mutant.path}: {mutant.old}  ->  {mutant.new}", flush=True)
    if alive:
        sys.exit(f"{alive} of {len(mutants)} mutants live: the tests above do not test this")
    if failing:
        sys.exit(f"{len(mutants)} mutants killed; the rest has tests that fail without them")
    print(f"all {len(mutants)} mutants killed")


if __name__ == "__main__":
    main()
