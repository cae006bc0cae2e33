"""Voltage lost along the column wires: a fast form for training, and the exact ladder."""

from __future__ import annotations

import torch
from torch import Tensor

from aimc.config import Config
from aimc.errors import AimcError


class IRDrop(Config):
    """The fast form: a cubic in the column's load times the profile of the wire.

    For a column with n rows in use and normalised load ``a = scale * n / conductance * sum_j |w_j| |x_j|``, the output
    loses ``c * sum_j w_j x_j (1 - (1 - j/n)^2)`` with ``c = a (0.05 a^2 - 0.2 a + 0.5)``, at most 1; row j = 0 is
    nearest to the converter. Good for activity spread evenly over the rows, about two times too small where it is
    clustered (compare :func:`solve_ladder`). The form is that of IBM's simulator but for the bound: from a load of 2.9
    on, far beyond the standard's 0.46 at most, the cubic would take away more than there is.

    Fields:
        scale: multiplies the load; 1 is the published standard, which assumes a full-scale device of 5 uS and 0.35 Ohm
            of wire between neighbours (with 25 uS devices use ``scale=5``).
        conductance: wire conductance between neighbours over the full-scale conductance, 1/(0.35 Ohm * 5 uS).
    """

    scale: float = 1.0
    conductance: float = 571428.57

    def validate(self):
        self.require(self.scale >= 0, "scale", "must not be negative")
        self.require(self.conductance > 0, "conductance", "must be positive")

    def load(self, rows: int, weighted: Tensor | float) -> Tensor | float:
        """``a`` for ``sum_j |w_j| |x_j|`` in ``weighted`` (any shape, normalised units).

        Example:
            >>> round(float(IRDrop().load(512, torch.tensor(50.0))), 4)
            0.0448
        """
        return weighted * (self.scale * rows / self.conductance)

    @staticmethod
    def coefficient(load: Tensor) -> Tensor:
        """``c`` for a load ``a``.

        Example:
            >>> round(float(IRDrop.coefficient(torch.tensor(0.1792))), 6)
            0.083465
        """
        return (load * (0.05 * load**2 - 0.2 * load + 0.5)).clamp_max(1.0)

    @staticmethod
    def profile(rows: int, device=None, dtype=torch.float32) -> Tensor:
        """``1 - (1 - j/n)^2`` for j = 0 ... n-1, shape [rows]; j = 0 is the row nearest to the converter."""
        distance = torch.arange(rows, device=device, dtype=dtype) / rows
        return 1 - (1 - distance) ** 2


def solve_ladder(conductance: Tensor, voltage: Tensor, wire_resistance: float) -> Tensor:
    """Exact output currents of columns with wire resistance, by solving each column's resistor ladder.

    A column is a wire with one node per row; neighbouring nodes are joined by ``wire_resistance``, row 0 by the same
    resistance to the converter's virtual ground. Each device joins its row's voltage to its node.

    Args:
        conductance: device conductances in uS, ``[columns, rows]``, not negative.
        voltage: row voltages in V, ``[vectors, rows]``.
        wire_resistance: Ohm between neighbours, > 0.

    Returns:
        Currents into the virtual grounds in uA, ``[vectors, columns]``, double precision.

    Raises:
        AimcError: wrong shapes or a resistance that is not positive.

    Example:
        >>> one = solve_ladder(torch.tensor([[25.0]]), torch.tensor([[0.2]]), 1000.0)
        >>> round(float(one), 5)  # 0.2 V over 1/25 uS + 1000 Ohm
        4.87805
    """
    if conductance.dim() != 2 or voltage.dim() != 2 or conductance.shape[1] != voltage.shape[1]:
        raise AimcError(
            f"needs conductance [columns, rows] and voltage [vectors, rows], got {list(conductance.shape)} and "
            f"{list(voltage.shape)}"
        )
    if not wire_resistance > 0:
        raise AimcError(f"must be positive, got {wire_resistance}", field="wire_resistance")
    g, v = conductance.double(), voltage.double()
    columns, rows = g.shape
    wire = 1e6 / wire_resistance
    # Kirchhoff at node j: g_j (V_j - u_j) = wire * (u_j - u_{j-1}) + wire * (u_j - u_{j+1}), u_{-1} = 0.
    matrix = torch.diag_embed(g + 2 * wire)
    matrix[:, -1, -1] -= wire
    j = torch.arange(rows - 1, device=g.device)
    matrix[:, j, j + 1] = -wire
    matrix[:, j + 1, j] = -wire
    injected = g[:, None, :] * v[None, :, :]
    potential = torch.linalg.solve(matrix, injected.transpose(1, 2))
    return wire * potential[:, 0, :].T
