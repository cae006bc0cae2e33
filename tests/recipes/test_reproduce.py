"""A run that is made again has the same numbers, and one that has not says which differ."""

import json
import shutil

import pytest
import torch

from aimc import cli
from aimc.errors import AimcError
from aimc.files import read_records, record_line
from aimc.recipes import evaluate_run, reproduce_run, run_experiment
from aimc.train import load_checkpoint, save_checkpoint
from tests.recipes.test_insitu import TINY as IN_CELLS
from tests.recipes.test_recipes import TINY as HARDWARE_AWARE

CONFIGS = {"hardware-aware": HARDWARE_AWARE, "in cells": IN_CELLS}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_run_is_reproduced_to_the_bit(config, tmp_path):
    run_experiment(config, tmp_path / "run", tensorboard=False)
    result = reproduce_run(tmp_path / "run")
    assert result.output == tmp_path / "run-again" and result.compared > 20
    assert result.differing == result.missing == ()
    assert f"{result.compared} numbers compared, 0 differ" in str(result)
    stages = tuple(sorted(p.stem for p in (tmp_path / "run" / "checkpoints").iterdir()))
    assert result.checkpoints == stages and result.tensors >= 4
    assert f"{result.tensors} tensors compared, of the checkpoints {', '.join(stages)}\n" in str(result)


def altered(tensors: dict[str, torch.Tensor]) -> list[str]:
    """Change a value, a type, a shape and a name; what is said of each."""
    one, two, *_ = (n for n, t in tensors.items() if t.is_floating_point() and t.dim() == 2)
    three, four, *_ = (n for n in tensors if n not in (one, two))
    lines = [
        f"{one}: 1 of {tensors[one].numel()} values differ",
        f"{two}: torch.float64 {list(tensors[two].shape)} -> {tensors[two].dtype}",
        f"{three}: is missing from the first run",
        f"{four}: is missing from the first run",
        "invented: is missing from the second run",
    ]
    tensors[one] = tensors[one].clone()
    tensors[one].view(-1)[1] += 1e-6
    tensors[two], tensors["invented"] = tensors[two].double(), torch.ones(2)
    del tensors[three], tensors[four]
    return lines


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_weights_that_differ_are_named(config, tmp_path):
    """Where records alone would look the same."""
    run = tmp_path / "run"
    run_experiment(config, run, tensorboard=False)
    *_, stage = sorted((run / "checkpoints").iterdir())
    tensors, details = load_checkpoint(stage)
    lines = altered(tensors)
    save_checkpoint(stage, tensors, details)
    result = reproduce_run(run)
    assert len(result.differing) == len(lines)
    for line in lines:
        assert any(found.startswith(f"checkpoint {stage.stem}, {line}") for found in result.differing), line
    assert f"{len(lines)} differ" in str(result)


def test_weights_are_compared_where_there_are_any(tmp_path):
    """Those of finished stages; a stage under way is none, and a damaged file is named before the work."""
    run = tmp_path / "run"
    run_experiment(HARDWARE_AWARE, run, tensorboard=False)
    first, *others = sorted((run / "checkpoints").iterdir())
    first.with_name(f"{first.stem}.epoch.safetensors").write_bytes(first.read_bytes())
    for place in others:
        place.unlink()
    result = reproduce_run(run)
    assert result.checkpoints == (first.stem,) and not result.differing
    more = first.with_name("more.safetensors")
    shutil.copy(first, more)
    (line,) = reproduce_run(run, tmp_path / "second").differing
    assert line == "checkpoint more: is missing from the second run"
    more.unlink()
    first.write_bytes(first.read_bytes()[:-9])
    with pytest.raises(AimcError, match=first.name):
        reproduce_run(run, tmp_path / "third")
    assert not (tmp_path / "third").exists()
    shutil.rmtree(run / "checkpoints")
    result = reproduce_run(run, tmp_path / "fourth")
    assert result.checkpoints == () and not result.differing and "no weights compared" in str(result)


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
    dropped = next(k for k, v in gone.items() if isinstance(v, float) and k not in ("seconds", "invented"))
    del gone[dropped]
    (run / "records.jsonl").write_text("".join(map(record_line, records)))
    assert cli.main(["reproduce", str(run), "--output", str(tmp_path / "b")]) == 1
    out = capsys.readouterr().out
    assert "digital digital, value: " in out and "invented: 1.0 -> None" in out and "3 differ" in out
    assert f", {dropped}: missing -> " in out  # a number that only the second run has
    assert "not compared" in out and "172800.0" in out
    assert cli.main(["reproduce", str(run), "--output", str(run)]) == 2


@pytest.mark.parametrize("same", [True, False])
def test_other_circumstances_are_told_where_numbers_differ(same, tmp_path):
    """Another version of torch is no news where the numbers are the same."""
    run = tmp_path / "run"
    run_experiment(HARDWARE_AWARE, run, tensorboard=False)
    place = run / "environment.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "torch": "1.0"}))
    if not same:
        records = read_records(run)
        records[-1 if "value" in records[-1] else 0]["invented"] = 1.0
        (run / "records.jsonl").write_text("".join(map(record_line, records)))
    result = reproduce_run(run)
    assert result.circumstances == (f"torch: 1.0 -> {torch.__version__}",)
    told = f"made under other circumstances:\n  torch: 1.0 -> {torch.__version__}\n"
    assert (told in str(result)) != same


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
