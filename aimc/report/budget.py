"""What training in memory has used, for comparisons at equal budget: pulses, column reads, digital numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypedDict

Row = dict[str, Any]


class Budget(TypedDict):
    """Of one layer or of a network.

    Attributes:
        pulses, reads: of all cells, and of columns, per sample.
        products: digital multiplications per sample.
        kept, passing: digital numbers from step to step, and beside them within a step, each layer with its own.
    """

    pulses: float
    reads: float
    products: float
    kept: int
    passing: int


def samples(rows: Sequence[Row]) -> list[int] | None:
    """Samples that were seen up to each epoch; None where the records are older than this count."""
    if not rows or any("samples" not in row for row in rows):
        return None
    seen, found = 0, []
    for row in rows:
        seen += row["samples"]
        found.append(seen)
    return found


def budgets(rows: Sequence[Row]) -> dict[str, Budget] | None:
    """What each layer has used up to the last of these epochs; None without cells, or where the records are older.

    Example:
        >>> tile = {"pulses": 40, "reads": 8}
        >>> digital = {"kept": 6, "passing": 2, "products": 6}
        >>> layer = {"updates": 2, "vectors": 8, "digital": digital, "tiles": [tile, tile]}
        >>> budgets([{"samples": 4, "layers": {"fc": layer}}])
        {'fc': {'pulses': 20.0, 'reads': 4.0, 'products': 12.0, 'kept': 6, 'passing': 2}}
    """
    seen = samples(rows)
    layers = rows[-1]["layers"] if rows else {}
    if seen is None or not layers or any("digital" not in held for held in layers.values()):
        return None
    count, found = max(seen[-1], 1), {}
    for name, held in layers.items():
        digital = held["digital"]
        found[name] = Budget(
            pulses=sum(t["pulses"] for t in held["tiles"]) / count,
            reads=sum(t["reads"] for t in held["tiles"]) / count,
            products=digital["products"] * held["vectors"] / count,
            kept=digital["kept"],
            passing=digital["passing"],
        )
    return found


def total(parts: Iterable[Budget]) -> Budget:
    """Of some layers together."""
    parts = list(parts)
    return Budget(
        pulses=sum(p["pulses"] for p in parts), reads=sum(p["reads"] for p in parts),
        products=sum(p["products"] for p in parts), kept=sum(p["kept"] for p in parts),
        passing=sum(p["passing"] for p in parts),
    )  # fmt: skip


def pulses_so_far(rows: Sequence[Row]) -> list[float] | None:
    """Pulses of all cells up to each epoch."""
    if not rows or any("digital" not in held for row in rows for held in row["layers"].values()):
        return None
    return [sum(t["pulses"] for held in row["layers"].values() for t in held["tiles"]) for row in rows]


def share(value: float | None) -> str:
    """Per cent, or a dash."""
    return "-" if value is None else f"{100 * value:.1f}"
