"""What a person sees of a long run: bars in a terminal, one line per epoch elsewhere, nothing if not asked."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from aimc.arguments import checked

Advance = Callable[[int, int], None]
"""Called with the amount done and the total."""


class Progress:
    """Silent progress, and the interface of the others: lines of text and bars.

    Example:
        >>> progress = Progress()
        >>> with progress.bar("teacher") as advance:
        ...     advance(1, 10)
    """

    def line(self, text: str) -> None:
        """One thing that happened."""

    @contextlib.contextmanager
    def bar(self, label: str) -> Iterator[Advance]:
        """A bar for the time of a block."""
        yield lambda done, total: None


class Lines(Progress):
    """Lines only, for logs and pipes."""

    def line(self, text: str) -> None:
        print(text, flush=True)


class Bars(Progress):
    """Rich bars below the lines."""

    def __init__(self):
        from rich.console import Console

        self._console = Console(stderr=False)

    def line(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextlib.contextmanager
    def bar(self, label: str) -> Iterator[Advance]:
        from rich import progress as rich

        columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), rich.TaskProgressColumn(),
                   rich.TimeRemainingColumn())  # fmt: skip
        with rich.Progress(*columns, console=self._console, transient=True) as bars:
            task = bars.add_task(label, total=None)
            yield lambda done, total: bars.update(task, completed=done, total=total)


@checked
def choose_progress() -> Progress:
    """Bars where standard output is a terminal, lines elsewhere."""
    return Bars() if sys.stdout.isatty() else Lines()
