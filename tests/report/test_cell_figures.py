"""``aimc cell``: numbers, figures and fits from the command line."""

from __future__ import annotations

import re

import numpy as np
import pytest

from aimc import cli
from aimc.cells import PULSED_CELLS, Ladder, SoftBounds, fit_cell
from aimc.config import Config, load_yaml
from aimc.recipes import RECIPES
from aimc.report.cell_figures import make_cell, read_pulses, response, summary


def test_a_cell_is_drawn_and_counted(tmp_path, capsys):
    out = tmp_path / "cell.png"
    words = [
        "cell",
        "SoftBounds",
        "--set",
        "w_max=1.0",
        "--set",
        "w_min=-1",
        "--set",
        "corrupt_probability=0.25",
    ]
    assert cli.main([*words, "--states", "4", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert out.read_bytes()[:4] == b"\x89PNG" and f"written: {out}" in text
    rows = {line[:20].strip(): line[20:].strip() for line in text.splitlines()}
    assert (rows["granularity"], rows["states (nominal)"]) == ("0.5", "4")
    assert abs(float(rows["corrupt devices"].split()[0]) - 25) < 4
    mean, _, spread = rows["symmetry point"].split()
    assert abs(float(mean)) < 0.001 and float(spread) == pytest.approx(0.01, rel=0.5)
    assert rows["upper bound"].endswith("± 0.3")


def test_the_figure_goes_by_the_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["cell", "Ladder"]) == 0
    assert (tmp_path / "Ladder.png").exists() and "written: Ladder.png" in capsys.readouterr().out


@pytest.mark.parametrize("name", PULSED_CELLS)
def test_every_cell_has_a_summary(name):
    rows = dict(summary(make_cell(name), devices=64))
    assert float(rows["states (nominal)"]) > 3 and rows["corrupt devices"] == "0.00 %"


@pytest.mark.parametrize(
    "settings", [["w_max=1e6", "w_min=-1e6"], ["dw_min=1e6"], ["dw_min=1e-12"], ["w_max_dtod=1e6"]]
)
@pytest.mark.parametrize("name", [n for n in PULSED_CELLS if n not in ("soft_bounds_pmax", "reram")])
def test_the_numbers_of_an_extreme_cell_are_numbers(name, settings):
    if name != "Ladder" or "dw_min" not in settings[0]:
        rows = summary(make_cell(name, settings), devices=64)
        assert not [row for row in rows if "inf" in row[1] or "nan" in row[1]]


def test_states_of_a_ladder_are_its_levels():
    assert make_cell("Ladder", ["w_max=2"], 6) == Ladder(levels=6, w_max=2.0)
    assert make_cell("Ladder", ["levels=[0, 0.2, 1]"]).states == 3
    assert make_cell("soft_bounds_pmax", ["p_max=10", "alpha=0.1"]).w_max == pytest.approx(2.164, abs=1e-3)


def test_response_begins_and_ends_at_the_lower_bound():
    cell = SoftBounds.with_states(20, dw_min_std=0.0, w_max=1.0, w_min=-1.0, w_min_dtod=0.0)
    paths = response(cell, 200, 5)
    assert np.allclose(paths[0], -1) and np.allclose(paths[-1], -1, atol=1e-3)
    assert (np.diff(paths[:201], axis=0) >= 0).all() and (np.diff(paths[200:], axis=0) <= 0).all()
    noisy = response(cell.replace(write_noise_std=3.0), 200, 5)
    assert np.std(noisy[150:200] - paths[150:200]) == pytest.approx(3 * cell.dw_min, rel=0.2)


def written(path, rows, head="pulse,direction,value"):
    path.write_text("\n".join([head, *rows]) + "\n")
    return path


def curve(spell=("up", "down"), device=""):
    w, rows = 0.0, []
    for k in range(120):
        up = k % 40 < 20
        w += 0.1 * (1 - w) if up else -0.1 * (1 + w)
        rows.append(f"{k},{spell[not up]},{5 + 2 * w:.7f}{device}")
    return rows


def test_fit_from_a_file(tmp_path, capsys):
    file, out = written(tmp_path / "measured.csv", curve()[::-1]), tmp_path / "fit.png"
    assert cli.main(["cell", "best", "--fit", str(file), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert text.startswith("SoftBounds fitted to 119 steps of 1 device\n") and f"written: {out}" in text
    assert out.read_bytes()[:4] == b"\x89PNG"
    (flag,) = re.findall(r"in a run: --hardware\.cell '(.*)'\n", text)
    taken = (
        RECIPES["lenet_mnist_insitu"].config().replace(**{"hardware.cell": Config.from_dict(load_yaml(flag))})
    )
    assert taken.hardware.cell == fit_cell(*read_pulses(file)).cell


def test_a_curve_of_resistance_is_refused_before_a_result(tmp_path, capsys):
    rows = [f"{k},{way},{20 - float(v)}" for k, way, v in (row.split(",") for row in curve())]
    file, out = written(tmp_path / "measured.csv", rows), tmp_path / "fit.png"
    assert cli.main(["cell", "best", "--fit", str(file), "--out", str(out)]) == 2
    text = capsys.readouterr()
    assert "'values': go the wrong way: " in text.err and "swap the directions" in text.err
    assert not text.out and not out.exists()


def test_a_file_with_devices_and_other_spellings(tmp_path):
    rows = curve(("1", "-1"), ",a") + curve(("+1", "0"), ",b")
    values, directions = read_pulses(written(tmp_path / "m.csv", rows, " pulse, direction ,value,device"))
    assert (
        values.shape == (2, 120) and (values[0] == values[1]).all() and (directions[0] == directions[1]).all()
    )
    assert set(directions[0]) == {1, -1} and values[0, 0] == pytest.approx(5.2)


@pytest.mark.parametrize(
    "words, message",
    [
        (["SoftBound"], "no pulsed cell is called 'SoftBound'; did you mean 'SoftBounds'?"),
        (["reram_hf02"], "did you mean 'reram_hfo2'?"),
        (["SoftBounds", "--set", "dw_mn=1"], "'dw_mn': SoftBounds has no such field; did you mean 'dw_min'?"),
        (["SoftBounds", "--set", "dw_min"], "'set': must be field=value"),
        (["SoftBounds", "--set", "dw_min=small"], "'dw_min': expects a number"),
        (["SoftBounds", "--set", "dw_min=!!bool foo"], "'dw_min': not valid YAML"),
        (["PiecewiseStep", "--set", "w_max=1e300"], "'w_max': must be within"),
        (["soft_bounds_pmax", "--set", "w_max=1"], "'w_max': follows from range_min, range_max"),
        (["soft_bounds_pmax", "--set", "alpha=0"], "'alpha': must be a number from 1e-09 to 50"),
        (["soft_bounds_pmax", "--set", "p_max=few"], "'p_max': expects a whole number, got 'few'"),
        (["soft_bounds_pmax", "--set", "range_max=-1"], "'range_max': must be a number from 0"),
        (["SoftBounds", "--states", "0"], "'states': must be positive"),
        (["SoftBounds", "--state", "4"], "did you mean '--states'?"),
        (["Ladder", "--states", "4.5"], "'levels'"),
        (["SoftBounds", "--fit", "missing.csv"], "cannot read missing.csv"),
        (["SoftBounds", "--fit", "missing.csv", "--states", "3"], "does not go with"),
        (["cell"], "no pulsed cell is called 'cell'"),
    ],
)
def test_mistakes(words, message, capsys):
    assert cli.main(["cell", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "rows, head, message",
    [
        ([], "pulse,direction,value", "has no rows"),
        (["1,up,2"], "pulse,dir,value", "has no column 'direction', but pulse, dir, value"),
        (["1,up,2", "2,left,2"], "pulse,direction,value", "line 3: 'left' is neither up nor down"),
        (["1,up,x"], "pulse,direction,value", "field 'value': .*line 2: 'x' is not a number"),
        (["1,up"], "pulse,direction,value", "'' is not a number"),
        (["1,up,2,a", "2,up,2,a", "1,up,2,b"], "pulse,direction,value,device", "the same number of pulses"),
        (["1,up,2", "2,down,3"], "pulse,direction,value", "is too short"),
        (
            ["1,up,2", "nan,up,2"],
            "pulse,direction,value",
            "field 'pulse': .*line 3: 'nan' is not a finite number",
        ),
        (["1,up,inf"], "pulse,direction,value", "field 'value': .*line 2: 'inf' is not a finite number"),
        (["1,up,2", "", "2,up,2,5"], "pulse,direction,value", "line 4: has 4 columns, the head has 3"),
        (["1,up,1e300"], "pulse,direction,value", "line 2: '1e300' is not between 1e-30 and 1e.30"),
        (["1,up,-1e-300"], "pulse,direction,value", "line 2: '-1e-300' is not between"),
        (["1,up,2", "1,up,3"], "pulse,direction,value", "line 3: pulse 1 is there twice; .*column 'device'"),
        (["1,up,2,3"], "pulse,direction,value,value", "has the column 'value' twice"),
    ],
)
def test_mistakes_in_a_file(tmp_path, capsys, rows, head, message):
    import re

    assert cli.main(["cell", "SoftBounds", "--fit", str(written(tmp_path / "m.csv", rows, head))]) == 2
    assert re.search(message, capsys.readouterr().err)
