"""The operations of AutoAugment against Pillow's, the policy's frequencies, and what an image depends on."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from aimc.data import TensorData, auto_augment, batches, crop_flip
from aimc.data.auto_augment import CIFAR10_POLICY, OPERATIONS, apply_policy, cutout
from aimc.errors import AimcError
from tests.helpers import assert_close

GREY = (128, 128, 128)
SIDE = 32


def _images(count=6, seed=0):
    """Smooth pictures with noise, whole grey levels [n, 3, h, w]; one of them uses half the range, one is flat."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    waves = [np.sin(3 * x * (i + 1) + 2 * y * c) * 90 + 128 for i in range(count) for c in (1, 2, 3)]
    pixels = np.stack(waves).reshape(count, 3, SIDE, SIDE) + generator.normal(0, 12, (count, 3, SIDE, SIDE))
    pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    pixels[1] = pixels[1] // 2 + 40
    pixels[2, 0] = 77
    return pixels


def _affine(image, *six):
    return image.transform(image.size, Image.Transform.AFFINE, six, fillcolor=GREY)


TRUTH = {
    "shear x": lambda image, s: _affine(image, 1, s, 0, 0, 1, 0),
    "shear y": lambda image, s: _affine(image, 1, 0, 0, s, 1, 0),
    "translate x": lambda image, s: _affine(image, 1, 0, s * SIDE, 0, 1, 0),
    "translate y": lambda image, s: _affine(image, 1, 0, 0, 0, 1, s * SIDE),
    "rotate": lambda image, s: image.rotate(s, fillcolor=GREY),
    "color": lambda image, s: ImageEnhance.Color(image).enhance(1 + s),
    "contrast": lambda image, s: ImageEnhance.Contrast(image).enhance(1 + s),
    "brightness": lambda image, s: ImageEnhance.Brightness(image).enhance(1 + s),
    "sharpness": lambda image, s: ImageEnhance.Sharpness(image).enhance(1 + s),
    "posterize": lambda image, s: ImageOps.posterize(image, round(s)),
    "solarize": lambda image, s: ImageOps.solarize(image, s),
    "auto contrast": lambda image, s: ImageOps.autocontrast(image),
    "equalize": lambda image, s: ImageOps.equalize(image),
    "invert": lambda image, s: ImageOps.invert(image),
}
GEOMETRIC = ("shear x", "shear y", "translate x", "translate y", "rotate")
EXACT = ("posterize", "solarize", "equalize", "invert")


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_does_what_pillow_does(name):
    operation, pixels = OPERATIONS[name], _images()
    levels = [level for level in (1, 3, 4, 6, 8, 9)]
    strength = [operation.low + (operation.high - operation.low) * level / 9 for level in levels]
    if operation.signed:
        strength = [s * (-1) ** i for i, s in enumerate(strength)]
    found = operation.apply(
        torch.from_numpy(pixels).float() / 255, torch.tensor(strength, dtype=torch.float64)
    )
    expected = np.stack([
        np.asarray(TRUTH[name](Image.fromarray(image.transpose(1, 2, 0)), s)).transpose(2, 0, 1)
        for image, s in zip(pixels, strength)
    ])  # fmt: skip
    # Pillow works in whole grey levels: after each step of an enhancement it rounds, and cuts what is left.
    if name in GEOMETRIC:
        off = (found * 255).round() != torch.from_numpy(expected.astype(np.float32))
        assert float(off.float().mean()) < 0.005  # of pixels that lie half-way between two others
    else:
        steps = 0.01 if name in EXACT else 1.6
        assert_close(name, found * 255, torch.from_numpy(expected.astype(np.float32)), atol=steps)


def test_rotation_and_shear_turn_the_way_they_say():
    image = torch.zeros(1, 3, 9, 9)
    image[..., 4, 8] = 1.0  # right of the middle
    turned = OPERATIONS["rotate"].apply(image, torch.tensor([90.0], dtype=torch.float64))
    assert float(turned[0, 0, 0, 4]) == 1.0  # above it
    moved = OPERATIONS["translate x"].apply(image, torch.tensor([4 / 9], dtype=torch.float64))
    assert float(moved[0, 0, 4, 4]) == 1.0 and float(moved[0, 0, 4, 8]) == pytest.approx(128 / 255)


def test_levels_span_the_published_ranges():
    assert (
        OPERATIONS["rotate"].high == 30
        and OPERATIONS["posterize"].low == 8
        and OPERATIONS["posterize"].high == 4
    )
    assert len(CIFAR10_POLICY) == 25
    for steps in CIFAR10_POLICY:
        for name, chance, level in steps:
            assert name in OPERATIONS and 0 <= chance <= 1 and 0 <= level <= 9


