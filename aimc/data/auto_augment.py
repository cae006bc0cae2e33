"""Cutout, and the AutoAugment policy of CIFAR-10, on batches of tensors.

The policy is Table 7 of E. Cubuk et al., "AutoAugment" (CVPR 2019, arXiv:1805.09501), the ranges of its operations are
Table 6; what an operation does to a pixel is what Pillow's does, computed in floating point, without rounding to
whole grey levels between operations. Images are ``[n, 3, height, width]`` with pixels from 0 to 1. What happens to one
depends on its own words alone, not on the images beside it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

_GREY = 128 / 255  # what comes in from outside of an image
_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601-2, as Pillow turns colours into grey
_LEVELS = 10


def uniform(words: Tensor) -> Tensor:
    """Numbers in [0, 1) of 32-bit words."""
    return words.double() / 2**32


def cutout(images: Tensor, words: Tensor) -> Tensor:
    """Paint a random rectangle of one random grey into every other image.

    Its area is 2 to 40 % of the image, its sides have a ratio of 0.4 to 2.5 (uniform in the logarithm).

    Args:
        images: ``[n, channels, height, width]``.
        words: int64 ``[n, 6]``: whether, area, ratio, row, column, grey.

    Example:
        >>> half = torch.full((1, 6), 2**31 - 1)
        >>> int((cutout(torch.ones(1, 1, 10, 10), half) != 1).sum())      # 21 % of 100, with whole pixels as sides
        25
    """
    height, width = images.shape[2:]
    u = uniform(words)
    area, ratio = 0.02 + 0.38 * u[:, 1], 2.5 ** (2 * u[:, 2] - 1)
    sides = (area * ratio).sqrt() * height, (area / ratio).sqrt() * width
    inside: list[Tensor] = []
    for side, size, draw in zip(sides, (height, width), (u[:, 3], u[:, 4])):
        side = side.round().long().clamp_min(1)
        first = (draw * (size - side + 1)).long()
        place = torch.arange(size, device=images.device)
        inside.append((place >= first[:, None]) & (place < (first + side)[:, None]))
    painted = (u[:, 0] < 0.5)[:, None, None] & inside[0][:, :, None] & inside[1][:, None, :]
    return torch.where(painted[:, None], u[:, 5].to(images.dtype)[:, None, None, None], images)


# Operations: images [n, 3, h, w] and a strength for each, [n] --------------------------------------------------------


def _each(strength: Tensor, images: Tensor) -> Tensor:
    return strength.to(images.dtype)[:, None, None, None]


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue)[:, None]


def _blend(other: Tensor, images: Tensor, strength: Tensor) -> Tensor:
    """From another image at a strength of -1 over the image itself at 0 to beyond it."""
    return (other + (1 + _each(strength, images)) * (images - other)).clamp(0, 1)


def _brightness(images: Tensor, strength: Tensor) -> Tensor:
    return _blend(torch.zeros_like(images), images, strength)


def _color(images: Tensor, strength: Tensor) -> Tensor:
    return _blend(_grey(images), images, strength)


def _contrast(images: Tensor, strength: Tensor) -> Tensor:
    mean = _grey(images).mean((2, 3), keepdim=True)
    return _blend((mean * 255).round() / 255, images, strength)


def _sharpness(images: Tensor, strength: Tensor) -> Tensor:
    kernel = torch.ones(3, 3, dtype=images.dtype, device=images.device)
    kernel[1, 1] = 5
    channels = images.shape[1]
    smooth = images.clone()  # the border has no smooth version
    smooth[:, :, 1:-1, 1:-1] = F.conv2d(
        images, (kernel / kernel.sum()).expand(channels, 1, 3, 3), groups=channels
    )
    return _blend(smooth, images, strength)


def _invert(images: Tensor, strength: Tensor) -> Tensor:
    return 1 - images


def _solarize(images: Tensor, strength: Tensor) -> Tensor:
    return torch.where(images * 255 >= _each(strength, images), 1 - images, images)


def _posterize(images: Tensor, strength: Tensor) -> Tensor:
    step = 2 ** (8 - _each(strength.round(), images))
    return ((images * 255).round() / step).floor() * step / 255


def _auto_contrast(images: Tensor, strength: Tensor) -> Tensor:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp_min(1e-12), images)


def _equalize(images: Tensor, strength: Tensor) -> Tensor:
    levels = (images * 255).round().long().flatten(2)  # [n, 3, pixels]
    count = torch.zeros(*levels.shape[:2], 256, dtype=torch.int64, device=images.device)
    count.scatter_add_(2, levels, torch.ones_like(levels))
    brightest = count.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - brightest) // 255
    below = count.cumsum(2) - count
    table = ((below + step // 2) // step.clamp_min(1)).clamp_max(255)
    found = table.gather(2, levels).to(images.dtype) / 255
    return torch.where(step[..., None] > 0, found.view_as(images), images)


def _affine(images: Tensor, a, b, c, d, e, f) -> Tensor:
    """At (x, y) the nearest pixel to (a x + b y + c, d x + e y + f); each letter is a number or ``[n]``."""
    height, width = images.shape[2:]
    y = torch.arange(height, device=images.device, dtype=torch.float64)[:, None] + 0.5
    x = torch.arange(width, device=images.device, dtype=torch.float64) + 0.5

    def at(p, q, r) -> Tensor:
        p, q, r = (
            torch.as_tensor(v, dtype=torch.float64, device=x.device).reshape(-1, 1, 1) for v in (p, q, r)
        )
        return (p * x + q * y + r).floor().long().expand(len(images), height, width)

    column, row = at(a, b, c), at(d, e, f)
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    place = row.clamp(0, height - 1) * width + column.clamp(0, width - 1)
    found = images.flatten(2).gather(2, place.flatten(1)[:, None].expand(-1, images.shape[1], -1))
    return torch.where(inside[:, None], found.view_as(images), _GREY)


def _shear_x(images: Tensor, strength: Tensor) -> Tensor:
    return _affine(images, 1, strength, 0, 0, 1, 0)


def _shear_y(images: Tensor, strength: Tensor) -> Tensor:
    return _affine(images, 1, 0, 0, strength, 1, 0)


def _translate_x(images: Tensor, strength: Tensor) -> Tensor:
    return _affine(images, 1, 0, strength * images.shape[3], 0, 1, 0)


def _translate_y(images: Tensor, strength: Tensor) -> Tensor:
    return _affine(images, 1, 0, 0, 0, 1, strength * images.shape[2])


def _rotate(images: Tensor, strength: Tensor) -> Tensor:
    """Counter-clockwise about the middle, strength in degrees."""
    y, x = images.shape[2] / 2, images.shape[3] / 2
    angle = strength * torch.pi / 180
    cos, sin = angle.cos(), angle.sin()
    return _affine(images, cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a policy.

    Attributes:
        apply: to images, with a strength for each.
        low, high: strength at the lowest and the highest of ten levels.
        signed: a random sign comes on top.
    """

    apply: Callable[[Tensor, Tensor], Tensor]
    low: float = 0.0
    high: float = 0.0
    signed: bool = False


