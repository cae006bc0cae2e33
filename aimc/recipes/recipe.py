"""What a recipe says about itself."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable
from typing import Any

from aimc.config import Config, options
from aimc.errors import AimcError, suggest


@dataclasses.dataclass(frozen=True)
class Argument:
    """A choice that a recipe offers on top of its configuration's fields.

    Attributes:
        name: as in the function.
        default: likewise.
        kinds: the types that fit; ``tuple`` is a list of names.
        text: what it means.
    """

    name: str
    default: Any
    kinds: tuple[type, ...]
    text: str

    @property
    def several(self) -> bool:
        """Whether it is a list of names."""
        return self.kinds == (tuple,)

    def check(self, value: Any) -> Any:
        """The value, as the function takes it."""
        if float in self.kinds and type(value) is int:
            return float(value)
        if self.several and isinstance(value, (list, tuple)) and all(type(v) is str for v in value):
            return tuple(value)
        if self.several or type(value) not in self.kinds:
            wanted = " or ".join(_WORDS[kind] for kind in self.kinds)
            raise AimcError(f"expects {wanted}, got {value!r}", field=self.name)
        return value


_WORDS = {
    int: "a whole number", float: "a number", str: "a name", bool: "true or false", type(None): "null",
    tuple: "a list of names",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A function that returns a configuration, and what its docstring promises.

    Example:
        >>> from aimc.recipes import RECIPES
        >>> RECIPES["demo"].config().dataset.name
        'mnist_small'
        >>> RECIPES["lenet_mnist_insitu"].config(algorithm="residual", tiles=4).hardware.algorithm.tiles
        4
    """

    function: Callable[..., Config]

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.__name__

    @property
    def arguments(self) -> dict[str, Argument]:
        """The function's arguments by name."""
        hints = typing.get_type_hints(self.function)
        texts = dict(re.findall(r"^ {4}(\w+): (.*)$", self._block("Args"), re.MULTILINE))
        return {
            name: Argument(name, p.default, _kinds(hints[name]), texts.get(name, ""))
            for name, p in inspect.signature(self.function).parameters.items()
        }

    def config(self, **given: Any) -> Config:
        """The complete configuration.

        Args:
            given: arguments of the recipe.

        Raises:
            AimcError: an argument that the recipe does not have, or a value that does not fit.
        """
        known = self.arguments
        for name in given:
            if name not in known:
                raise AimcError(f"{self.name} has no such argument; {suggest(name, known)}", field=name)
        return self.function(**{name: known[name].check(value) for name, value in given.items()})

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

    def _block(self, name: str) -> str:
        match = re.search(rf"^{name}:\n(.*?)(?=\n\n|\Z)", self._text, re.DOTALL | re.MULTILINE)
        return match[1] if match else ""


def _kinds(hint: Any) -> tuple[type, ...]:
    if typing.get_origin(hint) is tuple:
        return (tuple,)
    return options(hint)
