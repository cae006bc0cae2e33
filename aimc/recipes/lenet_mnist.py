"""LeNet-5 on MNIST."""

from aimc import presets
from aimc.recipes.experiment import Dataset, Evaluation, HwaExperiment
from aimc.recipes.networks import LeNet5
from aimc.train import Optimizer, Stage


def lenet_mnist_hwa() -> HwaExperiment:
    """LeNet-5 on the whole of MNIST, hardware-aware, on 25 chips over a year.

    Expected: to be measured.

    Machine: two cores of a server, no GPU.

    Time: to be measured.
    """
    return HwaExperiment(
        dataset=Dataset(name="mnist"),
        network=LeNet5(),
        teacher=Stage(epochs=10, batch_size=128, optimizer=Optimizer(lr=0.05)),
        student=Stage(epochs=10, batch_size=128, optimizer=Optimizer(lr=0.02), noise_ramp=1),
        hardware=presets.pcm(),
        evaluation=Evaluation(times=("1s", "1h", "1d", "1y"), chips=25),
    )
