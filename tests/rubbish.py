"""Bad input by the thousand: each is taken or refused with a message, and never anything else.

One function makes and tries an input of each kind from a seed. It returns whether the input was accepted, and raises
:class:`Wrong` where the tool crashed, hung, lost something or returned nonsense. :mod:`tests.test_rubbish` tries a few,
``make soak`` thousands.
"""

from __future__ import annotations

import contextlib
import copy
import datetime
import faulthandler
import io
import json
import math
import random
import shutil
import signal
import struct
import sys
import tempfile
import typing
import warnings
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import yaml
from torch import Tensor, nn

import aimc
from aimc.algorithms import ALGORITHMS
from aimc.cells import Ideal
from aimc.chip import LeastSquares, MeanAbs, PerColumn
from aimc.config import Config
from aimc.errors import AimcError
from aimc.files import read_config
from aimc.periphery import InputRange
from aimc.recipes import MLP, RECIPES, run_experiment
from aimc.report import comparison_table, draw_comparison, load_comparison, load_run, tables
from aimc.report.cell_figures import read_pulses
from aimc.train import load_checkpoint

LIMIT = 180
"""Seconds after which an input counts as one that hangs; the first one of its kind may have to compile a loop."""
GRACE = 30
"""Seconds more for a compiled loop, which lets no handler of Python run; the process ends then, and shows where."""


class Wrong(AssertionError):
    """The tool neither took an input nor refused it."""


@contextlib.contextmanager
def judged(what: str) -> Iterator[None]:
    """Lets refusals pass and turns every other exception, and more than :data:`LIMIT` seconds, into :class:`Wrong`.

    In compiled loops the process ends :data:`GRACE` seconds later.
    """

    def hang(*args: Any) -> None:
        raise Wrong(f"hangs: {what}")

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(LIMIT)
    faulthandler.dump_traceback_later(LIMIT + GRACE, exit=True, file=sys.__stderr__)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (AimcError, Wrong):
        raise
    except Exception as error:
        raise Wrong(f"{type(error).__name__}: {error}\nfrom: {what}") from error
    finally:
        faulthandler.cancel_dump_traceback_later()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def accepted(what: str, attempt: Callable[[], None]) -> bool:
    """Whether an attempt went through; a refusal has to say something."""
    try:
        with judged(what):
            attempt()
    except AimcError as error:
        if len(str(error)) < 10:
            raise Wrong(f"refused without a reason: {what}") from error
        return False
    return True


def require(condition: bool, what: str) -> None:
    """Raise :class:`Wrong` unless the condition holds."""
    if not condition:
        raise Wrong(what)


# Configurations -------------------------------------------------------------------------------------------------------

VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 10**30, -(10**30), 0.0, -0.0, 0.5, -1.5, 1e-300, 1e300, math.inf, -math.inf,
    math.nan, "", "x", "PCM", "1s", "null", [], [1], [None], ["a", 2], {}, {"type": "PCM"}, {"type": "Nothing"},
    {"type": 3}, {1: 2}, [[[]]], "!!python/object/apply:os.system ['true']", "é" * 1000,
)  # fmt: skip
CHARACTERS = "{}[]:,&*!|>'\"%@`#-? \t\n\0\x07é0a"


def _places(tree: Any, path: tuple = ()) -> list[tuple]:
    found = [path] if path else []
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in children:
        found += _places(value, (*path, key))
    return found


def spoilt_tree(rng: random.Random, tree: Any) -> Any:
    """A copy with one to three places replaced, renamed, removed or moved."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.randint(1, 3)):
        places = _places(tree)
        if not places:
            return tree
        *above, last = rng.choice(places)
        holder = tree
        for key in above:
            holder = holder[key]
        how = rng.random()
        if how < 0.6:
            holder[last] = copy.deepcopy(rng.choice(VALUES))
        elif how < 0.75 and isinstance(holder, dict):
            holder[str(last)[:-1] + rng.choice("abc_")] = holder.pop(last)
        elif how < 0.9:
            del holder[last]
        else:
            holder[last] = {str(last): holder[last]}
    return tree


def spoilt_text(rng: random.Random, text: str) -> str:
    """A copy with some characters, lines or whole halves gone, doubled or replaced."""
    for _ in range(rng.randint(1, 4)):
        a, b = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        b = min(b, a + rng.choice((0, 1, 1, 3, 40)))
        text = text[:a] + rng.choice(("", rng.choice(CHARACTERS), text[a:b] * 2)) + text[b:]
    return text


def try_configuration(seed: int) -> bool:
    """A recipe's configuration, spoilt. One that is taken comes back from YAML as it is."""
    rng = random.Random(seed)
    recipe = RECIPES[rng.choice(sorted(RECIPES))]
    whole = recipe.config().to_yaml()
    if rng.random() < 0.7:
        text = yaml.safe_dump(spoilt_tree(rng, yaml.safe_load(whole)), allow_unicode=True)
    else:
        text = spoilt_text(rng, whole)

    def attempt() -> None:
        config = Config.from_yaml(text)
        require(Config.from_yaml(config.to_yaml()) == config, f"changes on a trip through YAML:\n{text}")

    return accepted(text, attempt)


