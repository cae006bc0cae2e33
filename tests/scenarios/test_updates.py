"""What moves weights, and what may not."""

import pytest
import torch
from torch import nn

import aimc
from aimc.hwa import FixedClip, GaussianClip, HardwareAware, ProgrammingNoise
from tests.helpers import assert_close

PCM = aimc.presets.pcm().replace(**{"input_range.value": 1.0, "mapping.learned_gain": False})


class Attention(nn.Module):
    """Three matrices in one parameter."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2)

    def forward(self, x):
        return self.attention(x, x, x)[0]


NETS = {
    "linear": lambda: nn.Sequential(nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 16)),
    "attention": Attention,
    "recurrent": lambda: nn.LSTM(16, 8),
}


def made(name, clip):
    torch.manual_seed(0)
    training = HardwareAware(modifiers=(ProgrammingNoise(),), clip=clip)
    return aimc.convert(NETS[name](), PCM.replace(training=training), seed=0)


def loss_of(net):
    y = net(torch.ones(3, 2, 16))
    return (y[0] if isinstance(y, tuple) else y).square().sum()


def weights(net):
    return {n: p.detach().clone() for n, p in net.named_parameters()}


def assert_unmoved(net, before):
    moved = [n for n, p in net.named_parameters() if not torch.equal(p, before[n])]
    assert not moved


CLIPS = pytest.mark.parametrize("clip", [GaussianClip(sigma=1.0), FixedClip(value=0.1), None], ids=str)
EVERY_NET = pytest.mark.parametrize("name", NETS)


@EVERY_NET
@CLIPS
def test_a_cancelled_step_moves_no_weight(name, clip):
    """Clipping at one standard deviation shrinks what it clips every time it is applied."""
    net = made(name, clip)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    loss_of(net).backward()
    optimizer.step()
    before = weights(net)
    for _ in range(2):
        optimizer.zero_grad()
        loss_of(net).backward()
        optimizer.zero_grad()
        optimizer.step()
    assert_unmoved(net, before)


@EVERY_NET
@CLIPS
def test_a_step_that_a_scaler_skips_moves_no_weight(name, clip):
    net = made(name, clip)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    for factor in (1.0, torch.inf):
        before = weights(net)
        optimizer.zero_grad()
        scaler.scale(loss_of(net) * factor).backward()
        scaler.step(optimizer)
        scaler.update()
    assert_unmoved(net, before)


@EVERY_NET
def test_weights_that_no_optimizer_steps_are_not_clipped(name):
    """Ranges alone are trained; the weights were clipped once, by the first forward pass."""
    net = made(name, GaussianClip(sigma=1.0))
    ranges = [p for n, p in net.named_parameters() if n.endswith("input_range")]
    optimizer = torch.optim.SGD(ranges, lr=0.01)
    loss_of(net).backward()
    before = weights(net)
    for _ in range(2):
        loss_of(net).backward()
        optimizer.step()
    assert_unmoved(net, {n: p if n.endswith("input_range") else before[n] for n, p in net.named_parameters()})


def test_a_mean_update_is_that_of_the_batch_whatever_the_step_before():
    """Batches in two orders: every mean change is that of a fresh array, for every length of train."""
    from tests.nn.pulsed_helpers import PULSED, sgd

    def change(layer, n):
        before = layer.weight.detach().clone()
        layer(torch.ones(n, 8)).backward(torch.full((n, 1250), -1.0))
        sgd(layer, 5e-4).step()
        return layer.weight.detach() - before

    means = {}
    for order in ((1, 256, 1, 7, 1000), (1000, 7, 1, 256, 1)):
        layer = aimc.convert(nn.Linear(8, 1250, bias=False), PULSED, seed=3)
        layer.program(torch.zeros(1250, 8))
        for n in order:
            moved = change(layer, n)
            # 10,000 devices; those of a column share the pulses of the input, 31 slots a vector.
            spread = 1e-4 * (5.0 * n / 8) ** 0.5
            assert abs(float(moved.mean()) - n * 5.0 * 1e-4) < 4 * spread, n
            means.setdefault(n, []).append(float(moved.mean()) / n)
    assert_close("per vector", torch.tensor([means[1000][0]]), torch.tensor([means[1000][1]]), rtol=0.02)
