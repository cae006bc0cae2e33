"""LeNet-5 trained in memory."""

from aimc.recipes.in_memory import InSituExperiment
from aimc.recipes.named import RATES, named_algorithm, named_hardware
from aimc.recipes.networks import LeNet5
from aimc.recipes.parts import Dataset
from aimc.train import Schedule


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

    Expected: with 6 tiles and 4 epochs, means of 3 seeds: 98.9 % on MNIST with 10 states (digital 99.1 %), 88.0 % on
    Fashion-MNIST with 4 states (digital 89.9 %). 20 epochs of 20,000 images, with the settings in the README: 99.0 %
    and 88.9 % (digital 99.0 and 89.5 %). The full length, 20 epochs of all images, was run with one seed.

    Machine: two cores of a 2020s server, no GPU.

    Time: 4 to 8 minutes each on two cores that other work shared; 20 epochs of all images half an hour.

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
