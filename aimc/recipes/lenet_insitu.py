"""LeNet-5 trained in memory."""

from aimc import presets
from aimc.algorithms import ALGORITHMS, Algorithm, TikiTakaV1, TikiTakaV2
from aimc.errors import AimcError, suggest
from aimc.hardware import PulsedHardware
from aimc.recipes.in_memory import InSituExperiment
from aimc.recipes.networks import LeNet5
from aimc.recipes.parts import Dataset
from aimc.train import Schedule

RATES = {"sgd": 0.05, "ttv1": 0.05, "ttv2": 0.05, "ttv3": 0.05, "ttv4": 0.05, "mp": 0.1, "residual": 0.1}
"""Learning rate of each algorithm."""

FACTORS = {"ttv2": 3.0, "mp": 3.0}
"""Factor of the digital scale (``mapping.factor``) where it is not the default."""

TUNED: dict[str, Algorithm] = {
    "ttv1": TikiTakaV1(columns=16, fast_lr=0.5, transfer_lr=0.02),
    "ttv2": TikiTakaV2(columns=16, fast_lr=0.5, transfer_lr=1.0),
}
"""Settings other than an algorithm's defaults: the best of 22 each on Fashion-MNIST with 4 states, one epoch of 20,000
images, by the accuracy on 10,000 images held back from the training set (``docs/algorithms/tiki_taka_v2.md``)."""


def named_algorithm(name: str, tiles: int | None = None) -> Algorithm:
    """An algorithm as this recipe sets it: with its defaults, or as it was tuned.

    Args:
        name: a key of :data:`aimc.algorithms.ALGORITHMS`.
        tiles: arrays of cells, where the algorithm leaves the choice; None takes its default.

    Example:
        >>> named_algorithm("residual", tiles=4).tile_count
        4
    """
    if name not in ALGORITHMS:
        raise AimcError(f"no algorithm is called {name!r}; {suggest(name, ALGORITHMS)}", field="algorithm")
    algorithm = TUNED.get(name) or ALGORITHMS[name]()
    if tiles is None:
        return algorithm
    if "tiles" not in algorithm.field_names():
        raise AimcError(
            f"{name} has a fixed number of tiles, {algorithm.tile_count}; leave tiles out", field="tiles"
        )
    return algorithm.replace(tiles=tiles)


def named_hardware(device: str, algorithm: Algorithm, io: str, states: float | None = None) -> PulsedHardware:
    """A device preset with an algorithm on it.

    Args:
        device: a key of :data:`aimc.presets.PULSED_PRESETS`.
        algorithm: how it is trained.
        io: ``perfect`` or ``noisy``.
        states: nominal number of states, of ``reram`` alone; None takes its default.

    Example:
        >>> named_hardware("reram", named_algorithm("sgd"), "perfect", states=10).cell.dw_min
        0.2
    """
    known = presets.PULSED_PRESETS
    if device not in known:
        raise AimcError(f"no device is called {device!r}; {suggest(device, known)}", field="device")
    if device != "reram" and states is not None:
        raise AimcError(f"{device} has the states it was measured with; leave states out", field="states")
    if states is not None and not states > 0:
        raise AimcError(f"must be positive, got {states:g}", field="states")
    settings = {} if states is None else {"states": states}
    hardware = known[device](algorithm=algorithm, io=io, **settings)
    names = {kind: name for name, kind in ALGORITHMS.items()}
    factor = FACTORS.get(names.get(type(algorithm), ""))
    return hardware if factor is None else hardware.replace(**{"mapping.factor": factor})


def lenet_mnist_insitu(
    algorithm: str = "residual",
    states: float | None = None,
    tiles: int | None = None,
    io: str = "perfect",
    device: str = "reram",
    dataset: str = "mnist",
) -> InSituExperiment:
    """LeNet-5 trained in cells of few states, and digitally beside it.

    All convolutions and linear layers are in cells, biases are digital, the pixels run from 0 to 1, and the weights
    start as torch draws them: the setting of Z. Li et al., arXiv:2510.02516.

    Expected: with 6 tiles and 4 epochs, means of 3 seeds: 98.9 % on MNIST with 10 states (digital 99.1 %), 87.5 % on
    Fashion-MNIST with 4 states (digital 89.9 %). The full length, 20 epochs, was not run.

    Machine: two cores of a 2020s server, no GPU.

    Time: these runs 6 to 9 minutes each on two cores that other work shared; 20 epochs five times that.

    Args:
        algorithm: sgd, ttv1, ttv2, ttv3, ttv4, mp or residual.
        states: nominal number of states of a reram cell (default 4).
        tiles: arrays of cells, of the algorithms that leave it open.
        io: perfect or noisy, the converters and noise of every read.
        device: preset of the cells.
        dataset: mnist, fashion_mnist or mnist_small.
    """
    return InSituExperiment(
        dataset=Dataset(name=dataset, pixels="unit"),
        network=LeNet5(activation="tanh"),
        hardware=named_hardware(device, named_algorithm(algorithm, tiles), io, states),
        epochs=20,
        batch_size=16,
        lr=RATES[algorithm],
        schedule=Schedule(kind="cosine"),
        baseline_lr=0.1,
        threads=1,
    )
