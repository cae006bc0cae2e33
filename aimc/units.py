"""Times given by people: seconds, or a number with a unit."""

from __future__ import annotations

import math
import re

from aimc.errors import AimcError

_SECONDS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0, "y": 31536000.0}
_PATTERN = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*(s|min|m|h|d|w|y)?\s*", re.IGNORECASE)


def seconds(time: float | int | str) -> float:
    """Seconds after the end of programming. A year has 365 days.

    Args:
        time: a number of seconds, or text such as ``"20s"``, ``"30min"``, ``"1h"``, ``"30d"``, ``"1w"``, ``"1y"``.

    Raises:
        AimcError: negative, not finite, or not understood.

    Example:
        >>> seconds("1h"), seconds(20), seconds("1y")
        (3600.0, 20.0, 31536000.0)
    """
    if isinstance(time, str):
        match = _PATTERN.fullmatch(time)
        try:
            value = float(match[1]) * _SECONDS[(match[2] or "s").lower()] if match else math.nan
        except ValueError:
            value = math.nan
    elif isinstance(time, (int, float)) and not isinstance(time, bool):
        value = float(time)
    else:
        value = math.nan
    if not math.isfinite(value) or value < 0:
        raise AimcError(f"not a time: {time!r}; give seconds or text like '1h', '30d', '1y'", field="time")
    return value


def readable(time: float) -> str:
    """A time in its largest whole unit.

    Example:
        >>> readable(3600.0), readable(31536000.0), readable(90.0)
        ('1 h', '1 y', '90 s')
    """
    for unit in ("y", "w", "d", "h", "min"):
        if time >= _SECONDS[unit] and time % _SECONDS[unit] == 0:
            return f"{time / _SECONDS[unit]:.0f} {unit}"
    return f"{time:g} s"
