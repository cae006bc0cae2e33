"""Training stages: the same to the bit after any interruption, and honest in what they select."""

import re

import pytest
import torch
from torch import nn

import aimc
from aimc.errors import AimcError
from aimc.hwa import CellNoise, HardwareAware
from aimc.random import Key, normal, permutation
from aimc.train import (
    Optimizer,
    Run,
    Stage,
    build_optimizer,
    fit,
    load_checkpoint,
    load_weights,
    noisy,
)  # fmt: skip
from tests.helpers import Watch

X = normal(Key(1), (96, 12))
Y = (X[:, 0] > 0).long() + 2 * (X[:, 1] > 0).long()


class Shuffled:
    """Three batches of 32, counting what was asked for."""

    def __init__(self):
        self.epochs = []

    def __len__(self):
        return 3

    def __call__(self, epoch):
        self.epochs.append(epoch)
        for rows in permutation(Key(5).fold(epoch), len(X)).split(32):
            yield X[rows], Y[rows]


def _digital():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 4)
        )


def _student(**training):
    hardware = aimc.presets.pcm()
    assert hardware.training is not None
    hardware = hardware.replace(training=hardware.training.replace(**training))
    net = _digital()
    with torch.no_grad():
        net[0].weight.copy_(
            0.3 * normal(Key(2), (16, 12)) ** 3
        )  # long tails: clipping at n sigma never settles
    net = aimc.convert(net, hardware, seed=3)
    aimc.calibrate(net, [X])
    return net


METRIC = aimc.Accuracy(X[:40], Y[:40])


def _same(a, b):
    for (name, x), y in zip(a.state_dict().items(), b.state_dict().values()):
        assert torch.equal(x, y), name
    return True


def _without_time(history):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in history]


@pytest.mark.parametrize("kind", ["teacher, sgd", "teacher, adamw", "student", "student, remapped at times"])
@pytest.mark.parametrize("selection", ["best", "last"])
def test_an_interrupted_stage_ends_bit_for_bit_like_a_straight_one(tmp_path, kind, selection):
    optimizer = Optimizer(kind="adamw" if "adamw" in kind else "sgd", lr=0.02, warmup=0.5)
    student = kind.startswith("student")
    stage = Stage(
        epochs=4, batch_size=32, optimizer=optimizer, selection=selection, noise_ramp=1.5 if student else 0
    )

    def make():
        return _student(remap_every=2 if "remapped" in kind else 1) if student else _digital()

    options = {"teacher": _digital() if student else None, "seed": 7, "name": "s"}
    validate = noisy(METRIC, 2) if student else METRIC
    straight = make()
    with Run(tmp_path / "straight", stage, tensorboard=False) as run:
        expected = fit(straight, stage, Shuffled(), validate, run=run, **options)
    for after in (1, 3):
        with Run(tmp_path / "resumed", stage, tensorboard=False) as run, pytest.raises(KeyboardInterrupt):
            fit(make(), stage, Shuffled(), validate, run=run, progress=Watch(f"s epoch {after}/"), **options)
        torch.manual_seed(after)  # what else happened to the generator must not matter
    resumed, batches = make(), Shuffled()
    with Run(tmp_path / "resumed", stage, tensorboard=False) as run:
        done = fit(resumed, stage, batches, validate, run=run, **options)
        held = [r for r in run.records if r["kind"] == "epoch"]
    assert batches.epochs == [3]
    assert done.chosen == expected.chosen and _same(resumed, straight)
    assert _without_time(done.history) == _without_time(expected.history)
    assert [r["epoch"] for r in held] == [1, 2, 3, 4]
    again, batches = make(), Shuffled()
    with Run(tmp_path / "resumed", stage, tensorboard=False) as run:
        assert fit(again, stage, batches, validate, run=run, **options) == done
    assert batches.epochs == [] and _same(again, straight)


class Interrupted(Shuffled):
    """Ctrl-C at a batch, counted over all epochs."""

    def __init__(self, at):
        super().__init__()
        self.left = at

    def __call__(self, epoch):
        for batch in super().__call__(epoch):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield batch


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_a_stage_interrupted_within_an_epoch_loses_little_and_ends_the_same(tmp_path, kind):
    student = kind == "student"
    stage = Stage(epochs=3, batch_size=32, noise_ramp=1.5 if student else 0)
    make = _student if student else _digital
    options = {"teacher": _digital() if student else None, "seed": 7, "name": "s"}
    straight = make()
    expected = fit(straight, stage, Shuffled(), METRIC, **options)
    with Run(tmp_path, stage, tensorboard=False) as run:
        for at in (2, 4, 3, 1):  # trains 2 batches, passes over 2 and trains 2, over 1 and 2, 1
            with pytest.raises(KeyboardInterrupt):
                fit(make(), stage, Interrupted(at), METRIC, run=run, save_every=0, **options)
            torch.manual_seed(at)
        net, batches = make(), Interrupted(3)
        done = fit(net, stage, batches, METRIC, run=run, save_every=0, **options)
    assert batches.epochs == [2] and batches.left == 0
    assert _same(net, straight) and done.chosen == expected.chosen
    assert _without_time(done.history) == _without_time(expected.history)


