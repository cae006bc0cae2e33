"""A small thread pool for kernels that release the GIL."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise

import torch

_ALIGN = 64  # chunks begin at multiples of this, so that no two threads share a cache line

_lock = threading.Lock()
_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_worker = threading.local()


def _mark_worker() -> None:
    _worker.inside = True


def _get_pool(size: int) -> ThreadPoolExecutor:
    global _pool, _pool_size
    with _lock:
        if _pool is None or _pool_size < size:
            # the old pool is dropped, not shut down: another thread may still submit to it, and its idle
            # threads end when it is collected
            _pool, _pool_size = ThreadPoolExecutor(size, "aimc", initializer=_mark_worker), size
        return _pool


def _after_fork() -> None:
    """Threads do not survive a fork, and the lock may have been held by one of them."""
    global _lock, _pool, _pool_size
    _lock, _pool, _pool_size = threading.Lock(), None, 0
    _worker.inside = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def run_chunks(fn: Callable[[int, int], object], total: int, minimum_chunk: int, align: int = _ALIGN) -> None:
    """Call ``fn(start, stop)`` over contiguous ranges that together cover ``range(total)``.

    The ranges run at the same time on up to ``torch.get_num_threads()`` threads, the caller's among them, so
    ``fn`` must release the GIL to gain anything and must give the same result for any division. A call from
    inside a worker runs in that worker.

    Args:
        fn: called with ``0 <= start < stop <= total``; what it returns is dropped.
        total: number of elements; nothing is called when it is 0.
        align: ranges begin at multiples of this.
        minimum_chunk: no range is (noticeably) shorter than this, so small totals stay on the calling thread.

    Raises:
        whatever ``fn`` raises, after every range has ended.

    Example:
        >>> seen = []
        >>> run_chunks(lambda start, stop: seen.append((start, stop)), 10, 100)
        >>> seen
        [(0, 10)]
    """
    if total <= 0:
        return
    count = min(torch.get_num_threads(), total // max(minimum_chunk, 1))
    if count <= 1 or getattr(_worker, "inside", False):
        fn(0, total)
        return
    edges = [total * i // count // align * align for i in range(count)] + [total]
    ranges = [(a, b) for a, b in pairwise(edges) if a < b]
    pool = _get_pool(count - 1)
    futures = [pool.submit(fn, a, b) for a, b in ranges[:-1]]
    try:
        fn(*ranges[-1])
    finally:
        wait(futures)
    for future in futures:
        future.result()
