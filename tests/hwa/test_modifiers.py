"""Modifiers, clipping, distillation."""

import math

import pytest
import torch
import torch.nn.functional as F

import aimc
from aimc import hwa
from aimc.cells import PCM, Hermes
from aimc.crossbar import Layout, TileSize
from aimc.errors import AimcError
from aimc.hwa import modify_weights
from aimc.random import Key
from tests.helpers import assert_close

KEY = Key(4)


def layout(outputs, rows, size=512):
    return Layout.of(TileSize(rows=size), outputs, rows)


def modified(weight, *modifiers, cell=None, strength=1.0, key=KEY, size=512):
    tiles, scale, factor = modify_weights(
        weight, layout(*weight.shape, size), modifiers, cell or PCM(), None, key, strength
    )
    return torch.cat(tiles, 1), scale, factor


def weights(outputs=200, rows=300, std=0.05, seed=0):
    return torch.randn(outputs, rows, generator=torch.Generator().manual_seed(seed)) * std


@pytest.mark.parametrize(
    ("modifier", "std"),
    [
        (hwa.AddNormal(std=0.1), lambda w: torch.full_like(w, 0.1)),
        (hwa.MultiplyNormal(std=0.1), lambda w: 0.1 * w.abs()),
        (hwa.Polynomial(scale=2.0), lambda w: 2 * (0.26348 + 1.965 * w.abs() - 1.1731 * w**2) / 25),
    ],
    ids=["add", "multiply", "polynomial"],
)
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_noise_has_the_stated_spread_in_units_of_the_column(modifier, std, strength):
    w = weights()
    scale = w.abs().amax(1, keepdim=True)
    noise = (modified(w, modifier, strength=strength)[0] - w) / scale
    expected = std(w / scale) * strength
    z = noise / expected.clamp_min(1e-12)
    if strength == 0:
        assert_close("no noise", noise, torch.zeros_like(noise), atol=1e-6, rtol=0)
    else:
        z = z[expected > 1e-3]
        assert abs(float(z.std()) - 1) < 5 / math.sqrt(2 * z.numel())
        assert abs(float(z.mean())) < 5 / math.sqrt(z.numel())


def test_programming_noise_is_the_cells_own():
    """Not 25 times too small: the coefficients are raw uS over the cell's full scale."""
    w = weights(std=0.5).abs().clamp(0.3, 1)  # far from zero, so that reflection plays no part
    w[:, 0] = 1.0
    for cell in (PCM(), PCM(programming_scale=2.0), Hermes(parallel=2)):
        noise = modified(w, hwa.ProgrammingNoise(scale=1.0), cell=cell)[0] - w
        z = noise / (cell.programming_std(w * cell.g_max) / cell.g_max)
        assert abs(float(z.std()) - 1) < 5 / math.sqrt(2 * z.numel())


def test_polynomial_default_is_not_the_digit_swap():
    assert abs(hwa.Polynomial().coefficients[1] - 0.0786) < 1e-6


def test_cell_noise_is_an_aged_and_compensated_chip():
    """Its error is that of pairs written, aged and scaled by hand from the published polynomials, to 1 %."""
    w = (torch.randn(512, 512, generator=torch.Generator().manual_seed(1)) * 0.25).clamp(-1, 1)
    w[:, 0] = 1.0
    for time, seconds in (("1h", 3600.0), ("1y", 31_536_000.0)):
        noisy = modified(w, hwa.CellNoise(earliest=time, latest=time))[0]
        expected = _error_by_hand(w.double(), seconds)
        assert float((noisy - w).norm() / w.norm()) == pytest.approx(expected, rel=0.01), time


def _error_by_hand(w, t):
    """Relative error of a matrix after t seconds with the scalar that brings it nearest to what was written."""
    draw = torch.Generator().manual_seed(2)
    written, read = [], []
    for r in (w.clamp(min=0), (-w).clamp(min=0)):
        n = [torch.randn(r.shape, generator=draw, dtype=torch.float64) for _ in range(3)]
        g = (r + (0.26348 + 1.9650 * r - 1.1731 * r**2) / 25 * n[0]).clamp(min=0)
        log_r = r.clamp(min=1e-7).log()
        mean, spread = (
            (-0.0155 * log_r + 0.0244).clamp(0.049, 0.1),
            (-0.0125 * log_r - 0.0059).clamp(0.008, 0.045),
        )
        aged = g * ((t + 20) / 20) ** -(mean + spread * n[1]).abs()
        q = (0.0088 / (r**0.65).clamp(min=1e-3)).clamp(max=0.2)
        written.append(g)
        read.append(
            (aged * (1 + q * math.sqrt(math.log((t + 20 + 250e-9) / (2 * 250e-9))) * n[2])).clamp(min=0)
        )
    fresh, now = written[0] - written[1], read[0] - read[1]
    return float((now * ((fresh * now).sum() / (now * now).sum()) - w).norm() / w.norm())


