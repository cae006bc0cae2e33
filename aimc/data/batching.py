"""Batches whose order and augmentation are a pure function of (seed, epoch)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from aimc.arguments import checked
from aimc.data.augmentation import AUGMENTATIONS
from aimc.data.loading import TensorData
from aimc.errors import AimcError, suggest
from aimc.random import Key, words

Inputs = Tensor | tuple[Tensor, ...]


class Samples(Protocol):
    """Inputs and targets of so many samples, as :class:`aimc.data.TensorData` holds them."""

    @property
    def inputs(self) -> Inputs: ...

    @property
    def targets(self) -> Tensor: ...

    def __len__(self) -> int: ...


@checked
def batches(
    data: Samples,
    batch_size: int,
    shuffle_seed: int | None = None,
    epoch: int = 0,
    augment: str = "none",
) -> Iterator[tuple[Inputs, Tensor]]:
    """Iterate over ``(inputs, targets)``; the last batch holds what is left.

    Args:
        data: what :func:`aimc.data.load` or :func:`aimc.data.load_sentences` returned.
        batch_size: samples a batch.
        shuffle_seed: None keeps the order of the data. A seed permutes it, anew for every epoch, and the same for
            the same seed and epoch whatever was drawn before: a resumed run sees the batches it would have seen.
        epoch: counts from 0.
        augment: ``none``, or for training images one of :data:`aimc.data.AUGMENTATIONS`. What happens to an image
            follows from the seed, the epoch and its position in the data alone, not from the batch it is in. Centred
            pixels are changed between 0 and 1, so that what comes in from outside is black.

    Raises:
        AimcError: a batch size below 1, an unknown augmentation, or one without a seed.

    Example:
        >>> from aimc.data import load
        >>> [len(targets) for _, targets in batches(load("mnist_small", "test", limit=25), 10, shuffle_seed=1)]
        [10, 10, 5]
    """
    if batch_size < 1:
        raise AimcError(f"must be at least 1, got {batch_size}", field="batch_size")
    if augment != "none":
        if augment not in AUGMENTATIONS:
            raise AimcError(
                f"no augmentation is called {augment!r}; {suggest(augment, ('none', *AUGMENTATIONS))}",
                field="augment",
            )
        if isinstance(data.inputs, tuple):
            raise AimcError("changes images, and these samples are none; use none", field="augment")
        if shuffle_seed is None:
            raise AimcError(f"{augment!r} draws at random; give a shuffle_seed", field="augment")
    order = _order(len(data), shuffle_seed, epoch)
    return _iterate(data, batch_size, order, augment, Key(shuffle_seed or 0).fold(augment, epoch).at("data"))


def _order(count: int, seed: int | None, epoch: int) -> Tensor | None:
    if seed is None:
        return None
    for name, value in (("shuffle_seed", seed), ("epoch", epoch)):
        if not 0 <= value < 2**64:
            raise AimcError(f"must be from 0 to 2^64 - 1, got {value}", field=name)
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)))
    return torch.from_numpy(generator.permutation(count))


def _iterate(
    data: Samples, batch_size: int, order: Tensor | None, augment: str, key: Key
) -> Iterator[tuple[Inputs, Tensor]]:
    change, draws = None, None
    if augment != "none":
        change, count = AUGMENTATIONS[augment]
        draws = words(key, count * len(data)).view(-1, count).to(data.targets.device)
    if order is not None:
        order = order.to(data.targets.device)
    centred = isinstance(data, TensorData) and data.pixels == "centred"
    for start in range(0, len(data), batch_size):
        rows = slice(start, start + batch_size) if order is None else order[start : start + batch_size]
        held = data.inputs
        inputs = tuple(x[rows] for x in held) if isinstance(held, tuple) else held[rows]
        if change is not None and draws is not None and isinstance(inputs, Tensor):
            inputs = change((inputs + 1) / 2, draws[rows]) * 2 - 1 if centred else change(inputs, draws[rows])
        yield inputs, data.targets[rows]
