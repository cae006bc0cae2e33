"""Reports of training in memory show what the records hold."""

import json
import math
import re

import pytest

from aimc import cli
from aimc.errors import AimcError
from aimc.report import (
    comparison_table,
    draw_accuracy,
    draw_comparison,
    draw_telemetry,
    load_comparison,
    load_run,
    markdown,
    markdown_table,
    tables,
)
from aimc.train import Run, Schedule

TILE = {
    "pulses_mean": 1.25, "pulses_p999": 8, "pulses_max": 9, "clipped": 0.25, "beyond_budget": 0.75, "saturated": 0.125,
    "share": 0.5, "reads": 77,
}  # fmt: skip


USED = TILE | {"pulses": 400, "unanswered": 0.25}
LAYER = {
    "active_tile": None, "updates": 4, "vectors": 80, "digital": {"kept": 6, "passing": 2, "products": 6},
    "lost": 0.125, "waiting": None, "tiles": [USED, USED | {"reads": 3, "unanswered": None}],
}  # fmt: skip


def _newer_run(path, names=("fc",), **more):
    """With what the records hold since they tell the budget: 20 samples an epoch."""
    with Run(path, Schedule(), tensorboard=False) as run:
        for epoch in (1, 2):
            run.record(
                "epoch", stage="analog", epoch=epoch, epochs=2, loss=1.0, accuracy=0.5, samples=20, validation=0.6,
                test=0.7, lr=0.1, seconds=2.0, layers=dict.fromkeys(names, LAYER | more),
            )  # fmt: skip
    return load_run(path)


def test_what_was_used_is_told_for_each_layer_and_a_sample(tmp_path):
    """80 vectors, 800 pulses and 80 reads of 40 samples."""
    *_, used = tables(_newer_run(tmp_path))
    assert used.rows == (("fc", "20", "2", "12", "6", "2", "12.5", "-", "25.0/-"),)
    *_, used = tables(_newer_run(tmp_path / "two", names=("a", "b")))
    assert [row[0] for row in used.rows] == ["a", "b", "all layers"]
    assert used.rows[2][1:6] == ("40", "4", "24", "12", "4")


def test_devices_without_an_answer_have_a_panel(tmp_path, monkeypatch):
    panels = _drawn(
        monkeypatch, draw_telemetry, _newer_run(tmp_path / "a", active_tile=1), tmp_path / "x.png"
    )
    assert len(panels) == 6 and panels[5][1][0][1] == [1.0, 1.0]  # the one being filled comes last
    lines = [values for _, values in panels[4][1]]
    assert lines[0] == [25.0, 25.0] and lines[2] == [12.5, 12.5]
    assert all(math.isnan(v) for v in lines[1])


def _run(path, active=None, epochs=2, names=("fc",)):
    with Run(path, Schedule(), tensorboard=False) as run:
        for stage in ("digital", "analog"):
            for epoch in (1, 2):
                tiles = [TILE, TILE | {"reads": 78}]
                held = {"active_tile": active, "tiles": tiles}
                layers = dict.fromkeys(names, held) if stage == "analog" else {}
                run.record(
                    "epoch", stage=stage, epoch=epoch, epochs=epochs, loss=1.0, accuracy=0.5,
                    validation=0.6 + epoch / 50, test=0.9 - epoch / 10, lr=0.1, seconds=2.0, layers=layers,
                )  # fmt: skip
    return load_run(path)


def test_tables_show_the_last_epoch_and_the_cells(tmp_path):
    accuracy, cells = tables(_run(tmp_path, active=1))
    assert accuracy.rows == tuple(
        (s, "2 of 2", "50.00", "64.00", "70.00", "4 s") for s in ("digital", "analog")
    )
    assert cells.rows == (
        ("fc", "0", "1.2", "8", "9", "12.5", "50.0", "77"),
        ("fc", "1 (filling)", "1.2", "8", "9", "12.5", "50.0", "78"),
    )
    assert "| analog | 2 of 2 | 50.00 | 64.00 | 70.00 | 4 s |" in markdown([load_run(tmp_path)])


