"""Break the code on purpose and see that the tests notice: python tools/mutants.py [WORD ...]

Each line of tools/mutants.txt is one mutant: file | old text | new text | tests to run. The old text must occur
exactly once in the file. All mutants are tried in copies of the tree, two at a time; one that the tests let live is a
failure, and so is one whose tests fail without it. With words, only mutants whose line holds one of them are tried.
"""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("aimc", "tests", "tools")
WORKERS = 2


def read_mutants(words: list[str]) -> list[tuple[str, str, str, str]]:
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
        mutants.append((path, old, new, tests))
    return mutants


def passes(tree: Path, tests: str, numba_cache: Path | None = None) -> bool:
    """Whether the tests pass in the copy."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests.split()]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    if numba_cache is not None:
        environment["NUMBA_CACHE_DIR"] = str(numba_cache)
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode not in (0, 1, 2):  # 2: the mutant does not even import
        raise SystemExit(f"pytest {tests} did not run:\n{done.stdout}{done.stderr}")
    return done.returncode == 0


def survives(tree: Path, path: str, old: str, new: str, tests: str) -> bool:
    """Whether the tests pass with the mutant in the copy, which is as before afterwards."""
    file = tree / path
    original, stamp = file.read_text(), file.stat()
    file.write_text(original.replace(old, new))
    try:
        if "njit" not in original:
            return passes(tree, tests)
        # Other files' kernels may hold an inlined copy, and their caches do not notice: compile everything anew.
        with tempfile.TemporaryDirectory() as cache:
            return passes(tree, tests, Path(cache))
    finally:
        file.write_text(original)
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # so that compiled kernels stay valid


def main() -> None:
    """Try every mutant and print one line for each."""
    mutants = read_mutants(sys.argv[1:])
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "0" / "aimc"
        tree.mkdir(parents=True)
        for name in FOLDERS:
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", tree)
        for tests in sorted({tests for *_, tests in mutants}):
            if not passes(tree, tests):
                sys.exit(f"{tests} fails before anything is broken")
        free: queue.SimpleQueue[Path] = queue.SimpleQueue()
        free.put(tree)
        for worker in range(1, WORKERS):  # copied only now, with the kernels that the tests above compiled
            shutil.copytree(tree, Path(folder) / str(worker) / "aimc")
            free.put(Path(folder) / str(worker) / "aimc")

        def attempt(mutant: tuple[str, str, str, str]) -> bool:
            copy = free.get()
            began = time.perf_counter()
            try:
                lives = survives(copy, *mutant)
            finally:
                free.put(copy)
            path, old, new, _ = mutant
            verdict = "LIVES" if lives else "killed"
            print(f"{verdict:6}  {time.perf_counter() - began:5.1f} s  {path}: {old}  ->  {new}", flush=True)
            return lives

        with ThreadPoolExecutor(WORKERS) as pool:
            alive = sum(pool.map(attempt, mutants))
    if alive:
        sys.exit(f"{alive} of {len(mutants)} mutants live: the tests above do not test this")
    print(f"all {len(mutants)} mutants killed")


if __name__ == "__main__":
    main()
