"""What a training step costs, and what a language model carries from window to window."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import aimc
from aimc.hwa import distillation_loss
from aimc.models import LSTMLanguageModel
from aimc.random import Key, words
from aimc.recipes.texts import Windows
from aimc.train import Classification, LanguageModelling, Optimizer, Run, Stage, fit, noisy
from tests.helpers import assert_close

WORDS = 12
TEXT = (words(Key(3), 400) % 5).cumsum(0) % WORDS  # the next word is one of five


def _model(seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LSTMLanguageModel(WORDS, width=6, dropout=0.0, **options)


def _log_probabilities(net, tokens):
    scores, _ = net(tokens)
    return F.log_softmax(scores, -1)  # of log-probabilities it changes nothing


@pytest.mark.parametrize("cutoffs", [(), (4, 9)], ids=["full", "adaptive"])
def test_windows_cost_what_the_whole_text_costs(cutoffs):
    """The state is carried: two windows are one text."""
    net = _model(cutoffs=cutoffs)
    tokens, targets = TEXT[:20].view(2, 10), TEXT[1:21].view(2, 10)
    expected = F.nll_loss(_log_probabilities(net, tokens).flatten(0, 1), targets.flatten())
    objective = LanguageModelling()
    objective.carry_on({})
    losses = [objective(net, None, tokens[:, a:b], targets[:, a:b], Stage()) for a, b in ((0, 4), (4, 10))]
    assert [o.count for o in losses] == [8, 12] and losses[0].right is None
    assert_close("loss", (8 * losses[0].loss + 12 * losses[1].loss) / 20, expected, atol=1e-6)
    again = objective(net, None, tokens[:, :4], targets[:, :4], Stage())
    assert not torch.equal(again.loss, losses[0].loss)  # goes on from the last window
    objective.carry_on({})
    again = objective(net, None, tokens[:, :4], targets[:, :4], Stage())
    assert torch.equal(again.loss, losses[0].loss)


def test_the_gradient_stays_within_a_window():
    net = _model()
    objective = LanguageModelling()
    first = objective(net, None, TEXT[None, :5], TEXT[None, 1:6], Stage()).loss
    second = objective(net, None, TEXT[None, 5:9], TEXT[None, 6:10], Stage()).loss
    first.backward()
    net.zero_grad()
    second.backward()  # would ask for the freed graph of the first
    state = tuple(s.detach() for s in net(TEXT[None, :5])[1])
    alone, grads = net(TEXT[None, 5:9], state)[0], [p.grad for p in net.parameters()]
    expected = torch.autograd.grad(F.cross_entropy(alone[0], TEXT[6:10]), tuple(net.parameters()))
    for (name, _), grad, wanted in zip(net.named_parameters(), grads, expected):
        assert_close(name, grad, wanted, atol=1e-6)


@pytest.mark.parametrize("cutoffs", [(), (4, 9)], ids=["full", "adaptive"])
def test_the_teacher_carries_a_state_of_its_own_and_teaches_every_part(cutoffs):
    net, teacher = _model(0, cutoffs=cutoffs), _model(1, cutoffs=cutoffs)
    stage = Stage(temperature=2.0, distillation=0.7)
    tokens, targets = TEXT[:12].view(1, 12), TEXT[1:13].view(1, 12)
    objective = LanguageModelling()
    cost = [objective(net, teacher, tokens[:, a : a + 6], targets[:, a : a + 6], stage) for a in (0, 6)]
    ours, theirs = (n(tokens, None, targets)[0] for n in (net, teacher))
    if isinstance(ours, torch.Tensor):
        expected = distillation_loss(ours[0], theirs[0], targets[0], 2.0, 0.7)
        assert_close("loss", (cost[0].loss + cost[1].loss) / 2, expected, atol=1e-6)
    else:
        parts = [
            len(part) / 12 * distillation_loss(a, b, part, 2.0, 0.7)
            for (a, part), (b, _) in zip(ours, theirs)
        ]
        assert len(parts) == 3
        assert_close("loss", (cost[0].loss + cost[1].loss) / 2, torch.stack(parts).sum(), atol=1e-6)
    assert not any(p.grad is not None for p in teacher.parameters())


def test_a_carried_state_of_any_depth_comes_back():
    objective, other = LanguageModelling(), LanguageModelling()
    deep = tuple(
        (torch.ones(1) * i, torch.zeros(2)) for i in range(12)
    )  # a dict of text would put 10 before 2
    objective._states = {"net": deep, "teacher": torch.ones(3)}
    other.carry_on({name: t.clone() for name, t in sorted(objective.carried().items())})
    assert [float(h) for h, _ in other._states["net"]] == list(range(12))
    assert torch.equal(other._states["teacher"], torch.ones(3))


class Interrupted(Windows):
    """Ctrl-C at a batch, counted over all epochs."""

    left = 10**9

    def __call__(self, epoch):
        for batch in super().__call__(epoch):
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            yield batch


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_a_language_model_interrupted_within_an_epoch_ends_the_same(tmp_path, kind):
    student = kind == "student"
    stage = Stage(epochs=2, optimizer=Optimizer(kind="adamw", lr=0.01))
    metric = aimc.Perplexity(TEXT[:100], streams=3, window=7)

    def make():
        net = _model(cutoffs=(4, 9))
        if student:
            net = aimc.convert(net, aimc.presets.pcm(), seed=1)
            aimc.calibrate(net, [TEXT[:50].view(5, 10)])
        return net

    def options():
        return {"objective": LanguageModelling(), "teacher": _model(2, cutoffs=(4, 9)) if student else None}

    validate = noisy(metric, 1) if student else metric
    straight = make()
    expected = fit(straight, stage, Windows(TEXT, 4, 20), validate, **options())
    with Run(tmp_path, stage, tensorboard=False) as run:
        for at in (2, 4, 6):
            batches = Interrupted(TEXT, 4, 20)
            batches.left = at
            with pytest.raises(KeyboardInterrupt):
                fit(make(), stage, batches, validate, run=run, save_every=0, **options())
        net = make()
        done = fit(net, stage, Windows(TEXT, 4, 20), validate, run=run, save_every=0, **options())
    assert [r["loss"] for r in done.history] == [r["loss"] for r in expected.history]
    assert [r["validation"] for r in done.history] == [r["validation"] for r in expected.history]
    assert "accuracy" not in done.history[0]
    for name, value in straight.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name


def test_an_epoch_begins_without_a_state():
    stage = Stage(epochs=2, optimizer=Optimizer(kind="adamw", lr=1e-30, weight_decay=0.0))
    metric = aimc.Perplexity(TEXT[:100])
    done = fit(_model(), stage, Windows(TEXT, 4, 20), metric, objective=LanguageModelling())
    assert done.history[0]["loss"] == done.history[1]["loss"]


def test_weight_noise_is_held_for_a_window_in_training_and_in_noisy_validation():
    quiet = {"output_noise": 0.0, "short_term_noise": 0.0, "adc": None, "ir_drop": None, "dac": None}
    student = aimc.convert(_model(), aimc.presets.pcm().replace(**quiet), seed=3)
    layers = aimc.analog_layers(student)
    assert len(layers) == 5  # two layers of two matrices, and the head
    objective = LanguageModelling()
    student.train()
    for tokens, targets in list(Windows(TEXT, 4, 20)(0))[:3]:
        objective(student, None, tokens, targets, Stage()).loss.backward()
    assert {layer._step for layer in layers.values()} == {3}
    clean = aimc.Perplexity(TEXT[:100], streams=3, window=7)
    student.eval()
    values = [clean(student), noisy(clean, 1)(student), noisy(clean, 2)(student)]
    assert len(set(values)) == 3
    assert values[0] == pytest.approx(clean(aimc.to_digital(student)), rel=1e-4)


@pytest.mark.parametrize("wrapped", [False, True])
def test_of_a_perplexity_the_lowest_is_kept(wrapped):
    class Falling:
        higher_is_better = False
        scores = iter([90.0, 30.0, 50.0])

        def __call__(self, net):
            return next(self.scores)

    metric = Falling()
    done = fit(
        _model(), Stage(epochs=3), Windows(TEXT, 4, 20), noisy(metric, 1) if wrapped else metric,
        objective=LanguageModelling(),
    )  # fmt: skip
    assert done.chosen == 2 and done.validation == 30.0


def test_several_inputs_are_several_arguments():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x, mask):
            return self.fc(x * mask)

    net, teacher = Two(), Two()
    x, mask, y = torch.randn(4, 3), torch.tensor([[1.0], [0.0], [1.0], [0.0]]), torch.tensor([0, 1, 1, 0])
    done = Classification()(net, teacher, (x, mask), y, Stage(temperature=2.0, distillation=0.5))
    expected = distillation_loss(net.fc(x * mask), teacher.fc(x * mask), y, 2.0, 0.5)
    assert_close("loss", done.loss, expected, atol=1e-6)
    assert done.count == 4 and done.right == int((net.fc(x * mask).argmax(1) == y).sum())
    assert aimc.Accuracy((x, mask), y, batch_size=3)(net) == float(
        (net(x, mask).argmax(1) == y).float().mean()
    )