def test_a_training_that_is_not_finished_has_no_result(tmp_path):
    run = _run(tmp_path, epochs=3)
    assert run.last == {} and "last_epoch" not in run.results()
    assert tables(run)[0].rows[0][1] == "2 of 3"


def test_a_measurement_again_has_a_line_of_its_own(tmp_path):
    _run(tmp_path)
    with Run(tmp_path, Schedule(), tensorboard=False) as run:
        run.record("again", name="analog", value=0.71, seconds=1.0)
    found = load_run(tmp_path)
    assert tables(found)[0].rows[-1] == ("analog, measured again", "-", "-", "-", "71.00", "1 s")
    assert found.last == {"digital": 0.7, "analog": 0.7}


def _drawn(monkeypatch, function, *args):
    """The panels of a figure: title and the points of each line."""
    from matplotlib.figure import Figure

    figures = []
    monkeypatch.setattr(
        Figure, "savefig", lambda self, target, **kw: (figures.append(self), target.write(b"PNG"))
    )
    function(*args)
    return [
        (a, [(line.get_label(), list(map(float, line.get_ydata()))) for line in a.lines])
        for a in figures[0].axes
    ]


def test_the_curve_holds_every_epoch(tmp_path, monkeypatch):
    run = _run(tmp_path / "a")
    ((axes, lines),) = _drawn(monkeypatch, draw_accuracy, [run], tmp_path / "x.png")
    assert dict(lines)["analog"] == pytest.approx([80.0, 70.0]) and len(lines) == 4
    assert "test set" in axes.get_title()


def test_the_telemetry_has_a_column_for_each_layer_and_a_line_for_each_tile(tmp_path, monkeypatch):
    panels = _drawn(monkeypatch, draw_telemetry, _run(tmp_path / "a"), tmp_path / "x.png")
    assert [len(lines) for _, lines in panels] == [6, 2, 2, 4]
    assert panels[1][1][0][1] == [12.5, 12.5] and panels[2][1][0][1] == [50.0, 50.0]
    assert [ys for _, ys in panels[0][1][:3]] == [[1.25, 1.25], [8.0, 8.0], [9.0, 9.0]]
    assert [ys for _, ys in panels[3][1][:2]] == [[25.0, 25.0], [75.0, 75.0]]
    panels = _drawn(monkeypatch, draw_telemetry, _run(tmp_path / "b", active=1), tmp_path / "x.png")
    assert len(panels) == 5 and panels[4][1][0][1] == [1.0, 1.0]


def test_the_telemetry_of_many_layers_is_a_map(tmp_path, monkeypatch):
    names = [f"conv{i}" for i in range(7)]
    panels = _drawn(monkeypatch, draw_telemetry, _run(tmp_path / "a", names=names), tmp_path / "x.png")
    maps = [axes.images[0].get_array() for axes, _ in panels if axes.images]
    assert [m.shape for m in maps] == [(14, 2)] * 4  # two tiles of seven layers, two epochs
    assert [float(m.max()) for m in maps] == [1.25, 12.5, 50.0, 25.0] and not any(
        lines for _, lines in panels
    )
    assert [t.get_text() for t in panels[0][0].get_yticklabels()] == names
    panels = _drawn(monkeypatch, draw_telemetry, _run(tmp_path / "b", 1, names=names), tmp_path / "x.png")
    ((_, places),) = panels[0][1]
    assert places == [2 * layer + 1.5 for layer in range(7) for _ in (1, 2)]  # tile 1 of each


