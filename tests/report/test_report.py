"""Reports show what the records hold, number by number."""

import dataclasses
import json
import re
import warnings

import numpy as np
import pytest
from PIL import Image

from aimc import cli
from aimc.chip import DriftResult, LeastSquares, MeanAbs
from aimc.config import Config
from aimc.errors import AimcError
from aimc.files import record_line
from aimc.recipes import Evaluation, Network, WideResNet
from aimc.report import (
    Table,
    command_of,
    draw,
    drawn_sha256,
    load_run,
    markdown,
    show,
    show_table,
    summary_table,
    tables,
)
from aimc.train import Run


class Settings(Config):
    seed: int = 0


VALUES = np.array([[0.91, 0.93, 0.95], [0.61, 0.70, 0.79]])


def _result(values=VALUES, seed=0, **fields):
    known = {
        "times": (1.0, 3600.0),
        "reference": 0.95,
        "chance": 0.1,
        "compensation": '{"type": "LeastSquares"}',
    }
    return DriftResult(values=np.array(values), seed=seed, **{**known, **fields})


class Sized(Config):
    network: Network = WideResNet(depth=16, width=1)


def _run(path, *evaluations, digital=True, config=Settings()):
    with Run(path, config, tensorboard=False) as run:
        for epoch in (1, 2):
            run.record("epoch", stage="teacher", epoch=epoch, seconds=1.5)
        if digital:
            run.record("digital", name="digital", value=0.95, seconds=0.1)
        for name, result in evaluations:
            run.record("evaluation", name=name, result=result.to_dict(), seconds=2.0)
    return load_run(path)


def test_tables_equal_the_records(tmp_path):
    run = _run(tmp_path / "a", ("student, compensated", _result()))
    accuracy, worst, star = tables(run)
    assert accuracy.head == ("network", "1 s", "1 h")
    assert accuracy.rows == (
        ("digital", "95.00", "95.00"),
        ("student, compensated", "93.00 ± 2.00", "70.00 ± 9.00"),
    )
    assert "3 chips" in accuracy.title
    assert worst.rows == (("student, compensated", "91.00", "61.00"),)
    low, high = 100 * _result().normalised_interval[0]
    assert star.rows[0][1] == f"{100 * (0.93 - 0.1) / 0.85:.2f} ({low:.2f} to {high:.2f})"


def test_iso_accuracy_is_marked_only_where_it_is_shown(tmp_path):
    run = _run(tmp_path / "a", ("x", _result([[0.951, 0.952, 0.953], [0.951, 0.951, 0.80]])))
    assert [cell.endswith("*") for cell in tables(run)[2].rows[0][1:]] == [True, False]


def test_one_chip_has_no_spread_and_a_metric_without_chance_no_per_cent(tmp_path):
    run = _run(tmp_path / "a", ("x", _result([[0.9], [0.8]])))
    assert tables(run)[0].rows[-1] == ("x", "90.00", "80.00")
    run = _run(tmp_path / "b", ("x", _result([[72.9], [73.0]], chance=None, higher_is_better=False)))
    assert len(tables(run)) == 2 and tables(run)[0].rows[-1] == ("x", "72.9", "73")