# Settings that are run -----------------------------------------------------------------------------------------------

NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 5, 1000, 2**31 - 1, 10**19, 10**30, 0.0, 0.5, -1.5, 1.5, 0.999, 1e-3, 100.0, 1e-6, 1e6, 1e-18,
    1e-30, 1e-45, 1e-300, 1e18, 1e30, 1e38, 1e300, None, True, False,
)  # fmt: skip
HELD = (
    "epochs", "train_images", "validation_images", "test_images", "chips", "network", "type", "version", "name",
    "threads", "batch_size", "torch_device", "images", "validation_repeats", "cells_per_visit", "probes",
    "averages",
)  # fmt: skip
"""Sizes, on which the time of a run depends, and names."""


CELLS = (aimc.cells.SoftBounds(), aimc.cells.LinearStep(), aimc.cells.Ladder())
"""One of each kind of compiled loop; every other one takes a minute to compile."""


def _settings(config: Config, path: str = "") -> list[tuple[str, Any]]:
    """Dotted paths of the settings that hold no configuration, with the type of each."""
    found = []
    for name, hint in typing.get_type_hints(type(config)).items():
        value = getattr(config, name, None)
        if name in HELD or name not in config.field_names():
            continue
        if isinstance(value, Config):
            found += _settings(value, f"{path}{name}.")
        if not isinstance(value, Config) or type(None) in typing.get_args(hint):
            found.append((path + name, hint))
    return found


def changed_settings(rng: random.Random, config: Config) -> dict[str, Any]:
    """One to three numbers, choices or switches of any size, but no sizes: what ``replace`` takes."""
    found = {}
    for path, hint in rng.sample(_settings(config), rng.choice((1, 1, 1, 2, 3))):
        kinds = typing.get_args(hint) if not isinstance(hint, type) else (hint,)
        choices = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
        numbers = [v for v in NUMBERS if type(v) in kinds or (float in kinds and type(v) is int)]
        found[path] = rng.choice(choices or (numbers if numbers and rng.random() < 0.95 else NUMBERS))
    return found


def small_experiment(rng: random.Random) -> Config:
    """An experiment of either half that is run in a fraction of a second."""
    small = {
        "dataset.train_images": 40, "dataset.validation_images": 20, "dataset.test_images": 20, "threads": 1,
        "network": MLP(hidden=(6,)),
    }  # fmt: skip
    if rng.random() < 0.4:
        cell = rng.choice((aimc.cells.PCM(), aimc.cells.Hermes(), aimc.cells.SingleExponentPCM(), Ideal()))
        compensation = rng.choice((LeastSquares(), MeanAbs(), PerColumn()))
        return RECIPES["demo"].config().replace(
            **small, **{"hardware.cell": cell, "evaluation.compensation": compensation, "teacher.epochs": 1,
            "student.epochs": 1, "evaluation.chips": 1, "evaluation.times": ("0s",) if cell == Ideal() else ("1h",)}
        )  # fmt: skip
    name = rng.choice(list(ALGORITHMS))
    made = RECIPES["demo_insitu"].config(
        algorithm=name, io=rng.choice(("perfect", "noisy")), **({"tiles": 2} if name == "residual" else {})
    )
    return made.replace(**small, epochs=1, baseline=False, **{"hardware.cell": rng.choice(CELLS)})


def try_settings(seed: int) -> bool:
    """An experiment, or hardware, with settings of any size: refused when it is read or run, or it has a result."""
    rng = random.Random(seed)
    whole = rng.random() < 0.5
    config = small_experiment(rng) if whole else rng.choice((_pulsed_hardware, _inference_hardware))(rng)
    changes = changed_settings(rng, config)
    about = f"{changes} of {config}, seed {seed}"

    def experiment() -> None:
        changed = config.replace(**changes)
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as undrawn:
            for module in (aimc.recipes.hwa, aimc.recipes.in_memory):  # figures take longer than the rest
                for name in vars(module):
                    if name.startswith("draw"):
                        undrawn.enter_context(mock.patch.object(module, name))
            run_experiment(changed, folder, tensorboard=False)

    def hardware() -> None:
        found: Any = config.replace(**changes)
        torch.manual_seed(seed)
        digital = nn.Sequential(nn.Conv2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 3))
        x = torch.randn(4, 1, 3, 3)
        net = aimc.convert(digital, found, seed=seed)
        _trained(net, x)
        net.eval()
        require(net(x).shape == (4, 3), f"another shape of {about}")
        if isinstance(found, aimc.PulsedHardware):
            aimc.to_digital(net)(x)
            return
        with aimc.program(net, seed=1).at(0.0 if isinstance(found.cell, Ideal) else "1h"):
            require(net(x).shape == (4, 3), f"another shape of {about}")

    return accepted(about, experiment if whole else hardware)


