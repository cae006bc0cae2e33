"""Configurations: strict, frozen all the way down, and equal after a trip through a file."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle
import types
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimc.algorithms import MixedPrecision, Residual, TikiTakaV2, TikiTakaV3
from aimc.cells import SoftBounds
from aimc.config import LARGEST, MOST, SMALLEST, Config, differences, load_yaml
from aimc.errors import AimcError
from aimc.hardware import PulsedMapping
from aimc.ops.pulsed_update import PulseTrain
from aimc.periphery import ArrayIO, InputRange
from aimc.recipes import RECIPES


class Inner(Config):
    bits: int | None = 8
    bound: float = 1.0

    def validate(self):
        self.require(self.bits is None or self.bits >= 2, "bits", f"must be at least 2, got {self.bits}")


class Other(Config):
    level: float = 0.5


class Outer(Config):
    inner: Inner = Inner()
    either: Inner | Other | None = None
    many: tuple[Inner | Other, ...] = ()
    pair: tuple[int, int] = (1, 2)
    grid: tuple[tuple[float, ...], ...] = ()
    mode: Literal["fast", "slow", 3] = "fast"
    name: str = ""
    flag: bool = False
    anything: Any = None


class Sizes(Config):
    x: float = 1.0
    xs: tuple[float, ...] = ()
    n: int = 1
    seed: int = 0

    WIDE: ClassVar[tuple[str, ...]] = ("seed",)


class Needy(Config):
    must: int


class Second(Config):
    version = 2
    x: int = 0


finite = st.just(0.0) | st.floats(SMALLEST, LARGEST) | st.floats(-LARGEST, -SMALLEST)
whole = st.integers(-MOST, MOST)
inners = st.builds(Inner, bits=st.none() | st.integers(2, MOST), bound=finite)
others = st.builds(Other, level=finite)
outers = st.builds(
    Outer,
    inner=inners,
    either=st.none() | inners | others,
    many=st.lists(inners | others, max_size=3).map(tuple),
    pair=st.tuples(whole, whole),
    grid=st.lists(st.lists(finite, max_size=2).map(tuple), max_size=2).map(tuple),
    mode=st.sampled_from(["fast", "slow", 3]),
    name=st.text(),
    flag=st.booleans(),
    anything=st.none() | st.booleans() | whole | finite | st.text(),
)


# A trip through a file


@given(outers)
def test_dict_round_trip(config):
    again = Config.from_dict(config.to_dict())
    assert again == config
    assert hash(again) == hash(config)
    assert type(again) is Outer


@given(outers)
def test_json_round_trip(config):
    assert Outer.from_json(config.to_json()) == config


@given(outers)
def test_yaml_round_trip(config):
    assert Outer.from_yaml(config.to_yaml()) == config


def test_types_survive_the_trip():
    again = Outer.from_yaml(Outer(either=Other(level=1), many=[Inner(), Other()], flag=True).to_yaml())
    assert type(again.either) is Other
    assert [type(m) for m in again.many] == [Inner, Other]
    assert again.flag is True
    assert type(again.inner.bound) is float


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copy_and_pickle(duplicate):
    config = Outer(inner=Inner(bits=4), many=(Other(),))
    assert duplicate(config) == config


def test_the_type_may_be_left_out_where_it_is_known():
    assert Outer.from_dict({"inner": {"bits": 4}, "name": "x"}) == Outer(inner=Inner(bits=4), name="x")
    assert Outer.from_yaml("inner: {bits: null}").inner.bits is None


def test_written_form_is_plain_data():
    text = Outer(many=(Inner(), Other()), grid=((1.0,),)).to_json()
    data = json.loads(text)
    assert data["type"] == "Outer"
    assert data["version"] == 1
    assert data["many"][1] == {"type": "Other", "version": 1, "level": 0.5}
    assert data["grid"] == [[1.0]]


# Refusals name the field


def refused(call, *words, field=None):
    with pytest.raises(AimcError) as caught:
        call()
    for word in words:
        assert word in str(caught.value)
    if field is not None:
        assert caught.value.field == field


def test_unknown_field_is_refused_with_a_suggestion():
    refused(lambda: Inner(bitts=3), "did you mean 'bits'?", "Inner", field="bitts")
    refused(lambda: Inner(zzz=3), "known: bits, bound", field="zzz")
    refused(lambda: Outer.from_dict({"inner": {"bitts": 4}}), "did you mean 'bits'?", field="inner.bitts")


def test_positional_and_missing_values_are_refused():
    refused(lambda: Inner(8), "by name only")
    refused(lambda: Needy(), field="must")


@pytest.mark.parametrize(
    ("build", "words", "field"),
    [
        (lambda: Inner(bits="8"), ["a whole number or null", "'8'"], "bits"),
        (lambda: Inner(bits=8.0), ["a whole number"], "bits"),
        (lambda: Inner(bits=True), ["a whole number"], "bits"),
        (lambda: Inner(bound=True), ["a number", "True"], "bound"),
        (lambda: Inner(bound=None), ["a number", "None"], "bound"),
        (lambda: Inner(bound=float("nan")), ["nan"], "bound"),
        (lambda: Outer(flag=1), ["true or false"], "flag"),
        (lambda: Outer(name=1), ["text"], "name"),
        (lambda: Outer(mode="quick"), ["one of 'fast', 'slow', 3"], "mode"),
        (lambda: Outer(mode=3.0), ["one of"], "mode"),
        (lambda: Outer(pair=(1,)), ["a list"], "pair"),
        (lambda: Outer(pair=(1, "2")), ["a whole number"], "pair[1]"),
        (lambda: Outer(grid=[[1.0], [2.0, "x"]]), ["a number"], "grid[1][1]"),
        (lambda: Outer(many=[Inner(), 3]), ["Inner or Other"], "many[1]"),
        (lambda: Outer(inner=Other()), ["Inner"], "inner"),
        (lambda: Outer(inner={"bits": 3}), ["Inner"], "inner"),
        (lambda: Outer(anything={"a": 1}), [], "anything"),
    ],
)
def test_wrong_type_is_named(build, words, field):
    refused(build, *words, field=field)


def test_a_number_too_large_and_a_field_that_is_no_text():
    refused(lambda: Inner(bound=10**400), "too large", field="bound")
    refused(lambda: Config.from_yaml("type: Inner\n1: 2"), "no such field", field="1")


def test_values_are_checked_wherever_they_come_from():
    refused(lambda: Inner(bits=1), "at least 2, got 1", "Inner", field="bits")
    refused(lambda: Inner().replace(bits=1), field="bits")
    refused(lambda: Outer().replace(**{"inner.bits": 1}), field="inner.bits")
    refused(
        lambda: Outer.from_dict({"many": [{"type": "Other"}, {"type": "Inner", "bits": 1}]}),
        field="many[1].bits",
    )


def test_version():
    assert Second.from_dict({"version": 1}) == Second()
    assert Second().to_dict()["version"] == 2
    refused(
        lambda: Second.from_dict({"version": 3}), "version 3", "knows version 2", "update", field="version"
    )
    refused(lambda: Second.from_dict({"version": "2"}), field="version")
    refused(lambda: Outer.from_dict({"inner": {"version": 2}}), field="inner.version")


def test_broken_files():
    refused(lambda: Config.from_json("{"), "not JSON")
    refused(lambda: Config.from_yaml("a: [1"), "not valid YAML")
    refused(lambda: Config.from_yaml(""), "expected a mapping")
    refused(lambda: Config.from_json("[]"), "expected a mapping")
    refused(lambda: Config.from_dict({}), "no 'type'", field="type")
    refused(lambda: Config.from_dict({"type": "Innner"}), "did you mean 'Inner'?", field="type")
    refused(lambda: Inner.from_dict({"type": "Other"}), "expected a Inner, got a Other", field="type")


@pytest.mark.parametrize(
    "value",
    [
        "!!bool foo",
        "!!timestamp foo",
        "!!timestamp 2026-13-45",
        "!!int ''",
        "!!int x",
        "!!float x",
        "!!binary é",
        "!!nothing x",
        "{[a]: b}",
        "[" * 20000,
    ],
)
def test_a_tag_whose_value_does_not_fit_is_no_yaml(value):
    refused(lambda: load_yaml(value), "not valid YAML")
    refused(lambda: load_yaml(f"bits: {value}"), "not valid YAML")


def test_json_nested_too_deeply_is_refused():
    refused(lambda: Config.from_json("[" * 200000), "not JSON")


# Frozen


def test_nothing_can_be_set():
    config = Outer()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.name = "x"
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.inner.bits = 3
    with pytest.raises(dataclasses.FrozenInstanceError):
        del config.name


def test_lists_become_tuples_and_the_callers_list_stays_apart():
    rows = [[1, 2], [3]]
    config = Outer(grid=rows, many=[Inner()])
    rows[0].append(9)
    assert config.grid == ((1.0, 2.0), (3.0,))
    assert isinstance(config.many, tuple)
    hash(config)


def test_a_list_in_a_free_field_is_frozen_too():
    config = Outer(anything=[1, [2, 3]])
    assert config.anything == (1, (2, 3))
    hash(config)


def test_numbers_are_equal_however_written():
    assert Inner(bound=1) == Inner(bound=1.0)
    assert hash(Inner(bound=1)) == hash(Inner(bound=1.0))
    assert type(Inner(bound=1).bound) is float


def test_equality_is_by_type_and_value():
    class Twin(Config):
        level: float = 0.5

    assert Other() == Other(level=0.5)
    assert Other() != Other(level=0.6)
    assert Other() != Twin()
    assert len({Other(), Other(), Other(level=1)}) == 2


# Changes


def test_replace():
    config = Outer(name="a")
    changed = config.replace(name="b", **{"inner.bits": 4, "inner.bound": 2})
    assert (changed.name, changed.inner) == ("b", Inner(bits=4, bound=2.0))
    assert (config.name, config.inner) == ("a", Inner())
    assert config.replace() == config


def test_replace_reaches_into_a_value_given_in_the_same_call():
    assert Outer().replace(either=Other(), **{"either.level": 2}).either == Other(level=2)


def test_replace_refuses():
    refused(lambda: Outer().replace(**{"iner.bits": 4}), "did you mean 'inner'?", field="iner")
    refused(lambda: Outer().replace(**{"inner.bitts": 4}), "did you mean 'bits'?", field="inner.bitts")
    refused(lambda: Outer().replace(**{"either.level": 4}), "None", "has no fields", field="either")
    refused(lambda: Outer().replace(**{"name.x": 4}), "has no fields", field="name")


def test_differences():
    a = Outer()
    b = a.replace(name="b", either=Other(), **{"inner.bits": 4})
    assert differences(a, a) == []
    assert differences(a, b) == ["inner.bits: 8 -> 4", f"either: None -> {Other()}", "name:  -> b"]
    assert differences(a, Other()) == ["type: Outer -> Other"]


@given(outers, outers)
def test_no_differences_means_equal(a, b):
    assert (differences(a, b) == []) == (a == b)


def test_two_classes_of_one_name_are_refused_when_defined():
    with pytest.raises(TypeError, match="two configurations are called Inner"):
        type("Inner", (Config,), {"__module__": "elsewhere", "__annotations__": {}})


@pytest.mark.parametrize(
    "kind, settings, field",
    [
        *((InputRange, {"mode": mode, name: value}, name)
          for mode in ("static", "dynamic")
          for name, value in (("init_batches", 5), ("init_std", 2.0), ("decay", 0.1), ("keep", 0.5),
                              ("gradient_scale", 2.0), ("manage_output_clipping", True))),
        (InputRange, {"value": 1.0, "init_batches": 0, "init_std": 2.0}, "init_std"),
        (ArrayIO, {"adc": None, "bound_management": False}, "bound_management"),
        (PulseTrain, {"kind": "none", "length": 5}, "length"),
        (PulseTrain, {"kind": "none_bounded", "x_resolution": 0.1}, "x_resolution"),
        (PulseTrain, {"fixed_length": False}, "fixed_length"),
        (PulseTrain, {"length_management": False, "management": False, "gradient_scale": 2.0}, "gradient_scale"),
        (PulsedMapping, {"scale": 0.5, "factor": 2.0}, "factor"),
        (TikiTakaV2, {"auto_momentum": 0.5}, "auto_momentum"),
        (TikiTakaV3, {"scale_fast_lr": True}, "scale_fast_lr"),
        (MixedPrecision, {"pulses": PulseTrain(length=5)}, "pulses"),
        (MixedPrecision, {"stochastic_bins": False}, "stochastic_bins"),
        *((Residual, {name: value}, name)
          for name, value in (("period", 3), ("period_growth", 2), ("periods", (1, 2, 3, 4, 5)), ("transfer_lr", 0.5),
                              ("scale_transfer_lr", True), ("transfer_growth", 2.0),
                              ("transfer_lrs", (0.1,) * 5), ("transfer_pulses", PulseTrain(length=5)),
                              ("fast_lr", 0.5), ("scale_fast_lr", False), ("pulses", PulseTrain(length=5)))),
        (Residual, {"gradient": "pulsed", "rounding": 0.5}, "rounding"),
        (Residual, {"columns": 3, "cells_per_visit": 99}, "cells_per_visit"),
        *((Residual, {"order": "paper", name: value}, name)
          for name, value in (("gradient", "pulsed"), ("cells_per_visit", 99), ("rounding", 0.5), ("threshold", 0.5),
                              ("tries", 3), ("last_tries", 3), ("floor", 0.5))),
        (Residual, {"order": "cpu", "tiles": 2, "periods": (3,), "period": 5}, "period"),
        (Residual, {"order": "cpu", "tiles": 2, "transfer_lrs": (3.0,), "transfer_growth": 5.0}, "transfer_growth"),
    ],
)  # fmt: skip
def test_a_field_that_does_nothing_is_refused(kind, settings, field):
    with pytest.raises(AimcError, match=rf"^field '{field}': does nothing .*; leave it at "):
        kind(**settings)
    kind(
        **{**settings, field: getattr(kind(), field)}
    )  # its default may stay, as in files of earlier versions


@pytest.mark.parametrize(
    "recipe, changes, field",
    [
        ("demo", {"student.optimizer.factor": 0.5}, "student.optimizer.factor"),
        ("demo", {"teacher.optimizer.milestones": (0.2,)}, "teacher.optimizer.milestones"),
        (
            "demo",
            {"hardware.input_range.mode": "dynamic", "calibration.method": "max"},
            "calibration.method",
        ),
        ("demo_insitu", {"schedule.every": 3}, "schedule.every"),
    ],
)
def test_a_recipes_field_that_does_nothing_is_refused(recipe, changes, field):
    with pytest.raises(AimcError, match=f"^field '{field}': does nothing"):
        RECIPES[recipe].config().replace(**changes)


@pytest.mark.parametrize("value", [1e300, -1e300, 1e19, 1e-45, -1e-300])
def test_numbers_that_single_precision_cannot_count_with_are_refused(value):
    with pytest.raises(AimcError, match=r"^field '\w+(\[1\])?': must be 0, or between 1e-30 and 1e\+18"):
        Sizes(x=value)
    with pytest.raises(AimcError, match=r"xs\[1\]"):
        Sizes(xs=(1.0, value))
    assert Sizes(x=0.0, xs=(1e18, -1e-30)).x == 0


def test_whole_numbers_that_compiled_loops_cannot_count_with_are_refused():
    with pytest.raises(AimcError, match="field 'n': must be at most 2147483647 in magnitude"):
        Sizes(n=2**31)
    assert Sizes(n=-(2**31) + 1, seed=2**63 - 1).seed == 2**63 - 1
    with pytest.raises(AimcError, match="field 'seed'"):
        Sizes(seed=2**63)


def test_a_period_beyond_every_training_is_one_that_loops_count_with():
    array = types.SimpleNamespace(cell=SoftBounds(), shape=(2, 3))
    assert TikiTakaV2(auto_period=1e18).period_of(array) == 2**31 - 1  # pyright: ignore[reportArgumentType]
