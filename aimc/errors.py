"""The one exception type that aimc raises for anything a user can mend."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable, Sequence


class AimcError(ValueError):
    """An error that knows where it happened.

    Low-level code raises it with the cause and the way out; code further up adds the layer, the field and the
    shape with :meth:`at` while the exception rises, so that the message names all of them.

    Args:
        message: the cause and the way out.
        layer: dotted name of the layer in the network.
        field: dotted name of the configuration field or argument.
        shape: shape of the offending tensor.

    Example:
        >>> str(AimcError("must be at least 2, got 1", field="adc.bits", layer="fc1"))
        "layer 'fc1', field 'adc.bits': must be at least 2, got 1"
    """

    def __init__(
        self,
        message: str,
        *,
        layer: str | None = None,
        field: str | None = None,
        shape: Sequence[int] | None = None,
    ):
        super().__init__(message)
        self.message, self.layer, self.field = message, layer, field
        self.shape = tuple(shape) if shape is not None else None

    def at(self, *, layer: str | None = None, field: str | None = None, shape: Sequence[int] | None = None):
        """Add context and return the same exception; a field is prefixed to the one already known.

        Example:
            >>> str(AimcError("too small", field="bits").at(field="adc"))
            "field 'adc.bits': too small"
        """
        if layer is not None and self.layer is None:
            self.layer = layer
        if field is not None:
            inner = self.field or ""
            self.field = f"{field}.{inner}" if inner and not inner.startswith("[") else f"{field}{inner}"
        if shape is not None and self.shape is None:
            self.shape = tuple(shape)
        return self

    def __str__(self) -> str:
        where = []
        if self.layer is not None:
            where.append(f"layer {self.layer!r}")
        if self.field is not None:
            where.append(f"field {self.field!r}")
        if self.shape is not None:
            where.append(f"shape {list(self.shape)}")
        return f"{', '.join(where)}: {self.message}" if where else self.message

    def __reduce__(self):
        return _rebuild, (type(self), self.message, self.layer, self.field, self.shape)


class BusyError(AimcError):
    """Another process is at work where one wants to write; it is left alone.

    Example:
        >>> isinstance(BusyError("process 12 is at work in runs/a"), AimcError)
        True
    """


def _rebuild(cls, message, layer, field, shape):
    return cls(message, layer=layer, field=field, shape=shape)


def suggest(name: str, known: Iterable[str]) -> str:
    """A sentence that offers the nearest known name, or lists the known ones.

    Example:
        >>> suggest("roows", ["rows", "columns"])
        "did you mean 'rows'?"
    """
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"


_BETWEEN = ("aimc", "torch", "contextlib", "joblib", "threading", "concurrent")


def warn(message: str) -> None:
    """Warn about a user's line: the nearest one that is not of this package, or of what calls its functions for it."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").split(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