# Files ----------------------------------------------------------------------------------------------------------------


def spoilt_bytes(rng: random.Random, data: bytes) -> bytes:
    """A file cut, with bits flipped, bytes put in, or something else altogether."""
    how = rng.random()
    if how < 0.3:
        return data[: rng.randrange(len(data) + 1)]
    if how < 0.6:
        changed = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            if changed:  # the beginning holds names and lengths: hit it as often as the rest
                at = rng.randrange(len(changed) if rng.random() < 0.5 else min(len(changed), 400))
                changed[at] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if how < 0.75:
        at = rng.randrange(len(data) + 1)
        return data[:at] + rng.randbytes(rng.randint(1, 50)) + data[at:]
    if how < 0.85:
        return rng.choice((b"", b"{}", b"[]", b"null", b"\x80\x04.", b"PK\x03\x04", b"\n\n", b'{"a": 1}'))
    return rng.randbytes(rng.randint(1, 2000))


def spoilt_json(rng: random.Random, data: bytes) -> bytes:
    """A file of JSON lines with one document changed in its structure."""
    lines = data.decode().splitlines(keepends=True) if b"\n{" in data.strip() else [data.decode()]
    at = rng.randrange(len(lines))
    lines[at] = json.dumps(spoilt_tree(rng, json.loads(lines[at])), default=str) + "\n"
    return "".join(lines).encode()


def spoilt_table(rng: random.Random, data: bytes) -> bytes:
    """A whole parquet file whose columns are others: of another type or name, with gaps, or with spoilt images."""
    import pyarrow
    import pyarrow.parquet

    columns = pyarrow.parquet.read_table(io.BytesIO(data)).to_pydict()
    name = rng.choice(list(columns))
    values, at = columns[name], rng.randrange(len(columns[name]))
    others: list[Callable[[Any], Any]] = [
        str, lambda value: 1.7, lambda value: [value], lambda value: {"a": value}, lambda value: True,
        lambda value: 10**18, lambda value: -1, lambda value: b"\xff", lambda value: Decimal("1.5"),
        lambda value: datetime.date(2026, 11, 30), lambda value: None,
    ]  # fmt: skip
    how = rng.random()
    if how < 0.35:
        other = rng.choice(others)
        columns[name] = [other(value) for value in values]
    elif how < 0.5:
        columns[name] = [*values[:at], None, *values[at + 1 :]]
    elif how < 0.6:
        columns[rng.choice(("x", "text", "fine_label", name.upper(), ""))] = columns.pop(name)
    elif how < 0.65:
        columns = {key: [] for key in columns}
    elif how < 0.7:
        del columns[name]
    elif "image" in columns:
        content = bytearray(columns["image"][at]["bytes"])
        for _ in range(rng.randint(1, 4)):
            content[rng.randrange(min(len(content), 40))] = rng.randrange(256)
        columns["image"][at]["bytes"] = bytes(content)
    table = pyarrow.table(columns)
    last = len(table.columns) - 1
    if rng.random() < 0.1 and last >= 0 and not pyarrow.types.is_nested(table[last].type):
        table = table.set_column(last, table.column_names[last], table[last].dictionary_encode())
    if rng.random() < 0.1:
        features = rng.choice((b"{}", b"[", b'{"info": {"features": {"label": {"names": [1, 2]}}}}'))
        table = table.replace_schema_metadata({b"huggingface": features})
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    return buffer.getvalue()


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"
    }  # fmt: skip


def try_run_directory(seed: int, finished: Path) -> bool:
    """A finished run with one file spoilt, or another run's or stage's in its place: reported, and gone on with.

    What is refused stays as it was, and a checkpoint from elsewhere is never taken.
    """
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run"
        shutil.copytree(finished, place)
        names = sorted(
            p
            for p in place.rglob("*")
            if p.suffix in (".yaml", ".json", ".jsonl", ".safetensors") and p.is_file()
        )
        victim = rng.choice(names)
        data = victim.read_bytes()
        foreign = victim.suffix == ".safetensors" and rng.random() < 0.3
        by_structure = victim.suffix in (".json", ".jsonl") and rng.random() < 0.6
        if foreign:
            others = [finished.with_name(f"{finished.name} of another seed") / victim.relative_to(place)]
            others += [p for p in names if p.suffix == ".safetensors" and p != victim]
            source = rng.choice(others)
            shutil.copy(source, victim)
            about = f"{victim.relative_to(place)} replaced by {source}, seed {seed}"
        else:
            victim.write_bytes(spoilt_json(rng, data) if by_structure else spoilt_bytes(rng, data))
            about = f"{victim.relative_to(place)} spoilt, seed {seed}"
        config, before = read_config(finished), _contents(place)
        reported = accepted(
            f"report of {about}", lambda: [str(t.rows) for t in tables(load_run(place))] and None
        )
        gone_on = accepted(
            f"running on with {about}", lambda: run_experiment(config, place, tensorboard=False) and None
        )
        require(not (foreign and gone_on), f"{about}: taken")
        if not gone_on:
            after = _contents(place)
            lost = [n for n, d in before.items() if n != "environment.json" and after.get(n) != d]
            require(not lost, f"{about}: refused, but {lost} changed")
        return reported and gone_on