def test_checkpoints_within_an_epoch_are_made_at_times(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(Run, "save_progress", lambda self, stage, tensors, details: saved.append(details))
    monkeypatch.setattr(Run, "save_finished", lambda self, stage, tensors, details: None)
    for every, within in ((0, 2), (1e9, 0)):
        saved.clear()
        with Run(tmp_path / str(within), Stage(), tensorboard=False) as run:
            fit(_digital(), Stage(epochs=1), Shuffled(), METRIC, run=run, save_every=every)
        assert [d["current"]["batches"] for d in saved if "current" in d] == [*range(1, within + 1), 0]


def test_a_checkpoint_of_an_earlier_version_is_gone_on_with(tmp_path):
    from aimc.train import save_checkpoint

    stage = Stage(epochs=2, batch_size=32)
    straight, net = _digital(), _digital()
    expected = fit(straight, stage, Shuffled(), METRIC, name="s")
    with Run(tmp_path, stage, tensorboard=False) as run:
        with pytest.raises(KeyboardInterrupt):
            fit(_digital(), stage, Shuffled(), METRIC, run=run, name="s", progress=Watch("s epoch 1/"))
        tensors, details = load_checkpoint(run.checkpoint("s.epoch"))
        del details["current"]
        save_checkpoint(run.checkpoint("s.epoch"), tensors, details)
        done = fit(net, stage, Shuffled(), METRIC, run=run, name="s")
    assert _same(net, straight) and done.chosen == expected.chosen


def _interrupted(folder, batches, keep=3, **options):
    """A stage that saves after every batch and stops before its end; its checkpoints, latest first."""
    stage = Stage(epochs=3, batch_size=32)
    with Run(folder, stage, tensorboard=False, keep=keep) as run, pytest.raises(KeyboardInterrupt):
        fit(_digital(), stage, Interrupted(batches), METRIC, run=run, name="s", save_every=0, **options)
    return stage, [run.checkpoint(name) for name in ("s.epoch", "s.epoch.1", "s.epoch.2", "s.epoch.3")]


def _state(place):
    _, details = load_checkpoint(place)
    return len(details["history"]), details["current"]["batches"]


def test_the_last_checkpoints_are_kept_and_removed_when_the_stage_is_finished(tmp_path):
    stage, places = _interrupted(tmp_path, 5)
    assert [_state(p) for p in places[:3]] == [(1, 2), (1, 1), (1, 0)] and not places[3].exists()
    with Run(
        tmp_path, stage, tensorboard=False, keep=1
    ) as run:  # fewer are asked for now: none is left behind
        fit(_digital(), stage, Shuffled(), METRIC, run=run, name="s")
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["s.safetensors"]
    with pytest.raises(AimcError, match="latest checkpoint"):
        Run(tmp_path, stage, tensorboard=False, keep=0)


@pytest.mark.parametrize("damage", ["cut", "foreign", "gone", "both"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_offered(tmp_path, damage):
    straight, net = _digital(), _digital()
    stage, places = _interrupted(tmp_path, 5)
    fit(straight, stage, Shuffled(), METRIC, name="s")
    spoilt = places[: 2 if damage == "both" else 1]
    for place in spoilt:
        if damage == "gone":
            place.unlink()
        else:
            place.write_bytes(b"hello" if damage == "foreign" else place.read_bytes()[:-9])
    with Run(tmp_path, stage, tensorboard=False) as run:
        if damage != "gone":
            with pytest.raises(AimcError) as caught:
                fit(_digital(), stage, Shuffled(), METRIC, run=run, name="s")
            message = str(caught.value)
            assert all(f"{place} " in message or f"{place}," in message for place in spoilt)
            offered = places[len(spoilt)]
            assert f"goes on from {offered} (after epoch 1" in message
            for place in spoilt:
                place.unlink()
        batches = Shuffled()
        fit(net, stage, batches, METRIC, run=run, name="s")
    assert batches.epochs == [1, 2] and _same(net, straight)


def test_a_damaged_checkpoint_of_a_finished_stage_offers_those_that_a_kill_has_left(tmp_path):
    straight, net = _digital(), _digital()
    stage, places = _interrupted(tmp_path, 5)
    fit(straight, stage, Shuffled(), METRIC, name="s")
    with Run(tmp_path, stage, tensorboard=False) as run:
        run.checkpoint("s").write_bytes(b"cut")  # killed before it removed the ones of the stage under way
        said = re.escape(f"delete {run.checkpoint('s')}, and the run goes on from {places[0]} (after epoch 1")
        with pytest.raises(AimcError, match=said):
            fit(_digital(), stage, Shuffled(), METRIC, run=run, name="s")
        run.checkpoint("s").unlink()
        fit(net, stage, Shuffled(), METRIC, run=run, name="s")
    assert _same(net, straight)


def test_with_no_whole_checkpoint_left_the_error_says_so(tmp_path):
    stage, places = _interrupted(tmp_path, 2, keep=1)
    places[0].write_bytes(b"")
    with Run(tmp_path, stage, tensorboard=False) as run, pytest.raises(AimcError, match="to start over"):
        fit(_digital(), stage, Shuffled(), METRIC, run=run, name="s")


def test_a_checkpoint_that_cannot_be_written_leaves_those_before_it(tmp_path, monkeypatch):
    """The disk is full at some checkpoint; with room again, the run goes on from the one before."""
    from safetensors import torch as files

    written, save_file = [], files.save_file

    def save_until_full(*args):
        written.append(args)
        if len(written) > 3:
            raise OSError(28, "No space left on device")
        save_file(*args)

    straight, net, stage = _digital(), _digital(), Stage(epochs=3, batch_size=32)
    fit(straight, stage, Shuffled(), METRIC, name="s")
    with Run(tmp_path, stage, tensorboard=False) as run:
        with monkeypatch.context() as patch, pytest.raises(AimcError, match="No space left"):
            patch.setattr(files, "save_file", save_until_full)
            fit(_digital(), stage, Shuffled(), METRIC, run=run, name="s", save_every=0)
        assert [_state(run.checkpoint(n)) for n in ("s.epoch", "s.epoch.1")] == [(1, 0), (0, 2)]
        assert len(list((tmp_path / "checkpoints").iterdir())) == 2
        fit(net, stage, Shuffled(), METRIC, run=run, name="s")
    assert _same(net, straight)


def test_a_run_directory_changes_nothing(tmp_path):
    stage = Stage(epochs=2, batch_size=32)
    bare, kept = _digital(), _digital()
    fit(bare, stage, Shuffled(), METRIC, name="s")
    with Run(tmp_path, stage, tensorboard=False) as run:
        fit(kept, stage, Shuffled(), METRIC, name="s", run=run)
    loaded = _digital()
    load_weights(loaded, str(tmp_path), "s")
    assert _same(bare, kept) and _same(bare, loaded)
    assert not (tmp_path / "checkpoints" / "s.epoch.safetensors").exists()


def test_the_callers_generator_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    fit(_digital(), Stage(epochs=1), Shuffled(), METRIC)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("selection, kept", [("best", 2), ("last", 4)])
def test_selection(selection, kept):
    scores = iter([0.3, 0.9, 0.9, 0.5])
    states = []

    def validate(net):
        states.append({k: v.clone() for k, v in net.state_dict().items()})
        assert not net.training
        return next(scores)

    net = _digital()
    done = fit(net, Stage(epochs=4, selection=selection), Shuffled(), validate)
    assert done.chosen == kept
    assert done.validation == {2: 0.9, 4: 0.5}[kept]
    for name, value in net.state_dict().items():
        assert torch.equal(value, states[kept - 1][name]), name


def test_noisy_validation_disturbs_the_weights_and_leaves_the_network_alone():
    quiet = {"output_noise": 0.0, "short_term_noise": 0.0, "adc": None, "ir_drop": None, "dac": None}
    hardware = aimc.presets.pcm().replace(**quiet)
    net = aimc.convert(_digital(), hardware, seed=3).eval()
    clean = net(X).detach()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    seen = []

    def metric(copy):
        assert not copy[1].training and not copy[3].training  # norms and dropout stay in evaluation mode
        seen.append(copy(X).detach())
        return float(len(seen))

    assert noisy(metric, 3)(net) == 2.0
    assert all(not torch.allclose(s, clean) for s in seen)
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])
    assert all(float((s - clean).norm() / clean.norm()) < 1 for s in seen)
    noisy(metric, 1)(net)
    assert torch.equal(seen[3], seen[0])  # the same state, the same draws
    net.train()
    net(X)
    net.eval().load_state_dict(before | {k: v for k, v in net.state_dict().items() if "analog_state" in k})
    noisy(metric, 1)(net)
    assert torch.equal(seen[4], seen[0])  # and at another step
    net.load_state_dict(before)
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(net(X), clean) and not net.training


def test_noisy_validation_sees_the_same_ages_after_every_epoch_and_none_of_the_trainings(monkeypatch):
    import aimc.hwa.modifiers as modifiers

    ages = []
    drawn = modifiers.log_uniform
    monkeypatch.setattr(modifiers, "log_uniform", lambda *args: ages.append(drawn(*args)) or ages[-1])
    hardware = aimc.presets.pcm().replace(training=HardwareAware(modifiers=(CellNoise(),)))
    net = aimc.convert(_digital(), hardware, seed=3).train()
    net(X)
    trained, found = set(ages), []
    for _ in range(2):
        ages.clear()
        noisy(METRIC, 3)(net)
        found.append(list(ages))
        ages.clear()
        net(X)
        trained |= set(ages)
    assert found[0] == found[1] and len(set(found[0])) >= 3 and not trained & set(found[0])


def test_noisy_validation_keeps_clipped_weights_and_young_ranges():
    net = _student()
    net.train()
    net(X)
    net[0]._range_batches = 0  # as early in training
    held = []

    def metric(copy):
        copy(10 * X)
        held.append((copy[0].weight.detach().clone(), copy[0].input_range.detach().clone()))
        return 0.0

    noisy(metric, 1)(net)
    assert torch.equal(held[0][0], net[0].weight) and torch.equal(held[0][1], net[0].input_range)


def test_distillation_learns_from_the_teacher_and_not_from_wrong_labels():
    teacher = _digital()
    fit(teacher, Stage(epochs=8), Shuffled(), METRIC)

    class Wrong(Shuffled):
        def __call__(self, epoch):
            return ((x, (y + 1) % 4) for x, y in super().__call__(epoch))

    wrong = aimc.Accuracy(METRIC.inputs, (METRIC.targets + 1) % 4)
    for share, follows_teacher in ((1.0, True), (0.0, False)):
        net = nn.Linear(12, 4)
        fit(net, Stage(epochs=8, distillation=share, selection="last"), Wrong(), METRIC, teacher=teacher)
        assert (METRIC(net) > 0.4 > wrong(net)) == follows_teacher
        assert (wrong(net) > 0.4 > METRIC(net)) != follows_teacher
    assert not teacher.training


def test_the_noise_ramps_up_and_is_handed_back(monkeypatch):
    strengths = []
    import aimc.train.loop as loop

    real = loop.set_noise_strength
    monkeypatch.setattr(loop, "set_noise_strength", lambda net, s: (strengths.append(s), real(net, s)))
    net = _student()
    fit(net, Stage(epochs=3, noise_ramp=2, batch_size=32), Shuffled(), METRIC)
    assert strengths[:-1] == pytest.approx([0, 1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1, 1, 1])
    assert strengths[-1] is None
    assert all(layer.noise_strength is None for layer in aimc.analog_layers(net).values())


def test_weight_decay_spares_biases_norms_gains_and_ranges():
    groups = build_optimizer(_student(), Optimizer(weight_decay=0.1)).param_groups
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert all(p.dim() >= 2 for p in groups[0]["params"]) and all(p.dim() < 2 for p in groups[1]["params"])
    assert len(groups[0]["params"]) == 2 and len(groups[1]["params"]) == 8


def test_schedules():
    def rates(**fields):
        return [Optimizer(lr=1.0, **fields).rate(step, 8, 2) for step in range(8)]

    assert rates(schedule="constant") == [1.0] * 8
    assert rates(schedule="step", milestones=(0.5, 0.75)) == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])
    assert rates(schedule="cosine")[0] == 1.0 and rates(schedule="cosine")[4] == pytest.approx(0.5)
    warm = rates(schedule="constant", warmup=1)
    assert warm == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1, 1, 1])


