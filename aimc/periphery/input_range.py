"""The input value that drives a row at full voltage."""

from __future__ import annotations

from typing import Literal

from aimc.config import Config

SMALLEST_RANGE = 1e-20
"""Below it, what an ADC step is worth leaves the numbers of single precision."""


class InputRange(Config):
    """How a tile's input range r is found; inputs are clipped to ±r before the DAC.

    Fields:
        mode: ``learned``: starts at ``value``, or at ``init_std`` standard deviations of the first ``init_batches``
            training batches (the largest magnitude where all are alike), and is then trained; ``static``: ``value``,
            or what :func:`aimc.calibrate` measured; ``dynamic``: the largest magnitude of each input vector (each
            image, for a convolution), digital pre-scaling.
        value: a first value; required before an evaluation unless a training or a calibration sets one.
        init_batches: training batches that set a learned range which has no ``value``; a recipe calibrates instead.
        init_std: standard deviations of these batches' inputs that the range begins with.
        decay: shrinks the range by this share per unit learning rate while more than ``keep`` of the inputs fit.
        keep: share of inputs that should fit into the range.
        gradient_scale: multiplies the range's gradient, which is relative to r.
        manage_output_clipping: also widen the range, by the share of outputs that saturate the ADC per unit learning
            rate, while fewer than ``keep`` of them fit: a wider range makes smaller voltages and smaller currents.

    Fields that the mode does not use have to stay at their defaults.

    In single precision a range is at least 1.2e-32, whatever the inputs are: those far below it vanish in its steps.

    The gradient is that of IBM's simulator: only inputs that clip can widen the range, and saturated outputs where they
    are managed; the decay alone shrinks it.

    Of a frozen weight (``requires_grad=False``) the range is frozen, too: a ``value`` or a calibration stays as it is.
    Where there is neither, the first batches in training mode set it all the same, as a norm takes its statistics, and
    it stays from then on.

    Example:
        >>> InputRange(mode="static", value=3.0).value
        3.0
    """

    mode: Literal["learned", "static", "dynamic"] = "learned"
    value: float | None = None
    init_batches: int = 100
    init_std: float = 3.0
    decay: float = 0.001
    keep: float = 0.95
    gradient_scale: float = 1.0
    manage_output_clipping: bool = False

    def validate(self):
        self.require(
            self.value is None or self.value >= SMALLEST_RANGE,
            "value",
            f"must be at least {SMALLEST_RANGE}, got {self.value}",
        )
        self.require(self.init_batches >= 0, "init_batches", "must not be negative")
        self.require(self.init_std > 0, "init_std", "must be positive")
        self.require(self.decay >= 0, "decay", "must not be negative")
        self.require(0 <= self.keep <= 1, "keep", "is a share, between 0 and 1")
        self.require(self.gradient_scale >= 0, "gradient_scale", "must not be negative")
        self.require(
            not (self.mode == "dynamic" and self.value is not None),
            "value",
            "has no meaning with mode 'dynamic'",
        )
        if self.mode != "learned":
            self.unused(
                f"with mode {self.mode!r}", "init_batches", "init_std", "decay", "keep", "gradient_scale",
                "manage_output_clipping",
            )  # fmt: skip
        elif self.value is not None and self.init_batches == 0:
            self.unused("with a value and without init_batches", "init_std")
