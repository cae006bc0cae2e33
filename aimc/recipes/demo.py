"""A minute on embedded data."""

from aimc import presets
from aimc.recipes.experiment import Calibration, Dataset, Evaluation, HwaExperiment
from aimc.recipes.networks import MLP
from aimc.train import Optimizer, Stage


def demo() -> HwaExperiment:
    """A small network on 4500 embedded digits: trained, programmed onto 25 chips, aged by a year.

    Four layers of 64 units, the standard phase-change-memory model.

    Expected: to be measured.

    Machine: two cores of a server, no GPU.

    Time: to be measured.
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
