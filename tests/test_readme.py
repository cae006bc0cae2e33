"""What the README claims comes from the records that lie in docs/runs."""

import re
from pathlib import Path

import pytest
from PIL import Image

from aimc.files import read_records
from aimc.recipes import RECIPES
from aimc.report import (
    command_of,
    compared_sha256,
    drawn_sha256,
    load_comparison,
    load_run,
    summary_table,
    tables,
)

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
RESULTS = (ROOT / "docs" / "results.md").read_text()


def _rows(table) -> list[str]:
    return [" | ".join(row) for row in table.rows]


CHIPS = [
    "lenet_mnist_hwa", "demo", "wideresnet_cifar100", "resnet32_cifar10_small", "lstm_wikitext2", "bert_sst2",
]  # fmt: skip
MEAN_ALONE = ["demo", "resnet32_cifar10_small"]


@pytest.mark.parametrize("name", CHIPS)
def test_rows_of_chips_are_the_tables_of_the_run(name):
    mean, _, star = tables(load_run(ROOT / "docs" / "runs" / name))[:3]
    for row in _rows(mean) + (_rows(star) if name not in MEAN_ALONE else []):
        assert f"| {row} |" in RESULTS


def test_the_short_table_is_the_summary_of_the_runs():
    runs = [load_run(ROOT / "docs" / "runs" / name) for name in CHIPS if name != "demo"]
    for row in _rows(summary_table(runs)):
        assert f"| {row} |" in README
    for run in runs:
        assert f"- [{run.path.name}](docs/runs/{run.path.name}): `{command_of(run)}`" in README


@pytest.mark.parametrize(
    ("figure", "names"),
    [
        ("drift.png", ["lenet_mnist_hwa"]),
        ("networks.png", ["wideresnet_cifar100", "lstm_wikitext2", "bert_sst2"]),
    ],
)
def test_the_figures_are_those_of_the_records(figure, names):
    with Image.open(ROOT / "docs" / figure) as image:
        held = image.text.get("Description", "")
    assert held.endswith(drawn_sha256([load_run(ROOT / "docs" / "runs" / name) for name in names]))
    folders = " ".join(f"docs/runs/{name}" for name in names)
    assert f"`aimc report {folders} --figure docs/{figure}`" in " ".join(README.split())


def test_the_rows_beside_the_replication_are_those_of_the_summary():
    head, *_ = RESULTS[RESULTS.index("## Beside the numbers") :].split("\n## ")
    names = ("wideresnet_cifar100", "lstm_wikitext2", "bert_sst2")
    table = summary_table([load_run(ROOT / "docs" / "runs" / name) for name in names])
    first, last = table.head.index("hardware-aware, compensated, 1 s"), len(table.head) - 1
    for row in table.rows:
        assert f" | {row[first]} | {row[last]} |" in head


_ROWS = {
    ("digital", None): "digital", ("mp", 1): "mixed precision", ("residual", 8): "residual learning, 8 tiles",
    ("residual", 6): "residual learning, 6 tiles", ("residual", 4): "residual learning, 4 tiles",
    ("residual", 3): "residual learning, 3 tiles", ("ttv2", 2): "Tiki-Taka v2", ("ttv1", 2): "Tiki-Taka v1",
}  # fmt: skip


@pytest.mark.parametrize(
    ("folder", "place", "before", "texts"),
    [
        ("insitu_fashion_mnist_order", 1, "", (README, RESULTS)),
        ("insitu_mnist_order", 2, "", (README, RESULTS)),
        ("insitu_fashion_mnist", 1, "4 epochs: ", (RESULTS,)),
        ("insitu_mnist", 2, "4 epochs: ", (RESULTS,)),
    ],
)
def test_rows_of_in_memory_training_are_those_of_the_comparison(folder, place, before, texts):
    found: dict[str, list[float]] = {}
    for entry in load_comparison(ROOT / "docs" / "runs" / folder):
        found.setdefault(_ROWS[entry["algorithm"], entry["tiles"]], []).append(100 * entry["test"])
    for name, values in found.items():
        mean = sum(values) / len(values)
        spread = (sum((v - mean) ** 2 for v in values) / (len(values) - 1)) ** 0.5
        for text in texts:
            (line,) = [x for x in text.splitlines() if x.startswith(f"| {before}{name}") and "±" in x]
            assert len(values) == 3 and re.split(r" *\| *", line)[place + 1] == f"{mean:.2f} ± {spread:.2f}"


def test_the_figure_of_in_memory_training_is_that_of_its_record():
    with Image.open(ROOT / "docs" / "in_memory.png") as image:
        held = image.text.get("Description", "")
    folder = "docs/runs/insitu_fashion_mnist_order"
    assert held.endswith(compared_sha256(load_comparison(ROOT / folder)))
    assert f"`aimc report {folder} --figure docs/in_memory.png`" in README


