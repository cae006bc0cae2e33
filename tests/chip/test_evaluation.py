"""The statistics of many chips, by hand; and that nothing but the chips decides them."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings
from time import sleep

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import aimc
from aimc import jobs
from aimc.chip import Accuracy, DriftResult, LeastSquares, Perplexity
from aimc.errors import AimcError
from aimc.random import Key
from tests.helpers import assert_close

HARDWARE = aimc.presets.pcm().replace(**{"input_range.value": 2.0})


def make(seed=0, hardware=HARDWARE):
    torch.manual_seed(seed)
    return aimc.convert(nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 4)), hardware, seed=1)


GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(300, 12, generator=GENERATOR)
with torch.no_grad():
    Y = aimc.to_digital(make())(X).argmax(1)

VALUES = np.random.default_rng(0).normal(0.9, 0.02, (3, 25))
RESULT = DriftResult(times=(1.0, 3600.0, 31536000.0), values=VALUES, seed=4, reference=0.91, chance=0.1)


def test_mean_spread_and_worst():
    np.testing.assert_allclose(RESULT.mean, VALUES.sum(1) / 25)
    by_hand = np.sqrt(((VALUES - VALUES.mean(1, keepdims=True)) ** 2).sum(1) / 24)
    np.testing.assert_allclose(RESULT.std, by_hand)
    np.testing.assert_array_equal(RESULT.worst, VALUES.min(1))
    loss = DriftResult(times=(1.0,), values=VALUES[:1], seed=0, higher_is_better=False)
    np.testing.assert_array_equal(loss.worst, VALUES[:1].max(1))
    one = DriftResult(times=(1.0,), values=VALUES[:1, :1], seed=0, reference=1.0, chance=0.0)
    assert np.isnan(one.std).all() and one.iso_p is None


def test_bootstrap_interval():
    interval = RESULT.interval
    half = 1.96 * RESULT.std * np.sqrt(24 / 25) / 5  # the bootstrap's own spread has n, not n - 1
    np.testing.assert_allclose(interval[:, 0], RESULT.mean - half, atol=0.12 * half.max())
    np.testing.assert_allclose(interval[:, 1], RESULT.mean + half, atol=0.12 * half.max())
    np.testing.assert_array_equal(interval, DriftResult.from_dict(RESULT.to_dict()).interval)


def test_the_interval_of_few_chips_is_as_wide_as_students():
    """Percentiles of a plain bootstrap cover about 81 % of the time for four chips."""
    values = np.random.default_rng(0).normal(0.9, 0.01, (400, 4))
    covered = 0
    for row in values:
        low, high = DriftResult(times=(1.0,), values=row[None], seed=0).interval[0]
        covered += low <= 0.9 <= high
    assert 0.85 < covered / 400 < 0.97
    assert "too narrow" in str(DriftResult(times=(1.0,), values=values[:1], seed=0))
    assert "too narrow" not in str(RESULT)


def test_normalised_accuracy():
    by_hand = (VALUES - 0.1) / (0.91 - 0.1)
    np.testing.assert_allclose(RESULT.normalised_values, by_hand)
    np.testing.assert_allclose(RESULT.normalised, by_hand.mean(1))
    # in terms of errors, as it is usually written: 1 - (e - e_fp) / (e_chance - e_fp)
    errors = 1 - VALUES.mean(1)
    np.testing.assert_allclose(RESULT.normalised, 1 - (errors - 0.09) / (0.9 - 0.09))
    assert RESULT.interval is not None
    np.testing.assert_allclose(RESULT.normalised_interval, (RESULT.interval - 0.1) / 0.81)
    published = DriftResult(
        times=(3600.0,), values=np.array([[1 - 0.2483]]), seed=0, reference=1 - 0.2387, chance=0.001
    )
    assert published.normalised == pytest.approx(0.987, abs=5e-4)
    loss = DriftResult(
        times=(1.0,),
        values=np.array([[73.0, 73.4]]),
        seed=0,
        reference=72.9,
        chance=10_000.0,
        higher_is_better=False,
    )
    assert loss.normalised == pytest.approx(1 - 0.3 / (10_000 - 72.9))
    assert loss.normalised_interval is not None and bool(
        (loss.normalised_interval[:, 0] <= loss.normalised).all()
    )
    assert DriftResult(times=(1.0,), values=VALUES[:1], seed=0).normalised is None


def test_a_perplexity_is_normalised_by_its_logarithm():
    values = np.array([[120.0, 125.0, 131.0], [150.0, 160.0, 240.0]])
    result = DriftResult(
        times=(1.0, 3600.0), values=values, seed=0, reference=118.0, chance=1000.0, higher_is_better=False,
        metric="perplexity", logarithmic=True,
    )  # fmt: skip
    by_hand = 1 - (np.log(values) - np.log(118)) / (np.log(1000) - np.log(118))
    np.testing.assert_allclose(result.normalised_values, by_hand)
    np.testing.assert_allclose(result.normalised, by_hand.mean(1))
    low, high = result.normalised_interval.T
    assert (low < result.normalised).all() and (result.normalised < high).all()
    assert (low >= by_hand.min(1) - 1e-9).all() and (high <= by_hand.max(1) + 1e-9).all()
    expected = stats.ttest_1samp(by_hand, 0.99, axis=1, alternative="greater").pvalue
    np.testing.assert_allclose(result.iso_p, expected, rtol=1e-9)
    assert not result.percent and RESULT.percent
    np.testing.assert_array_equal(result.worst, [131.0, 240.0])
    assert DriftResult.from_dict(result.to_dict()).to_dict() == result.to_dict()
    better = DriftResult.from_dict(result.to_dict() | {"reference": 1200.0})
    assert better.normalised is None, "a reference worse than guessing normalises nothing"


def test_records_without_a_metric_are_accuracies():
    old = {k: v for k, v in RESULT.to_dict().items() if k not in ("metric", "logarithmic")}
    found = DriftResult.from_dict(old)
    assert found.metric == "accuracy" and found.percent and not found.logarithmic
    np.testing.assert_allclose(found.normalised, RESULT.normalised)
    assert DriftResult.from_dict(old | {"chance": None}).metric == "metric"


def test_iso_accuracy_is_a_test():
    for shift in (-0.02, 0.0, 0.005, 0.05):
        result = DriftResult(times=RESULT.times, values=VALUES + shift, seed=0, reference=0.91, chance=0.1)
        star = (VALUES + shift - 0.1) / 0.81
        expected = stats.ttest_1samp(star, 0.99, axis=1, alternative="greater").pvalue
        np.testing.assert_allclose(result.iso_p, expected, rtol=1e-9)
        np.testing.assert_array_equal(result.iso, expected < 0.05)
    for value, p in ((0.9, 1.0), (0.9999, 1.0)):  # chips that do not differ show nothing about others
        flat = DriftResult(times=(1.0,), values=np.full((1, 3), value), seed=0, reference=1.0, chance=0.0)
        assert flat.iso_p == pytest.approx([p], abs=1e-12)


def test_round_trip(tmp_path):
    data = RESULT.to_dict()
    assert json.loads(json.dumps(data)) == data
    RESULT.save(tmp_path / "result.json")
    loaded = DriftResult.load(tmp_path / "result.json")
    assert loaded.to_dict() == data and str(loaded) == str(RESULT)
    np.testing.assert_array_equal(loaded.values, VALUES)
    np.testing.assert_allclose(data["statistics"]["std"], RESULT.std)
    (tmp_path / "result.json").write_text('{"times": [1]}')
    with pytest.raises(AimcError, match="result.json"):
        DriftResult.load(tmp_path / "result.json")
    with pytest.raises(AimcError, match="nothing.json"):
        DriftResult.load(tmp_path / "nothing.json")


def test_text_and_figure(tmp_path):
    text = str(RESULT)
    for piece in (
        "1 h",
        "1 y",
        f"{RESULT.mean[0]:.4f}",
        f"{RESULT.std[1]:.4f}",
        f"{RESULT.worst[2]:.4f}",
        "25 chips",
    ):
        assert piece in text
    RESULT.plot(tmp_path / "drift.png")
    assert (tmp_path / "drift.png").stat().st_size > 5000


def test_every_value_is_one_chip_at_one_time():
    net, metric = make(), Accuracy(X, Y, classes=4)
    result = aimc.evaluate_over_time(net, metric, times=("1s", "1y"), chips=4, seed=5)
    net.eval()
    for c in range(4):
        chip = aimc.program(net, Key(5).fold("chip", c).seed)
        for i, time in enumerate((1, 31536000)):
            with chip.at(time):
                assert result.values[i, c] == metric(net)
    assert result.reference == 1.0 and result.chance == 0.25
    assert len(set(result.values[1])) > 1, "chips differ"
    assert result.compensation is not None and "LeastSquares" in result.compensation


def test_same_seed_same_result_and_common_chips():
    metric = Accuracy(X, Y)
    results = [aimc.evaluate_over_time(make(), metric, times=("1h",), chips=3, seed=s) for s in (0, 0, 1)]
    np.testing.assert_array_equal(results[0].values, results[1].values)
    assert not np.array_equal(results[0].values, results[2].values)
    more = aimc.evaluate_over_time(make(), metric, times=("1s", "1h"), chips=5, seed=0)
    np.testing.assert_array_equal(more.values[1:, :3], results[0].values)


def test_compensation_pays_after_a_year():
    metric = Accuracy(X, Y)
    with_it, without = (
        aimc.evaluate_over_time(make(), metric, times=("1s", "1y"), chips=5, seed=0, compensation=c)
        for c in (LeastSquares(), None)
    )
    assert without.compensation is None
    assert with_it.mean[1] > without.mean[1]
    assert with_it.mean[1] < with_it.mean[0] <= 1.0, "a year costs something"


@pytest.mark.parametrize("size", [1, 7, 59, 1000])
def test_batch_size_changes_nothing(size):
    """In double precision, where a matrix product does not round differently for another batch."""
    net, x, y = make().double().eval(), X[:60].double(), Y[:60]
    chip = aimc.program(net, seed=0)
    with chip.at("1y"):
        expected = Accuracy(x, y)(net)
    with chip.at("1y"):
        logits = net(x).detach()
    assert 0.5 < expected < 1, "noise must be able to show"
    with chip.at("1y"):
        assert Accuracy(x, y, batch_size=size)(net) == expected
    with chip.at("1y"):
        assert_close("outputs", torch.cat([net(part).detach() for part in x.split(size)]), logits, atol=1e-12)


def test_modes_come_back():
    net = make().train()
    net[1].eval()
    aimc.evaluate_over_time(net, Accuracy(X, Y), times=("1s",), chips=1)
    assert [m.training for m in net.children()] == [True, False, True]

    def broken(module):
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        aimc.evaluate_over_time(net, broken, times=("1s",), chips=1, reference=1.0)
    assert [m.training for m in net.children()] == [True, False, True]


def test_progress_and_metric_attributes():
    seen = []
    result = aimc.evaluate_over_time(
        make(), lambda net: 2.5, times=("1s", "1h"), chips=2, reference=2.0, chance=9.0,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert (result.reference, result.chance, result.higher_is_better) == (2.0, 9.0, True)


@pytest.mark.parametrize(
    "arguments, field",
    [
        ({"times": ()}, "times"),
        ({"chips": 0}, "chips"),
        ({"times": ("soon",)}, "time"),
        ({"metric": lambda net: float("nan")}, "metric"),
    ],
)
def test_impossible_requests(arguments, field):
    with pytest.raises(AimcError) as caught:
        aimc.evaluate_over_time(
            make(), **{"metric": Accuracy(X, Y), "chips": 1, "reference": 1.0, **arguments}
        )
    assert caught.value.field == field


def test_accuracy_counts():
    metric = Accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0]), batch_size=3)
    assert metric(nn.Identity()) == 0.75
    assert metric.chance == pytest.approx(1 / 3)
    with pytest.raises(AimcError):
        Accuracy(torch.ones(2, 2), torch.ones(3))
    with pytest.raises(AimcError):
        Accuracy(torch.ones(0, 2), torch.ones(0))


def test_workers_change_nothing_and_an_error_in_one_rises():
    torch.manual_seed(0)
    hardware = aimc.presets.pcm().replace(**{"input_range.value": 2.0})
    net = aimc.convert(
        torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.ReLU(), torch.nn.Linear(9, 3)), hardware
    )
    metric = aimc.Accuracy(torch.randn(60, 6), torch.arange(60) % 3)
    threads = torch.get_num_threads()
    seen = []
    one = aimc.evaluate_over_time(net, metric, times=("1s", "1y"), chips=5)
    three = aimc.evaluate_over_time(
        net,
        metric,
        times=("1s", "1y"),
        chips=5,
        workers=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert (one.values == three.values).all() and one.values.std() > 0
    assert seen == [(i, 10) for i in range(1, 11)]
    with jobs.engine("processes"):
        elsewhere = aimc.evaluate_over_time(net, metric, times=("1s", "1y"), chips=5, workers=2)
    assert (one.values == elsewhere.values).all()
    with pytest.raises(aimc.AimcError, match="field 'metric'"):
        aimc.evaluate_over_time(net, lambda n: float("nan"), chips=4, workers=2, reference=1.0)
    assert torch.get_num_threads() == threads and net.training


def test_what_a_metric_draws_follows_from_seed_chip_and_time_alone():
    net = aimc.convert(nn.Linear(4, 3), aimc.presets.pcm().replace(**{"input_range.value": 1.0}), seed=0)

    def metric(net):
        sleep(0.01)  # the threads take turns
        return float(torch.randn(()))  # whatever the chip

    def values(seed=0, times=("1s", "1y"), chips=4, **options):
        torch.manual_seed(len(results))
        before = torch.get_rng_state()
        results.append(aimc.evaluate_over_time(net, metric, times=times, chips=chips, seed=seed, **options))
        assert torch.equal(before, torch.get_rng_state())
        return results[-1].values

    results, seen = [], []
    first = values()
    with pytest.warns(UserWarning, match="chips are evaluated one after the other"):
        assert (values(workers=3, progress=lambda *n: seen.append(n)) == first).all()
    assert sorted(seen) == [(i, 8) for i in range(1, 9)]
    assert results[0].reference == results[1].reference
    assert (values(times=("1y",), chips=3) == first[1:, :3]).all()
    assert (values(known={1: [0.0, 0.0]})[:, [0, 2, 3]] == first[:, [0, 2, 3]]).all()
    assert len(np.unique(first)) == 8 and not np.isin(values(seed=1), first).any()
    with warnings.catch_warnings():  # of a metric that draws nothing
        warnings.simplefilter("error")
        aimc.evaluate_over_time(net, lambda n: float(n(torch.eye(4)).detach().sum()), chips=4, workers=3)


def test_chips_that_are_known_are_not_evaluated_again():
    net = aimc.convert(nn.Linear(4, 3), aimc.presets.pcm().replace(**{"input_range.value": 1.0}), seed=0)
    metric = aimc.Accuracy(torch.eye(4), torch.tensor([0, 1, 2, 0]))
    told, seen = {}, []
    whole = aimc.evaluate_over_time(net, metric, times=("1s", "1y"), chips=4, on_chip=told.__setitem__)
    assert {c: whole.values[:, c].tolist() for c in range(4)} == told
    known = {1: [7.0, 8.0], 3: [9.0, 10.0], 4: [0.0]}  # the last one is not asked for
    again, told = {}, dict(told)
    some = aimc.evaluate_over_time(
        net, metric, times=("1s", "1y"), chips=4, known=known, on_chip=again.__setitem__,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert again == {c: told[c] for c in (0, 2)} and seen == [(i, 8) for i in (5, 6, 7, 8)]
    assert some.values[:, [1, 3]].T.tolist() == [[7.0, 8.0], [9.0, 10.0]]
    all_known = {c: [1.0, 2.0] for c in range(4)}
    assert aimc.evaluate_over_time(net, metric, times=("1s", "1y"), chips=4, known=all_known).mean[1] == 2.0
    for row, message in (
        ({2: [1.0]}, "has 1 values of chip 2 for 2 times"),
        ({2: [1.0, math.nan]}, "has a value of chip 2 that is not finite"),
        ({-1: [1.0, 1.0]}, "chips count from 0, got -1"),
    ):
        with pytest.raises(aimc.AimcError, match=f"field 'known': {message}"):
            aimc.evaluate_over_time(net, metric, times=("1s", "1y"), chips=4, known=row)


class Counting(nn.Module):
    """Probabilities from the word before and from how many words of its stream the state has seen."""

    def __init__(self, words=5, parts=False):
        super().__init__()
        self.table = nn.Parameter(torch.randn(words, words, generator=torch.Generator().manual_seed(1)))
        self.parts, self.calls = parts, []

    def forward(self, tokens, state=None, targets=None):
        self.calls.append(tuple(tokens.shape))
        before = torch.zeros(1, len(tokens), 1) if state is None else state[0]
        seen = before[0] + torch.arange(tokens.shape[1])
        logits = self.table[tokens] * (1 + 0.1 * seen[..., None])
        state = (before + tokens.shape[1], (before,))
        if not self.parts:
            return logits, state
        flat, named = logits.flatten(0, 1), targets.flatten()
        return [(flat[::2], named[::2]), (flat[1::2], named[1::2])], state


TEXT = torch.randint(0, 5, (48,), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("streams, window", [(1, 7), (1, 100), (4, 3), (5, 4), (47, 1), (60, 2)])
def test_perplexity_predicts_every_token_once(streams, window, parts):
    net = Counting(parts=parts)
    found = Perplexity(TEXT, streams=streams, window=window)(net)
    streams = min(streams, 47)
    length = 47 // streams
    losses = []
    for i in range(47):  # by hand: which stream a token is in, and how far into it
        stream = min(i // length, streams - 1)
        logits = net.table[TEXT[i]] * (1 + 0.1 * (i - stream * length))
        losses.append(nn.functional.cross_entropy(logits, TEXT[i + 1]))
    assert found == pytest.approx(float(torch.stack(losses).detach().mean().exp()), rel=1e-5)
    assert all(width <= window for _, width in net.calls[:-1])


def test_perplexity_over_time():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(5, 6)
            self.head = nn.Linear(6, 5)

        def forward(self, tokens, state=None, targets=None):
            return self.head(self.embedding(tokens)), state

    torch.manual_seed(0)
    net = aimc.convert(Model(), HARDWARE, seed=1)
    metric = Perplexity(TEXT, streams=4, window=5, chance=40.0)
    result = aimc.evaluate_over_time(net, metric, times=("1s", "1y"), chips=3, workers=2)
    assert (result.metric, result.logarithmic, result.higher_is_better) == ("perplexity", True, False)
    assert (
        result.chance == 40.0
        and result.reference is not None
        and 1 < result.reference < 40
        and (result.values > 1).all()
    )
    assert (result.worst == result.values.max(1)).all()


def test_perplexity_refuses_what_makes_no_text():
    for tokens in (torch.zeros(1, dtype=torch.int64), torch.zeros(4, 4, dtype=torch.int64)):
        with pytest.raises(AimcError, match="at least two"):
            Perplexity(tokens)
    for options in ({"streams": 0}, {"window": 0}):
        with pytest.raises(AimcError, match="at least 1"):
            Perplexity(TEXT, **options)
    assert Perplexity(TEXT)(Lost()) == pytest.approx(np.exp(700.0))  # finite, however bad


class Lost(nn.Module):
    """Sure of the wrong word."""

    def forward(self, tokens, state, targets):
        return 1e6 * nn.functional.one_hot((targets + 1) % 5, 5).float(), state


def test_accuracy_of_several_inputs():
    x = torch.eye(4)
    metric = Accuracy((x, torch.ones(4, 1)), torch.tensor([0, 1, 2, 0]), batch_size=3)

    class Sum(nn.Module):
        def forward(self, a, b):
            return a + b

    assert metric(Sum()) == 0.75
    with pytest.raises(AimcError, match="got 4, 3 and 4"):
        Accuracy((x, torch.ones(3)), torch.zeros(4))


@pytest.mark.parametrize("chips", [2.5, 0, "3"])
def test_chips_are_a_whole_number(chips):
    with pytest.raises(AimcError, match="chips.*(whole number|between 1 and)"):
        aimc.evaluate_over_time(_tiny(), lambda net: 1.0, chips=chips)


@pytest.mark.parametrize("value", [None, {"accuracy": 1.0}, "x", float("nan"), torch.ones(2)])
@pytest.mark.parametrize("reference", [None, 1.0])
def test_a_metric_returns_a_number(value, reference):
    with pytest.raises(AimcError, match="metric.*not a finite number"):
        aimc.evaluate_over_time(_tiny(), lambda net: value, chips=1, reference=reference, chance=0.0)


def test_a_picture_that_cannot_be_written(tmp_path):
    result = aimc.evaluate_over_time(_tiny(), lambda net: 0.5, chips=2, chance=0.0)
    for place in (tmp_path / "nowhere" / "a.png", tmp_path / "a.nothing"):
        with pytest.raises(AimcError, match="path"):
            result.plot(place)
    result.plot(tmp_path / "a")
    result.plot(tmp_path / "b.svg")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.svg"]


def _tiny():
    return aimc.convert(nn.Linear(4, 2), aimc.presets.pcm().replace(**{"input_range.value": 1.0}), seed=0)


def test_results_are_equal_where_all_of_them_is(tmp_path):
    RESULT.save(tmp_path / "r.json")
    assert DriftResult.load(tmp_path / "r.json") == RESULT
    assert dataclasses.replace(RESULT, seed=5) != RESULT != "something else"
    assert dataclasses.replace(RESULT, values=RESULT.values + 1e-12) != RESULT


def test_a_chip_whose_converters_saturate_says_so():
    """Weights of one sign and magnitude, which no hardware-aware training has: sums far beyond the converter."""
    net = nn.Sequential(nn.Linear(512, 4, bias=False), nn.Linear(4, 2))
    nn.init.constant_(net[0].weight, 1.0)
    x = torch.ones(8, 512)
    said = []
    for bound in (10.0, 1000.0):
        hardware = aimc.presets.pcm().replace(
            **{"input_range.value": 1.0, "input_range.init_batches": 0, "adc.bound": bound, "ir_drop": None}
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            aimc.evaluate_over_time(
                aimc.convert(net, hardware, seed=0),
                lambda net: float(net(x).sum()),
                times=("1s", "1h"),
                chips=2,
            )
        said.append([str(w.message) for w in caught if "saturate" in str(w.message)])
    assert len(said[0]) == 1 and "in 1 layers: 0 (100%)" in said[0][0] and "adc.bound" in said[0][0]
    assert not said[1]
