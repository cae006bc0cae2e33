"""What users call refuses an argument that is not of the annotated type, by name, before anything is done."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import numbers
import typing
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn
from typing_extensions import get_protocol_members

from aimc.config import PLAIN, choices, is_choice, options
from aimc.errors import AimcError, suggest

P = ParamSpec("P")
R = TypeVar("R")

_NUMBERS = {int: numbers.Integral, float: numbers.Real}
_NAMES = {
    **PLAIN,
    Any: "anything",
    type(None): "None",
    bool: "True or False",
    nn.Module: "a torch module",
    torch.Tensor: "a tensor",
    torch.optim.Optimizer: "a torch optimizer",
    collections.abc.Callable: "something to call",
    collections.abc.Iterable: "a list",
    collections.abc.Sequence: "a list",
    collections.abc.Mapping: "a dict",
    tuple: "a tuple",
    list: "a list",
    dict: "a dict",
    type: "a class",
}


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: refuse arguments that do not fit the annotations.

    A whole number does for ``float``, truth values are no numbers, and text is no list of texts. What an iterator
    yields, a callable takes, and an annotation that is not understood are not looked at.

    Raises:
        AimcError: names the argument, what is expected and what was given.

    Example:
        >>> @checked
        ... def age(net: nn.Module, years: float = 1.0): ...
        >>> age(nn.ReLU(), years="two")
        Traceback (most recent call last):
        ...
        aimc.errors.AimcError: field 'years': expects a number, got 'two'
    """
    signature = inspect.signature(function)

    @functools.cache
    def hints() -> dict[str, Any]:  # asked for at the first call, when every module of the package is there
        return typing.get_type_hints(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # it lacks an argument or has an unknown one: Python says so itself
            return function(*args, **kwargs)
        for name, value in given.items():
            if name not in hints():
                continue
            kind = signature.parameters[name].kind
            values = {name: value}
            if kind is inspect.Parameter.VAR_POSITIONAL:
                values = {f"{name}[{i}]": v for i, v in enumerate(value)}
            elif kind is inspect.Parameter.VAR_KEYWORD:
                values = value
            for place, single in values.items():
                if not fits(single, hints()[name]):
                    raise AimcError(_misfit(single, options(hints()[name])), field=place)
        return function(*args, **kwargs)

    return call


def expect_tensor(value: Any, layer: str, field: str = "input") -> None:
    """Refuse what is no tensor as an input of a layer; torch says it with another name in every layer.

    Raises:
        AimcError: names the layer and the argument.
    """
    if not isinstance(value, torch.Tensor):
        if isinstance(value, torch.fx.Proxy):
            raise AimcError(
                "has no place in a graph of torch's operations, as torch.fx makes; trace aimc.to_digital(net)",
                layer=layer,
            )
        raise AimcError(f"expects a tensor, got {_shown(value)}", layer=layer, field=field)
    if value.layout != torch.strided or value.is_nested:
        kind = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise AimcError(
            f"expects a dense tensor, got a {kind} one; x.to_dense(), or pad a nested one",
            layer=layer,
            field=field,
        )


def expect_between(low: float, high: float, **values: float) -> None:
    """Refuse numbers outside of a closed range, NaN among them.

    Raises:
        AimcError: names the argument.

    Example:
        >>> expect_between(1, 10, epochs=0)
        Traceback (most recent call last):
        ...
        aimc.errors.AimcError: field 'epochs': must be between 1 and 10, got 0
    """
    for name, value in values.items():
        if not low <= value <= high:
            raise AimcError(f"must be between {low:g} and {high:g}, got {value}", field=name)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type, as far as it can be told without using it up.

    Example:
        >>> fits([1, 2], list[int]), fits([1.5], list[int]), fits(3, float | None), fits(True, int)
        (True, False, True, False)
    """
    return any(_fits(value, option) for option in options(hint))


def _fits(value: Any, option: Any) -> bool:
    origin, inner = typing.get_origin(option), typing.get_args(option)
    if origin is typing.Literal:
        return is_choice(value, option)
    if option in _NUMBERS:
        return isinstance(value, _NUMBERS[option]) and not isinstance(value, bool)
    if option is None or option is type(None):
        return value is None
    if origin is type:
        return isinstance(value, type) and all(
            not isinstance(o, type) or issubclass(value, o) for o in options(inner[0])
        )
    kind = origin or option
    if kind is Any or not isinstance(kind, type):
        return True  # or a variable of types: nothing to ask
    if getattr(kind, "_is_protocol", False):
        return all(hasattr(value, name) for name in get_protocol_members(kind))
    if not isinstance(value, kind):
        return False
    if isinstance(value, torch.Tensor) and kind is not torch.Tensor:
        return value.dim() > 0  # a number has the methods of a list, and none of its elements
    if isinstance(value, (str, bytes)):
        return kind in (str, bytes, object)  # a text is a sequence of texts to Python, and never meant so
    if not inner or kind is collections.abc.Callable:
        return True
    if isinstance(value, collections.abc.Mapping):
        return all(fits(k, inner[0]) and fits(v, inner[-1]) for k, v in value.items())
    if isinstance(value, tuple) and kind is tuple and inner[-1] is not Ellipsis:
        return len(value) == len(inner) and all(map(fits, value, inner))
    if isinstance(value, (tuple, list, set, frozenset)):
        return all(fits(v, inner[0]) for v in value)
    return True


def _misfit(value: Any, expected: tuple[Any, ...]) -> str:
    shown = _shown(value)
    if isinstance(value, collections.abc.Mapping):
        shown = next(
            (f"a {type(value).__name__} {odd}" for o in expected if (odd := _odd_entry(value, o))), shown
        )
    text = f"expects {' or '.join(dict.fromkeys(map(_described, expected)))}, got {shown}"
    words = [a for o in expected if typing.get_origin(o) is typing.Literal for a in typing.get_args(o)]
    return f"{text}; {suggest(value, words)}" if words and isinstance(value, str) else text


def _odd_entry(value: collections.abc.Mapping[Any, Any], option: Any) -> str | None:
    """What of a dict does not fit, where the option is a dict, too."""
    kind, inner = typing.get_origin(option), typing.get_args(option)
    if not (inner and isinstance(kind, type) and isinstance(value, kind)):
        return None
    for key, held in value.items():
        if not fits(key, inner[0]):
            return f"with the key {_shown(key)}"
        if not fits(held, inner[-1]):
            return f"with {_shown(held)} for the key {_shown(key)}"
    return None


def _described(option: Any) -> str:
    origin, inner = typing.get_origin(option), typing.get_args(option)
    if origin is typing.Literal:
        return choices(option)
    kind = origin or option
    named = _NAMES.get(kind) or getattr(kind, "described", None)
    if named is None and isinstance(kind, type):
        named = f"a {kind.__name__}"
    named = named or str(option)
    if inner and origin in (dict, collections.abc.Mapping):
        return f"{named} of {' to '.join(' or '.join(map(_described, options(i))) for i in inner)}"
    if inner and origin in (tuple, list, collections.abc.Sequence, collections.abc.Iterable):
        return f"{named} of {' or '.join(_described(o) for o in options(inner[0]))}"
    return named


def _shown(value: Any) -> str:
    if value is None or isinstance(value, (bool, int, float, str, bytes)):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, (tuple, list)) and value:
        return f"a {type(value).__name__} with {_shown(value[0])}"
    return f"a {type(value).__name__}"