def test_the_published_order_is_that_of_the_records():
    """And the command of the README is that of the records, which are whole runs."""
    for folder in ("insitu_fashion_mnist_order", "insitu_mnist_order"):
        found: dict[str, list[float]] = {}
        for entry in load_comparison(ROOT / "docs" / "runs" / folder):
            assert entry["epochs"] == len(entry["curve"]["test"]) == 20
            assert entry["lr"] == (0.05 if entry["algorithm"].startswith("ttv") else 0.2)
            if entry["algorithm"] == "residual":
                algorithm = entry["hardware"]["algorithm"]
                assert (algorithm["columns"], algorithm["weight_decay"]) == ("all", 5e-4)
            found.setdefault(_ROWS[entry["algorithm"], entry["tiles"]], []).append(entry["test"])
        order = ["Tiki-Taka v1", "Tiki-Taka v2", *(f"residual learning, {t} tiles" for t in (3, 4, 6))]
        means = [sum(found[name]) / 3 for name in order]
        assert means == sorted(means)


def test_the_long_comparison_is_that_of_its_record():
    (paragraph,) = [p for p in RESULTS.split("\n\n") if p.startswith("**20 epochs**")]
    named = {"digital": "digital", "mp": "mixed precision", "residual": "every step"}
    for entry in load_comparison(ROOT / "docs" / "runs" / "insitu_fashion_mnist_20"):
        assert f"{named[entry['algorithm']]} {100 * entry['test']:.2f} %" in " ".join(paragraph.split())
        assert entry["epochs"] == 20 and entry["lr"] == 0.2 and entry["environment"]["git"]


def test_the_runs_with_weight_decay_are_those_of_their_records():
    (paragraph,) = [p for p in RESULTS.split("\n\n") if p.startswith("**With weight decay**")]
    (entry,) = load_comparison(ROOT / "docs" / "runs" / "insitu_fashion_mnist_20_decay")
    last = load_run(ROOT / "docs" / "runs" / "digital_fashion_mnist_20_decay").curves["digital"][-1]
    assert entry["epochs"] == last["epoch"] == 20 and entry["hardware"]["algorithm"]["weight_decay"] == 5e-4
    for found in (entry["test"], last["test"]):
        assert f" {100 * found:.2f} %" in " ".join(paragraph.split())


def test_the_runs_with_eight_tiles_are_those_of_their_records():
    (paragraph,) = [p for p in RESULTS.split("\n\n") if p.startswith("**With 8 tiles**")]
    for name, decay in (
        ("insitu_fashion_mnist_20_8_tiles", 5e-4),
        ("insitu_fashion_mnist_20_8_tiles_2e-3", 2e-3),
    ):
        (entry,) = load_comparison(ROOT / "docs" / "runs" / name)
        settings = entry["hardware"]["algorithm"]
        assert (entry["epochs"], entry["tiles"], settings["weight_decay"]) == (20, 8, decay)
        assert f"{100 * entry['test']:.2f} % ([record](runs/{name}))" in " ".join(paragraph.split())
        assert f"{100 * entry['validation']:.2f}" in paragraph


def test_later_runs_of_twenty_epochs_are_those_of_their_records():
    (since,) = [p for p in RESULTS.split("\n\n") if p.startswith("**Since then**")]
    (others,) = [p for p in RESULTS.split("\n\n") if p.startswith("Tiki-Taka v3 and v4")]
    for name, text in (("insitu_fashion_mnist_rounding", since), ("insitu_fashion_mnist_ttv34", others)):
        assert f"(runs/{name})" in text
        for entry in load_comparison(ROOT / "docs" / "runs" / name):
            assert entry["epochs"] == 20 and f"{100 * entry['test']:.2f}" in text


def test_the_demo_in_memory_is_that_of_its_record():
    (paragraph,) = [p for p in RESULTS.split("\n\n") if p.startswith("`aimc demo insitu`")]
    named = {
        "digital": "digital", "residual": "residual learning", "mp": "mixed precision", "ttv2": "Tiki-Taka v2",
        "sgd": "analog SGD",
    }  # fmt: skip
    for entry in load_comparison(ROOT / "docs" / "runs" / "demo_insitu"):
        assert f"{named[entry['algorithm']]} {100 * entry['test']:.1f} %" in " ".join(paragraph.split())
        assert f"{100 * entry['test']:.1f} %" in RECIPES["demo_insitu"].expected


def test_the_lines_of_code_run(tmp_path, monkeypatch):
    """Shortened to an epoch on fewer images and two chips."""
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", README, re.DOTALL))
    for long, short in (
        ('"mnist_small", "train")', '"mnist_small", "train", limit=320)'),
        ("range(3)", "range(1)"),
        ("chips=5", "chips=2"),
        ("test.inputs[:200], test.targets[:200]", "test.inputs[:50], test.targets[:50]"),
    ):
        assert code.count(long) == 1
        code = code.replace(long, short)
    names = {}
    exec(code, names)
    assert (tmp_path / "drift.png").stat().st_size > 10_000
    assert names["logits"].shape == (10, 10) and names["digital"](names["test"].inputs[:2]).shape == (2, 10)


@pytest.mark.parametrize("name", ["resnet18_insitu_small", "resnet34_insitu_small"])
def test_a_residual_network_is_that_of_its_record(name):
    last = {r["stage"]: r for r in read_records(ROOT / "docs" / "runs" / name) if r["kind"] == "epoch"}
    (paragraph,) = [p for p in RESULTS.split("\n\n") if p.startswith(f"`aimc run {name}`")]
    for stage in ("analog", "digital"):
        assert last[stage]["epoch"] == 8 and f"{100 * last[stage]['test']:.2f} %" in paragraph