def try_checkpoint(seed: int, file: Path) -> bool:
    """A checkpoint, spoilt: it is refused, or nothing of it changed."""
    rng = random.Random(seed)
    whole, details = load_checkpoint(file)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "a.safetensors"
        place.write_bytes(spoilt_bytes(rng, file.read_bytes()))

        def attempt() -> None:
            found, about = load_checkpoint(place)
            same = found.keys() == whole.keys() and all(torch.equal(found[n], t) for n, t in whole.items())
            require(same and about == details, f"a spoilt checkpoint was taken, seed {seed}")

        return accepted(f"checkpoint, seed {seed}", attempt)


def try_chip(seed: int, net: nn.Module, file: Path) -> bool:
    """A saved chip, spoilt: it is refused, or nothing of it changed."""
    rng = random.Random(seed)
    whole = aimc.Chip.load(file, net).weights()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "chip.safetensors"
        place.write_bytes(spoilt_bytes(rng, file.read_bytes()))

        def attempt() -> None:
            found = aimc.Chip.load(place, net).weights()
            same = all(torch.equal(found[n], t) for n, t in whole.items())
            require(same, f"a spoilt chip was taken, seed {seed}")

        return accepted(f"chip, seed {seed}", attempt)


def data_files(folder: Path) -> list[Path]:
    """A data set of ten images as npz, parquet and IDX files, each in a folder of its own."""
    import pyarrow
    import pyarrow.parquet
    from PIL import Image

    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (10, 28, 28), dtype=np.uint8), np.arange(10)
    encoded = []
    for image in x:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "png")
        encoded.append({"bytes": buffer.getvalue(), "path": None})
    places = {kind: folder / kind / "mnist" for kind in ("npz", "parquet", "idx")}
    for place in places.values():
        place.mkdir(parents=True)
    np.savez(places["npz"] / "test.npz", x=x, y=y)
    pyarrow.parquet.write_table(
        pyarrow.table({"image": encoded, "label": y}), places["parquet"] / "test-00000-of-00001.parquet"
    )
    for name, head, body in (
        ("t10k-images-idx3-ubyte", struct.pack(">4I", 2051, 10, 28, 28), x),
        ("t10k-labels-idx1-ubyte", struct.pack(">2I", 2049, 10), y.astype(np.uint8)),
    ):
        (places["idx"] / name).write_bytes(head + body.tobytes())
    return sorted(p for place in places.values() for p in place.iterdir())


