"""The pulsed cells that every test of a kind runs over."""

from __future__ import annotations

from aimc.cells import (
    PULSED_CELLS,
    ConstantStep,
    ExpStep,
    Ladder,
    LinearStep,
    PiecewiseStep,
    PowStep,
    PowStepReference,
    PulsedCell,
    SoftBounds,
    SoftBoundsReference,
)

RANGE = {"w_max": 1.0, "w_min": -1.0}
ALIKE = {**RANGE, "dw_min_dtod": 0.0, "up_down_dtod": 0.0, "w_max_dtod": 0.0, "w_min_dtod": 0.0}
"""No spread from device to device (of the base's fields)."""
NO_SLOPES = {**ALIKE, "gamma_up_dtod": 0.0, "gamma_down_dtod": 0.0}
NO_POWERS = {**ALIKE, "pow_gamma_dtod": 0.0}

STEPS = {"dw_min": 0.1, "dw_min_std": 0.5}
PULSED: dict[str, PulsedCell] = {
    "constant": ConstantStep(**STEPS, up_down_dtod=0.2),
    "linear": LinearStep(**STEPS, gamma_up=0.6, gamma_down=0.3, up_down=0.1),
    "linear_additive": LinearStep(
        **STEPS, gamma_up=0.1, gamma_down=0.1, gamma_up_dtod=0.3, gamma_down_dtod=0.3, mult_noise=False,
        mean_bound_reference=False, allow_increasing=True,
    ),
    "soft": SoftBounds(**STEPS, up_down=-0.2, up_down_dtod=0.2),
    "soft_additive": SoftBounds(**STEPS, mult_noise=False, dw_min_dtod_log_normal=True),
    "reference": SoftBoundsReference(**STEPS, subtract_symmetry_point=True, reference_std=0.05, up_down_dtod=0.2,
                                     slope_up_dtod=0.1, slope_down_dtod=0.2),
    "reference_mult": SoftBoundsReference(**STEPS, mult_noise=True, reference_mean=0.1),
    "exp": ExpStep(**STEPS, up_down_dtod=0.1),
    "exp_noise": ExpStep(**STEPS, A_up=0.1, A_down=0.05, gamma_up=2.0, gamma_down=3.0, a=1.0, b=0.1,
                         dw_min_std_add=0.1, dw_min_std_slope=0.2),
    "pow": PowStep(**STEPS, pow_gamma=1.7, pow_up_down=0.3, pow_up_down_dtod=0.1),
    "pow_reference": PowStepReference(**STEPS, pow_gamma=0.6, subtract_symmetry_point=True, reference_std=0.05),
    "piecewise": PiecewiseStep(**STEPS, piecewise_up=(2.0, 1.5, 0.8, 0.1), piecewise_down=(0.0, 0.4, 1.0, 1.7)),
    "piecewise_one": PiecewiseStep(**STEPS),
    "ladder": Ladder(levels=4, up_down_dtod=0.2),
    "ladder_uneven": Ladder(levels=(0.0, 0.1, 0.5, 0.8, 1.0), switch_up=(0.9, 0.7, 0.5, 0.3),
                            switch_down=(0.2, 0.4, 0.6, 0.8)),
    **{name: make() for name, make in PULSED_CELLS.items() if name.islower()},
}  # fmt: skip
"""Every kind and branch of a response, and every preset."""