def test_nothing_to_draw_is_said(tmp_path):
    with Run(tmp_path, Schedule(), tensorboard=False) as run:
        run.record("digital", name="digital", value=0.5)
    for function in (
        lambda: draw_accuracy([load_run(tmp_path)], "x"),
        lambda: draw_telemetry(load_run(tmp_path), "x"),
    ):
        with pytest.raises(AimcError, match="to draw"):
            function()
    with pytest.raises(AimcError, match="to draw"):
        draw_comparison([], "x")
    with pytest.raises(AimcError, match="not readable"):
        load_comparison(tmp_path)


def _entry(algorithm="mp", states=4.0, tiles=1, seed=0, test=0.5, **more):
    return {
        "algorithm": algorithm, "states": states, "tiles": tiles, "seed": seed, "validation": test, "test": test,
        "epochs": 2, "seconds": 3.0, "lr": 0.1, "dataset": "mnist", "batch_size": 8,
        "curve": {"test": [0.1, test]},
    } | more  # fmt: skip


ENTRIES = [
    _entry("residual", tiles=6, seed=1, test=0.8), _entry("residual", tiles=6, test=0.7),
    _entry("residual", tiles=3, test=0.6), _entry("residual", states=10.0, tiles=6, test=0.9),
    _entry("digital", None, None, test=0.95), _entry(test=0.4),
]  # fmt: skip


def test_seeds_are_averaged_and_nothing_else():
    table = comparison_table(ENTRIES)
    assert [row[:3] for row in table.rows] == [
        ("digital", "-", "-"), ("mp", "4", "1"), ("residual", "4", "3"), ("residual", "4", "6"),
        ("residual", "10", "6"),
    ]  # fmt: skip
    assert table.rows[3] == ("residual", "4", "6", "0.1", "2", "75.00 ± 7.07", "75.00 ± 7.07", "3 s")
    assert table.rows[2][6] == "60.00"
    assert "| residual | 4 | 6 | 0.1 | 2 | 75.00 ± 7.07 | 75.00 ± 7.07 | 3 s |" in markdown_table(table)


def test_what_the_runs_used_is_beside_their_accuracy():
    """Means over the seeds; dashes where it is not known, and no such columns where it never is."""
    used = {"pulses": 20.0, "reads": 4.0, "products": 12.0, "kept": 6, "passing": 2}
    table = comparison_table([
        _entry(budget=used), _entry(seed=1, budget=used | {"pulses": 30.0}), _entry("residual", budget=None),
    ])  # fmt: skip
    assert table.head[8:] == (
        "pulses a sample", "column reads", "digital products", "digital numbers", "and within a step",
    )  # fmt: skip
    assert [row[8:] for row in table.rows] == [("25", "4", "12", "6", "2"), ("-",) * 5]
    assert len(comparison_table(ENTRIES).head) == 8


def test_accuracy_at_equal_pulses(tmp_path, monkeypatch):
    curve = {"test": [0.1, 0.4], "pulses": [100, 300]}
    entries = [_entry("digital", None, None, test=0.9), _entry(curve=curve), _entry("residual", curve=curve)]
    panels = _drawn(monkeypatch, draw_comparison, entries, tmp_path / "x.png")
    axes, lines = panels[1]
    assert axes.get_title() == "at equal pulses" and dict(lines)["residual"] == pytest.approx([10.0, 40.0])
    assert axes.lines[0].get_xdata().tolist() == [100, 300] and len(lines) == 2


def test_curves_of_any_length_are_drawn_as_far_as_all_go(tmp_path, monkeypatch):
    entries = [
        _entry(curve={"test": [0.1, 0.4, 0.6], "pulses": [100, 300]}),
        _entry(seed=1, curve={"test": [0.3], "pulses": [200, 400, 500]}),
    ]
    panels = _drawn(monkeypatch, draw_comparison, entries, tmp_path / "x.png")
    assert panels[0][0].lines[0].get_ydata().tolist() == pytest.approx([20.0])
    line = panels[1][0].lines[0]
    assert (line.get_xdata().tolist(), line.get_ydata().tolist()) == ([150], pytest.approx([20.0]))
    draw_comparison([_entry(curve={"test": [], "pulses": []})], tmp_path / "empty.png")