def try_data(seed: int, file: Path) -> bool:
    """A file of a data set, spoilt: refused by its name, or read as images with labels."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "mnist"
        shutil.copytree(file.parent, place)
        by_structure = file.suffix == ".parquet" and rng.random() < 0.6
        spoil = spoilt_table if by_structure else spoilt_bytes
        (place / file.name).write_bytes(spoil(rng, file.read_bytes()))

        def attempt() -> None:
            try:
                data = aimc.data.load("mnist", "test", root=folder)
            except AimcError as error:
                require(file.name in str(error), f"{error} does not name {file.name}, seed {seed}")
                raise
            require(
                data.inputs.shape[1:] == (1, 28, 28) and len(data.inputs) == len(data.targets) > 0,
                f"{list(data.inputs.shape)} images and {list(data.targets.shape)} labels of {file.name}, seed {seed}",
            )
            require(bool(torch.isfinite(data.inputs).all()), f"pixels of {file.name}, seed {seed}")
            require(data.targets.dtype == torch.int64, f"labels of {file.name}, seed {seed}")
            require(
                bool(((data.targets >= 0) & (data.targets < 10)).all()), f"labels of {file.name}, seed {seed}"
            )

        return accepted(f"{file.name} of data, seed {seed}", attempt)


def saved_result(folder: Path, net: nn.Module) -> Path:
    """The file of an evaluation over time."""
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    metric = lambda net: float(net(x).detach().mean())
    result = aimc.evaluate_over_time(net, metric, times=("1h", "1y"), chips=3, seed=0)
    result.save(folder / "result.json")
    return folder / "result.json"


def try_result(seed: int, file: Path) -> bool:
    """A saved result, spoilt: refused by its name, or it is shown and comes back from another file as it is."""
    rng = random.Random(seed)
    data = file.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "spoilt.json"
        place.write_bytes(spoilt_json(rng, data) if rng.random() < 0.6 else spoilt_bytes(rng, data))

        def attempt() -> None:
            try:
                result = aimc.DriftResult.load(place)
            except AimcError as error:
                require("spoilt.json" in str(error), f"{error} does not name the file, seed {seed}")
                raise
            require(len(str(result)) > 10, f"nothing is shown of a result, seed {seed}")
            result.save(Path(folder) / "again.json")
            again = aimc.DriftResult.load(Path(folder) / "again.json")
            require(str(again) == str(result), f"a result changes on its way through a file, seed {seed}")

        return accepted(f"a result, seed {seed}", attempt)


def text_files(folder: Path) -> list[Path]:
    """A running text and labelled sentences as parquet and jsonl files, each in a folder of its own."""
    import pyarrow
    import pyarrow.parquet

    lines = [" ".join("abcde"[(i * k) % 5] for k in range(6)) for i in range(12)]
    columns = {
        "wikitext-2": {"text": lines},
        "sst2": {"sentence": lines, "label": [i % 2 for i in range(12)]},
    }
    found = []
    for name, rows in columns.items():
        for kind in ("parquet", "jsonl"):
            place = folder / f"{name} {kind}" / name
            place.mkdir(parents=True)
            if kind == "parquet":
                found.append(place / "train-00000-of-00001.parquet")
                pyarrow.parquet.write_table(pyarrow.table(rows), found[-1])
            else:
                found.append(place / "train.jsonl")
                each = [dict(zip(rows, values, strict=True)) for values in zip(*rows.values(), strict=True)]
                found[-1].write_text("".join(json.dumps(row) + "\n" for row in each))
    return found


def try_text(seed: int, file: Path) -> bool:
    """A file of texts, spoilt: refused by its name, or read as numbers of words, or as sentences with labels."""
    rng = random.Random(seed)
    data, name = file.read_bytes(), file.parent.name
    by_structure = spoilt_json if file.suffix == ".jsonl" else spoilt_table
    spoil = by_structure if rng.random() < 0.6 else spoilt_bytes
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / name / file.name
        place.parent.mkdir()
        place.write_bytes(spoil(rng, data))

        def lengths(lines: Sequence[str]) -> tuple[Tensor, Tensor]:
            return torch.tensor([[len(line)] for line in lines]), torch.ones(len(lines), 1, dtype=torch.int64)

        def attempt() -> None:
            try:
                if name == "sst2":
                    found = aimc.data.load_sentences(name, "train", lengths, root=folder)
                    labels = found.targets
                    require(len(found.inputs[0]) == len(labels) > 0, f"sentences of {file}, seed {seed}")
                    require(bool(((labels >= 0) & (labels < 2)).all()), f"labels of {file}, seed {seed}")
                else:
                    text = aimc.data.load_tokens(name, "train", root=folder)
                    require(0 <= int(text.tokens.min()), f"words of {file}, seed {seed}")
                    require(int(text.tokens.max()) < len(text.words), f"words of {file}, seed {seed}")
            except AimcError as error:
                require(file.name in str(error), f"{error} does not name {file.name}, seed {seed}")
                raise

        return accepted(f"{file.name} of {name}, seed {seed}", attempt)


def pulses_file(folder: Path) -> Path:
    """Two devices that were pulsed up and down."""
    rows = ["pulse,direction,value,device"]
    for device in ("a", "b"):
        rows += [f"{k},up,{1 - 0.8**k:.4f},{device}" for k in range(12)]
        rows += [f"{k},down,{0.8 ** (k - 12):.4f},{device}" for k in range(12, 24)]
    (folder / "pulses.csv").write_text("\n".join(rows) + "\n")
    return folder / "pulses.csv"


def try_pulses(seed: int, file: Path) -> bool:
    """A file of measured pulses, spoilt: refused, by its name where it is the reading, or a cell is fitted to it."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "spoilt.csv"
        if rng.random() < 0.6:
            rows = [line.split(",") for line in file.read_text().splitlines()]
            for _ in range(rng.randint(1, 3)):
                row, bad = rng.choice(rows[rng.choice((0, 1, 1, 1)) :]), rng.random() < 0.4
                row[rng.randrange(len(row)) if bad else 2] = rng.choice(
                    ("", "nan", "1e400", "x", "up", '"', "1,2", "0\n", "\x00", "٣")
                    if bad
                    else ("0.5", "-9", "0", "1e30", "-1e-30", "1e300", "1e6", "inf")
                )
            text = "\n".join(",".join(row) for row in rows)
            place.write_text(spoilt_text(rng, text) if rng.random() < 0.2 else text)
        else:
            place.write_bytes(spoilt_bytes(rng, file.read_bytes()))

        def attempt() -> None:
            try:
                values, directions = read_pulses(place)
            except AimcError as error:
                require("spoilt.csv" in str(error), f"{error} does not name the file, seed {seed}")
                raise
            require(
                values.shape == directions.shape and bool(np.isfinite(values).all()), f"read, seed {seed}"
            )
            found = aimc.cells.fit_cell(values, directions, kind="SoftBounds")
            require(math.isfinite(found.rmse) and len(str(found)) > 10, f"fitted, seed {seed}")

        return accepted(f"pulses, seed {seed}", attempt)