def test_sub_policies_and_operations_occur_as_often_as_they_should(monkeypatch):
    """Operations that count instead of changing anything."""
    seen = {name: 0.0 for name in OPERATIONS}
    signs = {name: 0.0 for name in OPERATIONS}

    def counter(name):
        def count(images, strength):
            seen[name] += len(images)
            signs[name] += float(strength.sign().sum())
            return images

        return count

    import dataclasses

    for name, operation in OPERATIONS.items():
        monkeypatch.setitem(OPERATIONS, name, dataclasses.replace(operation, apply=counter(name)))
    count = 50_000
    words = torch.randint(2**32, (count, 5), generator=torch.Generator().manual_seed(0))
    apply_policy(torch.zeros(count, 3, 1, 1), words)
    for name in OPERATIONS:
        mean = count / 25 * sum(c for steps in CIFAR10_POLICY for n, c, _ in steps if n == name)
        assert abs(seen[name] - mean) <= 4.5 * math.sqrt(max(mean, 1)), name
        if OPERATIONS[name].signed:
            assert abs(signs[name]) <= 4.5 * math.sqrt(max(mean, 1)), name


def test_operations_come_in_their_order():
    # Sub-policy 18: auto contrast, then solarize at level 8.
    words = torch.tensor([[18 * 2**32 // 25 + 1, 0, 0, 0, 0]])
    image = torch.linspace(0, 0.5, 300).view(1, 3, 10, 10)
    stretched = OPERATIONS["auto contrast"].apply(image, torch.zeros(1))
    expected = OPERATIONS["solarize"].apply(stretched, torch.tensor([256 / 9]))
    assert_close("stretched and solarized", apply_policy(image, words), expected)


def test_every_part_draws_with_words_of_its_own():
    words = torch.randint(2**32, (40, 14), generator=torch.Generator().manual_seed(3))
    images = _data().inputs
    expected = apply_policy(cutout(crop_flip(images, words[:, :3]), words[:, 3:9]), words[:, 9:14])
    assert_close("all in turn", auto_augment(images, words), expected)


def test_half_of_the_images_lose_a_rectangle_of_the_promised_size():
    count = 20_000
    words = torch.randint(2**32, (count, 6), generator=torch.Generator().manual_seed(1))
    hidden = cutout(torch.full((count, 1, SIDE, SIDE), 2.0), words)[:, 0] < 1
    some = hidden.flatten(1).any(1)
    assert abs(int(some.sum()) - count / 2) < 4.5 * math.sqrt(count / 4)
    hidden = hidden[some]
    rows, columns = hidden.any(2).sum(1).double(), hidden.any(1).sum(1).double()
    assert torch.equal(rows * columns, hidden.flatten(1).sum(1).double())  # a rectangle
    share = rows * columns / SIDE**2
    assert 0.012 < float(share.min()) and float(share.max()) < 0.42  # whole pixels
    assert float(share.mean()) == pytest.approx(0.21, abs=0.003)
    assert float((rows / columns).log().mean()) == pytest.approx(0, abs=0.02)
    assert float((rows / columns).max()) == pytest.approx(2.5, rel=0.3)
    place = hidden.double().mean(0)
    assert (
        float((place - place.flip(0)).abs().max()) < 0.03
        and float((place - place.flip(1)).abs().max()) < 0.03
    )
    greys = cutout(torch.full((count, 1, SIDE, SIDE), 2.0), words)[:, 0].flatten(1).amin(1)[some]
    assert (
        0 <= float(greys.min())
        and float(greys.max()) < 1
        and float(greys.mean()) == pytest.approx(0.5, abs=0.02)
    )


def _data(count=40):
    images = torch.from_numpy(_images(count, seed=2)).float() / 255
    return TensorData(images, torch.zeros(count, dtype=torch.int64), ("a",), "x", "train", "")


def test_what_happens_to_an_image_does_not_depend_on_its_batch():
    data = _data()

    def all_of(size, epoch=1):
        order = torch.cat([i for i, _ in batches(_numbered(data), size, shuffle_seed=3, epoch=epoch)]).long()
        found = [x for x, _ in batches(data, size, shuffle_seed=3, epoch=epoch, augment="auto_augment")]
        return torch.cat(found)[order.flatten().argsort()]

    first = all_of(7)
    assert_close("another batch size", all_of(40), first, atol=1e-6)
    assert not torch.allclose(all_of(7, epoch=2), first)
    assert float(first.min()) >= 0 and float(first.max()) <= 1


@pytest.mark.parametrize("augment", ["none", "crop_flip", "auto_augment"])
def test_centred_pixels_are_those_from_0_to_1_stretched_after_all_changes(augment):
    unit = dataclasses.replace(_data(400), pixels="unit")
    centred = dataclasses.replace(unit, inputs=unit.inputs * 2 - 1, pixels="centred")
    (expected, _), (found, _) = (
        next(batches(data, 400, shuffle_seed=3, augment=augment)) for data in (unit, centred)
    )
    assert_close("stretched", found, expected * 2 - 1, atol=1e-5)
    assert float(found.min()) == -1.0


def _numbered(data):
    return TensorData(torch.arange(len(data))[:, None], data.targets, data.classes, "n", "train", "")


def test_images_that_have_no_colours_between_0_and_1_are_refused():
    words = torch.zeros(2, 14, dtype=torch.int64)
    with pytest.raises(AimcError, match="crop_flip"):
        auto_augment(torch.zeros(2, 1, 8, 8), words)
    with pytest.raises(AimcError, match="pixels to unit or centred"):
        auto_augment(torch.full((2, 3, 8, 8), -0.1), words)
