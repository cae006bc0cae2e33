"""One way in for every kind of experiment."""

from __future__ import annotations

import os
from typing import Any, Literal

from aimc import processes
from aimc.arguments import checked
from aimc.chip import Compensation, DriftResult
from aimc.config import Config
from aimc.errors import AimcError
from aimc.files import read_config, writable
from aimc.recipes.hwa import HwaExperiment, evaluate_hwa, run_hwa
from aimc.recipes.in_memory import InSituExperiment, evaluate_in_situ, run_in_situ
from aimc.train import Progress


@checked
def run_experiment(
    config: Config,
    output: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    tensorboard: bool = True,
    keep: int = 2,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run an experiment, or what is left of it, and write everything it found into its directory.

    Finished parts are taken from the directory; an interrupted training goes on after its last epoch.

    Args:
        config: what to run, a :class:`HwaExperiment` or an :class:`InSituExperiment`.
        output: run directory.
        data: folder of the data sets.
        tensorboard: write scalars for TensorBoard.
        keep: checkpoints kept of a training under way.
        progress: where lines and bars go.

    Returns:
        The content of ``results.json``.

    Raises:
        AimcError: the directory holds another run, the data is missing, there are several processes of
            ``torch.distributed``, or anything the parts raise.

    Example:
        >>> from aimc.recipes import RECIPES
        >>> config = RECIPES["demo"].config()
        >>> results = run_experiment(config, "runs/demo")                      # doctest: +SKIP
        >>> results["evaluations"]["hardware-aware, compensated"]["statistics"]["mean"]   # doctest: +SKIP
    """
    processes.refuse_several("run_experiment")
    output = writable(output)  # refused before the data are read
    options: dict[str, Any] = {"data": data, "tensorboard": tensorboard, "keep": keep, "progress": progress}
    if isinstance(config, HwaExperiment):
        return run_hwa(config, output, **options)
    if isinstance(config, InSituExperiment):
        return run_in_situ(config, output, **options)
    raise AimcError(f"is no experiment, but a {type(config).__name__}", field="config")


@checked
def evaluate_run(
    path: str | os.PathLike[str],
    *,
    onto: str | None = None,
    times: tuple[str | float, ...] | None = None,
    chips: int | None = None,
    seed: int | None = None,
    compensation: Compensation | None | Literal["configured"] = "configured",
    data: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> list[DriftResult]:
    """Evaluate the networks of a finished run again, at other times or on other chips, and add it to its records.

    Args:
        path: run directory.
        onto: for a run of in-memory training, preset of the chips that its weights are taken onto.
        times, chips, seed: None takes what the run's configuration says.
        compensation: an estimator; None for no compensation only; by default the configured one and none.
        data: folder of the data sets.
        progress: where lines and bars go.

    Raises:
        AimcError: no run, a run of another kind, or one that has not finished its training.
    """
    config = read_config(path)
    options: dict[str, Any] = {
        "times": times, "chips": chips, "seed": seed, "compensation": compensation, "data": data,
        "progress": progress,
    }  # fmt: skip
    if isinstance(config, InSituExperiment):
        return evaluate_in_situ(path, onto=onto, **options)
    if not isinstance(config, HwaExperiment):
        raise AimcError(
            f"{path} holds a {type(config).__name__}, which has no chips to evaluate", field="run"
        )
    if onto is not None:
        raise AimcError(f"{path} was trained for chips of its own; leave it out", field="onto")
    return evaluate_hwa(path, **options)
