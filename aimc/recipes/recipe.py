"""What a recipe says about itself."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable

from aimc.config import Config


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A function that returns a configuration, and what its docstring promises.

    Example:
        >>> from aimc.recipes import RECIPES
        >>> RECIPES["demo"].config().dataset.name
        'mnist_small'
    """

    function: Callable[[], Config]

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.__name__

    def config(self) -> Config:
        """The complete configuration."""
        return self.function()

    @property
    def summary(self) -> str:
        """The first line."""
        return self._text.split("\n")[0]

    @property
    def expected(self) -> str:
        """The measured result."""
        return self._section("Expected")

    @property
    def machine(self) -> str:
        """The computer it was measured on."""
        return self._section("Machine")

    @property
    def time(self) -> str:
        """How long it took there."""
        return self._section("Time")

    @property
    def _text(self) -> str:
        return inspect.cleandoc(self.function.__doc__ or "")

    def _section(self, name: str) -> str:
        match = re.search(rf"^{name}: (.*?)(?=\n\n|\n[A-Z]\w+: |\Z)", self._text, re.DOTALL | re.MULTILINE)
        return " ".join(match[1].split()) if match else ""