def test_a_perplexity_is_named_and_not_in_per_cent(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    fields = {
        "reference": 70.0,
        "chance": 1000.0,
        "higher_is_better": False,
        "metric": "perplexity",
        "logarithmic": True,
    }
    run = _run(tmp_path / "a", ("x", _result([[72.9, 73.1], [120.0, 500.0]], **fields)))
    mean, worst, star = tables(run)
    assert mean.title.startswith("test perplexity: mean") and worst.title.startswith("test perplexity: worst")
    assert mean.rows[-1] == ("x", "73 ± 0.1414", "310 ± 268.7") and worst.rows == (("x", "73.1", "500"),)
    assert "of the cross entropy" in star.title and star.rows[0][1].startswith("98.42 (")
    scales, labels = [], []
    real = Axes.set_yscale
    monkeypatch.setattr(Axes, "set_yscale", lambda self, v: (scales.append(v), real(self, v))[1])
    monkeypatch.setattr(Axes, "set_ylabel", lambda self, v: labels.append(v))
    draw([run, _run(tmp_path / "b", ("x", _result(metric="accuracy")))], tmp_path / "a.png")
    assert scales == ["log"] and labels == ["test perplexity", "test accuracy, %"]


def test_other_protocols_get_their_own_tables_and_stay_out_of_the_results(tmp_path):
    run = _run(tmp_path / "a", ("x", _result()), ("x", _result(seed=5)), ("y", _result()))
    assert [[e.name for e in group] for group in run.groups] == [["x", "y"], ["x"]]
    assert len(tables(run)) == 6
    assert list(run.results()["evaluations"]) == ["x", "y"]
    assert len(run.parts) == 3
    assert run.results()["seconds"] == {"training teacher": 3.0, "evaluating x": 2.0, "evaluating y": 2.0}
    assert run.results()["evaluations"]["x"] == _result().to_dict()
    json.dumps(run.results(), allow_nan=False)


def test_markdown_and_terminal_hold_the_same_numbers(tmp_path, capsys):
    run = _run(tmp_path / "name", ("student, compensated", _result()))
    text = markdown([run])
    assert "| student, compensated | 93.00 ± 2.00 | 70.00 ± 9.00 |" in text and "### name" in text
    for block in text.split("\n\n"):
        rows = [line for line in block.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in rows}) <= 1
    show([run])
    shown = capsys.readouterr().out
    assert "93.00 ± 2.00" in shown and "70.00 ± 9.00" in shown and "name" in shown


