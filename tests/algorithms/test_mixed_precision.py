"""Mixed precision with few levels of inputs and gradients."""

from __future__ import annotations

import pytest
import torch

from aimc.algorithms import MixedPrecision
from aimc.ops.pulsed_update import Patches, Vectors
from tests.algorithms.helpers import array_of
from tests.helpers import assert_close


def linear(n=5) -> Vectors:
    g = torch.Generator().manual_seed(0)
    return Vectors(torch.randn(n, 4, generator=g), torch.randn(n, 6, generator=g))


def grouped(images=3) -> Vectors:
    """Two groups of one channel and 3 x 3 patches in images of 5 x 4."""
    g = torch.Generator().manual_seed(0)
    patches = Patches.of((5, 4), 1, (3, 3), (1, 1), (1, 1))
    return Vectors(
        torch.randn(images, 2, 5, 4, generator=g), torch.randn(images, 6, 6, generator=g), 2, patches
    )


MADE = {"linear": linear, "groups": grouped}
of_every_kind = pytest.mark.parametrize("kind", MADE)


def summed(vectors: Vectors, algorithm: MixedPrecision, step: int = 0) -> torch.Tensor:
    """What chi takes of one mini-batch."""
    array = array_of(shape=(vectors.rows, vectors.columns))
    algorithm = algorithm.replace(period=1000)
    state = algorithm.init(array, torch.zeros(array.shape))
    state["counters"][0] = step
    algorithm.step(array, state, vectors, 0.5)
    return state["chi"] / -0.5


def expected(vectors: Vectors, x_half: int, d_half: int) -> torch.Tensor:
    """One vector after another."""
    total, rows = torch.zeros(vectors.rows, vectors.columns), vectors.rows // vectors.groups
    for k, (xs, ds) in enumerate(zip(*vectors.unfolded())):
        for x, d in zip(xs, ds):
            q = [
                v if half == 0 else torch.round(v / v.abs().max() * half) * v.abs().max() / half
                for v, half in ((x, x_half), (d, d_half))
            ]
            total[k * rows : (k + 1) * rows] += torch.outer(q[1], q[0])
    return total


@of_every_kind
@pytest.mark.parametrize(("x_bins", "d_bins"), [(5, 0), (0, 4), (2, 9), (0, 0)])
def test_the_gradient_is_that_of_the_levels(kind, x_bins, d_bins):
    vectors = MADE[kind]()
    found = summed(vectors, MixedPrecision(x_bins=x_bins, d_bins=d_bins, stochastic_bins=x_bins == d_bins))
    assert_close("gradient", found, expected(vectors, x_bins // 2, d_bins // 2), atol=1e-5)


@of_every_kind
def test_levels_that_round_stochastically_leave_the_mean_as_it_is(kind):
    vectors, algorithm = MADE[kind](), MixedPrecision(x_bins=3, d_bins=4)
    found = torch.stack([summed(vectors, algorithm, step) for step in range(400)]).double()
    error = found.std(0) / 20
    off = ((found.mean(0) - vectors.gradient().double()) / error.clamp_min(1e-9)).abs()
    assert float(off.max()) < 4.5 and float(error.min()) > 0
    assert torch.equal(summed(vectors, algorithm, 7), summed(vectors, algorithm, 7))


def test_images_in_parts_have_the_levels_of_the_whole(monkeypatch):
    found = []
    for most in (1 << 22, 1, 250):
        monkeypatch.setattr("aimc.algorithms.mixed_precision._MOST_UNFOLDED", most)
        found.append(summed(grouped(), MixedPrecision(x_bins=3, d_bins=4)))
    for other in found[1:]:
        assert_close("gradient", other, found[0], atol=1e-5)


def test_vectors_of_zeros_and_no_vectors_have_no_levels():
    zeros = Vectors(torch.zeros(3, 4), torch.zeros(3, 6))
    for vectors in (zeros, linear(0), grouped(0)):
        assert bool((summed(vectors, MixedPrecision(x_bins=3, d_bins=3)) == 0).all())
