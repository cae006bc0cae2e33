"""LeNet-5 on MNIST."""

from aimc import presets
from aimc.recipes.experiment import Dataset, Evaluation, HwaExperiment
from aimc.recipes.networks import LeNet5
from aimc.train import Optimizer, Stage


def lenet_mnist_hwa() -> HwaExperiment:
    """LeNet-5 on the whole of MNIST, hardware-aware, on 25 chips over a year.

    Expected: not measured yet.

    Machine: meant for two cores, no GPU.

    Time: not measured yet; well under an hour by the speed of single steps.
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
