"""The base of every configuration: frozen all the way down, strict, and equal after a trip through a file.

A subclass is written like a dataclass; the base makes it frozen and keyword-only:

>>> class Lamp(Config):
...     watts: float = 60.0
...     def validate(self):
...         self.require(self.watts > 0, "watts", f"must be positive, got {self.watts}")
>>> Lamp(watts=40.0).replace(watts=20.0)
Lamp(watts=20.0)
>>> Lamp(wats=40.0)
Traceback (most recent call last):
...
aimc.errors.AimcError: field 'wats': Lamp has no such field; did you mean 'watts'?
"""

from __future__ import annotations

import abc
import dataclasses
import inspect
import json
import math
import re
import types
import typing
from typing import Any, ClassVar

from typing_extensions import Self, dataclass_transform

from aimc.errors import AimcError, suggest

_REGISTRY: dict[str, type[Config]] = {}
_ATOMS = (bool, int, float, str, type(None))
LARGEST, SMALLEST = 1e18, 1e-30
"""Magnitudes of a number that is not 0: two of them multiplied, or one of them inverted, is no overflow in single
precision."""
MOST = 2**31 - 1
"""Largest magnitude of a whole number: sums and products of some of them fit into 64 bits."""
PLAIN = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}


class _Strict(abc.ABCMeta):
    """Turns an unknown keyword into an error of ours before the dataclass sees it."""

    def __call__(cls, *args, **kwargs):
        if args:
            raise AimcError(f"{cls.__name__} takes its fields by name only")
        fields = dataclasses.fields(cls)  # type: ignore[arg-type]  (every subclass is a dataclass)
        known = [f.name for f in fields if f.init]
        for name in kwargs:
            if name not in known:
                raise AimcError(f"{cls.__name__} has no such field; {suggest(name, known)}", field=name)
        missing = [
            f.name
            for f in fields
            if f.name not in kwargs
            and f.default is dataclasses.MISSING
            and f.default_factory is dataclasses.MISSING
        ]
        if missing:
            raise AimcError(f"{cls.__name__} needs a value for it", field=missing[0])
        return super().__call__(**kwargs)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(dataclasses.field,))
class Config(metaclass=_Strict):
    """Base of every configuration object.

    Values are numbers, text, booleans, None, tuples of these, and other configurations; a list given becomes a
    tuple. A number is accepted for a ``float`` field whether it is written ``1`` or ``1.0``. Equality, hashing
    and ``repr`` are those of a frozen dataclass.

    Every number is bounded, see :data:`LARGEST`, :data:`SMALLEST` and :data:`MOST`; whole numbers that may take all of
    64 bits are named in ``WIDE``.
    """

    version: ClassVar[int] = 1
    WIDE: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)
        known = _REGISTRY.get(cls.__name__)
        if known is not None and known.__module__ != cls.__module__:
            raise TypeError(
                f"two configurations are called {cls.__name__}: {known.__module__}, {cls.__module__}"
            )
        _REGISTRY[cls.__name__] = cls

    def __post_init__(self):
        hints = _hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  (every subclass is a dataclass)
            value = _freeze(self.__dict__[field.name], field.name, hints[field.name])
            object.__setattr__(self, field.name, value)
        self.validate()  # before the bounds of every number: it knows better ones, and what they are for
        for name in self.field_names():
            _bound(getattr(self, name), name, 2**63 - 1 if name in type(self).WIDE else MOST)

    def validate(self) -> None:
        """Override to check values; raise through :meth:`require`."""

    def require(self, condition: bool, field: str, message: str) -> None:
        """Raise an :class:`AimcError` that names the field unless the condition holds."""
        if not condition:
            raise AimcError(f"{message} (in {type(self).__name__})", field=field)

    def unused(self, why: str, *names: str) -> None:
        """Refuse values other than the default of fields that have no effect, such as those of another mode.

        Args:
            why: completes "does nothing ...".
            names: of the fields.

        Example:
            >>> from aimc.periphery import InputRange
            >>> InputRange(mode="dynamic", decay=0.1)
            Traceback (most recent call last):
            ...
            aimc.errors.AimcError: field 'decay': does nothing with mode 'dynamic'; leave it at 0.001 (in InputRange)
        """
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  (every subclass is a dataclass)
            if field.name in names:
                self.require(
                    getattr(self, field.name) == field.default,
                    field.name,
                    f"does nothing {why}; leave it at {field.default!r}",
                )

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; a dotted path in a dict reaches nested ones.

        Example:
            >>> from aimc import presets
            >>> presets.pcm().replace(**{"adc.bits": 6}).adc.bits
            6
        """
        direct, nested = {}, {}
        for name, value in changes.items():
            head, _, rest = name.partition(".")
            if rest:
                nested.setdefault(head, {})[rest] = value
            else:
                direct[head] = value
        for head, inner in nested.items():
            child = direct.get(head, getattr(self, head, None))
            if head not in self.field_names():
                raise AimcError(
                    f"{type(self).__name__} has no such field; {suggest(head, self.field_names())}",
                    field=head,
                )
            if not isinstance(child, Config):
                raise AimcError(
                    f"holds {child!r}, which has no fields; give a whole value instead of {sorted(inner)}",
                    field=head,
                )
            try:
                direct[head] = child.replace(**inner)
            except AimcError as error:
                raise error.at(field=head) from None
        return type(self)(**{**{n: getattr(self, n) for n in self.field_names()}, **direct})

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        return tuple(f.name for f in dataclasses.fields(cls))  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        """Plain data: ``{"type": ..., "version": ..., field: value}``, nested configurations likewise."""
        data: dict[str, Any] = {"type": type(self).__name__, "version": type(self).version}
        for name in self.field_names():
            data[name] = _plain(getattr(self, name))
        return data

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`. ``type`` may be left out where ``cls`` is the type.

        Errors name the dotted path of the field. A version newer than this library's is refused.
        """
        built = _build(data, cls if cls is not Config else None)
        if not isinstance(built, cls):
            raise AimcError(f"expected a {cls.__name__}, got a {type(built).__name__}", field="type")
        return built  # type: ignore[return-value]  (checked two lines up)

    def to_json(self, indent: int | None = 2) -> str:
        return json.dumps(self.to_dict(), indent=indent)

    @classmethod
    def from_json(cls, text: str) -> Self:
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise AimcError(f"not JSON: {error}") from None
        return cls.from_dict(data)

    def to_yaml(self) -> str:
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        return cls.from_dict(load_yaml(text))


