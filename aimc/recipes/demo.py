"""A minute or two on embedded data."""

from aimc import presets
from aimc.recipes.chips import Evaluation
from aimc.recipes.hwa import HwaExperiment
from aimc.recipes.networks import LeNet5
from aimc.recipes.parts import Dataset
from aimc.train import Optimizer, Stage


def demo() -> HwaExperiment:
    """LeNet-5 on 4500 embedded digits: trained, programmed onto 25 chips, aged by a year.

    The standard phase-change-memory model; evaluated on 400 of the embedded test images, to stay within a minute or so.

    Expected: test accuracy 99.25 % digital; after a year on the chip 98.72 % with and 86.0 % without compensation,
    hardware-aware 99.0 % and 92.2 % (spread between chips 0.3 to 2.0 points). On a processor with AVX2 only, where
    torch adds in another order, 98.75 % digital.

    Machine: two cores of a 2020s server, no GPU.

    Time: one to one and a half minutes, and up to a minute more the first time, while the kernels are compiled.
    """
    return HwaExperiment(
        dataset=Dataset(name="mnist_small", test_images=400),
        network=LeNet5(),
        teacher=Stage(epochs=8, batch_size=64, optimizer=Optimizer(lr=0.05)),
        student=Stage(epochs=5, batch_size=64, optimizer=Optimizer(lr=0.02), noise_ramp=1),
        hardware=presets.pcm(),
        evaluation=Evaluation(times=("1s", "1h", "1d", "1y"), chips=25),
        threads=1,
    )
