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
        dataset=Dataset(name=dataset, pixels="unit"),
        network=network,
        hardware=named_hardware(device, named_algorithm(algorithm, tiles), io, states),
        epochs=200,
        batch_size=128,
        lr=RATES[algorithm],
        schedule=Schedule(kind="step", every=100, factor=0.1),
        baseline_lr=0.1,
        momentum=0.9,
        weight_decay=5e-4,
        label_smoothing=0.1,
        digital=digital_parts(blocks),
        threads=1,
    )
