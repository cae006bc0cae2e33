"""The command line: ``aimc demo | list | run | compare | evaluate | reproduce | report | cell``.

The heavy imports happen inside the commands, so that help and mistakes are answered at once.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import shlex
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from aimc.errors import AimcError, suggest

if TYPE_CHECKING:
    from aimc.config import Config
    from aimc.recipes import Recipe
    from aimc.recipes.compare import Case
    from aimc.train import Progress

_DESCRIPTION = """Train, program and age neural networks on simulated analog in-memory hardware.

Start with:   aimc demo
Then:         aimc list, and aimc run NAME --help for everything a recipe lets you change."""

_RUN_DESCRIPTION = """Run a recipe, or go on with it where it stopped.

Every field of its configuration has a flag: aimc run NAME --help lists them with their defaults.
  aimc run NAME --student.epochs 5 --evaluation.times 1s,1h
  aimc run NAME --hardware.cell '{type: Hermes, parallel: 2}' --hardware.cell.g_max 20
  aimc run NAME --config my.yaml          a file with some or all of the fields
Flags win over the file, the file wins over the recipe."""


_COMPARE_DESCRIPTION = """Train with several algorithms on the same cells, images and budget, digital baseline included.

  aimc compare --algorithms ttv2 mp residual --states 4 10 --tiles 3 4 6 --seeds 3 --epochs 20 --jobs 2
  aimc compare --algorithms mp residual --set residual.lr=0.1 --set residual.hardware.algorithm.columns=64
