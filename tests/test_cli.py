"""The command line: what it accepts, what it refuses and how, and that nothing ends in a traceback."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings

import pytest
import yaml

from aimc import cli
from aimc.cells import PCM, Hermes
from aimc.config import Config
from aimc.errors import AimcError, warn
from aimc.files import read_config, read_records
from aimc.recipes import RECIPES, run_experiment
from aimc.recipes.overrides import _fields, configure, describe, parse
from aimc.train import Progress
from tests.helpers import assert_same_run

DEMO = RECIPES["demo"].config()
TINY = [
    "--network", "{type: MLP, hidden: [12]}", "--threads", "1",
    "--dataset.train_images", "200", "--dataset.validation_images", "40", "--dataset.test_images", "60",
    "--teacher.epochs", "12", "--student.epochs=1", "--student.validation_repeats", "1",
    "--evaluation.chips", "2", "--evaluation.times", "1s,1h", "--no-tensorboard",
]  # fmt: skip


def _flags(*words):
    return configure(DEMO, None, list(zip(words[::2], words[1::2])))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli") / "run"
    assert cli.main(["run", "demo", "--output", str(path), *TINY]) == 0
    return path


@pytest.mark.parametrize(
    "words, message",
    [
        (["rnu"], "no command is called 'rnu'; did you mean 'run'?"),
        (["run", "demmo"], "no recipe is called 'demmo'; did you mean 'demo'?"),
        (["run"], "NAME"),
        (["run", "demo", "--student.epoch", "5"], "'--student.epoch'; did you mean '--student.epochs'?"),
        (["run", "demo", "--studnt.epochs", "5"], "did you mean '--student.epochs'?"),
        (["run", "demo", "--ouput", "x"], "did you mean '--output'?"),
        (["run", "demo", "--zzz", "1"], "unknown flag '--zzz'"),
        (["run", "demo", "extra"], "extra"),
        (["demo", "--sed", "1"], "did you mean '--seed'?"),
        (["run", "demo", "--student.epochs"], "--student.epochs needs a value"),
        (["run", "demo", "--student.epochs", "--seed", "1"], "--student.epochs needs a value"),
        (["run", "demo", "--student.epochs", "five"], "'student.epochs': expects a whole number, got 'five'"),
        (["run", "demo", "--student.epochs", "0"], "'student.epochs': must be at least 1"),
        (["run", "demo", "--seed.x", "1"], "--seed holds 0, which has no fields"),
        (["run", "demo", "--hardware.cell", "{type: Hermez}"], "did you mean 'Hermes'?"),
        (["run", "demo", "--hardware.cell", "{type: ["], "not valid YAML"),
        (["run", "demo", "--hardware.cell.parallel", "2"], "--hardware.cell.parallel"),
        (["run", "demo", "--hardware.training.modifiers.7.scale", "2"], "modifiers.7': there is no entry 7"),
        (["run", "demo", "--evaluation.times", "1s,1hh"], "not a time: '1hh'"),
        (["run", "demo", "--student.epochs", "!!bool foo"], "--student.epochs is not valid YAML: KeyError"),
        (["run", "demo", "--hardware.cell", "!!timestamp foo"], "--hardware.cell is not valid YAML"),
        (["evaluate", "run", "--compensation", "!!int ''"], "--compensation is not valid YAML: IndexError"),
        (["run", "demo", "--config", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (["run", "demo", "--dataset.name", "mnits"], "did you mean 'mnist'?"),
        (["run", "lenet_mnist_insitu", "--algorithm", "residul"], "did you mean 'residual'?"),
        (["run", "lenet_mnist_insitu", "--algoritm", "sgd"], "did you mean '--algorithm'?"),
        (["run", "lenet_mnist_insitu", "--tiles"], "--tiles needs a value"),
        (
            ["run", "lenet_mnist_insitu", "--algorithm", "sgd", "--tiles", "4"],
            "sgd has a fixed number of tiles, 1",
        ),
        (["run", "lenet_mnist_insitu", "--dataset", "fashon_mnist"], "did you mean 'fashion_mnist'?"),
        (
            ["run", "lenet_mnist_insitu", "--hardware.algorithm.tils", "4"],
            "did you mean '--hardware.algorithm.tiles'?",
        ),
        (["demo", "insit"], "invalid choice: 'insit'"),
        (["demo", "insitu", "--algorithm", "sgd"], "--algorithm is for a single run"),
        (["demo", "insitu", "--config", "x.yaml"], "aimc run demo_insitu"),
        (["compare"], "--algorithms"),
        (["compare", "--algorithms", "mp", "residul"], "did you mean 'residual'?"),
        (["compare", "--algorithms", "mp", "--epoch", "3"], "did you mean '--epochs'?"),
        (["compare", "--algorithms", "mp", "--states", "few"], "'few'"),
        (["compare", "--algorithms", "mp", "--recipe", "demmo"], "did you mean 'demo'?"),
        (["evaluate", "nowhere"], "no run directory"),
        (["evaluate", "nowhere", "--tmes", "1s"], "did you mean '--times'?"),
        (["evaluate", "nowhere", "--chips", "many"], "--chips"),
        (["report", "nowhere"], "no run directory"),
        (["report"], "RUN"),
        (["run", "demo", "--output", "x\0y"], "'x\\x00y' holds a null byte"),
        (["compare", "--algorithms", "mp", "--output", "x\0y"], "holds a null byte"),
        (["report", "x\0y"], "holds a null byte"),
        (["demo", "--output", ""], "'output': is empty"),
        (["demo", "insitu", "--output="], "'output': is empty"),
        (["run", "demo", "--output", "caf\udce9"], "'caf\\udce9' is not UTF-8"),
        (["compare", "--algorithms", "mp", "--output", ""], "'output': is empty"),
        (["cell", "SoftBounds", "--out", ""], "'path': is empty"),
        (["report", "x", "--format", "pdf"], "'pdf'"),
        (["list", "--al"], "unknown argument '--al'"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_a_mistake_is_one_line_with_a_hint_and_exit_code_2(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 2
    seen = capsys.readouterr()
    assert seen.out == ""
    assert seen.err.startswith("aimc: error: ") and seen.err.count("\n") == 1 and message in seen.err
    assert not list(tmp_path.rglob("*.jsonl"))


@pytest.mark.parametrize("words", [["demo"], ["demo", "insitu"]])
def test_more_threads_than_the_machine_carries_are_refused(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cli.main([*words, "--threads", "100000", "--output", "a"])
    seen = capsys.readouterr()
    assert "field 'threads': is 100000, and this machine" in seen.out + seen.err
    assert not list(tmp_path.rglob("config.yaml"))  # nothing was begun


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"MPLBACKEND": "bogus"},
        {"NUMBA_NUM_THREADS": "0"},
    ],
    ids=lambda v: next(iter(v)),
)
def test_no_setting_of_the_terminal_or_of_other_libraries_ends_a_command(finished, variables, tmp_path):
    command = [sys.executable, "-m", "aimc.cli", "report", str(finished), "--figure", str(tmp_path / "a.png")]
    env = {k: v for k, v in os.environ.items() if k != "PYTHONUTF8"} | variables
    done = subprocess.run(command, capture_output=True, env=env)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    assert (tmp_path / "a.png").exists() and b"accuracy" in done.stdout
    if "MPLBACKEND" not in variables and "NUMBA_NUM_THREADS" not in variables:
        assert b" ? " in done.stdout  # for the sign of plus or minus


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize(
    "words",
    [["run", "demo"], ["demo"], ["compare", "--algorithms", "sgd"], ["evaluate", "x"], ["reproduce", "x"]],
)
def test_every_process_of_a_launcher_is_refused_at_once(words, rank, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    assert cli.main(words) == 2
    said = capsys.readouterr().err
    assert f"process {rank} of 2" in said and "docs/torch.md" in said and said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_launcher_of_one_process_and_commands_that_only_read_are_no_matter(capsys, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert cli.main(["evaluate", "no such run"]) == 2
    assert "process" not in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")  # a launcher
    assert cli.main(["list"]) == 0


def test_the_whole_way_through(finished, capsys):
    assert cli.main(["run", "demo", "--output", str(finished), *TINY]) == 0  # goes on, that is: shows
    out = capsys.readouterr().out
    assert "finished earlier" in out and "A*" in out and f"written: {finished}" in out
    results = json.loads((finished / "results.json").read_text())
    value = results["evaluations"]["mapped, compensated"]["statistics"]["worst"][0]
    assert f"{100 * value:.2f}" in out
    config = read_config(finished)
    assert (
        config.student.epochs == 1
        and config.evaluation.times == ("1s", "1h")
        and config.dataset.test_images == 60
    )

    assert (
        cli.main(["evaluate", str(finished), "--times", "1d, 2d", "--chips", "1", "--compensation", "null"])
        == 0
    )
    out = capsys.readouterr().out
    assert "mapped, not compensated" in out and "2 d" in out and "1 h" not in out and "added to" in out
    assert read_records(finished)[-1]["times"] == [86400.0, 172800.0]
    assert (
        cli.main(["evaluate", str(finished), "--times", "1h", "--chips", "1", "--compensation", "MeanAbs"])
        == 0
    )
    assert read_records(finished)[-1]["compensation"]["type"] == "MeanAbs"

    capsys.readouterr()
    figure = finished / "again.png"
    assert (
        cli.main(["report", str(finished), str(finished), "--format", "markdown", "--figure", str(figure)])
        == 0
    )
    out = capsys.readouterr().out
    assert out.count("| mapped, compensated |") >= 2 and f"{100 * value:.2f}" in out and figure.exists()


def test_another_configuration_in_the_same_directory(finished, capsys):
    assert cli.main(["run", "demo", "--output", str(finished), *TINY, "--seed", "4"]) == 2
    assert "seed: 0 -> 4" in capsys.readouterr().err


IN_MEMORY = [
    "--network", "{type: MLP, hidden: [4]}", "--dataset.name", "mnist_small", "--dataset.train_images", "60",
    "--dataset.validation_images", "20", "--dataset.test_images", "30", "--batch_size", "20", "--epochs", "2",
]  # fmt: skip


def test_training_in_memory_the_whole_way_through(tmp_path, capsys):
    path = tmp_path / "run"
    words = ["--algorithm", "residual", "--states", "10", "--tiles", "3", "--io", "noisy", *IN_MEMORY]
    assert cli.main(["run", "lenet_mnist_insitu", "--output", str(path), *words, "--no-tensorboard"]) == 0
    out = capsys.readouterr().out
    config = read_config(path)
    assert config.hardware.algorithm.tiles == 3 and config.hardware.cell.states == pytest.approx(10)
    assert config.hardware.forward is not None and config.epochs == 2
    results = json.loads((path / "results.json").read_text())
    for stage in ("digital", "analog"):
        assert f"{100 * results['last_epoch'][stage]:.2f}" in out
    assert "accuracy.png, telemetry.png" in out and "tensorboard" not in out

    assert cli.main(["evaluate", str(path), "--onto", "pcm", "--times", "1s,1h", "--chips", "2"]) == 0
    assert "measured again" in capsys.readouterr().out
    assert cli.main(["report", str(path), "--figure", str(tmp_path / "drift.png")]) == 0
    out = capsys.readouterr().out
    assert "cells after the last epoch" in out and "onto pcm chips, compensated" in out and "1 h" in out
    assert (tmp_path / "drift.png").exists()


def test_a_comparison_the_whole_way_through(tmp_path, capsys):
    path = tmp_path / "compared"
    words = [
        "compare",
        "--algorithms",
        "mp",
        "residual",
        "--tiles",
        "2",
        "3",
        "--set",
        "mp.lr=0.3",
        *IN_MEMORY,
    ]
    assert cli.main([*words, "--output", str(path)]) == 0
    out = capsys.readouterr().out
    assert f"written: {path}/ with comparison.png" in out
    entries = json.loads((path / "comparison.json").read_text())["runs"]
    assert [e["lr"] for e in entries if e["algorithm"] == "mp"] == [0.3] and len(entries) == 4
    assert cli.main(["report", str(path), "--format", "markdown", "--figure", str(tmp_path / "x.png")]) == 0
    out = capsys.readouterr().out
    assert (
        f"| mp | 4 | 1 | 0.3 | 1 | {100 * entries[1]['validation']:.2f} |" in out
        and (tmp_path / "x.png").exists()
    )
    diverging = ["--set", "digital.baseline_lr=1e18", "--weight_decay", "1e18"]
    assert cli.main([*words, *diverging, "--output", f"{path} too"]) == 1
    assert "failed: digital-seed0: " in capsys.readouterr().out


def test_the_demo_of_training_in_memory(tmp_path, capsys, monkeypatch):
    import importlib

    import aimc.recipes.parts

    demo = importlib.import_module("aimc.recipes.demo_insitu")  # the package has a function of this name
    assert demo.DEMO_ALGORITHMS == ("residual", "mp", "ttv2", "sgd")
    monkeypatch.setattr(demo, "DEMO_ALGORITHMS", ("residual", "sgd"))
    monkeypatch.setattr(aimc.recipes.parts, "available_cores", lambda: 1)
    assert cli.main(["demo", "insitu", "--output", str(tmp_path / "d"), *IN_MEMORY]) == 0
    out = capsys.readouterr().out
    for name in ("digital", "residual", "sgd"):
        assert f"{name}-seed0: done" in out
    assert "comparison.png" in out


def test_the_help_of_a_recipe_shows_its_arguments(capsys):
    assert cli.main(["run", "lenet_mnist_insitu", "--help"]) == 0
    out = capsys.readouterr().out
    assert "--algorithm residual\n" in out and "--tiles null\n" in out and "arrays of cells" in out
    assert "--hardware.algorithm.columns " in out and "--schedule.every 30\n" in out
    assert cli.main(["demo", "insitu", "--help"]) == 0
    assert "The recipe demo_insitu" in capsys.readouterr().out


def test_list_names_every_recipe(capsys):
    assert cli.main(["list"]) == 0
    out = capsys.readouterr().out
    for recipe in RECIPES.values():
        assert recipe.name in out and recipe.expected in out and recipe.time in out and recipe.machine in out


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_shows_the_commands(words, capsys):
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    for word in ("demo", "list", "run", "compare", "evaluate", "report", "Start with"):
        assert word in out


@pytest.mark.parametrize("command", ["run", "compare", "evaluate", "report", "list"])
def test_every_command_has_help(command, capsys):
    assert cli.main([command, "--help"]) == 0
    assert f"usage: aimc {command}" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["run", "demo", "--help"], ["demo", "--help"], ["run", "-h", "demo"]])
def test_the_help_of_a_recipe_shows_every_field_with_its_default(words, capsys):
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    for path, *_ in _fields(DEMO):
        assert f"--{path} " in out, path
    assert f"--student.epochs {DEMO.student.epochs}\n" in out
    assert RECIPES["demo"].expected[:40] in out
    assert "Hermes" in out and "passes over the training data" in out
    assert "``" not in out and ":class:" not in out


def test_every_field_of_a_recipe_says_what_it_is():
    for path, value, _, text in _fields(DEMO):
        assert text or isinstance(value, Config), path


def test_the_help_of_another_type_lists_its_fields(capsys):
    assert (
        cli.main(["run", "demo", "--hardware.cell", "{type: Hermes}", "--student.epochs", "7", "--help"]) == 0
    )
    out = capsys.readouterr().out
    assert "--hardware.cell.parallel" in out and "--student.epochs 7\n" in out
    assert cli.main(["run", "demo", "--hardware.cell", "Hermse", "--help"]) == 2


def test_a_bare_type_name_says_how_to_choose_it(capsys):
    assert cli.main(["run", "demo", "--hardware.cell", "Hermes"]) == 2
    assert "hardware.cell" in (err := capsys.readouterr().err) and "{type: Hermes}" in err


def test_every_shown_default_is_accepted_as_a_value():
    for line in describe(DEMO).splitlines():
        if line.startswith("  --"):
            flag, value = line.strip().split(" ", 1)
            if "{type" not in value:
                assert configure(DEMO, None, [(flag[2:], value.strip("'"))]) == DEMO, line


def test_flags_reach_every_kind_of_field():
    config = _flags(
        "student.epochs", "5", "student.optimizer.lr", "1e-3", "dataset.name", "123", "evaluation.times", "1s,30d,60",
        "network", "{type: MLP}", "network.hidden", "[7, 8]", "digital", "fc*", "hardware.dac", "null", "threads",
        "null", "hardware.training.modifiers.0.scale", "1.5", "student.selection", "last",
    )  # fmt: skip
    assert (
        config.student.epochs == 5
        and config.student.optimizer.lr == 1e-3
        and config.student.selection == "last"
    )
    assert config.dataset.name == "123" and config.evaluation.times == ("1s", "30d", 60.0)
    assert config.network.hidden == (7, 8) and config.digital == ("fc*",)
    assert config.hardware.dac is None and config.threads is None
    assert config.hardware.training.modifiers[0].scale == 1.5
    assert config.teacher == DEMO.teacher


def test_polymorphic_nodes_take_a_type_and_then_its_fields_in_any_order():
    config = _flags("hardware.cell.g_max", "20", "hardware.cell", "{type: Hermes, parallel: 2}")
    assert config.hardware.cell == Hermes(parallel=2, g_max=20.0)
    config = _flags("hardware.cell.g_max", "20")
    assert config.hardware.cell == PCM(g_max=20.0)
    config = _flags(
        "hardware.training.modifiers", '[{"type": "AddNormal", "std": 0.2}, {"type": "DropConnect"}]'
    )
    assert [type(m).__name__ for m in config.hardware.training.modifiers] == ["AddNormal", "DropConnect"]
    config = _flags("hardware.training.clip", "{type: FixedClip, value: 0.5}")
    assert config.hardware.training.clip.value == 0.5
    config = _flags("hardware.adc", "null", "hardware.dac.bits", "6", "network", "{type: LeNet5}")
    assert (
        config.hardware.adc is None
        and config.hardware.dac.bits == 6
        and type(config.network).__name__ == "LeNet5"
    )


def test_flags_win_over_the_file_and_the_file_over_the_recipe(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text(
        "student: {epochs: 7, batch_size: 16}\nteacher.optimizer.lr: 1e-2\nhardware:\n  adc.bits: 6\n"
    )
    config = configure(DEMO, file, [("student.epochs", "3")])
    assert config.student.epochs == 3 and config.student.batch_size == 16
    assert config.teacher.optimizer.lr == 0.01 and config.hardware.adc.bits == 6
    assert config.student.optimizer == DEMO.student.optimizer and config.teacher.epochs == DEMO.teacher.epochs


def test_a_runs_own_configuration_is_a_file_that_reproduces_it(tmp_path):
    wanted = _flags("hardware.cell", "{type: Hermes, parallel: 2}", "student.epochs", "2", "digital", "a,b")
    file = tmp_path / "config.yaml"
    file.write_text(wanted.to_yaml())
    assert configure(RECIPES["lenet_mnist_hwa"].config(), file, []) == wanted


@pytest.mark.parametrize(
    "text, message",
    [
        ("student: {epoch: 3}", r"student\.epoch'.*did you mean 'epochs'.*my\.yaml"),
        ("studnet: {epochs: 3}", r"did you mean 'student'"),
        ("student: {epochs: 3, epochs: 4}", r"given twice"),
        ("- 1", r"must hold fields"),
        ("a: [", r"my\.yaml is not valid YAML"),
        ("student: !!python/object/apply:os.system ['true']", r"not valid YAML"),
        ("student: 3", r"'student': expects Stage"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path, text, message):
    file = tmp_path / "my.yaml"
    file.write_text(text)
    with pytest.raises(AimcError, match=message):
        configure(DEMO, file, [])


def test_an_empty_file_changes_nothing(tmp_path):
    (tmp_path / "my.yaml").write_text("# nothing\n")
    assert configure(DEMO, tmp_path / "my.yaml", []) == DEMO


def test_numbers_with_an_exponent_are_numbers_and_safe_yaml_stays_the_same():
    assert parse("[1e-3, 2E5, 1.5e+2, 1e3s]", "x") == [1e-3, 2e5, 150.0, "1e3s"]
    assert yaml.safe_load("1e-3") == "1e-3"


def test_ctrl_c_says_how_to_go_on(monkeypatch, capsys):
    import aimc.recipes

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(aimc.recipes, "run_experiment", interrupted)
    assert cli.main(["run", "demo", "--output", "my runs/a", "--seed", "3"]) == 130
    assert "go on with: aimc run demo --output 'my runs/a' --seed 3" in capsys.readouterr().err


def test_an_error_below_ends_without_traceback(monkeypatch, capsys):
    import aimc.recipes

    def failing(*args, **kwargs):
        raise AimcError("too hot", layer="fc1")

    monkeypatch.setattr(aimc.recipes, "run_experiment", failing)
    assert cli.main(["demo"]) == 2
    assert capsys.readouterr().err == "aimc: error: layer 'fc1': too hot\n"


class Interrupts(Progress):
    """Ctrl-C at the third line; keeps them."""

    def __init__(self):
        self.lines = []

    def line(self, text):
        self.lines.append(text)
        if len(self.lines) == 3:
            raise KeyboardInterrupt


def test_a_run_that_is_killed_goes_on_and_ends_like_one_left_alone(tmp_path):
    path, words = tmp_path / "run", ["run", "demo", *TINY, "--teacher.epochs", "100", "--output"]
    command = [sys.executable, "-m", "aimc.cli", *words, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=os.getcwd())
    try:
        deadline = time.monotonic() + 120
        while len(read_records(path) if path.exists() else []) < 3:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert 3 <= len(read_records(path)) < 98
    progress = Interrupts()
    with pytest.raises(KeyboardInterrupt):
        run_experiment(read_config(path), path, tensorboard=False, progress=progress)
    assert progress.lines[0].startswith("teacher: goes on after epoch ")
    assert [r["epoch"] for r in read_records(path)] == list(range(1, len(read_records(path)) + 1))
    run_experiment(read_config(path), path, tensorboard=False)
    assert cli.main([*words, str(tmp_path / "alone")]) == 0
    assert_same_run(path, tmp_path / "alone")


def test_report_works_in_a_process_of_its_own(tmp_path):
    """Nothing else has imported the configurations there."""
    (tmp_path / "run").mkdir()
    from aimc.recipes import RECIPES

    (tmp_path / "run" / "config.yaml").write_text(RECIPES["demo"].config().to_yaml())
    done = subprocess.run(
        [sys.executable, "-m", "aimc.cli", "report", str(tmp_path / "run")], capture_output=True, text=True
    )
    assert "no configuration is called" not in done.stderr, done.stderr


def test_the_schedule_of_transfers_on_request(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [
        "run",
        "lenet_mnist_insitu",
        "--algorithm",
        "ttv1",
        "--dataset",
        "mnist_small",
        "--schedule-table",
    ]
    assert cli.main([*words, "--dataset.train_images", "160", "--hardware.algorithm.columns", "1"]) == 0, (
        words
    )
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if " to " in line]
    assert [r[0] for r in rows] == ["conv1", "conv2", "fc1", "fc2"]
    assert [r[4:6] for r in rows] == [["10", f"{10 / c:.3g}"] for c in (25, 400, 512, 128)]
    assert all(r[-1] == "starved" for r in rows) and not list(tmp_path.iterdir())
    assert cli.main(["run", "demo", "--schedule-table"]) != 0
    assert "train in memory" in capsys.readouterr().err


def test_warnings_come_without_lines_of_code(monkeypatch, capsys):
    def work(words):
        warn("something to know")
        return 0

    monkeypatch.setattr(cli, "_main", work)
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main([]) == 0
    assert capsys.readouterr().err == "aimc: warning: something to know\n" and warnings.showwarning is before
