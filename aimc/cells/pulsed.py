"""The contract of a cell that learns by pulses: parameters of devices drawn from a key, and the response to a pulse."""

from __future__ import annotations

import abc
import math
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import Self

from aimc.config import LARGEST, Config
from aimc.errors import AimcError
from aimc.random import Key, normal, uniform

UP, DOWN, BMAX, BMIN = range(4)
"""The first four columns of every parameter tensor: step up, step down, upper and lower bound."""

_MOST, _LEAST = 1e6, 1e-12
"""Largest number in a field, smallest step: what is made of them are numbers in float32, too."""


def check_states(states: float) -> None:
    """Refuse a number of states that is none."""
    if not states > 0:
        raise AimcError(f"must be positive, got {states}", field="states")
    if math.isinf(states):
        raise AimcError("must be finite, got inf", field="states")


class PulsedCell(Config):
    """Base of the cells that are changed by pulses. Weights are dimensionless, in the unit of ``w_max``.

    The parameters of devices ``[R, C]`` are one tensor ``[R, C, P]`` with the columns of :attr:`PARAMETERS`; where no
    field spreads from device to device it is ``[1, 1, P]``. The names are those of IBM's simulator, the source of the
    formulas (M. J. Rasch et al., AICAS 2021, arXiv:2104.02184).

    Fields:
        dw_min: mean step at weight 0.
        dw_min_dtod: its relative spread from device to device.
        dw_min_dtod_log_normal: whether that spread is log-normal.
        dw_min_std: noise of each pulse, relative to its step.
        w_max, w_min: mean bounds.
        w_max_dtod, w_min_dtod: their relative spread.
        up_down: mean difference of up and down steps, relative to dw_min.
        up_down_dtod: its spread.
        write_noise_std: what is read differs from what is held by this much times dw_min, drawn anew at every pulse.
        corrupt_probability: share of devices that are stuck for good, at a value uniform over plus and minus
            ``corrupt_range``, as far as that is within their bounds.
        lifetime: decay towards ``rest`` by 1/lifetime per mini-batch; 0 is none. ``lifetime_dtod`` its spread.
        rest: the value that a device decays and resets to, with spread ``rest_dtod`` (absolute).
        diffusion: random walk per mini-batch, standard deviation; ``diffusion_dtod`` its relative spread.
        reset_std: noise of a reset.
    """

    dw_min: float = 0.001
    dw_min_dtod: float = 0.3
    dw_min_dtod_log_normal: bool = False
    dw_min_std: float = 0.3
    w_max: float = 0.6
    w_min: float = -0.6
    w_max_dtod: float = 0.3
    w_min_dtod: float = 0.3
    up_down: float = 0.0
    up_down_dtod: float = 0.01
    write_noise_std: float = 0.0
    corrupt_probability: float = 0.0
    corrupt_range: float = 0.1
    lifetime: float = 0.0
    lifetime_dtod: float = 0.0
    rest: float = 0.0
    rest_dtod: float = 0.0
    diffusion: float = 0.0
    diffusion_dtod: float = 0.0
    reset_std: float = 0.01

    KIND: ClassVar[int | tuple[int, ...]]
    """Number of the response in the compiled kernel; as a tuple where the kernel is not that of the common cells, see
    ``ops/pulsed_update/response.py``. Cells that are made elsewhere need none, and run on the plain body."""
    PARAMETERS: ClassVar[tuple[str, ...]] = ("up", "down", "bmax", "bmin")
    NOMINAL: ClassVar[float] = 0.0
    """Noise with which a pulse makes the step that an algorithm reckons with."""

    def validate(self):
        for name in self.field_names():
            value, most = getattr(self, name), LARGEST if name.startswith("lifetime") else _MOST
            numbers = value if isinstance(value, tuple) else (value,)
            worst = max((x for x in numbers if isinstance(x, (int, float))), key=abs, default=0.0)
            self.require(abs(worst) <= most, name, f"must be within ±{most:g}, got {worst}")
        self.require(self.dw_min > 0, "dw_min", f"must be positive, got {self.dw_min}")
        self.require(self.dw_min >= _LEAST, "dw_min", f"must be at least {_LEAST:g}, got {self.dw_min}")
        if self.dw_min_dtod_log_normal:
            most = 10.0  # exp of six times it is a number in float32
            self.require(self.dw_min_dtod <= most, "dw_min_dtod", f"is log-normal: must be at most {most:g}")
        self.require(self.w_max > self.w_min, "w_max", "must exceed w_min")
        for name in ("w_max", "w_min"):  # weights are divided by them
            value = getattr(self, name)
            self.require(
                value == 0 or abs(value) >= _LEAST,
                name,
                f"must be 0 or at least {_LEAST:g} in size, got {value}",
            )
        for name in self.field_names():
            if name.endswith(("_dtod", "_std", "lifetime", "diffusion")):
                self.require(
                    getattr(self, name) >= 0, name, f"must not be negative, got {getattr(self, name)}"
                )
        self.require(0 <= self.corrupt_probability <= 1, "corrupt_probability", "is a probability")
        self.require(
            self.corrupt_range >= 0, "corrupt_range", f"must not be negative, got {self.corrupt_range}"
        )
        self.require(
            self.lifetime == 0 or self.lifetime > 1, "lifetime", "is 0 (no decay) or more than 1 mini-batch"
        )
        for name in ("lifetime", "diffusion"):
            if getattr(self, name) == 0:
                self.unused(f"without {name}", f"{name}_dtod")

    # Construction --------------------------------------------------------------------------------------------------

    @classmethod
    def with_states(cls, states: float, **fields) -> Self:
        """The cell whose nominal number of states ``(w_max - w_min) / granularity`` is ``states``, which sets its step.

        Example:
            >>> from aimc.cells import SoftBounds
            >>> SoftBounds.with_states(4, w_max=1.0, w_min=-1.0).dw_min
            0.5
        """
        check_states(states)
        if "dw_min" in fields:
            raise AimcError("follows from states; give one of the two", field="dw_min")
        cell = cls(**fields)
        return cell.replace(dw_min=cell.dw_min * cell.states / states)

    @property
    def granularity(self) -> float:
        """Mean nominal step, from which pulse trains are scaled."""
        return self.dw_min

    @property
    def states(self) -> float:
        """Nominal number of states, ``(w_max - w_min) / granularity``."""
        return (self.w_max - self.w_min) / self.granularity

    @property
    def spreads(self) -> bool:
        """Whether devices differ at all in how they respond to a pulse."""
        spread = (
            n
            for n in self.field_names()
            if n.endswith("_dtod") and n not in _RETENTION or n == "reference_std"
        )
        return self.corrupt_probability > 0 or any(getattr(self, n) > 0 for n in spread)

    @property
    def noisy(self) -> bool:
        """Whether a pulse needs random numbers."""
        return self.dw_min_std > 0 or self.write_noise_std > 0

    def draw(self, shape: tuple[int, int], key: Key, device: torch.device | None = None) -> Tensor:
        """Parameters of devices ``[R, C]``: float32 ``[R, C, P]``, or ``[1, 1, P]`` where devices do not differ."""
        if not self.spreads:
            shape = (1, 1)
        return torch.stack(self._columns(shape, key, device), -1).contiguous()

    def _columns(self, shape: tuple[int, int], key: Key, device: torch.device | None) -> list[Tensor]:
        """The parameter columns; subclasses append theirs. Draws 0 to 5 are taken here, see :func:`xi`."""
        bmax = self.w_max * (1 + self.w_max_dtod * xi(0, shape, key, device))
        bmin = self.w_min * (1 + self.w_min_dtod * xi(1, shape, key, device))
        gain = self.dw_min_dtod * xi(2, shape, key, device)
        gain = torch.exp(gain) if self.dw_min_dtod_log_normal else 1 + gain
        r = self.up_down_dtod * xi(3, shape, key, device)
        up_bias, down_bias = biases(self.up_down)
        up = (self.dw_min * (up_bias + gain + r)).abs()
        down = (self.dw_min * (down_bias + gain - r)).abs()
        low, high = torch.minimum(bmin, bmax), torch.maximum(bmin, bmax)
        bmax, bmin = high.abs(), -low.abs()
        if self.corrupt_probability > 0:
            stuck = uniform(key.at("device", step=4), shape, device=device) < self.corrupt_probability
            low, high = bmin.clamp_min(-self.corrupt_range), bmax.clamp_max(self.corrupt_range)
            at = low + (high - low) * uniform(key.at("device", step=5), shape, device=device)
            up, down = up.masked_fill(stuck, 0.0), down.masked_fill(stuck, 0.0)
            bmax, bmin = torch.where(stuck, at, bmax), torch.where(stuck, at, bmin)
        return [up, down, bmax, bmin]

    # Response ------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def change(self, w: Tensor, parameters: Tensor, up: Tensor, noise: Tensor) -> Tensor:
        """Size of one step in the direction of the pulse, before clipping; arguments as in :meth:`step`."""

    def step(self, w: Tensor, parameters: Tensor, up: Tensor, noise: Tensor) -> Tensor:
        """The weight after one pulse, clipped to the device's bounds.

        Args:
            w: weights, any shape.
            parameters: ``[..., P]``, broadcast against ``w``.
            up: True where the pulse increases the weight.
            noise: one standard normal per device.
        """
        change = self.change(w, parameters, up, noise)
        moved = torch.where(up, w + change, w - change)
        return torch.minimum(torch.maximum(moved, parameters[..., BMIN]), parameters[..., BMAX])

    def mean_change(self, w: Tensor, parameters: Tensor, up: Tensor) -> Tensor:
        """Mean size of a step over the noise of the pulse, before clipping; arguments as in :meth:`step`."""
        return self.change(w, parameters, up, torch.zeros_like(w))

    def constants(self) -> Tensor:
        """Numbers of the whole array that the compiled response needs, float32; the first is ``dw_min_std``."""
        return torch.tensor([self.dw_min_std], dtype=torch.float32, device="cpu")

    def snap(self, w: Tensor, parameters: Tensor) -> Tensor:
        """The values nearest to ``w`` that the devices can hold; here within their bounds."""
        return torch.minimum(torch.maximum(w, parameters[..., BMIN]), parameters[..., BMAX])

    def shown(self, held: Tensor, key: Key) -> Tensor:
        """What is read from all devices at once: what they hold ``[..., R, C]`` and new write noise."""
        return held + self.write_noise_std * self.dw_min * normal(key, tuple(held.shape), device=held.device)

    def symmetry_point(self, parameters: Tensor) -> Tensor:
        """The weight at which an up and a down pulse are equal on average, NaN where there is none.

        Bisection of ``mean_change`` up minus down between the device's bounds, unless a cell has a closed form.
        """
        p = parameters.double()
        low, high = p[..., BMIN].clone(), p[..., BMAX].clone()

        def excess(w: Tensor) -> Tensor:
            up = torch.ones_like(w, dtype=torch.bool)
            return self.mean_change(w, p, up) - self.mean_change(w, p, ~up)

        side, far = excess(low).sign(), excess(high).sign()
        found = (side * far <= 0) & (low < high)
        for _ in range(60):
            middle = (low + high) / 2
            before = excess(middle).sign() == side
            low, high = torch.where(before, middle, low), torch.where(before, high, middle)
        return torch.where(found, (low + high) / 2, torch.nan).float()

    # What happens to a whole array -----------------------------------------------------------------------------------

    def draw_retention(
        self, shape: tuple[int, int], key: Key, device: torch.device | None = None
    ) -> dict[str, Tensor]:
        """What :meth:`relax` and :meth:`reset` need of each device: ``[R, C]``, or ``[1, 1]`` where all are alike.

        Returns:
            ``decay``: share of the distance to rest that is lost per mini-batch; ``diffusion``: standard deviation of
            the random walk per mini-batch; ``rest``: where a device decays and resets to. What is not configured is
            missing.

        Example:
            >>> from aimc.cells import SoftBounds
            >>> SoftBounds(lifetime=10.0).draw_retention((2, 3), Key(0))["decay"]
            tensor([[0.1000]])
            >>> SoftBounds().draw_retention((2, 3), Key(0))
            {}
        """

        def spread(mean: float, deviation: float, number: int) -> Tensor:
            return mean + deviation * xi(number, shape if deviation > 0 else (1, 1), key, device)

        found = {}
        if self.lifetime > 0:
            lifetime = spread(self.lifetime, self.lifetime * self.lifetime_dtod, 16)
            found["decay"] = (1 / lifetime.abs()).clamp_max(1.0)
        if self.diffusion > 0:
            found["diffusion"] = spread(self.diffusion, self.diffusion * self.diffusion_dtod, 17).abs()
        if self.lifetime > 0 or self.rest_dtod > 0:
            found["rest"] = spread(self.rest, self.rest_dtod, 18)
        return found

    def relax(self, held: Tensor, parameters: Tensor, retention: dict[str, Tensor], key: Key) -> None:
        """One mini-batch of time, in place: decay, then diffusion, then clipping to the bounds.

        ``held`` becomes ``rest + (held - rest)(1 - decay) + diffusion N(0, 1)``.

        Args:
            held: what the cells hold ``[R, C]``.
            parameters: from :meth:`draw`.
            retention: from :meth:`draw_retention`.
            key: its step numbers the mini-batches.
        """
        if "decay" not in retention and "diffusion" not in retention:
            return
        moved = held
        if "decay" in retention:
            rest = retention["rest"]
            moved = (moved - rest) * (1 - retention["decay"]) + rest
        if "diffusion" in retention:
            moved = moved + retention["diffusion"] * normal(
                key.at("decay"), tuple(held.shape), device=held.device
            )
        held.copy_(self._settle(moved, parameters, key))

    def _settle(self, w: Tensor, parameters: Tensor, key: Key) -> Tensor:
        """Where devices end up that were moved to ``w`` by something other than a pulse."""
        return self.snap(w, parameters)

    def reset(
        self, held: Tensor, parameters: Tensor, retention: dict[str, Tensor], mask: Tensor, key: Key
    ) -> None:
        """Reset the devices where ``mask`` is True, in place: to ``rest + reset_std N(0, 1)``, within their bounds.

        Example:
            >>> from aimc.cells import SoftBounds
            >>> cell = SoftBounds(rest=0.1, reset_std=0.0, w_max_dtod=0.0)
            >>> p, held = cell.draw((1, 2), Key(0)), torch.full((1, 2), 0.5)
            >>> cell.reset(held, p, {}, torch.tensor([[True, False]]), Key(1))
            >>> held
            tensor([[0.1000, 0.5000]])
        """
        rest = retention.get("rest", torch.full((1, 1), self.rest, device=held.device, dtype=torch.float32))
        noise = normal(key.fold("reset").at("decay"), tuple(held.shape), device=held.device)
        held.copy_(torch.where(mask, self.snap(rest + self.reset_std * noise, parameters), held))


_RETENTION = ("lifetime_dtod", "rest_dtod", "diffusion_dtod")
"""Spreads that a pulse does not see."""


def xi(number: int, shape: tuple[int, int], key: Key, device: torch.device | None) -> Tensor:
    """Standard normals of the devices; ``number`` says for which field. Numbers are never reused nor renumbered."""
    return normal(key.at("device", step=number), shape, device=device)


def biases(up_down: float) -> tuple[float, float]:
    """What ``up_down`` adds to the up and to the down step: one of the two shrinks, none grows."""
    return (0.0, -up_down) if up_down > 0 else (up_down, 0.0)


def inverse_span(bmax: Tensor, bmin: Tensor) -> Tensor:
    """``1 / (bmax - bmin)``, 0 for a stuck device."""
    span = bmax - bmin
    return torch.where(span > 0, 1 / span, 0.0)


def off_zero(bound: Tensor) -> Tensor:
    """A bound to divide by. Of millions of devices one draws a bound of exactly 0; what moves it overshoots and is
    clipped, as beside a bound that is nearly 0."""
    return torch.where(bound == 0, 1e-12, bound)
