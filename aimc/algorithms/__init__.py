"""In-memory training: weights that live in cells and change only by pulses. One file an algorithm.

To add one, copy the nearest sibling, list it here, in ``tests/algorithms/helpers.py`` and in ``docs/algorithms``.
"""

from aimc.algorithms.base import Algorithm, Array, State, Transfers
from aimc.algorithms.mixed_precision import MixedPrecision
from aimc.algorithms.pairs import Pair, Paired
from aimc.algorithms.plateau import FirstThen, LossRise, PlateauRule, SlopeTest, SlowProgress
from aimc.algorithms.residual import Residual, WarmStart
from aimc.algorithms.sgd import AnalogSGD
from aimc.algorithms.tiki_taka_v1 import TikiTakaV1
from aimc.algorithms.tiki_taka_v2 import TikiTakaV2
from aimc.algorithms.tiki_taka_v3 import TikiTakaV3
from aimc.algorithms.tiki_taka_v4 import TikiTakaV4
from aimc.algorithms.transferring import Transferring

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "AnalogSGD",
    "Array",
    "FirstThen",
    "LossRise",
    "MixedPrecision",
    "Pair",
    "Paired",
    "PlateauRule",
    "Residual",
    "SlopeTest",
    "SlowProgress",
    "State",
    "TikiTakaV1",
    "TikiTakaV2",
    "TikiTakaV3",
    "TikiTakaV4",
    "Transferring",
    "Transfers",
    "WarmStart",
]

ALGORITHMS: dict[str, type[Algorithm]] = {
    "sgd": AnalogSGD,
    "ttv1": TikiTakaV1,
    "ttv2": TikiTakaV2,
    "ttv3": TikiTakaV3,
    "ttv4": TikiTakaV4,
    "mp": MixedPrecision,
    "residual": Residual,
}
"""The algorithms by the name that recipes use."""