def test_the_figure_of_a_comparison(tmp_path, monkeypatch):
    panels = _drawn(monkeypatch, draw_comparison, ENTRIES, tmp_path / "x.png")
    assert [axes.get_title() for axes, _ in panels] == [
        "4 states",
        "10 states",
        "over the states",
        "over the tiles",
    ]
    four = dict(panels[0][1])
    assert four["residual, 6 tiles"] == pytest.approx([10.0, 75.0]) and four["digital"] == pytest.approx(
        [10.0, 95.0]
    )
    assert "residual, 6 tiles" in dict(panels[1][1]) and "mp" not in dict(panels[1][1])
    heights = [values for axes, lines in panels[2:] for _, values in lines]
    assert pytest.approx([75.0, 90.0]) in heights and pytest.approx([60.0, 75.0]) in heights


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "runs is missing"),
        ('{"runs": 3}', "runs must be a list"),
        ('{"runs": [1]}', r"runs\[0\] must hold names and values"),
        ('{"runs": [{}]}', r"runs\[0\].algorithm is missing"),
        (
            json.dumps({"runs": [ENTRIES[0] | {"test": "0.5"}]}),
            r"runs\[0\].test must be a whole number or a number",
        ),
        (json.dumps({"runs": [ENTRIES[0] | {"curve": {}}]}), r"runs\[0\].curve.test is missing"),
        (json.dumps({"runs": [ENTRIES[0] | {"budget": {}}]}), r"budgets\[0\].pulses is missing"),
        ('{"runs": []}', "has no finished run"),
        ("[" * 200000, "comparison.json is not readable"),
        ("{", "comparison.json is not readable"),
    ],
)
def test_a_damaged_comparison_is_named(tmp_path, capsys, content, message):
    (tmp_path / "comparison.json").write_text(content)
    assert cli.main(["report", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and str(tmp_path) in error


def test_a_comparison_has_no_summary(tmp_path, capsys):
    (tmp_path / "comparison.json").write_text(json.dumps({"runs": ENTRIES}))
    assert cli.main(["report", str(tmp_path), "--summary"]) == 2
    assert "field 'summary': is for runs on chips" in capsys.readouterr().err
    assert cli.main(["report", str(tmp_path)]) == 0
    assert "kept no account of versions" in capsys.readouterr().out


def test_a_comparison_names_seeds_versions_code_and_data(tmp_path, capsys):
    where = {
        "aimc": "0.1.0",
        "code": "c" * 64,
        "torch": "2.13.0",
        "cpu": "A",
        "threads": 1,
        "backend": "auto",
    }
    entries = [
        e | {"environment": where | {"data": {"train": str(k) * 64}}, "seed": seed}
        for k, e in enumerate(ENTRIES[:2])
        for seed in (0, 3)
    ]
    (tmp_path / "comparison.json").write_text(json.dumps({"runs": entries}))
    assert cli.main(["report", str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("- ")]
    assert lines == [
        f"- seeds 0, 3: aimc 0.1.0, torch 2.13.0, A (1 threads, backend auto), sha256 of code {'c' * 12}; "
        f"sha256 of train {str(k) * 12}"
        for k in (0, 1)
    ]


def test_comparisons_and_runs_are_not_mixed(tmp_path, capsys):
    (tmp_path / "comparison.json").write_text(json.dumps({"runs": ENTRIES}))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("x")
    assert cli.main(["report", str(tmp_path), str(tmp_path / "run")]) == 2
    assert f"{tmp_path / 'run'} is no comparison, and others are" in capsys.readouterr().err
    assert cli.main(["reproduce", str(tmp_path)]) == 2
    assert "is a comparison: name one of the runs in it" in capsys.readouterr().err
