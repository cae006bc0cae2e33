"""The shape of the package: who may import whom, and that what is promised by name exists."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import aimc

PACKAGE = Path(aimc.__file__).parent

# Lower rows are imported by higher ones, never the reverse. Names in one row do not import each other.
ROWS = (
    ("errors",),
    ("config", "units", "compiled", "env"),
    ("arguments", "random"),
    ("files", "jobs", "processes"),
    ("cells", "periphery"),
    ("ops",),
    ("crossbar",),
    ("hwa", "algorithms"),
    ("hardware",),
    ("presets",),
    ("nn",),
    ("handlers",),
    ("convert",),
    ("chip",),
    ("optim", "data", "report"),
    ("train",),
    ("recipes",),
    ("cli",),
)
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}
ALONE = ("models",)  # imports nothing of aimc, so that the networks stay plain torch; recipes may import it
RANK |= {name: RANK["data"] for name in ALONE}

FILES = sorted(PACKAGE.rglob("*.py"))


def imported(tree: ast.Module, package: tuple[str, ...]) -> list[tuple[int, str]]:
    """(line, dotted name) of every import of aimc, also inside functions; ``package`` resolves relative ones."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            # "from aimc import x" means aimc.x; "from aimc.a import x" is an import of aimc.a
            found += [(node.lineno, f"{module}.{a.name}" if module == "aimc" else module) for a in node.names]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name in ("import_module", "__import__"):
                found.append((node.lineno, str(node.args[0].value)))
    return [(line, name) for line, name in found if name == "aimc" or name.startswith("aimc.")]


def broken_rules(parts: tuple[str, ...], source: str) -> list[str]:
    """What a module may not import. ``parts`` is its path under aimc, such as ("nn", "linear.py")."""
    room = parts[0].removesuffix(".py")
    package = ("aimc", *parts[:-1])
    problems = []
    for line, name in imported(ast.parse(source), package):
        target = name.split(".")[1] if "." in name else "aimc"
        where = f"aimc/{'/'.join(parts)}:{line} imports {name}"
        if target == room:
            continue
        if room in ALONE:
            problems.append(f"{where}: {room} imports nothing of aimc")
        elif target == "aimc":
            problems.append(f"{where}: name the module, not the whole package")
        elif target not in RANK:
            problems.append(f"{where}: {target} is not a module of aimc that has a rank")
        elif RANK[target] >= RANK[room]:
            problems.append(f"{where}: {target} is not below {room}")
    return problems


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    parts = path.relative_to(PACKAGE).parts
    if parts in (("__init__.py",), ("__main__.py",)):
        return  # the public names may come from anywhere
    problems = broken_rules(parts, path.read_text())
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("parts", "source", "allowed"),
    [
        (("nn", "linear.py"), "from aimc.ops import f", True),
        (("nn", "linear.py"), "from aimc.nn.base import f", True),
        (("nn", "linear.py"), "from .base import f", True),
        (("nn", "linear.py"), "from ..ops import f", True),
        (("nn", "linear.py"), "from ..chip import f", False),
        (("nn", "linear.py"), "from aimc import ops", True),
        (("nn", "linear.py"), "from aimc import chip", False),
        (("nn", "linear.py"), "import aimc.chip.program", False),
        (("nn", "linear.py"), "import aimc", False),
        (("nn", "linear.py"), "def f():\n    from aimc.convert import convert", False),
        (("nn", "linear.py"), "import importlib\nimportlib.import_module('aimc.chip')", False),
        (("nn", "linear.py"), "from aimc.nothing import f", False),
        (("ops", "read_out", "cpu.py"), "from aimc.random.cpu import f", True),
        (("ops", "read_out", "cpu.py"), "from ... import nn", False),
        (("cells", "pcm.py"), "from aimc.periphery import ADC", False),
        (("config.py",), "from aimc.errors import AimcError", True),
        (("errors.py",), "from aimc.config import Config", False),
        (("models", "lenet.py"), "from aimc.errors import AimcError", False),
        (("models", "__init__.py"), "from .lenet import LeNet5", True),
        (("models", "__init__.py"), "from aimc.models.lenet import LeNet5", True),
    ],
)
def test_the_rule_itself(parts, source, allowed):
    assert (not broken_rules(parts, source)) == allowed


def test_every_folder_and_module_has_a_rank():
    rooms = {p.stem for p in PACKAGE.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert rooms - {"__init__", "__main__"} <= set(RANK)


def test_every_folder_with_code_is_a_package():
    assert not [d for d in {p.parent for p in FILES} if not (d / "__init__.py").exists()]


def modules() -> list[str]:
    """Every module that can be imported anywhere; gpu.py needs Triton, __main__ runs."""
    names = [m.name for m in pkgutil.walk_packages([str(PACKAGE)], "aimc.")]
    return ["aimc", *(n for n in names if n.split(".")[-1] not in ("gpu", "__main__"))]


@pytest.mark.parametrize("name", modules())
def test_every_public_name_exists(name):
    module = importlib.import_module(name)
    public = getattr(module, "__all__", [])
    assert len(public) == len(set(public)), "a name stands twice in __all__"
    missing = [n for n in public if not hasattr(module, n)]
    assert not missing, f"{name}.__all__ promises {missing}"


def test_the_package_and_its_folders_say_what_is_public():
    for folder in [PACKAGE, *(p for p in PACKAGE.iterdir() if (p / "__init__.py").exists())]:
        tree = ast.parse((folder / "__init__.py").read_text())
        names = {
            t.id for n in tree.body if isinstance(n, ast.Assign) for t in n.targets if isinstance(t, ast.Name)
        }
        assert "__all__" in names, f"{folder.name}/__init__.py has no __all__"


def test_the_readme_shows_the_rows():
    readme = (PACKAGE.parent / "README.md").read_text()
    block = readme.split("## How it is built")[1].split("```")[1].strip().splitlines()
    shown = [tuple(line[:26].split()) for line in block if not line.startswith(" ")]
    assert [set(row) - set(ALONE) for row in shown] == [set(row) for row in ROWS]
