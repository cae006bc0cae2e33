"""A crossbar whose wires have resistance: what it conducts from end to end, exactly."""

from __future__ import annotations

import torch
from torch import Tensor

from aimc.config import Config
from aimc.errors import AimcError

_MOST = 1e12
"""Ohm."""


class Wires(Config):
    """Resistances around the devices of a crossbar, in Ohm.

    A row is driven from the side of column 0 and a column is read at the side of row 0. Between two neighbouring
    devices lies one segment of wire; from the first device one more segment and the terminal's own resistance lead out.

    Fields:
        row: one segment of a row's wire.
        column: one segment of a column's wire.
        source: what drives, beyond the wire.
        sense: what reads, beyond the wire; it holds its end at zero volts.

    None is beyond 1e12 Ohm, more than any wire has; the elimination then stays within double precision.

    In a transposed read the columns are driven and the rows are read, so ``source`` then belongs to the columns.

    Example:
        >>> Wires(row=2.0, column=0.5).swapped().column
        2.0
    """

    row: float = 0.35
    column: float = 0.35
    source: float = 0.0
    sense: float = 0.0

    def validate(self):
        for name in self.field_names():
            value = getattr(self, name)
            self.require(value >= 0, name, f"must not be negative, got {value}")
            self.require(value <= _MOST, name, f"must be at most {_MOST:g} Ohm, got {value}")

    def swapped(self) -> Wires:
        """The wires of the transposed array: rows are columns, and what drives still drives."""
        return self.replace(row=self.column, column=self.row)

    def conductance(self, devices: Tensor) -> Tensor:
        """What the crossbar conducts from each row's terminal to each column's, the other terminals at zero volts.

        Exact: the resistor network is eliminated row by row, farthest row first, by two dense solves of the size of a
        row each (64 x 64 devices take 50 ms on one core, 512 x 512 a minute). Gradients pass through.

        Args:
            devices: conductances in uS, ``[..., columns, rows]``, not negative; leading dimensions are arrays.

        Returns:
            Conductances in uS, ``[..., columns, rows]``, double precision.

        Raises:
            AimcError: too few dimensions, or a conductance that is negative or not finite.

        Example:
            >>> one = Wires(row=600.0, column=400.0).conductance(torch.tensor([[25.0]]))
            >>> round(float(one), 4)  # 1/25 uS and 1000 Ohm in series
            24.3902
        """
        if devices.dim() < 2:
            raise AimcError("needs conductances [..., columns, rows]", shape=devices.shape)
        if not bool(((devices >= 0) & (devices < torch.inf)).all()):
            raise AimcError("conductances must be finite and not negative", field="devices")
        g = devices.double() * 1e-6
        columns, rows = g.shape[-2:]
        place = torch.arange(1, columns + 1, device=g.device, dtype=g.dtype)
        # Volts at device j of a row per ampere drawn at device k: the way that the two currents share.
        shared = self.source + self.row * torch.minimum(place[:, None], place)
        one = torch.eye(columns, device=g.device, dtype=g.dtype)
        # Norton's equivalent of all rows beyond, seen from the columns: short-circuit currents per volt, admittance.
        current = g.new_zeros(*g.shape[:-1], 0)
        admittance = g.new_zeros(*g.shape[:-1], columns)
        for i in reversed(range(rows)):
            device = g[..., i]
            # The devices of row i behind their wire, (1/G + shared)^-1 without dividing by a G of zero.
            step = torch.linalg.solve(one + device[..., None] * shared, torch.diag_embed(device))
            admittance = admittance + (step + step.mT) / 2
            current = torch.cat([step.sum(-1, keepdim=True), current], -1)
            # On through the wire to the next row, or out of the array.
            series = self.column if i > 0 else self.column + self.sense
            behind = torch.linalg.solve(one + series * admittance, torch.cat([admittance, current], -1))
            admittance, current = behind[..., :columns], behind[..., columns:]
        return current * 1e6

    def forward(self, devices: Tensor, voltage: Tensor) -> Tensor:
        """Currents out of the columns, uA, ``[..., vectors, columns]``, for voltages on the rows.

        Args:
            devices: conductances in uS, ``[..., columns, rows]``.
            voltage: ``[..., vectors, rows]`` in V.

        Example:
            >>> Wires(row=0.0, column=0.0).forward(torch.tensor([[25.0, 5.0]]), torch.tensor([[0.2, 0.1]]))
            tensor([[5.5000]], dtype=torch.float64)
        """
        return _product(voltage, self.conductance(devices).mT)

    def transposed(self, devices: Tensor, voltage: Tensor) -> Tensor:
        """Currents out of the rows, uA, ``[..., vectors, rows]``, for voltages on the columns of the same array.

        Args:
            devices: conductances in uS, ``[..., columns, rows]``.
            voltage: ``[..., vectors, columns]`` in V.

        Example:
            >>> Wires(row=0.0, column=0.0).transposed(torch.tensor([[25.0, 5.0]]), torch.tensor([[0.2]]))
            tensor([[5.0000, 1.0000]], dtype=torch.float64)
        """
        return self.swapped().forward(devices.mT, voltage)


def _product(voltage: Tensor, conductance: Tensor) -> Tensor:
    if voltage.dim() < 2 or voltage.shape[-1] != conductance.shape[-2]:
        raise AimcError(f"needs voltages [..., vectors, {conductance.shape[-2]}]", shape=voltage.shape)
    return voltage.double() @ conductance
