"""A run that is made again has the same numbers, and one that has not says which differ."""

import pytest

from aimc import cli
from aimc.errors import AimcError
from aimc.files import read_records, record_line
from aimc.recipes import evaluate_run, reproduce_run, run_experiment
from tests.recipes.test_insitu import TINY as IN_CELLS
from tests.recipes.test_recipes import TINY as HARDWARE_AWARE


@pytest.mark.parametrize("config", [HARDWARE_AWARE, IN_CELLS], ids=["hardware-aware", "in cells"])
def test_a_run_is_reproduced_to_the_bit(config, tmp_path):
    run_experiment(config, tmp_path / "run", tensorboard=False)
    result = reproduce_run(tmp_path / "run")
    assert result.output == tmp_path / "run-again" and result.compared > 20
    assert result.differing == result.missing == ()
    assert f"{result.compared} numbers compared, 0 differ" in str(result)


@pytest.mark.parametrize("place", [".", "inner/.."])
def test_the_run_is_where_one_stands(place, tmp_path, monkeypatch):
    run_experiment(HARDWARE_AWARE, tmp_path / "run", tensorboard=False)
    (tmp_path / "run" / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    result = reproduce_run(place)
    assert not result.differing and result.output.resolve() == tmp_path / "run-again"


def test_what_differs_is_named(tmp_path, capsys):
    run = tmp_path / "run"
    run_experiment(HARDWARE_AWARE, run, tensorboard=False)
    evaluate_run(run, times=("2d",), chips=1, compensation=None)
    records = read_records(run)
    changed = next(r for r in records if r["kind"] == "digital")
    changed["value"] += 1e-12
    gone = next(r for r in records if r["kind"] == "epoch")
    gone["invented"] = 1.0
    (run / "records.jsonl").write_text("".join(map(record_line, records)))
    assert cli.main(["reproduce", str(run), "--output", str(tmp_path / "b")]) == 1
    out = capsys.readouterr().out
    assert "digital digital, value: " in out and "invented: 1.0 -> None" in out and "2 differ" in out
    assert "not compared" in out and "172800.0" in out
    assert cli.main(["reproduce", str(run), "--output", str(run)]) == 2


def test_a_record_that_the_second_run_should_have_counts_as_different(tmp_path):
    run = tmp_path / "run"
    run_experiment(HARDWARE_AWARE, run, tensorboard=False)
    records = read_records(run)
    next(r for r in records if r["kind"] == "evaluation")["name"] = "mapped compensated"
    (run / "records.jsonl").write_text("".join(map(record_line, records)))
    result = reproduce_run(run)
    assert not result.missing
    assert any("mapped compensated" in line and "is missing" in line for line in result.differing)


@pytest.mark.parametrize("git", ["another", "+changes"])
def test_a_second_run_of_other_code_is_no_evidence(tmp_path, monkeypatch, git):
    import aimc.recipes.reproduce as module
    import aimc.train.run as running

    monkeypatch.setattr(running, "_git_hash", lambda: "one")
    run = tmp_path / "run"
    run_experiment(HARDWARE_AWARE, run, tensorboard=False)
    assert (
        not reproduce_run(run).differing and not reproduce_run(run).differing
    )  # the second time from the records
    monkeypatch.setattr(running, "_git_hash", lambda: "one" + git)
    assert module.environment()["git"] == "one" + git
    with pytest.raises(AimcError, match="run-again was begun by another state of aimc"):
        reproduce_run(run)
    assert not reproduce_run(run, tmp_path / "third").differing


def test_a_run_that_was_not_finished_is_not_reproduced(tmp_path):
    run = tmp_path / "run"
    run_experiment(HARDWARE_AWARE, run, tensorboard=False)
    lines = (run / "records.jsonl").read_text().splitlines(keepends=True)
    (run / "records.jsonl").write_text(lines[0])
    result = reproduce_run(run)
    assert len(result.differing) == len(lines) - 1
    assert all("is missing from the first run, which was not finished" in line for line in result.differing)


def test_nothing_to_reproduce(tmp_path):
    with pytest.raises(AimcError, match="no run directory"):
        reproduce_run(tmp_path)


EVALUATION = {"kind": "evaluation", "name": "x", "result": {}, "seconds": 1.0}


@pytest.mark.parametrize(
    "record, message",
    [
        ({"kind": "evaluation"}, "no record of 'evaluation': name is missing"),
        (EVALUATION, "evaluation 'x': times is missing"),
        (EVALUATION | {"times": 3}, "evaluation 'x': times must be a list"),
        (EVALUATION | {"times": [1.0], "chips": "2"}, "evaluation 'x': chips must be a whole number"),
        ({"kind": "epoch"}, "no record of 'epoch': stage is missing"),
    ],
)
def test_a_damaged_record_is_named_before_the_work(tmp_path, capsys, record, message):
    (tmp_path / "config.yaml").write_text(HARDWARE_AWARE.to_yaml())
    (tmp_path / "environment.json").write_text("{}")
    (tmp_path / "records.jsonl").write_text(record_line(record))
    assert cli.main(["reproduce", str(tmp_path), "--output", str(tmp_path / "again")]) == 2
    error = capsys.readouterr().err
    assert message in error and "records.jsonl" in error and not (tmp_path / "again").exists()