def load_yaml(text: str) -> Any:
    """Plain data from YAML text, loaded safely.

    ``1e-3`` is a number, as in YAML 1.2. A key that is given twice, and an alias (with which a short text can unfold
    into a very long one), are errors.

    Example:
        >>> load_yaml("lr: 1e-3")
        {'lr': 0.001}
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """The safe loader, stricter."""

        def compose_node(self, parent, index):
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases (*name) are not supported")
            return super().compose_node(parent, index)

        def construct_mapping(self, node, deep=False):
            seen = set()
            for key, _ in node.value:
                name = self.construct_object(key, deep=True)
                if name in seen:
                    raise yaml.YAMLError(f"the key {name!r} is given twice (line {key.start_mark.line + 1})")
                seen.add(name)
            return super().construct_mapping(node, deep)

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
        list("-+.0123456789"),
    )
    try:
        return yaml.load(text, Loader)  # noqa: S506  (a subclass of the safe loader)
    except yaml.YAMLError as error:
        raise AimcError(f"not valid YAML: {' '.join(str(error).split())}") from None
    except (
        Exception
    ) as error:  # whatever a constructor chokes on: a date 2026-13-45, a list as a key, !!bool foo
        reason = " ".join(str(error).split())
        raise AimcError(f"not valid YAML: {type(error).__name__}: {reason}") from None


def differences(old: Config, new: Config, path: str = "") -> list[str]:
    """Field-by-field differences, each as ``path: old -> new``.

    Example:
        >>> from aimc import presets
        >>> differences(presets.pcm(), presets.pcm().replace(**{"adc.bits": 3}))
        ['adc.bits: 8 -> 3']
    """
    if type(old) is not type(new):
        return [f"{path or 'type'}: {type(old).__name__} -> {type(new).__name__}"]
    found = []
    for name in old.field_names():
        a, b = getattr(old, name), getattr(new, name)
        where = f"{path}.{name}" if path else name
        if isinstance(a, Config) and isinstance(b, Config):
            found += differences(a, b, where)
        elif a != b:
            found.append(f"{where}: {a} -> {b}")
    return found


_HINTS: dict[type, dict[str, Any]] = {}


def _hints(cls: type) -> dict[str, Any]:
    if cls not in _HINTS:
        import sys

        names = {**_REGISTRY, **vars(sys.modules[cls.__module__])}
        _HINTS[cls] = typing.get_type_hints(cls, localns=names)
    return _HINTS[cls]


def is_configuration(option: Any) -> bool:
    """Whether a type is one of configurations.

    Example:
        >>> is_configuration(Config), is_configuration(int), is_configuration(tuple[int, ...])
        (True, False, False)
    """
    return _is_class(option) and issubclass(option, Config)


def _is_class(option: Any) -> bool:
    return isinstance(option, type) and not isinstance(
        option, types.GenericAlias
    )  # one is both in Python 3.10


def options(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of any other, itself.

    Example:
        >>> options(int | None)
        (<class 'int'>, <class 'NoneType'>)
    """
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def is_choice(value: Any, literal: Any) -> bool:
    """Whether a value is one of those that a ``Literal`` names, of the same type.

    Example:
        >>> is_choice(1, typing.Literal[1, "a"]), is_choice(True, typing.Literal[1, "a"])
        (True, False)
    """
    return any(value == a and type(value) is type(a) for a in typing.get_args(literal))


