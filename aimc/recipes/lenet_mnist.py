"""LeNet-5 on MNIST."""

from aimc import presets
from aimc.recipes.chips import Evaluation
from aimc.recipes.hwa import HwaExperiment
from aimc.recipes.networks import LeNet5
from aimc.recipes.parts import Dataset
from aimc.train import Optimizer, Stage


def lenet_mnist_hwa() -> HwaExperiment:
    """LeNet-5 on the whole of MNIST, hardware-aware, on 25 chips over a year.

    Expected: test accuracy 99.19 % digital; after a year on the chip 98.93 % with and 71.01 % without drift
    compensation, hardware-aware 99.13 % and 92.66 % (spread between chips 0.05 to 1.2 points).

    Machine: two cores of a 2020s server, no GPU.

    Time: 87 minutes on one core beside other work, most of it chips; they use all cores that they may.
    """
    return HwaExperiment(
        dataset=Dataset(name="mnist"),
        network=LeNet5(),
        teacher=Stage(epochs=8, batch_size=128, optimizer=Optimizer(lr=0.05)),
        student=Stage(epochs=6, batch_size=128, optimizer=Optimizer(lr=0.02), noise_ramp=1),
        hardware=presets.pcm(),
        evaluation=Evaluation(times=("1s", "1h", "1d", "1y"), chips=25),
        threads=1,
    )