@pytest.mark.parametrize(
    ("cell", "latest"),
    [
        (PCM(), "1y"),
        (PCM(programming_scale=0.0, drift_scale=0.0), "1s"),  # read noise alone
        (PCM(programming_scale=0.0, read_noise_scale=0.0), "1s"),
        (PCM(read_noise_scale=0.0), "1s"),
    ],
)
def test_cell_noise_is_another_chip_in_every_step(cell, latest):
    w = weights(64, 64)
    noise = [
        modified(w, hwa.CellNoise(earliest="1s", latest=latest), cell=cell, key=KEY.at(step=s))[0] - w
        for s in (0, 1, 2)
    ]
    for a in range(3):
        for b in range(a):
            same = torch.corrcoef(torch.stack([noise[a].flatten(), noise[b].flatten()]))[0, 1]
            assert abs(float(same)) < 5 / 64


def test_layers_of_a_network_are_as_old_as_each_other():
    w, seen = weights(64, 64), []
    for step in range(6):
        ages = [modified(w, hwa.CellNoise(), key=KEY.fold(name).at(step=step))[0] - w for name in "ab"]
        seen.append([float(a.norm()) for a in ages])
        assert abs(seen[-1][0] / seen[-1][1] - 1) < 0.1
    assert max(a for a, _ in seen) > 1.2 * min(a for a, _ in seen)


def test_the_seed_of_a_network_rules_its_ages():
    def sizes(seed):
        training = hwa.HardwareAware(modifiers=(hwa.CellNoise(),))
        hardware = aimc.presets.ideal().replace(cell=PCM(), training=training)
        torch.manual_seed(0)
        net = torch.nn.ModuleList([torch.nn.Linear(64, 64, bias=False) for _ in range(2)])
        layers = aimc.analog_layers(aimc.convert(net, hardware, seed=seed)).values()
        return torch.tensor([
            [float((layer(torch.eye(64)).T - layer.weight).norm() / layer.weight.norm()) for layer in layers]
            for _ in range(8)
        ])  # fmt: skip

    one, two = sizes(1), sizes(2)
    assert float((one[:, 0] / one[:, 1] - 1).abs().max()) < 0.15  # layers are as old as each other
    assert float((one[:, 0] / two[:, 0] - 1).abs().max()) > 0.2  # in every step; another seed, other ages


def test_cell_noise_compensates_each_physical_tile():
    w = weights(40, 60)
    noise = hwa.CellNoise(earliest="1y", latest="1y")
    layout = Layout.of(TileSize(rows=30, columns=16), 40, 60)
    aged = noise.disturb(w.clamp(-1, 1), layout, PCM(), KEY, 1.0, KEY)
    whole = noise.disturb(
        w.clamp(-1, 1), Layout.of(TileSize(rows=512, columns=None), 40, 60), PCM(), KEY, 1.0, KEY
    )
    ratio = aged / whole
    for rows in (slice(0, 30), slice(30, 60)):
        found = [ratio[a : a + 16, rows] for a in (0, 16, 32)]
        means = [float(f[w[a : a + 16, rows].abs() > 0.1].mean()) for f, a in zip(found, (0, 16, 32))]
        assert len({round(m, 6) for m in means}) == 3
        for f, m in zip(found, means, strict=True):
            assert float((f - m).abs().nanmedian()) < 1e-5


def test_cell_noise_draws_times_and_scales():
    w = weights(64, 64)
    year = [float((modified(w, hwa.CellNoise(), key=KEY.at(step=i))[0] - w).norm()) for i in range(12)]
    assert max(year) > 1.3 * min(year)  # early and late times
    one = modified(w, hwa.CellNoise(earliest="1d", latest="1d"))[0] - w
    three = modified(w, hwa.CellNoise(earliest="1d", latest="1d", scale=3.0))[0] - w
    assert_close("three times", three, 3 * one, atol=1e-5, rtol=1e-4)
    assert_close("off", modified(w, hwa.CellNoise(), strength=0.0)[0], w, atol=1e-6, rtol=1e-5)