def test_the_gradient_is_limited():
    net, limited = _digital(), _digital()
    start = net[0].weight.detach().clone()
    for n, norm in ((net, None), (limited, 1e-4)):
        fit(n, Stage(epochs=1, optimizer=Optimizer(clip_norm=norm, weight_decay=0)), Shuffled(), METRIC)
    assert (
        float((limited[0].weight.detach() - start).norm())
        < 0.01
        < float((net[0].weight.detach() - start).norm())
    )


def test_a_loss_that_is_not_finite_names_the_stage_and_the_way_out():
    net = nn.Linear(12, 4)
    with torch.no_grad():
        net.weight.fill_(float("inf"))
    with pytest.raises(AimcError, match=r"'s' became nan in epoch 1.*--s\.optimizer\.lr"):
        fit(net, Stage(epochs=1), Shuffled(), METRIC, name="s")


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    with Run(tmp_path, Stage(), tensorboard=False) as run:
        fit(_digital(), Stage(epochs=1), Shuffled(), METRIC, name="s", run=run)
        with pytest.raises(AimcError, match=r"s\.safetensors belongs to another network"):
            fit(nn.Linear(12, 4), Stage(epochs=1), Shuffled(), METRIC, name="s", run=run)
    with pytest.raises(AimcError, match="no such checkpoint"):
        load_weights(_digital(), str(tmp_path), "t")
