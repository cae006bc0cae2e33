"""Random changes of training images; each is a pure function of the images and of words drawn for them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from aimc.arguments import checked
from aimc.data.auto_augment import apply_policy, cutout
from aimc.errors import AimcError

_PADDING = 4


def _check_words(images: Tensor, words: Tensor, each: int) -> None:
    """Refuse random words that are not as many as the images need."""
    if words.shape != (len(images), each):
        raise AimcError(f"expects {[len(images), each]}", field="words", shape=words.shape)


@checked
def crop_flip(images: Tensor, words: Tensor) -> Tensor:
    """Pad by 4 pixels of zeros, cut the old size out at a random place, mirror every other image.

    The usual augmentation of CIFAR (He et al., arXiv:1512.03385, section 4.2). Zero is the mean of a standardised
    channel, and black where pixels run from 0 to 1.

    Args:
        images: ``[n, channels, height, width]``.
        words: random 32-bit words, int64 ``[n, 3]``: for the row, the column and the mirror of each image.

    Raises:
        AimcError: inputs that are no images.

    Example:
        >>> image = torch.arange(4.0).view(1, 1, 2, 2)
        >>> middle, mirrored = 2**31 - 1, 2**31          # of the 9 rows and columns; the upper half mirrors
        >>> crop_flip(image, torch.tensor([[middle, middle, mirrored]])).flatten().tolist()
        [1.0, 0.0, 3.0, 2.0]
    """
    if images.dim() != 4:
        raise AimcError(
            "crops and flips images [n, channels, height, width]; use augment: none for other data",
            field="augment", shape=images.shape,
        )  # fmt: skip
    _check_words(images, words, 3)
    height, width = images.shape[2:]
    device = images.device
    words = words.to(device)
    top, left = (words[:, i] * (2 * _PADDING + 1) >> 32 for i in (0, 1))
    columns = torch.arange(width, device=device).expand(len(images), width)
    columns = torch.where((words[:, 2] >> 31).bool()[:, None], width - 1 - columns, columns)
    rows = (top[:, None] + torch.arange(height, device=device))[:, None, :, None]
    columns = (left[:, None] + columns)[:, None, None, :]
    padded = F.pad(images, (_PADDING,) * 4)
    number = torch.arange(len(images), device=device)[:, None, None, None]
    channel = torch.arange(images.shape[1], device=device)[None, :, None, None]
    return padded[number, channel, rows, columns]


@checked
def auto_augment(images: Tensor, words: Tensor) -> Tensor:
    """Crop and flip, cutout, and a sub-policy of AutoAugment.

    See :func:`crop_flip`, :func:`aimc.data.auto_augment.cutout` and :func:`aimc.data.auto_augment.apply_policy`.

    Args:
        images: ``[n, 3, height, width]``, pixels from 0 to 1.
        words: random 32-bit words, int64 ``[n, 14]``.

    Raises:
        AimcError: images without three channels, or with pixels outside of 0 to 1.

    Example:
        >>> auto_augment(torch.rand(2, 3, 8, 8), torch.randint(2**32, (2, 14))).shape
        torch.Size([2, 3, 8, 8])
    """
    if images.dim() != 4 or images.shape[1] != 3:
        raise AimcError(
            "auto_augment changes colours of images [n, 3, height, width]; take crop_flip for others",
            field="augment", shape=images.shape,
        )  # fmt: skip
    if images.numel() and not bool(((images >= 0) & (images <= 1)).all()):
        raise AimcError(
            "auto_augment changes colours between 0 and 1, the pixels reach beyond; set pixels to unit or centred",
            field="augment",
        )
    _check_words(images, words, 14)
    words = words.to(images.device)
    return apply_policy(cutout(crop_flip(images, words[:, :3]), words[:, 3:9]), words[:, 9:])


AUGMENTATIONS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int]] = {
    "crop_flip": (crop_flip, 3),
    "auto_augment": (auto_augment, 14),
}
"""Name to function and the words that it takes for an image."""
