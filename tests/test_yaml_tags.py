"""YAML of strangers makes no Python objects, wherever it comes in."""

import ast
from pathlib import Path

import pytest

from aimc import cli
from aimc.config import Config, load_yaml
from aimc.errors import AimcError
from aimc.recipes import reproduce_run
from aimc.recipes.compare import cases, compare
from aimc.report import load_run
from aimc.train.stages import Checkpoints
from tests.recipes.test_compare import RECIPE

TAGS = {
    "apply": "!!python/object/apply:os.mkdir [{}]",
    "apply, with names": "!!python/object/apply:os.mkdir {{args: [{}]}}",
    "new": "!!python/object/new:os.mkdir [{}]",
    "object": "!!python/object:aimc.train.Watch {{path: {}}}",
    "name": "!!python/name:os.mkdir",
    "module": "!!python/module:antigravity",
    "tuple": "!!python/tuple [1, 2]",
    "long form": "!<tag:yaml.org,2002:python/object/apply:os.mkdir> [{}]",
}


def the_command(*words):
    """What a command says to its user; it ends as one with wrong arguments does."""

    def run(text, place, capsys):
        assert cli.main([word.format(place=place, text=text) for word in words]) == 2
        raise AimcError(capsys.readouterr().err)

    return run


def a_comparison(text, place, capsys):
    """The folder of a run of a comparison holds the text."""
    (place / "out" / "mp-seed0").mkdir(parents=True)
    (place / "out" / "mp-seed0" / "config.yaml").write_text(text)
    compare(cases(RECIPE, ["mp"], baseline=False), place / "out")


ENTRIES = {
    "load_yaml": lambda text, place, capsys: load_yaml(text),
    "from_yaml": lambda text, place, capsys: Config.from_yaml(text),
    "a configuration's file": the_command(
        "run", "demo", "--config", "{place}/config.yaml", "--output", "{place}/out"
    ),
    "a flag": the_command("run", "demo", "--hardware.cell", "{text}", "--output", "{place}/out"),
    "a compensation": the_command("evaluate", "{place}", "--compensation", "{text}"),
    "a field of a cell": the_command("cell", "SoftBounds", "--set", "dw_min={text}"),
    "a run that goes on": the_command("run", "demo", "--output", "{place}"),
    "a run on chips": the_command("evaluate", "{place}"),
    "a run that is reported": the_command("report", "{place}"),
    "a run that is made again": lambda text, place, capsys: reproduce_run(place),
    "a run that is read": lambda text, place, capsys: load_run(place),
    "a run's identity": lambda text, place, capsys: Checkpoints(place).identity,
    "a run of a comparison": a_comparison,
}


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize("whole", [True, False], ids=["whole", "a value"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_a_tag_that_makes_objects_is_no_yaml(entry, tag, whole, tmp_path, capsys):
    made = tmp_path / "made"
    text = TAGS[tag].format(made)
    text = text if whole else f"{{seed: {text}}}"
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "records.jsonl").write_text("")
    with pytest.raises(AimcError, match="not valid YAML"):
        ENTRIES[entry](text, tmp_path, capsys)
    assert not made.exists()


def test_one_function_reads_yaml():
    """All of the above come down to it, and what is added later has to."""
    package = Path(__file__).parents[1] / "aimc"
    reading = []
    for file in package.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) == "yaml":
                if "load" in node.attr.lower():
                    reading.append((str(file.relative_to(package)), node.attr))
    assert sorted(reading) == [("config.py", "SafeLoader"), ("config.py", "load")]