def test_figures_are_drawn_from_any_number_of_runs(tmp_path):
    runs = [
        _run(tmp_path / n, ("x, compensated", _result()), ("x, not", _result(compensation=None)))
        for n in "ab"
    ]
    for n in (1, 2):
        draw(runs[:n], tmp_path / f"{n}.png")
        assert (tmp_path / f"{n}.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob("*.part"))
    with pytest.raises(AimcError, match="no run has an evaluation"):
        draw([_run(tmp_path / "c")], tmp_path / "c.png")
    with pytest.raises(AimcError, match="cannot write"):
        draw(runs, tmp_path / "nowhere" / "a.png")


@pytest.mark.parametrize("suffix", [".foo", ".html", "."])
def test_a_figure_of_an_unknown_kind_is_refused_before_anything_is_shown(tmp_path, capsys, suffix):
    run = _run(tmp_path / "a", ("x", _result()))
    for words in (["report", str(run.path), "--figure"], ["cell", "SoftBounds", "--out"]):
        assert cli.main([*words, str(tmp_path / f"x{suffix}")]) == 2
        seen = capsys.readouterr()
        assert f"no image ends in '{suffix}'; use one of" in seen.err and seen.out == ""
    with pytest.raises(AimcError, match="no image ends in"):
        draw([run], tmp_path / f"x{suffix}")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_figure_has_the_format_of_its_suffix(tmp_path, capsys):
    run = _run(tmp_path / "a", ("x", _result()))
    for name, start in (("x.svg", b"<?xml"), ("x", b"\x89PNG"), ("y.PNG", b"\x89PNG")):
        assert cli.main(["report", str(run.path), "--figure", str(tmp_path / name)]) == 0
        place = tmp_path / (name if "." in name else "x.png")
        assert place.read_bytes().startswith(start) and f"written: {place}" in capsys.readouterr().err


def test_the_figure_shows_the_recorded_means(tmp_path, monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    real = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda self, *a, **k: (drawn.append((a, k)), real(self, *a, **k))[1])
    draw([_run(tmp_path / "a", ("x, compensated", _result()))], tmp_path / "a.png")
    (times, mean, _), options = drawn[0]
    assert times.tolist() == [1.0, 3600.0] and mean == pytest.approx([93.0, 70.0])
    assert options["label"] == "x, compensated"


def test_a_figure_says_what_was_drawn(tmp_path):
    run = _run(tmp_path / "a" / "x", ("x, compensated", _result()))
    other = _run(tmp_path / "b" / "x", ("x, compensated", _result(VALUES + 1e-4)))
    assert drawn_sha256([run]) != drawn_sha256([other]) != drawn_sha256([other, other])
    for held in (run, other):
        draw([held], tmp_path / "x.png")
        with Image.open(tmp_path / "x.png") as image:
            assert image.text["Description"].endswith(drawn_sha256([held]))
    with warnings.catch_warnings():  # other formats know the text by other names
        warnings.simplefilter("error")
        draw([run], tmp_path / "x.pdf")


def test_a_run_without_records_or_with_damaged_ones_is_named(tmp_path):
    with Run(tmp_path / "a", Settings(), tensorboard=False):
        pass
    with pytest.raises(AimcError, match="no records yet"):
        load_run(tmp_path / "a")
    with pytest.raises(AimcError, match="no run directory"):
        load_run(tmp_path)
    (tmp_path / "a" / "records.jsonl").write_text("{\n")
    with pytest.raises(AimcError, match="line 1"):
        load_run(tmp_path / "a")


class Asking(Config):
    """A run that asked for an evaluation."""

    evaluation: Evaluation = Evaluation(times=("1s", "1h"), chips=3)


def test_results_are_those_that_the_configuration_asked_for(tmp_path):
    """Not of whatever was evaluated first, and not of another estimator under the same name."""
    with Run(tmp_path / "a", Asking(), tensorboard=False) as run:
        for seed, estimator, value in (
            (5, LeastSquares(), 0.1),
            (0, LeastSquares(), 0.9),
            (0, MeanAbs(), 0.2),
        ):
            result = _result([[value] * 3] * 2, seed=seed, compensation=estimator.to_json(None))
            run.record(
                "evaluation", name="x, compensated", result=result.to_dict(), seconds=seed + 1.0,
                compensation=estimator.to_dict(),
            )  # fmt: skip
    run = load_run(tmp_path / "a")
    assert [e.name for e in run.groups[0]] == ["x, compensated", "x, compensated by MeanAbs"]
    found = run.results()
    assert found["evaluations"]["x, compensated"]["values"] == [[0.9] * 3] * 2
    assert found["seconds"]["evaluating x, compensated"] == 1.0


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("records.jsonl", b"5\n", "line 1 of .*records.jsonl is damaged"),
        ("records.jsonl", b'{"a": 1}\n', "line 1 of .*records.jsonl is damaged"),
        ("environment.json", b"null", "environment.json is damaged"),
        ("environment.json", b"[" * 200000, "environment.json is not readable: .*recursion"),
        ("records.jsonl", b"[" * 200000 + b"\n", "line 1 of .*records.jsonl is damaged"),
        (
            "records.jsonl",
            b'{"kind": ' + b'{"a":' * 990 + b"1" + b"}" * 991 + b"\n",
            "line 1 of .* is damaged",
        ),
        ("config.yaml", b"\xff\xfe\x00", "config.yaml is damaged"),
    ],
)
def test_damaged_files_of_a_run_are_named(tmp_path, file, content, message):
    _run(tmp_path / "a", ("x", _result()))
    (tmp_path / "a" / file).write_bytes(content)
    with pytest.raises(AimcError, match=message):
        load_run(tmp_path / "a")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"command": 3}, "command must be a list"),
        ({"command": ["aimc", 3]}, r"command\[1\] must be text"),
        ({"git": 5}, "git must be text or null"),
        ({"code": []}, "code must be text or null"),
        ({"data": {"train": 5}}, "data.train must be text"),
        ({"data": 5}, "data must hold names and values"),
        ({"resumed": {}}, "resumed must be a list"),
        ({"resumed": [{"git": 5}]}, r"resumed\[0\].git must be text"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["--summary"]])
def test_an_environment_of_another_shape_is_named(tmp_path, capsys, content, message, flags):
    run = _run(tmp_path / "a", ("x", _result()))
    (run.path / "environment.json").write_text(json.dumps(run.environment | content))
    assert cli.main(["report", str(run.path), *flags]) == 2
    assert re.search(f"environment.json is damaged: {message}", capsys.readouterr().err)