def comparison_file(folder: Path) -> Path:
    """What ``aimc compare`` writes."""
    entry = {
        "algorithm": "mp", "states": 4.0, "tiles": 1, "seed": 0, "dataset": "mnist", "epochs": 2, "batch_size": 8,
        "lr": 0.1, "validation": 0.5, "test": 0.5, "seconds": 3.0, "io": "noisy",
        "curve": {"test": [0.1, 0.5], "pulses": [10.0, 20.0]},
        "budget": {"pulses": 3.0, "reads": 2.0, "products": 1.0, "kept": 3, "passing": 4},
    }  # fmt: skip
    digital = {**entry, "algorithm": "digital", "states": None, "tiles": None, "budget": None}
    (folder / "comparison.json").write_text(json.dumps({"runs": [entry, {**entry, "seed": 1}, digital]}))
    return folder / "comparison.json"


def try_comparison(seed: int, file: Path) -> bool:
    """The file of a comparison, spoilt: refused by its name, or it has a table, and a figure of it is drawn."""
    rng = random.Random(seed)
    data = file.read_bytes()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "comparison.json"
        place.write_bytes(spoilt_json(rng, data) if rng.random() < 0.7 else spoilt_bytes(rng, data))

        def attempt() -> None:
            try:
                entries = load_comparison(folder)
            except AimcError as error:
                require(folder in str(error), f"{error} does not name the file, seed {seed}")
                raise
            require(len(comparison_table(entries).rows) > 0, f"an empty table, seed {seed}")
            if rng.random() < 0.2:
                draw_comparison(entries, Path(folder) / "figure.png")

        return accepted(f"a comparison, seed {seed}", attempt)


# States ---------------------------------------------------------------------------------------------------------------


def spoilt_tensor(rng: random.Random, value: Tensor) -> Any:
    """A copy with numbers that are none, of another type or size, or with other bytes; sometimes no tensor at all."""
    flat = value.clone().reshape(-1)
    how = rng.choice(("number", "number", "type", "size", "empty", "bytes", "dimension", "nothing"))
    if how == "number" and len(flat):
        bad = (*BAD, -1.0, 1e30) if value.is_floating_point() else (-1, 127, torch.iinfo(value.dtype).max)
        flat[rng.randrange(len(flat))] = rng.choice(bad)
        return flat.view(value.shape)
    if how == "type":
        types = (torch.float32, torch.float64, torch.int64, torch.bool, torch.complex64, torch.uint8)
        return value.to(rng.choice(types))
    if how == "size":
        return torch.cat([flat, flat[:1]]) if rng.random() < 0.5 else flat[:-1]
    if how == "bytes":
        raw = torch.tensor(list(rng.randbytes(max(value.nbytes, 1))), dtype=torch.uint8)
        return raw.view(value.dtype).view(value.shape) if value.nbytes else raw
    if how == "dimension":
        return value[None]
    return None if how == "nothing" else value.new_empty(0)


def _trained(net: nn.Module, x: Tensor, steps: int = 2) -> None:
    optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    if aimc.pulsed_layers(net):
        optimizer = aimc.optim.wrap(optimizer, net)
    for _ in range(steps):
        optimizer.zero_grad()
        _output(net, x).square().mean().backward()
        optimizer.step()


