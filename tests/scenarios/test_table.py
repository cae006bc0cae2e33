"""The table of scenarios names tests that exist, and leaves no scenario out."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
REPORTED = (1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12, 14, 15, 16, 17, 18, 20, 21, 23, 24, 25)
SEEN = (1, 2, 3, 4, 6, 8, 9, 10, 11, 12, 13, 16, 19)
LABELS = [*(f"T{n}" for n in REPORTED), *(f"X{n}" for n in SEEN)]
ROWS = {
    cells[1].strip(): cells[3]
    for line in Path(__file__).with_name("README.md").read_text().splitlines()
    if len(cells := line.strip("|").split(" | ")) == 4 and re.fullmatch(r"[TX]\d+", cells[1].strip())
}


def test_every_scenario_has_a_row():
    assert list(ROWS) == LABELS


@pytest.mark.parametrize("label", LABELS)
def test_the_tests_of_a_row_exist(label):
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", ROWS[label])
    assert named and len(named) == ROWS[label].count("::")
    for path, test in named:
        tree = ast.parse((ROOT / path).read_text())
        assert test in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, f"{path}::{test}"
