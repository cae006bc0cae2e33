"""Independent jobs side by side: on threads or processes of this machine, by joblib, or on a Ray cluster.

A job that is lost with its worker is given out again; what a job computes must not depend on where or how often it
runs.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextvars import ContextVar
from typing import Any, Literal, TypeVar

import joblib
import torch

from aimc.errors import AimcError, suggest

Item = TypeVar("Item")
Result = TypeVar("Result")
Kind = Literal["threads", "processes"]

ENGINES = ("threads", "processes", "ray")
_chosen: ContextVar[str | None] = ContextVar("engine", default=None)


@contextlib.contextmanager
def engine(name: str | None) -> Iterator[None]:
    """Within this context jobs run on an engine; None leaves the choice to who gives them out.

    Args:
        name: one of :data:`ENGINES`. ``ray`` takes the cluster that ``ray.init`` has connected to or that
            ``RAY_ADDRESS`` names, or else this machine.

    Raises:
        AimcError: no such engine, it is not installed, or its cluster cannot be reached.

    Example:
        >>> with engine("threads"):
        ...     sorted(result for _, result in carried_out(abs, [-1, -2], jobs=2))
        [1, 2]
    """
    if name is not None and name not in ENGINES:
        raise AimcError(f"no engine is called {name!r}; {suggest(name, ENGINES)}", field="engine")
    if name == "ray":
        _connect()
    before = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(before)


def shares_process(prefer: Kind) -> bool:
    """Whether jobs that prefer threads, or processes, would be threads of this process.

    Example:
        >>> shares_process("threads")
        True
    """
    return (_chosen.get() or prefer) == "threads"


def most() -> int:
    """How many jobs the engine takes at a time.

    Example:
        >>> most() >= 1
        True
    """
    if _chosen.get() == "ray":
        import ray

        return max(1, int(ray.cluster_resources().get("CPU", 1)))
    return joblib.cpu_count()


def carried_out(
    work: Callable[[Item], Result], items: Sequence[Item], jobs: int, prefer: Kind = "processes"
) -> Iterator[tuple[int, Result | AimcError]]:
    """Do ``work`` for every item and yield ``(number of the item, what came of it)`` as they are done.

    Where workers die, the jobs that they leave are given out once more; if that happens again each is tried alone, so
    that one that kills its worker does not take the others with it.

    Args:
        work: called with an item; on another process a copy of it is.
        items: what to work on.
        jobs: so many at a time.
        prefer: threads or processes, where :func:`engine` does not say.

    Returns:
        An :class:`AimcError` that ``work`` raised, or that says that the worker died three times, is yielded, not
        raised; anything else is raised.

    Example:
        >>> sorted(carried_out(len, ["a", "bc"], jobs=1))
        [(0, 1), (1, 2)]
    """
    if jobs < 1:
        raise AimcError(f"must be at least 1, got {jobs}", field="jobs")
    left = list(range(len(items)))
    if jobs == 1 and prefer == "threads":
        for number in left:
            yield number, _guarded(work, items[number])
        return
    for _ in range(2):
        try:
            for number, found in _once(work, items, list(left), jobs, prefer):
                left.remove(number)
                yield number, found
            return
        except BaseException as error:
            if not _is_death(error):
                raise
    for number in list(left):
        try:
            for _, found in _once(work, items, [number], 2, prefer):
                yield number, found
        except BaseException as error:
            if not _is_death(error):
                raise
            yield (
                number,
                AimcError(
                    f"its process died, three times ({type(error).__name__}): killed from outside, or out of memory?",
                    field="jobs",
                ),
            )


def stop_workers() -> None:
    """End the processes at work, whatever they are at, after an interruption; the work must be able to go on later."""
    from joblib.externals.loky import reusable_executor

    executor = reusable_executor._executor
    if executor is not None:
        executor.shutdown(wait=True, kill_workers=True)
    _cancel(_on_cluster)


def _once(
    work: Callable[[Item], Result], items: Sequence[Item], numbers: Sequence[int], jobs: int, prefer: Kind
) -> Iterator[tuple[int, Result | AimcError]]:
    """One attempt; raises where a worker dies."""
    chosen = _chosen.get() or prefer
    parent = os.getpid() if chosen == "processes" else None
    do = functools.partial(_numbered, work, torch.get_num_threads(), parent)
    if chosen == "ray":
        yield from _by_ray(do, items, numbers, jobs)
        return
    backend = {"threads": "threading", "processes": "loky"}[chosen]
    # All are given out at once: with a part of them, the rest would wait for this generator to be asked.
    given: dict[str, Any] = {"return_as": "generator_unordered", "pre_dispatch": "all", "batch_size": 1}
    results: Any = joblib.Parallel(jobs, backend, **given)(joblib.delayed(do)(n, items[n]) for n in numbers)
    try:
        for outcome in results:  # noqa: UP028  (by "yield from" an end would reach joblib before what follows)
            yield outcome
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells of jobs that nobody waits for
            results.close()


def _numbered(
    work: Callable[[Item], Result], threads: int, parent: int | None, number: int, item: Item
) -> tuple[int, Result | AimcError]:
    if parent not in (None, os.getpid()):
        _end_with(parent)  # which may be gone already
    # An engine gives the threads of a worker another number, with which torch adds in another order.
    torch.set_num_threads(threads)
    return number, _guarded(work, item)


@functools.cache
def _end_with(parent: int) -> None:
    """In a worker: end when the process is gone that wanted the work, also when it was killed. Otherwise workers would
    go on, and hold the runs that are to be gone on with."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_GLANCE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_GLANCE = 0.5
