"""ResNet-18 and ResNet-34 trained in memory on CIFAR-10 and CIFAR-100, block by block analog or digital."""

from collections.abc import Sequence

from aimc.errors import AimcError
from aimc.recipes.in_memory import InSituExperiment
from aimc.recipes.named import RATES, named_algorithm, named_hardware
from aimc.recipes.networks import ResNet
from aimc.recipes.parts import Dataset
from aimc.train import Schedule

BLOCKS = ("D", "D", "D", "A", "A", "A")
"""Stem, four stages, head: the last two stages and the head in cells, 94 % of the weights of ResNet-18 (Z. Li et al.,
arXiv:2510.02516)."""


def digital_parts(blocks: Sequence[str]) -> tuple[str, ...]:
    """The parts of a ResNet that stay digital, as patterns for :func:`aimc.convert`.

    Args:
        blocks: ``A`` (analog) or ``D`` (digital) for the stem, the four stages and the head.

    Raises:
        AimcError: another number of letters, other letters, or no ``A``.

    Example:
        >>> digital_parts(["D", "D", "D", "A", "A", "A"])
        ('stem', 'stages.0', 'stages.1')
    """
    if len(blocks) != len(ResNet.PARTS) or any(kind not in ("A", "D") for kind in blocks):
        raise AimcError(
            "are A (analog) or D (digital) for each of 6: the stem, the four stages and the head, such as D D D A A A; "
            f"got {' '.join(blocks)!r}",
            field="blocks",
        )
    if "A" not in blocks:
        raise AimcError(
            "leave nothing in cells; for the digital baseline alone set hardware to null instead",
            field="blocks",
        )
    return tuple(part for part, kind in zip(ResNet.PARTS, blocks) if kind == "D")


def _resnet(
    network: ResNet,
    algorithm: str,
    states: float | None,
    tiles: int | None,
    io: str,
    device: str,
    dataset: str,
    blocks: tuple[str, ...],
) -> InSituExperiment:
    """What the recipes of this file have in common: the setting of the full length."""
    return InSituExperiment(
        dataset=Dataset(name=dataset, pixels="centred", augment="auto_augment"),
        network=network,
        hardware=named_hardware(device, named_algorithm(algorithm, tiles), io, states),
        epochs=200,
        batch_size=128,
        lr=RATES[algorithm],
        schedule=Schedule(kind="step", every=100, factor=0.1),
        baseline_lr=0.2,
        momentum=0.9,
        weight_decay=5e-4,
        label_smoothing=0.1,
        digital=digital_parts(blocks),
        threads=1,
    )


def _small(full: InSituExperiment, width: int, images: int) -> InSituExperiment:
    """A narrow network on a part of the images, with the augmentation and the schedule that a short training takes.

    The recorded runs saw pixels from 0 to 1, and digital networks at the rate of the cells.
    """
    return full.replace(
        epochs=8,
        batch_size=64,
        baseline_lr=0.1,
        schedule=Schedule(kind="cosine"),
        **{
            "network.width": width,
            "dataset.augment": "crop_flip",
            "dataset.pixels": "unit",
            "dataset.train_images": images,
            "dataset.validation_images": 1000,
            "dataset.test_images": 2000,
        },
    )


def resnet18_insitu(
    algorithm: str = "residual",
    states: float | None = None,
    tiles: int | None = None,
    io: str = "perfect",
    device: str = "reram",
    dataset: str = "cifar10",
    blocks: tuple[str, ...] = BLOCKS,
) -> InSituExperiment:
    """ResNet-18 on CIFAR-10 or CIFAR-100, its last stages and its head trained in cells of few states.

    10.5 of 11.2 million weights are in cells, those of norms and of the other blocks are trained by torch beside them,
    with momentum; a digital network is trained on the same images. 200 epochs of batch 128, the rates a tenth after
    100; crop, cutout, flip and AutoAugment, pixels from -1 to 1; label smoothing 0.1: the setting of Z. Li et al.,
    arXiv:2510.02516, and of its program, where a digital network's rate is 0.2, too, and 0.1 beside cells. The rates of
    the cells are those of LeNet-5.

    On a GPU: aimc run resnet18_insitu --torch_device cuda. There is no GPU body of the pulses yet: the plain torch body
    runs there, one column and one slot after another, and a warning says so. It was not run on a GPU.

    Expected: not run at this length. Published with 4 states, after 200 epochs: residual learning 89.79 % with 6 tiles
    and 90.45 % with 8 on CIFAR-10, 59.68 % and 60.62 % on CIFAR-100; mixed precision 92.77 % and 64.08 %; Tiki-Taka
    version 2 87.89 % and 27.91 %. Results on CIFAR-10 that is stored as JPEG, as the short runs had it, are no match
    for these.

    Machine: 4 GB of memory with 8 tiles, 6 GB to go on from a checkpoint of 2.6 GB.

    Time: not run. A step of 128 images takes 9 to 14 s on one core that other work shared, 1.6 to 1.9 s of it pulses of
    8 tiles; before the first one, 20 s to draw 84 million devices.

    Args:
        algorithm: sgd, ttv1, ttv2, ttv3, ttv4, mp or residual.
        states: nominal number of states of a reram cell (default 4).
        tiles: arrays of cells, of the algorithms that leave it open.
        io: perfect or noisy, the converters and noise of every read.
        device: preset of the cells.
        dataset: cifar10 or cifar100.
        blocks: A (analog) or D (digital) for the stem, the four stages and the head.
    """
    return _resnet(ResNet(depth=18), algorithm, states, tiles, io, device, dataset, blocks)


