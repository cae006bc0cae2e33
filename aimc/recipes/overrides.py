"""Changing a configuration by YAML and by dotted flags; and the help that lists what can be changed."""

from __future__ import annotations

import inspect
import json
import os
import re
import textwrap
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from aimc.config import Config, differences, is_configuration, load_yaml, options
from aimc.errors import AimcError, suggest
from aimc.recipes.recipe import Argument, Recipe


def parse(text: str, where: str) -> Any:
    """A value from YAML text.

    Example:
        >>> parse("{type: Hermes, parallel: 2}", "--hardware.cell"), parse("1e-3", "--lr")
        ({'type': 'Hermes', 'parallel': 2}, 0.001)
    """
    try:
        return load_yaml(text)
    except AimcError as error:
        raise AimcError(f"{where} is {error.message}") from None


def configure(
    config: Config,
    file: str | os.PathLike[str] | None,
    flags: Sequence[tuple[str, str]],
    other_flags: Sequence[str] = (),
) -> Config:
    """A configuration with a YAML file laid over it, and flags over that.

    Args:
        config: what the recipe says.
        file: YAML with some or all fields, nested; or None.
        flags: dotted path and YAML text, without dashes; whole nodes are set before their fields.
        other_flags: the command's own flags, to be offered where a name is mistyped.

    Raises:
        AimcError: an unknown field (with the nearest one), a value that does not fit, a file that cannot be read.

    Example:
        >>> from aimc.recipes import RECIPES
        >>> configure(RECIPES["demo"].config(), None, [("student.epochs", "5")]).student.epochs
        5
    """
    if file is not None:
        try:
            with open(file, encoding="utf-8") as handle:
                text = handle.read()
        except (OSError, UnicodeDecodeError) as error:
            raise AimcError(f"cannot read {os.fspath(file)}: {error}", field="config") from None
        given = parse(text, os.fspath(file))
        if given is None:
            given = {}
        if not isinstance(given, dict):
            raise AimcError(f"{os.fspath(file)} must hold fields, not {given!r}", field="config")
        try:
            config = _overlay(config, _nested(given))
        except AimcError as error:
            error.message = f"{error.message} ({os.fspath(file)})"
            raise
    for path, text in sorted(flags, key=lambda flag: flag[0].count(".")):
        config = _set(config, path, text, other_flags)
    return config


def configured(
    recipe: Recipe,
    file: str | os.PathLike[str] | None,
    flags: Sequence[tuple[str, str]],
    other_flags: Sequence[str] = (),
) -> Config:
    """The configuration of a recipe with its arguments, a YAML file and flags.

    Args:
        recipe: what to start from; a flag with the name of one of its arguments is that argument.
        file, flags, other_flags: as for :func:`configure`.

    Raises:
        AimcError: as for :func:`configure`; or a file sets what an argument decides, too.

    Example:
        >>> from aimc.recipes import RECIPES
        >>> config = configured(RECIPES["lenet_mnist_insitu"], None, [("tiles", "4"), ("epochs", "5")])
        >>> config.hardware.algorithm.tiles, config.epochs
        (4, 5)
    """
    known = recipe.arguments
    given: dict[str, Any] = {}
    for path, text in flags:
        if path in known:
            if text == "":
                raise AimcError(f"--{path} needs a value")
            given[path] = _argument(known[path], text)
    config = recipe.config(**given)
    if file is not None and given:
        decided = _changed(recipe.config(), config)
        both = [
            path
            for path in _changed(config, configure(config, file, []))
            if any(f"{path}.".startswith(f"{d}.") or f"{d}.".startswith(f"{path}.") for d in decided)
        ]
        if both:
            raise AimcError(
                f"{os.fspath(file)} sets {both[0]}, and so does a flag of the recipe "
                f"({', '.join(f'--{name}' for name in given)}); leave one out",
                field="config",
            )
    rest = [flag for flag in flags if flag[0] not in known]
    return configure(config, file, rest, [*other_flags, *(f"--{name}" for name in known)])


def _argument(argument: Argument, text: str) -> Any:
    """The value that a flag gives to an argument: a list has commas or spaces, or the brackets of YAML."""
    if argument.several:
        return [name for name in re.split(r"[\s,]+", text.strip("[] ")) if name]
    return text if argument.kinds == (str,) else parse(text, f"--{argument.name}")


def _changed(old: Config, new: Config) -> list[str]:
    """Dotted paths of the fields that differ."""
    return [line.split(":")[0] for line in differences(old, new)]


def _nested(given: dict[Any, Any]) -> dict[str, Any]:
    """Dotted keys taken apart: ``{"a.b": 1}`` is ``{"a": {"b": 1}}``."""
    found: dict[str, Any] = {}
    for key, value in given.items():
        value = _nested(value) if isinstance(value, dict) else value
        head, _, rest = str(key).partition(".")
        if rest:
            value = _nested({rest: value})
        if isinstance(value, dict) and isinstance(found.get(head), dict):
            value = _merge(found[head], value)
        found[head] = value
    return found


def _overlay(config: Config, given: dict[str, Any]) -> Config:
    return type(config).from_dict(_merge(config.to_dict(), given))