"""Seconds between looks whether the parent is there."""


def _guarded(work: Callable[[Item], Result], item: Item) -> Result | AimcError:
    try:
        return work(item)
    except AimcError as error:
        return error


# Ray ------------------------------------------------------------------------------------------------------------------
# Not by way of joblib: its backend of Ray hands results over only when all are there.

_on_cluster: set[Any] = set()
"""Jobs that Ray has and has not returned."""


def _connect() -> None:
    try:
        import ray
    except ImportError:
        raise AimcError("ray is not installed: pip install 'aimc[ray]'", field="engine") from None
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    options: dict[str, Any] = {} if address is not None else {"include_dashboard": False}
    try:
        ray.init(log_to_driver=False, **options)
    except (
        Exception
    ) as error:  # of many kinds: what cannot be reached, does not answer, or is of another version
        reason = f"({type(error).__name__}: {' '.join(str(error).split())[:300]})"
        if address is None:
            raise AimcError(f"ray cannot be started on this machine {reason}", field="engine") from None
        raise AimcError(
            f"no Ray cluster can be reached at RAY_ADDRESS={address} {reason}; start it, correct RAY_ADDRESS, or unset "
            "it to use this machine",
            field="engine",
        ) from None


def _by_ray(
    do: Callable[[int, Any], Any], items: Sequence[Any], numbers: Sequence[int], jobs: int
) -> Iterator[tuple[int, Any]]:
    import ray

    remote = ray.remote(max_retries=0)(_call)
    shared = ray.put(do)  # the network in it crosses once, not with each job
    waiting, mine, death = list(numbers), set(), None
    try:
        while waiting or mine:
            while waiting and len(mine) < jobs:
                number = waiting.pop(0)
                job = remote.remote(shared, number, items[number])
                mine.add(job)
                _on_cluster.add(job)
            (done, *_), _ = ray.wait(list(mine))
            mine.discard(done)
            _on_cluster.discard(done)
            try:
                yield ray.get(done)
            except Exception as error:
                if not _is_death(error):
                    raise
                death = error  # the others are alive, and go on
    finally:
        _cancel(mine)
    if death is not None:
        raise death


def _call(do: Callable[[int, Any], Any], number: int, item: Any) -> Any:
    return do(number, item)


def _cancel(jobs: set[Any]) -> None:
    """Kill the jobs that Ray still has."""
    for job in list(jobs):
        import ray

        ray.cancel(job, force=True)
        _on_cluster.discard(job)


def _is_death(error: BaseException) -> bool:
    """Whether an exception says that a worker is gone, and not that its work went wrong."""
    return isinstance(error, BrokenExecutor) or type(error).__name__ in _DEATHS


_DEATHS = (
    "WorkerCrashedError",
    "NodeDiedError",
    "OutOfMemoryError",
    "LocalRayletDiedError",
    "OwnerDiedError",
)
"""Ray's, by name: it may not be installed."""
