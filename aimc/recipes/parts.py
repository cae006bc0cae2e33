"""What every experiment needs: a task, such as images, a network with fresh weights, a number of threads."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import os
from collections.abc import Iterable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from typing_extensions import Self

from aimc import data as datasets
from aimc.chip import Accuracy, Perplexity
from aimc.config import Config
from aimc.errors import AimcError
from aimc.random import Key, torch_draws
from aimc.recipes.networks import Network
from aimc.train import Batches, Classification, Objective


class Task(abc.ABC):
    """Data in memory, in three parts, and what is done with it. The validation part is never a part of the test set."""

    @property
    @abc.abstractmethod
    def hashes(self) -> dict[str, str]:
        """sha256 of every part."""

    def to(self, device: torch.device) -> Self:
        """The same data on another device."""
        parts = {name: getattr(self, name).to(device) for name in ("train", "validation", "test")}
        return dataclasses.replace(self, **parts)  # type: ignore[type-var]  (every task is a dataclass)

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of one input: ``[channels, height, width]`` of an image, empty of a token."""

    @property
    @abc.abstractmethod
    def classes(self) -> int:
        """Of which a network names one: classes, or words."""

    @abc.abstractmethod
    def batches(self, batch_size: int, seed: int) -> Batches:
        """Training batches whose order, and what else is random, follows from the seed and the epoch."""

    @abc.abstractmethod
    def objective(self) -> Objective:
        """The loss of a training step, for one stage."""

    @abc.abstractmethod
    def metric(self, split: str, batch_size: int = 1000) -> Accuracy | Perplexity:
        """What a network is judged by on ``validation`` or ``test``; the batch size changes memory and time only."""

    def initialise(self, net: nn.Module) -> None:  # noqa: B027  (most have nothing to add)
        """Set what initial weights owe to the training data; the network has just been built."""

    @abc.abstractmethod
    def calibration(self, count: int) -> Iterable[Any]:
        """So much training data, as :func:`aimc.calibrate` takes it."""


class Data(Config):
    """Base of the data configurations.

    To add one, copy a sibling; its class name is the ``type`` in YAML and on the command line.
    """

    @abc.abstractmethod
    def load(self, root: str | os.PathLike[str] | None, network: Network) -> Task:
        """Read what the configuration names, for a network that may have a tokenizer of its own.

        Args:
            root: folder of data sets; None as for :func:`aimc.data.load`.
            network: which will learn it.
        """


class Dataset(Data):
    """Which images, and how many of them.

    Fields:
        name: as :func:`aimc.data.load` knows it.
        train_images, validation_images, test_images: at most so many, or null for all.
        pixels: ``standardised``, mean 0 and deviation 1 over the training images; ``unit``, from 0 to 1; or
            ``centred``, from -1 to 1.
        augment: of the training images only: ``none``; ``crop_flip``, see :func:`aimc.data.crop_flip`; or
            ``auto_augment``, see :func:`aimc.data.auto_augment`, with pixels that are unit or centred.
    """

    name: str = "mnist"
    train_images: int | None = None
    validation_images: int | None = None
    test_images: int | None = None
    pixels: Literal["standardised", "unit", "centred"] = "standardised"
    augment: Literal["none", "crop_flip", "auto_augment"] = "none"

    def validate(self):
        for name in ("train_images", "validation_images", "test_images"):
            value = getattr(self, name)
            self.require(value is None or value >= 1, name, f"must be at least 1, got {value}")
        self.require(
            self.augment != "auto_augment" or self.pixels != "standardised",
            "augment",
            "auto_augment changes colours between 0 and 1; set pixels to unit or centred with it",
        )

    def load(self, root: str | os.PathLike[str] | None, network: Network) -> Images:
        return load_images(self, root)


@dataclasses.dataclass
class Images(Task):
    """The three parts of a data set. The validation part is taken from the training images."""

    train: datasets.TensorData
    validation: datasets.TensorData
    test: datasets.TensorData
    augment: str = "none"

    @property
    def hashes(self) -> dict[str, str]:
        return {n: getattr(self, n).sha256 for n in ("train", "validation", "test")}

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.train.inputs.shape[1:])

    @property
    def classes(self) -> int:
        return len(self.train.classes)

    def batches(self, batch_size: int, seed: int) -> Shuffled:
        return Shuffled(self.train, batch_size, seed, self.augment)

    def objective(self) -> Classification:
        return Classification()

    def metric(self, split: str, batch_size: int = 1000) -> Accuracy:
        part = getattr(self, split)
        return Accuracy(part.inputs, part.targets, batch_size, classes=self.classes)

    def calibration(self, count: int) -> tuple[Tensor, ...]:
        return self.train.inputs[:count].split(500)


def load_images(config: Dataset, root: str | os.PathLike[str] | None) -> Images:
    """What a configuration names, from a folder of data sets; see :func:`aimc.data.load`."""
    return Images(
        **{
            split: datasets.load(
                config.name, split, root, limit=getattr(config, f"{split}_images"), pixels=config.pixels
            )
            for split in ("train", "validation", "test")
        },
        augment=config.augment,
    )


class Shuffled:
    """Training batches in an order, and with an augmentation, given by (seed, epoch)."""

    def __init__(self, data: datasets.Samples, batch_size: int, seed: int, augment: str = "none"):
        self._data, self._batch_size, self._seed, self._augment = data, batch_size, seed, augment

    def __len__(self) -> int:
        return -(-len(self._data) // self._batch_size)

    def __call__(self, epoch: int) -> Iterator[tuple[datasets.Inputs, Tensor]]:
        return datasets.batches(
            self._data, self._batch_size, shuffle_seed=self._seed, epoch=epoch, augment=self._augment
        )


def find_device(name: str) -> torch.device:
    """Where torch is to compute.

    Args:
        name: as torch has it, such as ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        AimcError: torch knows no such device, or does not find it on this machine.

    Example:
        >>> find_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n")[0]
        raise AimcError(
            f"torch cannot compute on {name!r} here ({reason}); take cpu, or a torch that fits this machine's GPU",
            field="torch_device",
        ) from None
    return device


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def most_threads() -> int:
    """More threads than these make no progress, and far more end the process.

    Example:
        >>> most_threads() >= 64
        True
    """
    return max(64, 4 * (os.cpu_count() or 1))


@contextlib.contextmanager
def limited_threads(count: int | None) -> Iterator[None]:
    """So many threads of torch inside; None leaves them.

    Raises:
        AimcError: more than this machine can carry. A configuration may ask for more: it may be of another machine.
    """
    if count is not None and count > most_threads():
        raise AimcError(
            f"is {count}, and this machine with its {os.cpu_count()} cores carries at most {most_threads()}; take "
            "fewer, or null for torch's choice",
            field="threads",
        )
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fresh_network(network: Network, task: Task, seed: int) -> nn.Module:
    """The digital network with initial weights that depend on the seed alone."""
    with torch_draws(Key(seed).fold("initial weights")):
        net = network.build(task.shape, task.classes)
    task.initialise(net)
    return net
