"""The list of mutants fits the source, so that `make mutants` can run at any time."""

from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_mutant_fits_its_file():
    lines = (ROOT / "tools" / "mutants.txt").read_text().splitlines()
    mutants = [line for line in lines if line.strip() and not line.startswith("#")]
    assert len(mutants) >= 40
    for line in mutants:
        path, old, new, tests = (part.strip() for part in line.split(" | "))
        assert (ROOT / path).read_text().count(old) == 1, line
        assert old != new and any((ROOT / name.split("::")[0]).exists() for name in tests.split()), line