def resnet34_insitu(
    algorithm: str = "residual",
    states: float | None = None,
    tiles: int | None = None,
    io: str = "perfect",
    device: str = "reram",
    dataset: str = "cifar10",
    blocks: tuple[str, ...] = BLOCKS,
) -> InSituExperiment:
    """ResNet-34, everything else as in resnet18_insitu.

    20.0 of 21.3 million weights are in cells.

    On a GPU: aimc run resnet34_insitu --torch_device cuda; see resnet18_insitu.

    Expected: not run at this length. Published with 4 states, after 200 or 400 epochs: residual learning 92.02 % with 6
    tiles and 90.65 % with 8 on CIFAR-10, 68.46 % and 69.63 % on CIFAR-100; mixed precision 93.31 % and 70.25 %;
    Tiki-Taka version 2 87.43 % and 11.28 %. Results on CIFAR-10 that is stored as JPEG are no match for these.

    Machine: 7 GB of memory with 8 tiles; to go on from a checkpoint, of about 5 GB, about 11 GB (not tried).

    Time: not run. A step of 32 images takes 9 s on one core that other work shared, 2.3 s of it pulses of 8 tiles.

    Args:
        algorithm: sgd, ttv1, ttv2, ttv3, ttv4, mp or residual.
        states: nominal number of states of a reram cell (default 4).
        tiles: arrays of cells, of the algorithms that leave it open.
        io: perfect or noisy, the converters and noise of every read.
        device: preset of the cells.
        dataset: cifar10 or cifar100.
        blocks: A (analog) or D (digital) for the stem, the four stages and the head.
    """
    return _resnet(ResNet(depth=34), algorithm, states, tiles, io, device, dataset, blocks)


def resnet18_insitu_small(
    algorithm: str = "residual",
    states: float | None = None,
    tiles: int | None = None,
    io: str = "perfect",
    device: str = "reram",
    dataset: str = "cifar10",
    blocks: tuple[str, ...] = BLOCKS,
) -> InSituExperiment:
    """ResNet-18 with a quarter of the channels on 10,000 images, pixels from 0 to 1, crops and flips, 8 epochs.

    Expected: 64.1 % on 2,000 test images after the last epoch with 6 tiles, one seed; trained digitally 63.8 %. Images
    that were stored as JPEG.

    Machine: one core of a 2020s server, no GPU.

    Time: 28 minutes on a core that others shared, a fifth of them the digital network's.

    Args:
        algorithm: sgd, ttv1, ttv2, ttv3, ttv4, mp or residual.
        states: nominal number of states of a reram cell (default 4).
        tiles: arrays of cells, of the algorithms that leave it open.
        io: perfect or noisy, the converters and noise of every read.
        device: preset of the cells.
        dataset: cifar10 or cifar100.
        blocks: A (analog) or D (digital) for the stem, the four stages and the head.
    """
    full = resnet18_insitu(algorithm, states, tiles, io, device, dataset, blocks)
    return _small(full, width=16, images=10_000)


def resnet34_insitu_small(
    algorithm: str = "residual",
    states: float | None = None,
    tiles: int | None = None,
    io: str = "perfect",
    device: str = "reram",
    dataset: str = "cifar10",
    blocks: tuple[str, ...] = BLOCKS,
) -> InSituExperiment:
    """ResNet-34 with an eighth of the channels on 6000 images, pixels from 0 to 1, crops and flips, 8 epochs.

    Expected: 47.8 % on 2,000 test images after the last epoch with 6 tiles, one seed; trained digitally 44.4 %. Images
    that were stored as JPEG.

    Machine: one core of a 2020s server, no GPU.

    Time: 7 minutes on a core that others shared, almost half of them the digital network's.

    Args:
        algorithm: sgd, ttv1, ttv2, ttv3, ttv4, mp or residual.
        states: nominal number of states of a reram cell (default 4).
        tiles: arrays of cells, of the algorithms that leave it open.
        io: perfect or noisy, the converters and noise of every read.
        device: preset of the cells.
        dataset: cifar10 or cifar100.
        blocks: A (analog) or D (digital) for the stem, the four stages and the head.
    """
    full = resnet34_insitu(algorithm, states, tiles, io, device, dataset, blocks)
    return _small(full, width=8, images=6000)