OPERATIONS: dict[str, Operation] = {
    "shear x": Operation(_shear_x, 0, 0.3, True),
    "shear y": Operation(_shear_y, 0, 0.3, True),
    "translate x": Operation(
        _translate_x, 0, 150 / 331, True
    ),  # 150 pixels of the 331 that the policy was found with
    "translate y": Operation(_translate_y, 0, 150 / 331, True),
    "rotate": Operation(_rotate, 0, 30, True),
    "color": Operation(_color, 0, 0.9, True),
    "contrast": Operation(_contrast, 0, 0.9, True),
    "brightness": Operation(_brightness, 0, 0.9, True),
    "sharpness": Operation(_sharpness, 0, 0.9, True),
    "posterize": Operation(_posterize, 8, 4),
    "solarize": Operation(_solarize, 256, 0),
    "auto contrast": Operation(_auto_contrast),
    "equalize": Operation(_equalize),
    "invert": Operation(_invert),
}
"""Every operation by name."""

Step = tuple[str, float, int]
"""Operation, probability, level."""

CIFAR10_POLICY: tuple[tuple[Step, Step], ...] = (
    (("invert", 0.1, 7), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear y", 0.5, 8), ("translate y", 0.7, 9)),
    (("auto contrast", 0.5, 8), ("equalize", 0.9, 2)),
    (("shear y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate x", 0.5, 8)),
    (("equalize", 0.3, 7), ("auto contrast", 0.4, 8)),
    (("translate y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 3)),
    (("equalize", 0.2, 0), ("auto contrast", 0.6, 0)),
    (("equalize", 0.2, 8), ("equalize", 0.6, 4)),
    (("color", 0.9, 9), ("equalize", 0.6, 6)),
    (("auto contrast", 0.8, 4), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("auto contrast", 0.9, 3)),
    (("translate y", 0.9, 9), ("translate y", 0.7, 9)),
    (("auto contrast", 0.9, 2), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 8), ("invert", 0.1, 3)),
    (("translate y", 0.7, 9), ("auto contrast", 0.9, 1)),
)
"""The 25 sub-policies: an image goes through one of them, drawn at random."""


def apply_policy(images: Tensor, words: Tensor) -> Tensor:
    """Send every image through one of the sub-policies of CIFAR-10.

    Args:
        images: ``[n, 3, height, width]``, pixels from 0 to 1.
        words: int64 ``[n, 5]``: sub-policy; whether each of its two operations happens; their signs.

    Example:
        >>> first = torch.tensor([[0, 0, 2**32 - 1, 0, 0]])            # sub-policy 0: the first operation, inverts
        >>> apply_policy(torch.full((1, 3, 2, 2), 0.25), first).unique()
        tensor([0.7500])
    """
    names = list(OPERATIONS)
    table = torch.tensor(
        [[(names.index(name), chance, level) for name, chance, level in steps] for steps in CIFAR10_POLICY],
        dtype=torch.float64, device=images.device,
    )  # fmt: skip
    drawn = table[words[:, 0] * len(CIFAR10_POLICY) >> 32]  # [n, 2, 3]
    images = images.clone()
    for number in (0, 1):
        code, chance, level = drawn[:, number].unbind(1)
        active = uniform(words[:, 1 + number]) < chance
        sign = 1 - 2 * (words[:, 3 + number] >> 31)
        for place in code[active].unique().long().tolist():
            rows = (active & (code == place)).nonzero()[:, 0]
            operation = OPERATIONS[names[place]]
            strength = operation.low + (operation.high - operation.low) * level[rows] / (_LEVELS - 1)
            if operation.signed:
                strength = strength * sign[rows]
            images[rows] = operation.apply(images[rows], strength)
    return images
