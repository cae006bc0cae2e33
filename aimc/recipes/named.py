"""Algorithms and devices by name, as the recipes of in-memory training set them."""

from aimc import presets
from aimc.algorithms import ALGORITHMS, Algorithm, TikiTakaV1, TikiTakaV2, TikiTakaV3, TikiTakaV4
from aimc.errors import AimcError, suggest
from aimc.hardware import PulsedHardware

RATES = {"sgd": 0.05, "ttv1": 0.05, "ttv2": 0.05, "ttv3": 0.05, "ttv4": 0.05, "mp": 0.2, "residual": 0.1}
"""Learning rate of each algorithm."""

FACTORS = {"ttv2": 3.0, "ttv3": 3.0, "ttv4": 3.0, "mp": 3.0}
"""Factor of the digital scale (``mapping.factor``) where it is not the default."""

TUNED: dict[str, Algorithm] = {
    "ttv1": TikiTakaV1(columns=16, fast_lr=0.5, transfer_lr=0.02),
    "ttv2": TikiTakaV2(columns=16, fast_lr=0.5, transfer_lr=1.0),
    "ttv3": TikiTakaV3(columns=16, fast_lr=0.1, transfer_lr=1.0),
    "ttv4": TikiTakaV4(columns=16, fast_lr=0.3, transfer_lr=1.0),
}
"""Settings other than an algorithm's defaults: the best of 22 each (of 9 for ttv3 and ttv4) on Fashion-MNIST with 4
states, one epoch of 20,000 images, by the accuracy on 10,000 images held back from the training set
(``docs/algorithms/tiki_taka_v2.md``)."""


def named_algorithm(name: str, tiles: int | None = None) -> Algorithm:
    """An algorithm as the recipes set it: with its defaults, or as it was tuned.

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
