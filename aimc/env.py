"""Variables of the environment that would end the import of aimc, and that it does not need. Imported first."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

from aimc.errors import warn


def drop_unusable(environ: MutableMapping[str, str]) -> None:
    """Take out a number of numba's threads with which numba cannot be imported; no kernel of aimc uses them.

    Example:
        >>> environ = {"NUMBA_NUM_THREADS": "2"}
        >>> drop_unusable(environ); environ
        {'NUMBA_NUM_THREADS': '2'}
    """
    asked = environ.get("NUMBA_NUM_THREADS", "")
    try:
        unusable = int(asked) < 1
    except ValueError:  # numba itself passes over what is no number
        return
    if unusable:
        del environ["NUMBA_NUM_THREADS"]
        warn(f"NUMBA_NUM_THREADS={asked} is ignored: it has to be at least 1")


drop_unusable(os.environ)
