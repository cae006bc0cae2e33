"""Functions that numba compiles, and keeps on disk where it can."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
from numba.core.caching import FunctionCache

from aimc.errors import warn


class _Cache(FunctionCache):
    """The files spare the next process the compilation; a disk that has no room for them stops nobody."""

    def save_overload(self, sig, data):
        try:
            super().save_overload(sig, data)
        except OSError as error:
            _warn(f"in {self.cache_path}: {error.strerror}")


def njit(**options: Any) -> Callable[[Callable], Any]:
    """``numba.njit``, but for a cache that cannot be written: then every process compiles anew, and says so once.

    Example:
        >>> @njit(nogil=True)
        ... def double(x):
        ...     return 2 * x
        >>> double(3)
        6
    """

    def compiled(function: Callable) -> Any:
        compile: Any = numba.njit
        try:
            made = compile(**options)(function)
        except RuntimeError as error:  # it found no folder to write to
            if not options.get("cache"):
                raise
            _warn(str(error))
            return compile(**{**options, "cache": False})(function)
        if isinstance(getattr(made, "_cache", None), FunctionCache):
            made._cache.__class__ = _Cache
        return made

    return compiled


_warned = False


def _warn(why: str) -> None:
    global _warned
    if not _warned:
        _warned = True
        warn(
            f"compiled functions cannot be kept ({why}), so that every start compiles them; NUMBA_CACHE_DIR names "
            "another folder",
        )