Each run has a directory of its own below DIR. Finished runs are kept, also when more algorithms, states, tiles or
seeds are asked for later. Every other field of the recipe has a flag, for all runs: aimc run RECIPE --help."""


_SWITCHES = ("--help", "--no-tensorboard", "--no-baseline", "--schedule-table")
"""Flags without a value."""


class _Parser(argparse.ArgumentParser):
    """Raises instead of printing its usage, and offers the nearest name."""

    def __init__(self, *args: Any, **kwargs: Any):
        kwargs.setdefault("allow_abbrev", False)
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)

    def error(self, message: str) -> NoReturn:
        raise AimcError(f"{message}; see {self.prog} --help")

    @property
    def flags(self) -> list[str]:
        return [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]


def _parsers() -> tuple[_Parser, dict[str, _Parser]]:
    main = _Parser(prog="aimc", description=_DESCRIPTION)
    main.add_argument("--version", action="store_true", help="print the version")
    commands = main.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    made: dict[str, _Parser] = {}

    def add(name: str, summary: str, description: str | None = None) -> _Parser:
        made[name] = commands.add_parser(name, help=summary, description=description or summary)
        return made[name]

    for name, summary in (("demo", "train, program, age and draw a small network, about a minute"),
                          ("run", "run a recipe")):  # fmt: skip
        parser = add(name, summary, _RUN_DESCRIPTION if name == "run" else None)
        if name == "run":
            parser.add_argument("name", metavar="NAME", help="recipe, see aimc list")
            parser.add_argument(
                "--schedule-table", action="store_true",
                help="of in-memory training: print how often each tile is read into the next one, and train nothing",
            )  # fmt: skip
        else:
            parser.add_argument(
                "half", nargs="?", choices=("insitu",), metavar="insitu",
                help="instead: train in memory with several algorithms, about a minute",
            )  # fmt: skip
        parser.add_argument(
            "--config", metavar="FILE", help="YAML file with fields that replace the recipe's"
        )
        parser.add_argument("--output", metavar="DIR", help="run directory (default: runs/NAME)")
        _add_data(parser)
        _add_engine(parser, "chips", "threads", "processes", "ray")
        parser.add_argument("--no-tensorboard", action="store_true", help="write no TensorBoard scalars")
        parser.add_argument(
            "--keep", type=int, default=2, metavar="N",
            help="checkpoints kept of a training under way: the latest, and those before it (default: 2)",
        )  # fmt: skip
    _add_compare(add("compare", "compare algorithms that train in memory", _COMPARE_DESCRIPTION))
    add("list", "list the recipes with expected result, machine and time")

    parser = add("evaluate", "evaluate a finished run again, at other times or on other chips")
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("--times", metavar="1s,1h,...", help="times after programming (default: the run's)")
    parser.add_argument("--chips", type=int, metavar="N", help="number of chips (default: the run's)")
    parser.add_argument("--seed", type=int, metavar="N", help="of the set of chips (default: the run's)")
    parser.add_argument(
        "--compensation", metavar="YAML",
        help="estimator such as '{type: MeanAbs}', or null for none (default: the run's, and none)",
    )  # fmt: skip
    parser.add_argument(
        "--onto", metavar="PRESET",
        help="of a run of in-memory training: take its weights onto chips of this preset, such as pcm",
    )  # fmt: skip
    _add_data(parser)
    _add_engine(parser, "chips", "threads", "processes", "ray")

    parser = add("reproduce", "run a finished run again elsewhere and compare every number and weight")
    parser.add_argument("run", metavar="RUN", help="run directory")
    parser.add_argument("--output", metavar="DIR", help="directory of the second run (default: RUN-again)")
    _add_data(parser)

    parser = add("report", "tables and figures from the records of runs")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run directories")
    parser.add_argument("--format", choices=("table", "markdown"), default="table", help="default: table")
    parser.add_argument(
        "--summary", action="store_true", help="one row for each run on chips, and the commands"
    )
    parser.add_argument(
        "--figure",
        metavar="FILE",
        help="also draw the accuracy over time, or else over the epochs, into a file, PNG where it has no suffix",
    )
    _add_cell(add("cell", "draw a cell that learns by pulses, or fit one to measured pulses"))
    return main, made


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--algorithms",
        nargs="+",
        required=True,
        metavar="NAME",
        help="sgd, ttv1, ttv2, ttv3, ttv4, mp, residual",
    )
    parser.add_argument("--states", nargs="+", type=float, default=[], metavar="N", help="numbers of states")
    parser.add_argument(
        "--tiles",
        nargs="+",
        type=int,
        default=[],
        metavar="N",
        help="tile counts, for the algorithms that leave it open",
    )
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="number of seeds (default: 1)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME.FIELD=VALUE",
        help="a field of one algorithm alone, such as residual.lr=0.05; may be repeated",
    )  # fmt: skip
    parser.add_argument("--no-baseline", action="store_true", help="without the digital baseline")
    parser.add_argument(
        "--recipe", metavar="RECIPE", default="lenet_mnist_insitu", help="default: lenet_mnist_insitu"
    )
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="processes side by side (default: 1)"
    )
    parser.add_argument("--output", metavar="DIR", default="runs/compare", help="default: runs/compare")
    _add_data(parser)
    _add_engine(parser, "runs", "processes", "ray")


def _add_engine(parser: argparse.ArgumentParser, what: str, *engines: str) -> None:
    parser.add_argument(
        "--engine", choices=engines,
        help=f"where {what} are computed side by side: {', '.join(engines)} (a Ray cluster: the one of RAY_ADDRESS, or "
        f"this machine; all machines need the same folders); default: {engines[0]}",
    )  # fmt: skip


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", metavar="DIR", help="folder of the data sets (default: the environment variable AIMC_DATA)"
    )


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings to the user without the lines of code that they come from, which are none of the user's."""
    before = warnings.showwarning

    def show(message, category, filename, lineno, file=None, line=None) -> None:
        if issubclass(category, UserWarning):
            print(f"aimc: warning: {message}", file=sys.stderr)
        else:
            before(message, category, filename, lineno, file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        if warnings.showwarning is show:
            warnings.showwarning = before


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    0; 1 where runs failed or differ; 2 for a mistake that its message explains; 130 for Ctrl-C.

    Example:
        >>> main(["report", "no such run"])
        2
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        # A terminal or pipe whose encoding lacks a sign gets a "?", rather than an end after the work is done.
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="replace")
    try:
        with _plain_warnings():
            code = _main(words)
        sys.stdout.flush()
        return code
    except AimcError as error:
        print(f"aimc: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        again = (
            f"; go on with: aimc {shlex.join(words)}"
            if words and words[0] in ("demo", "run", "compare", "reproduce")
            else ""
        )
        print(f"\naimc: interrupted{again}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _print_no_more()
        return 141
    except OSError as error:
        try:
            print(flush=True)
        except OSError:  # it was what we print to that failed
            _print_no_more()
            print(f"aimc: error: cannot write to standard output: {error.strerror}", file=sys.stderr)
            return 2
        raise


def _print_no_more() -> None:
    """Or Python would try once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _main(words: list[str]) -> int:
    for word in words:
        if "\0" in word:  # no shell passes one on, but who calls main may
            raise AimcError(f"{word!r} holds a null byte, which no file or value may")
    main_parser, parsers = _parsers()
    first = words[0] if words else ""
    if first and not first.startswith("-") and first not in parsers:
        raise AimcError(f"no command is called {first!r}; {suggest(first, parsers)}")
    overrides: list[tuple[str, str]] = []
    if first == "compare" and not any(word in ("-h", "--help") for word in words):
        plain, overrides = _split(words[1:], parsers[first].flags, False, _lists(words))
        words = [first, *plain]
    elif first in ("demo", "run"):
        wants_help = any(word in ("-h", "--help") for word in words)
        plain, overrides = _split(words[1:], parsers[first].flags, wants_help, _lists(words))
        name = next((w for w in plain if not w.startswith("-")), None)
        if first == "demo":
            name = "demo_insitu" if name == "insitu" else "demo"
        if wants_help and name is not None:
            print(_recipe_help(parsers[first], _recipe(name), overrides))
            return 0
        words = [first, *plain]
    try:
        asked, rest = main_parser.parse_known_args(words)
    except SystemExit as done:  # --help has printed
        return int(done.code or 0)
    if rest:
        known = parsers[asked.command].flags if asked.command else main_parser.flags
        raise AimcError(f"unknown argument {rest[0]!r}; {suggest(rest[0].partition('=')[0], known)}")
    if asked.version:
        import importlib.metadata

        try:
            print(f"aimc {importlib.metadata.version('aimc')}")
        except importlib.metadata.PackageNotFoundError:
            print("aimc (not installed)")
        return 0
    if asked.command is None:
        main_parser.print_help()
        return 0
    if getattr(asked, "engine", None) is None:
        return _carry(asked, overrides, parsers)
    from aimc import jobs

    with jobs.engine(asked.engine):
        return _carry(asked, overrides, parsers)


def _carry(asked: argparse.Namespace, overrides: list[tuple[str, str]], parsers: dict[str, _Parser]) -> int:
    """Do what was asked for."""
    if asked.command in ("demo", "run", "compare", "evaluate", "reproduce"):
        _refuse_ranks(asked.command)
    if asked.command == "compare":
        return _compare(asked, overrides)
    if asked.command == "demo" and asked.half == "insitu":
        return _demo_in_situ(asked, overrides)
    if asked.command in ("demo", "run"):
        name = "demo" if asked.command == "demo" else asked.name
        return _run(name, asked, overrides, parsers[asked.command].flags)
    commands = {
        "list": _list,
        "evaluate": _evaluate,
        "reproduce": _reproduce,
        "report": _report,
        "cell": _cell,
    }
    return commands[asked.command](asked)


def _refuse_ranks(command: str) -> None:
    """Several processes of a launcher would all write the same run directory."""
    size, rank = os.environ.get("WORLD_SIZE", ""), os.environ.get("RANK")
    if rank is not None and size.isdigit() and int(size) > 1:
        raise AimcError(
            f"aimc {command} runs in one process, and this is process {rank} of {size} (RANK and WORLD_SIZE are set, "
            "as torchrun does); start it without torchrun, or train your own network with DistributedDataParallel, see "
            "docs/torch.md"
        )


def _lists(words: list[str]) -> list[str]:
    """The flags that take several words: arguments of the recipes that are named, where these are lists."""
    from aimc.recipes import RECIPES

    arguments = [a for word in words if word in RECIPES for a in RECIPES[word].arguments.values()]
    return [f"--{a.name}" for a in arguments if a.several]


def _split(
    words: list[str], known: list[str], wants_help: bool, lists: Sequence[str] = ()
) -> tuple[list[str], list[tuple[str, str]]]:
    """Take the configuration's flags out: ``--a.b value`` or ``--a.b=value``; ``--a b c`` where it is in ``lists``."""
    plain: list[str] = []
    overrides: list[tuple[str, str]] = []
    valued = [flag for flag in known if flag not in _SWITCHES]
    i = 0
    while i < len(words):
        word = words[i]
        flag, equals, value = word.partition("=")
        if not word.startswith("--") or word == "--" or flag in known:
            plain.append(word)
            if flag in valued and not equals and i + 1 < len(words):
                plain.append(words[i + 1])
                i += 1
        elif equals:
            overrides.append((flag[2:], value))
        elif i + 1 < len(words) and not words[i + 1].startswith("--"):
            values = list(itertools.takewhile(lambda word: not word.startswith("--"), words[i + 1 :]))
            values = values if flag in lists else values[:1]
            overrides.append((flag[2:], " ".join(values)))
            i += len(values)
        elif not wants_help:
            overrides.append((flag[2:], ""))
        i += 1
    return plain, overrides


def _recipe(name: str) -> Recipe:
    from aimc.recipes import RECIPES

    if name not in RECIPES:
        raise AimcError(f"no recipe is called {name!r}; {suggest(name, RECIPES)}")
    return RECIPES[name]


def _run(name: str, asked: argparse.Namespace, overrides: list[tuple[str, str]], flags: list[str]) -> int:
    from aimc.recipes import run_experiment
    from aimc.recipes.overrides import configured
    from aimc.report import load_run, show
    from aimc.train import choose_progress

    config = configured(_recipe(name), asked.config, overrides, flags)
    if getattr(asked, "schedule_table", False):
        return _show_schedule(config, asked.data)
    output = os.path.join("runs", name) if asked.output is None else asked.output
    progress = choose_progress()
    options = {"tensorboard": not asked.no_tensorboard, "keep": asked.keep}
    run_experiment(config, output, data=asked.data, progress=progress, **options)
    found = load_run(output)
    show([found])
    print("time: " + ", ".join(f"{part} {seconds:.1f} s" for part, seconds in found.parts))
    print(f"written: {output}/ with {', '.join(_written(output))}")
    return 0


def _show_schedule(config: Config, data: str | None) -> int:
    from aimc.recipes.in_memory import InSituExperiment, planned_transfers
    from aimc.report import show_table

    if not isinstance(config, InSituExperiment):
        raise AimcError("is for recipes that train in memory", field="schedule-table")
    table = planned_transfers(config, data)
    if not table.rows:
        print("this algorithm has no transfers")
        return 0
    show_table(table)
    return 0


def _compare(asked: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    from aimc.recipes.compare import cases
    from aimc.train import choose_progress

    wanted = cases(
        _recipe(asked.recipe), asked.algorithms, states=asked.states, tiles=asked.tiles, seeds=asked.seeds,
        flags=overrides, own=asked.set, baseline=not asked.no_baseline,
    )  # fmt: skip
    return _carry_out(wanted, asked.output, asked.data, asked.jobs, choose_progress())


def _demo_in_situ(asked: argparse.Namespace, overrides: list[tuple[str, str]]) -> int:
    if asked.config is not None:
        raise AimcError(
            "this demo takes flags; a file goes with aimc run demo_insitu",
            field="config",
        )
    from aimc.recipes.compare import cases
    from aimc.recipes.demo_insitu import DEMO_ALGORITHMS
    from aimc.recipes.parts import available_cores
    from aimc.train import choose_progress

    wanted = cases(_recipe("demo_insitu"), DEMO_ALGORITHMS, flags=overrides)
    output = os.path.join("runs", "demo_insitu") if asked.output is None else asked.output
    return _carry_out(wanted, output, asked.data, min(2, available_cores()), choose_progress())


def _carry_out(wanted: Sequence[Case], output: str, data: str | None, jobs: int, progress: Progress) -> int:
    """Compare, show and say what was written; 1 where a run failed or is not finished."""
    from aimc.recipes.compare import compare
    from aimc.report import comparison_table, show_table

    found = compare(wanted, output, data=data, jobs=jobs, progress=progress)
    show_table(comparison_table(found["runs"]))
    for name, error in found["failed"].items():
        print(f"failed: {name}: {error}")
    for name, said in found["busy"].items():
        print(f"left to another process: {name}: {said}")
    print(f"written: {output}/ with comparison.png, comparison.json and a directory for each run")
    return 1 if found["failed"] or found["busy"] else 0


def _written(folder: str) -> list[str]:
    """What lies in a run directory, figures first."""
    names = sorted(name + "/" * os.path.isdir(os.path.join(folder, name)) for name in os.listdir(folder))
    names = [name for name in names if not name.startswith(".")]
    return sorted(names, key=lambda name: (not name.endswith(".png"), name.endswith("/")))


def _list(asked: argparse.Namespace) -> int:
    from aimc.recipes import RECIPES

    for recipe in RECIPES.values():
        print(f"{recipe.name}\n    {recipe.summary}")
        for label, text in (
            ("expected", recipe.expected),
            ("machine", recipe.machine),
            ("time", recipe.time),
        ):
            print(f"    {label}: {text}")
    return 0


def _evaluate(asked: argparse.Namespace) -> int:
    from aimc.chip import Compensation
    from aimc.recipes import evaluate_run
    from aimc.recipes.overrides import parse
    from aimc.report import load_run, show_evaluations
    from aimc.train import choose_progress

    options: dict[str, Any] = {"chips": asked.chips, "seed": asked.seed, "onto": asked.onto}
    if asked.times is not None:
        options["times"] = tuple(t.strip() for t in asked.times.split(",") if t.strip())
    if asked.compensation is not None:
        given = parse(asked.compensation, "--compensation")
        given = {"type": given} if isinstance(given, str) else given
        options["compensation"] = Compensation.from_dict(given) if given is not None else None
    results = evaluate_run(asked.run, **options, data=asked.data, progress=choose_progress())
    show_evaluations(load_run(asked.run), results)
    print(
        f"added to {asked.run}/records.jsonl, beside what was evaluated before; all of it: "
        f"aimc report {shlex.quote(asked.run)}"
    )
    return 0


def _reproduce(asked: argparse.Namespace) -> int:
    from aimc.recipes import reproduce_run
    from aimc.train import choose_progress

    result = reproduce_run(asked.run, asked.output, data=asked.data, progress=choose_progress())
    print(result)
    return 1 if result.differing else 0


def _report(asked: argparse.Namespace) -> int:
    from aimc import recipes  # the configurations that a run may hold
    from aimc.files import figure_path
    from aimc.report import draw, draw_accuracy, load_run, markdown, show

    assert recipes.RECIPES
    if asked.figure is not None:
        asked.figure = figure_path(asked.figure)  # refused before anything is printed
    if any(os.path.exists(os.path.join(path, "comparison.json")) for path in asked.runs):
        return _report_comparison(asked)
    runs = [load_run(path) for path in asked.runs]
    if asked.summary:
        _summary(runs, asked.format)
    elif asked.format == "markdown":
        print(markdown(runs))
    else:
        show(runs)
    if asked.figure is not None:
        over_epochs = not any(run.groups for run in runs)
        (draw_accuracy if over_epochs else draw)(runs, asked.figure)
        print(f"written: {asked.figure}", file=sys.stderr)
    return 0


def _summary(runs: Any, form: str) -> None:
    from aimc.report import command_of, markdown_table, show_table, summary_table

    table, mark = summary_table(runs), "`" if form == "markdown" else ""
    if mark:
        print(markdown_table(table) + "\n")
    else:
        show_table(table)
    for run in runs:
        print(f"- {run.path.name}: {mark}{command_of(run)}{mark}")


def _report_comparison(asked: argparse.Namespace) -> int:
    """The table of comparisons, all their runs together."""
    from aimc.report import (
        comparison_table,
        draw_comparison,
        load_comparison,
        markdown_table,
        provenance,
        show_table,
    )

    runs = [path for path in asked.runs if not os.path.exists(os.path.join(path, "comparison.json"))]
    if runs:
        raise AimcError(
            f"{', '.join(runs)} is no comparison, and others are: give aimc report the one or the other",
            field="run",
        )
    if asked.summary:
        raise AimcError(
            "is for runs on chips; a comparison has one table, which aimc report prints without it",
            field="summary",
        )
    entries = [entry for path in asked.runs for entry in load_comparison(path)]
    table = comparison_table(entries)
    if asked.format == "markdown":
        print(markdown_table(table))
    else:
        show_table(table)
    for line in provenance(entries):
        print(f"- {line}")
    if asked.figure is not None:
        draw_comparison(entries, asked.figure)
        print(f"written: {asked.figure}", file=sys.stderr)
    return 0


def _add_cell(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", help="type or preset, such as SoftBounds; with --fit also best"
    )
    parser.add_argument(
        "--set", metavar="FIELD=VALUE", action="append", default=[], help="change a field; may be repeated"
    )
    parser.add_argument("--states", type=float, metavar="N", help="nominal number of states")
    parser.add_argument("--out", metavar="FILE", help="figure (default: NAME.png)")
    parser.add_argument(
        "--fit", metavar="FILE", help="fit NAME to measured pulses: CSV with pulse,direction,value[,device]"
    )


def _cell(asked: argparse.Namespace) -> int:
    from aimc.report.cell_figures import command

    return command(asked)


def _recipe_help(parser: _Parser, recipe: Recipe, overrides: list[tuple[str, str]]) -> str:
    """The command's help followed by every field of the recipe, as the flags beside --help change it."""
    from aimc.recipes.overrides import configured, describe, describe_arguments

    head = parser.format_help().replace("NAME", recipe.name, 1)
    about = [f"The recipe {recipe.name}: {recipe.summary}", ""]
    for label, text in (("expected", recipe.expected), ("machine", recipe.machine), ("time", recipe.time)):
        about.append(f"  {label}: {text}")
    if recipe.arguments:
        about += ["", "Its arguments, with their defaults:", "", describe_arguments(recipe)]
    return "\n".join(
        [
            head,
            *about,
            "",
            "Flags of its configuration, with their defaults. Where a field has several types, its flags are those of",
            "the present one; for those of another: --hardware.cell '{type: Hermes}' --help",
            "",
            describe(configured(recipe, None, overrides, parser.flags)),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
