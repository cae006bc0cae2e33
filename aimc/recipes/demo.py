"""A minute on embedded data."""

from aimc import presets
from aimc.recipes.experiment import Calibration, Dataset, Evaluation, HwaExperiment
from aimc.recipes.networks import MLP
from aimc.train import Optimizer, Stage


def demo() -> HwaExperiment:
    """A small network on 4500 embedded digits: trained, programmed onto 25 chips, aged by a year.

    Two hidden layers of 16 units with the standard phase-change-memory model: small enough for a minute, and without
    the spare units that would hide what the cells do. Input ranges are six standard deviations of the inputs; narrower
    ones saturate the first layer's ADC.

    Expected: test accuracy 90.3 % digital; after a year on the chip 83.0 % with and 49.4 % without drift compensation,
    hardware-aware 87.7 % and 66.1 % (spread between chips 0.5 to 2.1 points).

    Machine: two cores of a 2020s server, one of them used, no GPU.

    Time: 36 s.
    """
    return HwaExperiment(
        dataset=Dataset(name="mnist_small"),
        network=MLP(hidden=(16, 16)),
        teacher=Stage(epochs=15, batch_size=64, optimizer=Optimizer(lr=0.05)),
        student=Stage(epochs=20, batch_size=64, optimizer=Optimizer(lr=0.02, clip_norm=5.0), noise_ramp=2),
        hardware=presets.pcm(),
        calibration=Calibration(method="std", stds=6.0),
        evaluation=Evaluation(times=("1s", "1h", "1d", "1y"), chips=25),
        threads=1,
    )
