"""Pulsed cells with constants measured on real devices.

The constants are those of the presets of IBM's simulator (M. J. Rasch et al., arXiv:2104.02184, and its public source);
each function names the measurement behind its own. Keyword arguments replace fields of the cell.

Example:
    >>> round(reram_om().states), round(reram_hfo2().states, 1), reram_om(w_max=1.2).w_max
    (21, 4.3, 1.2)
"""

from __future__ import annotations

from typing import Any

from aimc.cells.constant_step import ConstantStep
from aimc.cells.exp_step import ExpStep
from aimc.cells.linear_step import LinearStep
from aimc.cells.soft_bounds import SoftBounds
from aimc.cells.soft_bounds_reference import SoftBoundsReference


def reram_om(**fields: Any) -> SoftBoundsReference:
    """Array of resistive memory, optimized material: 21 states. N. Gong et al., IEDM 2022.

    The symmetry point is subtracted with an error of 5 % of the range. The 13.48 % of stuck devices that were measured
    are off; ``corrupt_probability=0.1348`` brings them back.
    """
    constants = dict(
        dw_min=0.0949, dw_min_dtod=0.7829, dw_min_dtod_log_normal=True, dw_min_std=0.4158, up_down_dtod=0.01,
        w_max=1.0, w_min=-1.0, w_max_dtod=0.3499, w_min_dtod=0.5695, write_noise_std=1.4113,
        corrupt_range=0.01, subtract_symmetry_point=True, reference_std=0.05,
    )  # fmt: skip
    return SoftBoundsReference(**{**constants, **fields})


def reram_hfo2(**fields: Any) -> SoftBoundsReference:
    """Array of resistive memory, baseline HfO2: 4.3 states. N. Gong et al., IEDM 2022.

    As :func:`reram_om`; the measured share of stuck devices was 9.77 %.
    """
    constants = dict(
        dw_min=0.4622, dw_min_dtod=0.7125, dw_min_dtod_log_normal=True, dw_min_std=0.2174, up_down_dtod=0.01,
        w_max=1.0, w_min=-1.0, w_max_dtod=0.4295, w_min_dtod=0.5990, write_noise_std=0.5841,
        corrupt_range=0.01, subtract_symmetry_point=True, reference_std=0.05,
    )  # fmt: skip
    return SoftBoundsReference(**{**constants, **fields})


def reram_es(**fields: Any) -> ExpStep:
    """Resistive memory, exponential step. N. Gong et al., Nat. Commun. 9, 2102 (2018)."""
    constants = dict(
        dw_min=0.00135, up_down=0.259359, w_max=1.0, w_min=-1.0, a=-0.5, b=-0.5, gamma_up=5.0, gamma_down=5.0,
        A_up=-1.18445, A_down=-0.081404, dw_min_dtod=0.2, up_down_dtod=0.05, w_max_dtod=0.3, w_min_dtod=0.3,
        dw_min_std=5.0, write_noise_std=75.0,
    )  # fmt: skip
    return ExpStep(**{**constants, **fields})


def reram_sb(**fields: Any) -> SoftBounds:
    """Resistive memory, a loose fit of soft bounds, symmetric at 0. N. Gong et al., as :func:`reram_es`."""
    constants = dict(
        dw_min=0.002, w_max=1.25, w_min=-0.75, mult_noise=False, dw_min_dtod=0.3, up_down_dtod=0.01,
        w_max_dtod=0.3 / 1.25, w_min_dtod=0.3 / 0.75, dw_min_std=3.75, write_noise_std=56.0,
    )  # fmt: skip
    return SoftBounds(**{**constants, **fields})


def capacitor(**fields: Any) -> LinearStep:
    """Capacitor with leakage. Y. Li et al., VLSI 2018.

    ``lifetime`` counts mini-batches and has to be set to the time that one takes.
    """
    constants = dict(
        dw_min=0.005, w_max=1.0, w_min=-1.0, mult_noise=False, gamma_up=0.05, gamma_down=0.05, dw_min_dtod=0.1,
        up_down_dtod=0.06, w_max_dtod=0.07, w_min_dtod=0.07, gamma_up_dtod=0.01, gamma_down_dtod=0.01,
        dw_min_std=0.3, lifetime=1e6, lifetime_dtod=0.3 if fields.get("lifetime") != 0 else 0.0,
    )  # fmt: skip
    return LinearStep(**{**constants, **fields})


def ecram(**fields: Any) -> LinearStep:
    """Electrochemical memory with lithium, the symmetry point at 0. J. Tang et al., IEDM 2018."""
    constants = dict(
        dw_min=0.002, w_max=1.1724, w_min=-0.8276, gamma_up=0.1153, gamma_down=0.5085, dw_min_dtod=0.1,
        up_down_dtod=0.01, w_max_dtod=0.05, w_min_dtod=0.05, gamma_up_dtod=0.05, gamma_down_dtod=0.05, dw_min_std=0.3,
    )  # fmt: skip
    return LinearStep(**{**constants, **fields})


def ecram_mo(**fields: Any) -> LinearStep:
    """Electrochemical memory of a metal oxide. S. Kim et al., IEDM 2019."""
    constants = dict(
        dw_min=2.8214e-4, w_max=1.1714, w_min=-0.8286, gamma_up=0.4152, gamma_down=0.7342, dw_min_dtod=0.1,
        up_down_dtod=0.01, w_max_dtod=0.05, w_min_dtod=0.05, gamma_up_dtod=0.05, gamma_down_dtod=0.05, dw_min_std=2.0,
    )  # fmt: skip
    return LinearStep(**{**constants, **fields})


def pcm_pulsed(**fields: Any) -> ExpStep:
    """Phase-change memory, Ge2Sb2Te5, pulsed upwards. S. R. Nandakumar et al., Front. Neurosci. 14, 406 (2020).

    Only up pulses are meant to be used, on pairs of cells that are reset now and then
    (:class:`aimc.algorithms.Pair`, :func:`aimc.presets.pcm_pulsed`); the range begins at 0.
    """
    constants = dict(
        dw_min=0.01, w_max=2.0, w_min=0.0, a=-1.0, b=0.0, gamma_up=2.5, gamma_down=2.5, A_up=-27.235, A_down=-2.235,
        dw_min_dtod=0.2, up_down_dtod=0.05, w_max_dtod=0.1, w_min_dtod=0.0, dw_min_std=0.6, dw_min_std_add=0.042,
        dw_min_std_slope=0.108, rest=0.01, rest_dtod=0.02,
    )  # fmt: skip
    return ExpStep(**{**constants, **fields})


def idealized(**fields: Any) -> ConstantStep:
    """No device: 10 000 states and no asymmetry. M. J. Rasch et al., IEEE Design & Test 2019, arXiv:1906.02698."""
    constants = dict(dw_min=0.0002, up_down_dtod=0.0, w_max=1.0, w_min=-1.0)
    return ConstantStep(**{**constants, **fields})


def gokmen_vlasov(**fields: Any) -> ConstantStep:
    """The specification of T. Gokmen and Y. Vlasov, Front. Neurosci. 10, 333 (2016), scaled to -1 .. 1: 1250 states."""
    constants = dict(dw_min=0.0016, w_max=1.0, w_min=-1.0)
    return ConstantStep(**{**constants, **fields})
