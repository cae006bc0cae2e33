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


def digital_parts(network: ResNet, blocks: Sequence[str]) -> tuple[str, ...]:
    """The parts of a network that stay digital, as patterns for :func:`aimc.convert`.

    Args:
        network: its parts are stem, stages and head.
        blocks: ``A`` (analog) or ``D`` (digital) for each part.

    Raises:
        AimcError: another number of letters, other letters, or no ``A``.

    Example:
        >>> digital_parts(ResNet(depth=18), ["D", "D", "D", "A", "A", "A"])
        ('stem', 'stages.0', 'stages.1')
    """
    parts = network.parts
    names = f"{parts[0]}, {len(parts) - 2} stages, {parts[-1]}"
    if len(blocks) != len(parts) or any(kind not in ("A", "D") for kind in blocks):
        raise AimcError(
            f"takes A (analog) or D (digital) for each of {len(parts)} parts ({names}), got {' '.join(blocks)!r}",
            field="blocks",
        )
    if "A" not in blocks:
        raise AimcError(
            "leaves nothing in cells; give an A, or for the digital baseline alone leave blocks out and set hardware: "
            "null",
            field="blocks",
        )
    return tuple(part for part, kind in zip(parts, blocks) if kind == "D")


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
        digital=digital_parts(network, blocks),
        threads=1,
    )
