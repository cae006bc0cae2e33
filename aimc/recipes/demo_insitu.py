"""A minute of training in memory on embedded data."""

from aimc.recipes.in_memory import InSituExperiment
from aimc.recipes.lenet_insitu import lenet_mnist_insitu

DEMO_ALGORITHMS = ("residual", "mp", "ttv2", "sgd")
"""What ``aimc demo insitu`` compares; the longest run first, so that two processes end together."""


def demo_insitu(
    algorithm: str = "residual",
    states: float | None = None,
    tiles: int | None = None,
    io: str = "perfect",
    device: str = "reram",
) -> InSituExperiment:
    """LeNet-5 on 4500 embedded digits, trained in cells of four states.

    ``aimc demo insitu`` runs it with residual learning, mixed precision, Tiki-Taka v2 and analog SGD, and digitally.

    Expected: test accuracy after 4 epochs, one seed, 94.8 % digital, 95.1 % residual (6 tiles), 93.3 % mixed precision,
    63.5 % Tiki-Taka v2, 45.6 % analog SGD.

    Machine: two cores of a 2020s server, no GPU.

    Time: 38 s for all five on two idle cores.

    Args:
        algorithm: sgd, ttv1, ttv2, ttv3, ttv4, mp or residual.
        states: nominal number of states of a reram cell (default 4).
        tiles: arrays of cells, of the algorithms that leave it open.
        io: perfect or noisy, the converters and noise of every read.
        device: preset of the cells.
    """
    config = lenet_mnist_insitu(algorithm, states, tiles, io, device, dataset="mnist_small")
    return config.replace(epochs=4)