def _merge(old: Any, new: Any) -> Any:
    """``new`` laid over ``old``: mappings field by field unless the type changes, anything else replaces."""
    if not isinstance(new, dict):
        return new
    if isinstance(old, list) and new and all(str(k).isdigit() for k in new):
        merged: Any = list(old)
        for key in new:
            if int(key) >= len(merged):
                raise AimcError(
                    f"there is no entry {key}, they are counted from 0 to {len(merged) - 1}", field=str(key)
                )
    elif isinstance(old, dict) and new.get("type", old.get("type")) == old.get("type"):
        merged = dict(old)
        for key in new:
            if key not in old:
                known = [name for name in old if name not in ("type", "version")]
                raise AimcError(f"{old['type']} has no such field; {suggest(key, known)}", field=key)
    else:
        return new
    for key, value in new.items():
        place = int(key) if isinstance(merged, list) else key
        try:
            merged[place] = _merge(merged[place] if isinstance(merged, list) else merged.get(key), value)
        except AimcError as error:
            raise error.at(field=str(key)) from None
    return merged


def _set(config: Config, path: str, text: str, more: Sequence[str]) -> Config:
    fields = {p: (value, hint) for p, value, hint, _ in _fields(config)}
    names = path.split(".")
    known = [f"--{p}" for p in fields] + list(more)
    if names[0] not in config.field_names():
        raise _unknown(path, known)
    if text == "":
        raise AimcError(f"--{path} needs a value")
    for depth in range(1, len(names)):
        above = ".".join(names[:depth])
        if above in fields and not _has_fields(*fields[above]):
            raise AimcError(f"--{path}: --{above} holds {_shown(fields[above][0])}, which has no fields")
    value = parse(text, f"--{path}")
    kinds = options(fields[path][1]) if path in fields else ()
    is_list = any(typing.get_origin(o) is tuple for o in kinds)
    if is_list and not isinstance(value, (list, dict)) and value is not None:
        value = [parse(part, f"--{path}") for part in text.split(",") if part.strip()]
    elif kinds == (str,):
        value = text
    given: Any = value
    for name in reversed(names):
        given = {name: given}
    try:
        return _overlay(config, given)
    except AimcError as error:
        if error.field == path and "has no such field" in error.message:
            raise _unknown(path, known) from None
        raise


def _unknown(path: str, known: Sequence[str]) -> AimcError:
    hint = suggest(f"--{path}", known)
    return AimcError(
        f"unknown flag '--{path}'; {hint if hint.startswith('did') else '--help lists all flags'}"
    )


def _has_fields(value: Any, hint: Any) -> bool:
    if value is None:
        return any(is_configuration(o) for o in options(hint))
    return isinstance(value, Config) or (
        isinstance(value, tuple) and any(isinstance(v, Config) for v in value)
    )


def _fields(config: Config, prefix: str = "") -> Iterator[tuple[str, Any, Any, str]]:
    """Dotted path, value, type hint and description of every field below, depth first."""
    hints = typing.get_type_hints(type(config))
    texts = _descriptions(type(config))
    for name in config.field_names():
        value, path = getattr(config, name), f"{prefix}{name}"
        yield path, value, hints[name], texts.get(name, "")
        if isinstance(value, Config):
            yield from _fields(value, f"{path}.")
        elif isinstance(value, tuple):
            for i, item in enumerate(value):
                if isinstance(item, Config):
                    yield from _fields(item, f"{path}.{i}.")


def _descriptions(kind: type[Config]) -> dict[str, str]:
    """What the ``Fields:`` sections of a class and its bases say."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        section = re.search(
            r"^Fields:\n((?:[ ]{4}.*\n?|\n(?=[ ]{4}))+)", inspect.cleandoc(base.__doc__ or ""), re.M
        )
        if section:
            entry = re.compile(r"^(\w+(?:, \w+)*): (.*(?:\n[ ]+.*)*)", re.M)
            for names, text in entry.findall(textwrap.dedent(section[1])):
                found |= {name: " ".join(text.split()) for name in names.split(", ")}
    return found


def describe(config: Config) -> str:
    """Every field as a flag, with its meaning and value, grouped by top-level node.

    Example:
        >>> from aimc.train import Stage
        >>> print(describe(Stage())[:26])
        general:
          --epochs 10
    """
    groups: dict[str, list[str]] = {"general": []}
    for path, value, hint, text in _fields(config):
        text = re.sub(r":\w+:`~?([^`]*)`", r"\1", text).replace("``", "")
        types = _types(hint)
        if len(types) > 1:
            text = f"{text} Types: {', '.join(types)}."
        head = path.split(".")[0]
        top = getattr(config, head)
        group = groups.setdefault(head, []) if isinstance(top, Config) else groups["general"]
        shown = f"'{{type: {type(value).__name__}}}'" if isinstance(value, Config) else _shown(value)
        line = f"  --{path} {shown}"
        group.append(line)
        if text:
            group.append(
                textwrap.fill(
                    text, 108, initial_indent="      ", subsequent_indent="      ", break_on_hyphens=False
                )
            )
    return "\n\n".join("\n".join([f"{name}:", *lines]) for name, lines in groups.items() if lines)


def describe_arguments(recipe: Recipe) -> str:
    """Every argument of a recipe as a flag, with its meaning and default."""
    return "\n".join(
        f"  --{argument.name} "
        + (" ".join(argument.default) if argument.several else _shown(argument.default))
        + f"\n      {argument.text}"
        for argument in recipe.arguments.values()
    )


def _types(hint: Any) -> list[str]:
    """Configurations that fit a field."""
    found: dict[str, None] = {}
    todo = [o for o in (*options(hint), *typing.get_args(hint)) if is_configuration(o)]
    while todo:
        kind = todo.pop(0)
        todo += kind.__subclasses__()
        if not inspect.isabstract(kind):
            found[kind.__name__] = None
    return list(found)


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        if any(isinstance(v, Config) for v in value):
            return "'[" + ", ".join(f"{{type: {type(v).__name__}}}" for v in value) + "]'"
        return ",".join(str(v) for v in value) or "'[]'"
    return value if isinstance(value, str) else json.dumps(value)
