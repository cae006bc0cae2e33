"""Every body of an operation against the reference: odd shapes, noise off and then on with the same key."""

import math

import pytest
import torch
import torch.nn.functional as F

from aimc.errors import AimcError
from aimc.ops import (
    choose_backend,
    convert_input,
    convert_input_backward,
    perturb_weights,
    read_out,
    read_out_backward,
    sampled_convolution_gradient,
    sampled_product,
)
from aimc.ops.read_out import ReadOut
from aimc.random import Key
from tests.helpers import assert_close

KEY = Key(20, step=3)
SPLITS = {1: ((0, 1),), 7: ((0, 3), (3, 7)), 63: ((0, 21), (21, 42), (42, 63))}


def shape_list():
    for vectors, groups, channels, positions in (
        (1, 1, 1, 1),
        (3, 1, 7, 1),
        (5, 2, 7, 63),
        (2, 1, 63, 5),
        (0, 1, 7, 4),
        (130, 1, 63, 1),
        (9001, 1, 1, 1),
    ):
        yield pytest.param(
            (vectors, groups, channels, positions), id=f"{vectors}x{groups}x{channels}x{positions}"
        )


def draws(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", list(shape_list()))
@pytest.mark.parametrize("half", [0, 1, 3, 127])
@pytest.mark.parametrize("per_vector", [False, True])
@pytest.mark.parametrize("contiguous_tiles", [False, True])
def test_convert_input_bodies_agree(shape, half, per_vector, contiguous_tiles):
    x, splits = draws(*shape), SPLITS[shape[2]]
    ranges = draws(len(splits), shape[0] if per_vector else 1, seed=1).abs() + 0.3
    expected = convert_input(x, ranges, splits, half, contiguous_tiles, "reference")
    actual = convert_input(x, ranges, splits, half, contiguous_tiles, "cpu")
    for k, (a, e) in enumerate(zip(actual[0], expected[0], strict=True)):
        assert_close(f"tile {k}", a, e, atol=0, rtol=0)
        assert a.is_contiguous() or not contiguous_tiles
    assert actual[1:] == expected[1:]
    grads = [draws(*shape, seed=2)[:, :, a:b] for a, b in splits]
    expected = convert_input_backward(x, grads, ranges, splits, "reference")
    actual = convert_input_backward(x, grads, ranges, splits, "cpu")
    assert_close("gradient", actual[0], expected[0], atol=0, rtol=0)
    assert_close("push", actual[1], expected[1], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_convert_input_notices_bad_values(backend, bad):
    x = torch.zeros(2, 1, 7, 3)
    assert convert_input(x, torch.ones(2, 1), SPLITS[7], 127, backend=backend)[2]
    x[1, 0, 6, 2] = bad
    assert not convert_input(x, torch.ones(2, 1), SPLITS[7], 127, backend=backend)[2]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_convert_input_levels(backend):
    """n bits are 2^n - 1 levels, symmetric, zero included."""
    x = torch.linspace(-2, 2, 4001).view(1, 1, -1, 1)
    for half in (1, 3, 7, 127):
        parts, clipped, _ = convert_input(x, torch.full((1, 1), 1.5), ((0, 4001),), half, backend=backend)
        levels = parts[0].unique()
        assert len(levels) == 2 * half + 1
        assert_close("symmetric", levels, -levels.flip(0), atol=0, rtol=0)
        assert levels.abs().max() == 1.5
        assert clipped == [int((x.abs() > 1.5).sum())]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_convert_input_gradient(backend):
    """Straight through up to the range, zero beyond; the push only widens."""
    x = torch.tensor([-2.0, -1.0, 0.5, 1.0, 3.0, 4.0]).view(1, 1, 6, 1)
    grad = torch.tensor([2.0, -3.0, 5.0, -7.0, 11.0, -13.0]).view(1, 1, 6, 1)
    g, push = convert_input_backward(x, [grad], torch.ones(1, 1), ((0, 6),), backend)
    assert g.flatten().tolist() == [0, -3, 5, -7, 0, 0]
    assert push.tolist() == [-13 - 2]


def read_out_cases():
    for shape in (
        (1, 1, 1),
        (3, 5, 1),
        (2, 7, 9),
        (4, 1100, 1),
        (2, 3, 1500),
        (0, 4, 2),
        (6, 40, 64),
        (300, 16, 1),
        (5, 1023, 1),
        (4, 1024, 1),
    ):
        yield pytest.param(shape, id="x".join(map(str, shape)))


@pytest.mark.parametrize("shape", list(read_out_cases()))
@pytest.mark.parametrize("per_vector", [False, True])
@pytest.mark.parametrize(
    "setting",
    [
        ReadOut(),
        ReadOut(half=127, bound=10.0),
        ReadOut(bound=0.7),
        ReadOut(half=3, bound=0.5, offset=17),
        ReadOut(output_noise=0.04),
        ReadOut(half=127, bound=2.0, output_noise=0.04, offset=5),
        ReadOut(half=127, bound=10.0, output_noise=0.04, short_term=0.0175),
        ReadOut(short_term=0.1),
        ReadOut(wire_load=1e-3),
        ReadOut(wire_load=0.2),  # some loads are beyond 2.9, where the loss is bounded
        ReadOut(half=127, bound=10.0, output_noise=0.04, short_term=0.0175, wire_load=9e-4),
    ],
    ids=[
        "plain",
        "adc",
        "clip",
        "coarse",
        "noise",
        "noise-adc",
        "standard",
        "short-term",
        "wires",
        "heavy load",
        "everything",
    ],
)
def test_read_out_bodies_agree(shape, per_vector, setting):
    vectors, outputs, _ = shape
    partial, total = draws(*shape), draws(*shape, seed=1)
    scale = draws(outputs, seed=2).abs()
    scale[outputs // 2] = 0  # a column without weights
    partial[:, outputs // 2] = 0
    ranges = draws(vectors if per_vector else 1, seed=3).abs() + 0.5
    variance = draws(*shape, seed=4).abs() if setting.short_term else None
    wires = (
        [draws(*shape, seed=7).abs() * 50, draws(*shape, seed=8) * 10] if setting.wire_load else [None, None]
    )
    gain, bias = draws(outputs, seed=5), draws(outputs, seed=6)
    for start, g, b in ((None, None, None), (None, gain, bias), (total, gain, None)):

        def run(backend, start=start, g=g, b=b):
            begin = start.clone() if start is not None else None
            return read_out(
                begin, partial.clone(), scale, ranges, setting, KEY, variance, *wires, g, b, backend
            )

        expected, actual = run("reference"), run("cpu")
        if setting.half and (setting.output_noise or setting.wire_load):
            # Normals agree to 1e-6, so a value on the edge of two levels may fall either way, by one level.
            step = (
                setting.bound
                / setting.half
                * scale.max()
                * max(ranges.tolist(), default=1)
                * gain.abs().max().clamp_min(1)
            )
            off = (actual[0] - expected[0]).abs() > 1e-5
            assert int(off.sum()) <= max(1, 2e-3 * off.numel())
            assert_close("output", actual[0], expected[0], atol=1.01 * float(step), rtol=0)
        else:
            assert_close("output", actual[0], expected[0], atol=2e-6, rtol=2e-6)
            assert (actual[1] is None) == (expected[1] is None)
            assert actual[2] == expected[2] == (0 if actual[1] is None else int(actual[1].sum()))
            if actual[1] is not None:
                assert torch.equal(actual[1], expected[1])


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 1), (2, 7, 9), (0, 2, 3)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("with_gain", [False, True])
def test_read_out_backward(shape, masked, with_gain):
    grad, mask = draws(*shape), draws(*shape, seed=1) > 0.5 if masked else None
    gain = draws(shape[1], seed=2) if with_gain else None
    expected = grad * (gain.view(1, -1, 1) if with_gain else 1)
    expected = torch.where(mask, 0, expected) if masked else expected
    for backend in ("reference", "cpu"):
        assert_close(backend, read_out_backward(grad, mask, gain, backend), expected)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_read_out_noise_has_its_law(backend):
    shape = (400, 50, 1)
    scale, variance = torch.full((50,), 0.2), torch.full(shape, 3.0)
    y, _, _ = read_out(
        None, torch.zeros(shape), scale, torch.full((1,), 2.0), ReadOut(output_noise=0.04, short_term=0.0175), KEY,
        variance, backend=backend,
    )  # fmt: skip
    expected = ((0.04 * 0.2 * 2.0) ** 2 + 0.0175**2 * 0.2 * 3.0) ** 0.5
    assert abs(float(y.std()) / expected - 1) < 5 / (2 * y.numel()) ** 0.5
    assert abs(float(y.mean())) < 5 * expected / y.numel() ** 0.5


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("threads", [1, 2])
def test_read_out_does_not_see_the_batch(backend, threads):
    """Chunks of the batch and threads change nothing."""
    partial, scale, ranges = draws(40, 130, 9), torch.ones(130), torch.ones(1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:

        def run(a, b):
            setting = ReadOut(half=127, bound=4.0, output_noise=0.1, offset=a)
            return read_out(None, partial[a:b].contiguous(), scale, ranges, setting, KEY, backend=backend)[0]

        whole = run(0, 40)
        assert torch.equal(whole, torch.cat([run(0, 7), run(7, 8), run(8, 40)]))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_read_out_counts_saturation(backend):
    partial = torch.tensor([[[0.2, 9.0], [0.1, 0.1]], [[-9.0, 0.0], [5.0, 1.0]]])
    y, mask, count = read_out(
        None,
        partial,
        torch.tensor([1.0, 2.0]),
        torch.ones(1),
        ReadOut(half=3, bound=3.0),
        KEY,
        backend=backend,
    )
    assert count == 2
    assert mask.tolist() == [[[False, True], [False, False]], [[True, False], [False, False]]]
    assert y.tolist() == [[[0.0, 3.0], [0.0, 0.0]], [[-3.0, 0.0], [4.0, 0.0]]]


CHANGES = {
    "none": (),
    "add": (("add_normal", 0.1),),
    "multiply": (("multiply_normal", 0.2),),
    "polynomial": (("polynomial", 2.0, 0.01, 0.08, -0.05, 0.01),),
    "keep sign": (("polynomial_keep_sign", 5.0, 0.01, 0.08, -0.05, 0.0),),
    "discretize": (("discretize", 7),),
    "dorefa": (("dorefa", 7, 0.6),),
    "drop": (("drop", 0.3),),
    "chain": (
        ("drop", 0.1),
        ("add_normal", 0.1),
        ("drop", 0.2),
        ("multiply_normal", 0.1),
        ("dorefa", 127, 0.9),
    ),
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("contiguous_tiles", [False, True])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (130, 63)], ids=str)
def test_perturb_weights_bodies_agree(changes, given, contiguous_tiles, shape):
    weight, splits = draws(*shape), SPLITS[shape[1]]
    if shape[0] > 2:
        weight[2] = 0  # a column without weights
    scale = (draws(len(splits), shape[0], seed=1).abs() + 0.2) if given else None

    def run(backend):
        return perturb_weights(weight, splits, scale, changes, KEY, contiguous_tiles, backend=backend)

    expected, actual = run("reference"), run("cpu")
    rounded = {"dorefa": 1 / 127, "discretize": 1 / 7}
    step = max([rounded.get(kind, 0) for kind, *_ in changes], default=0) if len(changes) > 1 else 0
    for k, (a, e) in enumerate(zip(actual[0], expected[0], strict=True)):
        assert a.is_contiguous() or not contiguous_tiles
        assert_close(f"tile {k}", a, e, atol=5e-6 + 1.01 * step * float(expected[1].max()), rtol=5e-6)
    assert_close("scale", actual[1], expected[1], atol=0, rtol=0)
    assert (actual[2] is None) == (expected[2] is None)
    if actual[2] is not None:
        assert_close("factor", actual[2], expected[2], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_perturb_weights_means_what_it_says(backend):
    weight = draws(100, 63) * 0.05
    weight[:, 0] = 0.3

    def run(*changes, scale=None):
        tiles, s, factor = perturb_weights(weight, ((0, 63),), scale, changes, KEY, backend=backend)
        return tiles[0], s, factor

    clean, scale, factor = run()
    assert_close("clean", clean, weight, atol=1e-7, rtol=1e-6)
    assert_close("scale", scale[0], weight.abs().amax(1), atol=0, rtol=0)
    assert factor is None
    noisy = run(("add_normal", 0.1))[0]
    assert abs(float((noisy - weight).std()) / (0.1 * 0.3) - 1) < 0.05
    for bits, levels in ((3, 7), (4, 15), (8, 255)):
        grid = draws(64, 64)
        half = 2 ** (bits - 1) - 1
        tiles, _, _ = perturb_weights(
            grid,
            ((0, 64),),
            torch.full((1, 64), float(grid.abs().max())),
            (("discretize", half),),
            KEY,
            backend=backend,
        )
        assert len(tiles[0].unique()) <= levels
        assert len((tiles[0] / grid.abs().max() * half).round().unique()) == (
            levels if bits < 8 else len((grid / grid.abs().max() * half).round().unique())
        )
    dropped, _, factor = run(("drop", 0.25))
    assert torch.equal(dropped == 0, factor == 0)
    assert abs(float((factor == 0).float().mean()) - 0.25) < 0.03
    clipped, _, factor = run(scale=torch.full((1, 100), 0.1))
    assert float(clipped.abs().max()) <= 0.1 + 1e-7
    assert torch.equal(factor == 0, weight.abs() > 0.1)
    kept = run(("polynomial_keep_sign", 20.0, 0.01, 0.08, -0.05, 0.0))[0]
    assert bool((kept.sign() == weight.sign()).all())
    assert bool((run(("polynomial", 20.0, 0.01, 0.08, -0.05, 0.0))[0].sign() != weight.sign()).any())


def test_an_explicit_backend_never_falls_back():
    with pytest.raises(AimcError, match="field 'backend'.*float64"):
        choose_backend("cpu", torch.zeros(2, dtype=torch.float64))
    with pytest.raises(AimcError, match="did you mean 'cpu'"):
        choose_backend("cppu", torch.zeros(2))
    with pytest.raises(AimcError, match="not a change"):
        perturb_weights(torch.ones(2, 2), ((0, 2),), None, (("add_noise", 1.0),), KEY)


@pytest.mark.parametrize("inner", [1, 15, 63, 513])
@pytest.mark.parametrize("samples", [0, 1, 100])
def test_sampled_products_are_elements_of_the_product(inner, samples):
    left, right = draws(7, inner), draws(inner, 40, seed=1)[:, 3:35]
    row, column = torch.arange(samples) % 7, torch.arange(samples) * 5 % 32
    exact = (left.double() @ right.double())[row, column]
    for backend in ("reference", "cpu"):
        assert_close(backend, sampled_product(left, right, row, column, backend).double(), exact, atol=1e-4)


def test_sampled_products_of_shapes_that_do_not_fit_are_refused():
    with pytest.raises(AimcError, match="shapes do not fit"):
        sampled_product(draws(2, 3), draws(4, 2), torch.tensor([0]), torch.tensor([0]))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize(
    "size, kernel, stride, padding, dilation",
    [
        ((9,), (4,), (3,), (2,), (1,)),
        ((7, 8), (3, 2), (2, 1), (1, 0), (1, 3)),
        ((5, 6, 4), (2, 3, 1), (1, 2, 1), (1, 2, 0), (2, 1, 1)),
    ],
)
def test_sampled_convolution_gradients_are_elements_of_autograds(
    size, kernel, stride, padding, dilation, groups, channels_last
):
    convolution = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(size)]
    x = draws(2, 6, *size).double().requires_grad_()
    weight = draws(9, 6 // groups, *kernel, seed=1)
    y = convolution(x, weight.double(), None, stride, padding, dilation, groups)
    grad = draws(*y.shape, seed=2)
    y.backward(grad.double())
    assert x.grad is not None
    if channels_last:
        grad = grad.movedim(1, -1).contiguous().movedim(-1, 1)
    image, channel, position = torch.ones(2, 6, math.prod(size)).nonzero(as_tuple=True)  # every input
    for backend in ("reference", "cpu"):
        found = sampled_convolution_gradient(
            grad, weight, image, channel, position, size, stride, padding, dilation, groups, backend
        )
        assert_close(backend, found.double(), x.grad.flatten(), atol=1e-4)


def test_sampled_convolution_gradients_of_shapes_that_do_not_fit_are_refused():
    at = torch.tensor([0])
    with pytest.raises(AimcError, match="shapes do not fit"):
        sampled_convolution_gradient(draws(1, 2, 3), draws(3, 1, 2), at, at, at, [4], [1], [0], [1])