def same_states(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two states hold the same, to the bit."""
    return first.keys() == second.keys() and all(
        torch.equal(t.reshape(-1).view(torch.uint8), second[n].reshape(-1).view(torch.uint8))
        for n, t in first.items()
    )


def try_state(seed: int) -> bool:
    """A layer's state of either half with one tensor spoilt: loaded and trained on, or nothing of it is written."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    digital: nn.Module = rng.choice((lambda: nn.Linear(4, 3), lambda: nn.LSTM(4, 3, batch_first=True)))()
    hardware = _pulsed_hardware(rng) if rng.random() < 0.6 else aimc.presets.pcm()
    fixed = isinstance(hardware, aimc.Hardware) and rng.random() < 0.3
    if fixed:
        hardware = hardware.replace(**{"training.remap_every": 3, "training.clip": None})
    x = torch.randn(2, 3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net, other = (aimc.convert(copy.deepcopy(digital), hardware, seed=k) for k in (1, 2))
        for each in (net, other):
            _trained(each, x)
    state: dict[str, Any] = {n: v.clone() for n, v in other.state_dict().items()}
    victim = rng.choice(sorted(state))
    state[victim] = spoilt_tensor(rng, state[victim])
    about = f"{victim} = {state[victim]} of {digital} on {hardware}, seed {seed}"
    before = copy.deepcopy(net.state_dict())

    def attempt() -> None:
        try:
            net.load_state_dict(state)
        except (AimcError, RuntimeError) as error:
            require(same_states(before, net.state_dict()), f"refused, but something was loaded: {about}")
            require(victim.rpartition(".")[2] in str(error), f"{error} does not name the entry: {about}")
            if not str(error).startswith("Error(s) in loading state_dict"):
                raise
            raise AimcError(str(error)) from None
        held = [v for v in net.state_dict().values() if v.is_floating_point()]
        require(all(bool(torch.isfinite(v).all()) for v in held), f"taken: {about}")
        _trained(net, x, 1)
        aimc.to_digital(net)(x)

    return accepted(about, attempt)


# Layers ---------------------------------------------------------------------------------------------------------------

SCALES = (0.0, 1e-38, 1e-20, 1e-6, 1.0, 1e6, 1e20, 3e38)
BAD = (math.nan, math.inf, -math.inf)


def _layer(rng: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    """A small layer, and the shape of an input: one row, one column, none, no vector at all among them."""
    batch, size = rng.choice((0, 1, 1, 2, 5)), lambda: rng.choice((1, 1, 2, 3, 7))
    bias = rng.random() < 0.5
    kind = rng.choice(
        ("linear", "sequence", "conv1d", "conv2d", "depthwise", "transposed", "lstm", "attention")
    )
    if kind in ("linear", "sequence"):
        # Torch takes none of them in linear layers alone.
        layer = nn.Linear(*(rng.choice((0, size(), size(), size())) for _ in range(2)), bias)
        middle = (rng.choice((0, 1, 4)),) if kind == "sequence" else ()
        return layer, (batch, *middle, layer.in_features)
    if kind == "lstm":
        width = size()
        return nn.LSTM(width, size(), batch_first=True), (batch, rng.choice((1, 3)), width)
    if kind == "attention":
        return nn.TransformerEncoderLayer(4, 2, 3, 0.0, batch_first=True), (batch, rng.choice((1, 3)), 4)
    channels, k = size(), rng.choice((1, 2, 3))
    pixels = k + rng.choice((0, 1, 2))
    if kind == "conv1d":
        return nn.Conv1d(channels, size(), k, bias=bias), (batch, channels, pixels)
    if kind == "depthwise":
        return nn.Conv2d(channels, channels, k, groups=channels, padding="same"), (
            batch,
            channels,
            pixels,
            pixels,
        )
    make = nn.ConvTranspose2d if kind == "transposed" else nn.Conv2d
    return make(channels, size(), k, stride=rng.choice((1, 2)), bias=bias), (batch, channels, pixels, pixels)


def _spoil_values(rng: random.Random, values: Tensor) -> bool:
    """Scale, zero, or put something that is no number into a tensor, in place; returns whether all are numbers."""
    if values.numel() == 0:
        return True
    how = rng.random()
    if how < 0.5:
        values.mul_(rng.choice(SCALES))
    elif how < 0.65 and values.dim() > 1:
        values[rng.randrange(len(values))] = 0
    elif how < 0.75:
        values.view(-1)[rng.randrange(values.numel())] = rng.choice(BAD)
        return False
    elif how < 0.85:
        values.view(-1)[rng.randrange(values.numel())] = 1e30
    return True


def _inference_hardware(rng: random.Random) -> aimc.Hardware:
    hardware = rng.choice(
        (aimc.presets.pcm, aimc.presets.hermes, aimc.presets.single_exponent_pcm, aimc.presets.ideal)
    )()
    changes: dict[str, Any] = {
        "tile.rows": rng.choice((1, 3, 9, 10, 512)),
        "tile.columns": rng.choice((1, 2, 512, None)),
        "mapping.scale": rng.choice(("column", "tile", "fan_in")),
    }
    if hardware.dac is not None:
        changes |= {
            "dac.bits": rng.choice((2, 3, 8, 16)),
            "input_range": rng.choice(
                (InputRange(), InputRange(value=1.0), InputRange(value=1e-19), InputRange(mode="dynamic"))
            ),
        }
    if hardware.adc is not None:
        changes |= {"adc.bits": rng.choice((2, 3, 8, 16)), "adc.bound": rng.choice((1e-6, 1.0, 10.0, 1e6))}
    if rng.random() < 0.3:
        changes["ir_drop"] = None
    return hardware.replace(**changes)


def _pulsed_hardware(rng: random.Random) -> aimc.PulsedHardware:
    name = rng.choice(list(ALGORITHMS))
    algorithm = ALGORITHMS[name](**({"tiles": 3} if name == "residual" else {}))
    make = rng.choice(
        (aimc.presets.reram, aimc.presets.ecram, aimc.presets.capacitor, aimc.presets.idealized)
    )
    return make(algorithm=algorithm, io=rng.choice(("perfect", "noisy")))


def _output(net: nn.Module, x: Tensor) -> Tensor:
    y = net(x)
    return y[0] if isinstance(y, tuple) else y


def try_layer(seed: int) -> bool:
    """A layer of some shape and hardware with weights and inputs of all sizes: trained, programmed and aged.

    What is taken has outputs of torch's shape and type, and finite ones where weights and inputs are.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    digital, shape = _layer(rng)
    numbers = True
    if rng.random() < 0.6:
        with torch.no_grad():
            for p in digital.parameters():
                numbers &= _spoil_values(rng, p) if rng.random() < 0.5 else True
    x = torch.randn(shape)
    if rng.random() < 0.6:
        numbers &= _spoil_values(rng, x)
    dtype = rng.choice((torch.float32,) * 3 + (torch.float64, torch.bfloat16))
    digital, x = digital.to(dtype), x.to(dtype)
    pulsed = rng.random() < 0.4 and dtype == torch.float32
    hardware = _pulsed_hardware(rng) if pulsed else _inference_hardware(rng)
    steps = rng.choice((0, 1, 2))
    about = f"{digital} on {hardware} with {list(x.shape)} {dtype}, seed {seed}"

    def attempt() -> None:
        with torch.no_grad():
            expected = _output(copy.deepcopy(digital), x)
        net = aimc.convert(digital, hardware, seed=seed)
        optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
        if pulsed:
            optimizer = aimc.optim.wrap(optimizer, net)
        for _ in range(steps):
            optimizer.zero_grad()
            y = _output(net, x)
            y.square().mean().backward() if y.numel() else y.sum().backward()
            optimizer.step()
        net.eval()

        with torch.no_grad():
            trained = aimc.to_digital(net)
            sizes = [
                float(v.abs().double().max())
                for v in (x, _output(trained, x), *trained.parameters())
                if v.numel()
            ]
        # Larger ones may overflow on the way, and weights grow without bounds where a training diverges.
        moderate = numbers and all(size < 1e15 for size in sizes)

        def check(y: Tensor, where: str) -> None:
            require(
                y.shape == expected.shape and y.dtype == dtype,
                f"{where}: {list(y.shape)} {y.dtype} of {about}",
            )
            require(not moderate or bool(torch.isfinite(y).all()), f"{where}: not finite, {about}")

        with torch.no_grad():
            if steps == 0:
                check(_output(net, x), "evaluation")
            if pulsed:
                check(_output(aimc.to_digital(net), x), "digital")
                return
            if steps == 0 and hardware.dac is not None and rng.random() < 0.5:
                aimc.calibrate(net, [x], method=rng.choice(("max", "quantile", "std", "moving_std")))
            estimator = rng.choice((None, LeastSquares(), MeanAbs(), PerColumn()))
            chip = aimc.program(net, seed=1, compensation=estimator)
            with chip.at(0.0 if isinstance(hardware.cell, Ideal) else rng.choice((0.0, 1.0, "1y"))):
                check(_output(net, x), f"chip with {estimator}")

    return accepted(about, attempt)


# What finished things are made of -------------------------------------------------------------------------------------


def finished_runs(folder: Path) -> list[Path]:
    """A finished run of each half, made in a second or two, and beside each the same of another seed."""
    small = {"dataset.train_images": 80, "dataset.validation_images": 20, "dataset.test_images": 20}
    hwa = RECIPES["demo"].config().replace(
        **small, **{"teacher.epochs": 1, "student.epochs": 1, "evaluation.chips": 2, "evaluation.times": ("1h", "1y")}
    )  # fmt: skip
    cells = (
        RECIPES["demo_insitu"]
        .config(algorithm="residual", tiles=2)
        .replace(**small, epochs=1, baseline=False)
    )
    for name, config in (("hwa", hwa), ("cells", cells)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run_experiment(config, folder / name, tensorboard=False)
            run_experiment(config.replace(seed=5), folder / f"{name} of another seed", tensorboard=False)
    return [folder / "hwa", folder / "cells"]


def programmed(folder: Path) -> tuple[nn.Module, Path]:
    """A network and the file of a chip of it."""
    torch.manual_seed(0)
    net = aimc.convert(
        nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), aimc.presets.pcm(), seed=0
    ).eval()
    aimc.program(net, seed=3).save(folder / "chip.safetensors")
    return net, folder / "chip.safetensors"