RESULT = _result().to_dict()
EPOCH = {"kind": "epoch", "stage": "s", "epoch": 1, "seconds": 1.0}
MEASURED = EPOCH | {"epochs": 1, "accuracy": 0.5, "validation": 0.5, "test": 0.5, "layers": {}}


def _evaluation(**changes):
    result = {k: v for k, v in (RESULT | changes).items() if v != "left out"}
    return {"kind": "evaluation", "name": "x", "result": result, "seconds": 1.0}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"kind": "evaluation"}, "line 1 .*records.jsonl is no record of 'evaluation': name is missing"),
        ({"kind": "evaluation", "name": "x", "result": 3, "seconds": 1}, "result must hold names and values"),
        ({"kind": "evaluation", "name": "x", "result": {}}, "seconds is missing"),
        (
            {"kind": "evaluation", "name": "x", "result": {}, "seconds": 1},
            "evaluation 'x': .*result.times is missing",
        ),
        (_evaluation(times="left out"), "times is missing"),
        (_evaluation(times=[]), "result.times': must be seconds"),
        (_evaluation(times=[1.0, -1.0]), "result.times': must be seconds"),
        (_evaluation(values=[0.5]), r"values\[0\] must be a list"),
        (_evaluation(values=[[0.5], [0.5, 0.6]]), "a row of chips for each of 2 times"),
        (_evaluation(values=[[], []]), "a row of chips for each of 2 times"),
        (_evaluation(values=[[0.5, True], [1, 1]]), r"values\[0\]\[1\] must be a whole number or a number"),
        (_evaluation(values=[[0.5, 10**400], [1, 1]]), r"values\[0\]\[1\] is too large"),
        (_evaluation(seed="0"), "seed must be a whole number"),
        (_evaluation(chance="left out"), "chance is missing"),
        (_evaluation(metric=3), "metric must be text"),
        ({"kind": "digital"}, "no record of 'digital': name is missing"),
        ({"kind": "digital", "name": "a", "value": "b"}, "value must be a whole number or a number"),
        ({"kind": "again", "name": "a", "value": 1}, "seconds is missing"),
        ({"kind": "epoch"}, "stage is missing"),
        (EPOCH | {"seconds": None}, "seconds must be a whole number or a number"),
        (EPOCH | {"test": 0.5}, "epochs is missing"),
        (MEASURED | {"layers": {"fc": {"active_tile": None}}}, "layers.fc.tiles is missing"),
        (
            MEASURED | {"layers": {"fc": {"active_tile": 0, "tiles": [{}]}}},
            r"tiles\[0\].pulses_mean is missing",
        ),
        ({"kind": []}, "kind must be text"),
    ],
)
def test_a_record_without_what_its_kind_has_is_named(tmp_path, capsys, record, message):
    run = _run(tmp_path / "a", ("x", _result()))
    (run.path / "records.jsonl").write_text(record_line(record))
    assert cli.main(["report", str(run.path)]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and "records.jsonl" in error


def test_a_record_that_could_not_be_read_back_is_not_written(tmp_path):
    with Run(tmp_path / "a", Settings(), tensorboard=False) as run:
        with pytest.raises(AimcError, match="no record of 'digital': value is missing"):
            run.record("digital", name="digital")
        assert run.records == [] and not (tmp_path / "a" / "records.jsonl").exists()


def test_one_chip_has_no_interval():
    result = _result([[0.9], [0.8]])
    assert result.interval is None and result.normalised_interval is None and "nan" not in str(result)


def test_a_later_session_by_another_version_is_named(tmp_path):
    run = _run(tmp_path / "a", ("x", _result()))
    here = {"aimc": "not installed", "git": "a" * 40, "started": "now"}
    for later, named in (({"git": "b" * 40}, True), ({}, False)):
        changed = dataclasses.replace(run, environment=here | {"resumed": [here | later]})
        assert ("commit bbbbbbbbb" in markdown([changed])) is named
        assert "commit aaaaaaaaa" in markdown([changed])


def test_the_heading_names_what_a_result_depends_on(tmp_path):
    text = markdown([_run(tmp_path / "a", ("x", _result()))])
    made = json.loads((tmp_path / "a" / "environment.json").read_text())
    for named in (
        "seed 0, aimc", f"torch {made['torch']}", f"numpy {made['numpy']}", f"python {made['python']}",
        f"backend {made['backend']})", f"sha256 of code {made['code'][:12]}",
    ):  # fmt: skip
        assert named in text
    known = dataclasses.replace(load_run(tmp_path / "a"), environment=made | {"data": {"train": "c" * 64}})
    assert f"sha256 of train {'c' * 12}" in markdown([known])


def test_a_summary_has_a_row_for_each_run(tmp_path, capsys):
    full = _run(
        tmp_path / "full",
        ("mapped, not compensated", _result(VALUES - 0.5, compensation=None)),
        ("mapped, compensated", _result(VALUES - 0.1)),
        ("hardware-aware, compensated", _result()),
        config=Sized(),
    )
    part = _run(tmp_path / "part", ("hardware-aware, compensated", _result(VALUES[:, :1])), digital=False)
    table = summary_table([full, part])
    assert table.head[1:] == (
        "network", "epochs", "time", "digital", "mapped, not compensated, 1 h", "mapped, compensated, 1 h",
        "hardware-aware, compensated, 1 s", "hardware-aware, compensated, 1 h",
    )  # fmt: skip
    assert table.rows == (
        (
            "full (metric, %, 3 chips)",
            "WideResNet, depth 16, width 1",
            "2",
            "0.1 min",
            "95.00",
            "20.00 ± 9.00",
            "60.00 ± 9.00",
            "93.00 ± 2.00",
            "70.00 ± 9.00",
        ),
        ("part (metric, %, 1 chip)", "-", "2", "0.1 min", "-", "-", "-", "91.00", "61.00"),
    )
    assert cli.main(["report", str(full.path), str(part.path), "--summary", "--format", "markdown"]) == 0
    text = capsys.readouterr().out
    assert all(f"| {' | '.join(row)} |" in text for row in table.rows)
    assert f"- full: `{command_of(full)}`" in text and command_of(full).startswith("aimc")
    with Run(part.path, Settings(), tensorboard=False) as run:
        # Stages in their order, and minutes in whole ones.
        run.record("epoch", stage="student", epoch=4, seconds=900.0)
    (row,) = summary_table([load_run(part.path)]).rows
    assert row[2:4] == ("2 + 4", "15 min")


def test_a_summary_of_runs_that_do_not_go_together_is_refused(tmp_path):
    full = _run(tmp_path / "full", ("x", _result()))
    other = _run(tmp_path / "other", ("x", _result(VALUES, times=(1.0, 60.0))))
    with pytest.raises(AimcError, match="other was evaluated at other times than"):
        summary_table([full, other])
    with pytest.raises(AimcError, match="none evaluated no chips"):
        summary_table([_run(tmp_path / "none")])


@pytest.mark.parametrize("width", [20, 80, None], ids=["narrow", "usual", "pipe"])
def test_no_letter_of_a_table_is_lost(width, monkeypatch, capsys):
    """Neither a column that says which row is which, nor the end of a number."""
    head = ("algorithm", "states", "a head of several words", "pulses a sample")
    rows = (("residual learning", "4", "88.60 ± 4.25", "3426"), ("mp", "10", "9.00 ± 0.10", "0.5191"))
    if width is not None:
        monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda self: True))
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setenv("TERM", "xterm")  # for a dumb one COLUMNS counts for nothing
        monkeypatch.setenv("NO_COLOR", "1")
    show_table(Table("of something", head, rows))
    shown = capsys.readouterr().out
    assert "…" not in shown
    for row in rows:
        assert any(all(cell in line for cell in row) for line in shown.splitlines()), shown
    assert all(word in shown for name in head for word in name.split())