def test_modifiers_combine_in_order():
    w = weights(40, 40)
    both, _, factor = modified(w, hwa.AddNormal(std=0.1), hwa.DropConnect(probability=0.2))
    assert factor is not None
    assert torch.equal(both == 0, factor == 0)
    assert 0.15 < float((factor == 0).float().mean()) < 0.25
    late, _, factor = modified(w, hwa.CellNoise(), hwa.DropConnect(probability=0.2))
    assert bool((late[factor == 0] == 0).all())
    _, scale, _ = modified(w, hwa.CellNoise(), hwa.Discretize(bits=4))
    assert_close("the scale is that of the clean weights", scale[0], w.abs().amax(1))
    first, _, factor = modified(w, hwa.DropConnect(probability=0.2), hwa.CellNoise())
    assert bool((first[factor == 0] != 0).any())  # the reset pair of a dropped weight is still noisy
    rounded = modified(w, hwa.AddNormal(std=0.1), hwa.Discretize(bits=3))[0] / w.abs().amax(1, keepdim=True)
    assert len((rounded * 3).round(decimals=3).unique()) <= 7


def test_what_noise_carries_beyond_the_bound_of_rounding_gets_no_gradient():
    w = weights(40, 40)
    top = w.abs().amax(1, keepdim=True)
    noisy = modified(w, hwa.AddNormal(std=0.5))[0] / top
    for backend in ("reference", "auto"):
        tiles, _, factor = modify_weights(
            w,
            layout(40, 40),
            (hwa.AddNormal(std=0.5), hwa.Discretize(bits=4)),
            PCM(),
            None,
            KEY,
            backend=backend,
        )
        assert factor is not None
        assert 10 < int((noisy.abs() > 1.001).sum())
        assert bool((factor[noisy.abs() > 1.001] == 0).all()) and bool(
            (factor[noisy.abs() < 0.999] == 1).all()
        )
        assert float((tiles[0] / top).abs().max()) < 1 + 1e-5
    _, _, factor = modified(w, hwa.Discretize(bits=4))
    assert factor is not None and bool((factor == 1).all())  # the largest weight of a column is on its bound


def test_a_tile_boundary_moves_no_draw():
    w = weights(8, 100)
    w[:, ::50] = 1.0  # same scale in both halves
    whole = modified(w, hwa.AddNormal(std=0.1), size=512)[0]
    split = modified(w, hwa.AddNormal(std=0.1), size=50)[0]
    assert_close("draws", split, whole, atol=1e-6, rtol=0)


def test_clipping():
    w = torch.tensor([0.5, -2.0, 3.0])
    hwa.clip_(w, hwa.FixedClip(value=1.0))
    assert w.tolist() == [0.5, -1.0, 1.0]
    w = weights()
    bound = 2.5 * float(w.std())
    assert float(w.abs().max()) > bound
    hwa.clip_(w, hwa.GaussianClip(sigma=2.5))
    assert abs(float(w.abs().max()) - bound) < 1e-6
    constant = torch.ones(3)
    hwa.clip_(constant, hwa.GaussianClip())  # no spread: nothing to clip, not everything
    assert constant.tolist() == [1.0, 1.0, 1.0]


def test_distillation_loss():
    student, teacher = weights(8, 5, 1.0), weights(8, 5, 1.0, seed=1)
    targets = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
    p = torch.softmax(teacher / 4, 1)
    divergence = (p * (p.log() - torch.log_softmax(student / 4, 1))).sum(1).mean()
    expected = 0.9 * 16 * divergence + 0.1 * F.cross_entropy(student, targets)
    assert_close("loss", hwa.distillation_loss(student, teacher, targets), expected, atol=1e-5, rtol=1e-5)
    teacher = teacher.requires_grad_()
    hwa.distillation_loss(student.requires_grad_(), teacher, targets).backward()
    assert teacher.grad is None
    for kwargs, field in (({"temperature": 0.0}, "temperature"), ({"weight": 1.5}, "weight")):
        with pytest.raises(AimcError, match=field):
            hwa.distillation_loss(student, teacher, targets, **kwargs)
    with pytest.raises(AimcError, match="shape"):
        hwa.distillation_loss(student, teacher[:, :3], targets)


def test_ramp():
    training = hwa.HardwareAware(ramp_steps=4)
    assert [training.strength(s) for s in (0, 1, 2, 4, 9)] == [0, 0.25, 0.5, 1, 1]
    assert hwa.HardwareAware().strength(0) == 1.0


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: hwa.AddNormal(std=-1.0), "std"),
        (lambda: hwa.DropConnect(probability=1.0), "probability"),
        (lambda: hwa.Discretize(bits=1), "bits"),
        (lambda: hwa.DoReFa(clip=0.0), "clip"),
        (lambda: hwa.Polynomial(coefficients=()), "coefficients"),
        (lambda: hwa.CellNoise(earliest="1y", latest="1s"), "earliest"),
        (lambda: hwa.GaussianClip(sigma=0.0), "sigma"),
        (lambda: hwa.HardwareAware(ramp_steps=-1), "ramp_steps"),
    ],
)
def test_bad_numbers_are_named(make, field):
    with pytest.raises(AimcError, match=f"field '{field}'"):
        make()