def choices(literal: Any) -> str:
    """The values that a ``Literal`` names, for messages.

    Example:
        >>> choices(typing.Literal["a", "b"])
        "one of 'a', 'b'"
    """
    return "one of " + ", ".join(repr(a) for a in typing.get_args(literal))


def _freeze(value: Any, field: str, hint: Any) -> Any:
    """Make a value immutable and check it against its type hint, naming the field where it does not fit."""
    if isinstance(value, list):
        value = tuple(value)
    fitting = options(hint)
    for option in fitting:
        fitted, ok = _fit(value, option, field)
        if ok:
            return fitted
    way = ""
    if isinstance(value, str) and any(value == kind.__name__ for o in fitting for kind in _kinds(o)):
        way = f"; to choose it write {{type: {value}}}"
    raise AimcError(f"expects {' or '.join(_describe(o) for o in fitting)}, got {value!r}{way}", field=field)


def _bound(value: Any, field: str, most: int) -> None:
    """Refuse numbers with which single precision, or a compiled loop, cannot count."""
    if isinstance(value, tuple):
        for i, each in enumerate(value):
            _bound(each, f"{field}[{i}]", most)
    elif isinstance(value, float):
        if value != 0 and not SMALLEST <= abs(value) <= LARGEST:
            raise AimcError(
                f"must be 0, or between {SMALLEST:g} and {LARGEST:g} in magnitude, got {value!r}", field=field
            )
    elif isinstance(value, int) and abs(value) > most:
        raise AimcError(f"must be at most {most} in magnitude, got {value}", field=field)


def _kinds(option: Any) -> list[type[Config]]:
    """A configuration's class and everything derived from it."""
    if not is_configuration(option):
        return []
    return [option, *(kind for below in option.__subclasses__() for kind in _kinds(below))]


def _describe(option: Any) -> str:
    if option is type(None):
        return "null"
    if typing.get_origin(option) is typing.Literal:
        return choices(option)
    if typing.get_origin(option) is tuple:
        return "a list"
    return PLAIN.get(option, getattr(option, "__name__", str(option)))


def _fit(value: Any, option: Any, field: str) -> tuple[Any, bool]:
    origin = typing.get_origin(option)
    if option is Any:
        if isinstance(value, tuple):
            return tuple(_freeze(v, f"{field}[{i}]", Any) for i, v in enumerate(value)), True
        return value, isinstance(value, (*_ATOMS, Config))
    if origin is typing.Literal:
        return value, is_choice(value, option)
    if origin is tuple:
        if not isinstance(value, tuple):
            return value, False
        inner = typing.get_args(option)
        if len(inner) == 2 and inner[1] is Ellipsis:
            return tuple(_freeze(v, f"{field}[{i}]", inner[0]) for i, v in enumerate(value)), True
        if len(inner) != len(value):
            return value, False
        return tuple(_freeze(v, f"{field}[{i}]", h) for i, (v, h) in enumerate(zip(value, inner))), True
    if option is float:
        ok = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not ok:
            return value, False
        try:
            value = float(value)
        except OverflowError:
            raise AimcError("too large for a number in double precision", field=field) from None
        if not math.isfinite(value):
            raise AimcError(f"must be a finite number, got {value}", field=field)
        return value, True
    if option is int:
        return value, isinstance(value, int) and not isinstance(value, bool)
    if _is_class(option):
        return value, isinstance(value, option)
    return value, False


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value


def _build(data: Any, expected: type[Config] | None) -> Config:
    if not isinstance(data, dict):
        raise AimcError(f"expected a mapping of fields, got {data!r}")
    data = dict(data)
    name = data.pop("type", expected.__name__ if expected else None)
    version = data.pop("version", None)
    if name is None:
        raise AimcError("the mapping has no 'type'", field="type")
    cls = _REGISTRY.get(name) if isinstance(name, str) else None
    if cls is None:
        raise AimcError(f"no configuration is called {name!r}; {suggest(str(name), _REGISTRY)}", field="type")
    if inspect.isabstract(cls):
        raise AimcError(f"{name} is a base and cannot be used itself", field="type")
    if version is not None and (not isinstance(version, int) or version > cls.version):
        raise AimcError(
            f"{name} was written as version {version!r}, this aimc knows version {cls.version}; update aimc",
            field="version",
        )
    return cls(**{str(field): _build_value(value, str(field), cls) for field, value in data.items()})


def _build_value(value: Any, field: str, owner: type[Config]) -> Any:
    try:
        if isinstance(value, dict):
            hint = _hints(owner).get(field)
            expected = [o for o in options(hint) if is_configuration(o)]
            return _build(value, expected[0] if len(expected) == 1 else None)
        if isinstance(value, (list, tuple)):
            return tuple(_build_value(v, f"[{i}]", owner) for i, v in enumerate(value))
        return value
    except AimcError as error:
        raise error.at(field=field) from None
