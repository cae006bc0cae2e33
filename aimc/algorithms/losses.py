"""What of an update does not arrive: devices that do not answer, and content that is dropped or could not be written.

Worked out beside the operations, from cells before and after them: of every :data:`EVERY`-th transfer, and of so many
columns as :data:`CELLS` allow, in turn.
"""

from __future__ import annotations

import torch
from torch import Tensor

from aimc.algorithms.base import Array, State, numbers, one_hot_read, share_tensor, visible
from aimc.ops.transfer import LEAST, Buffer
from aimc.ops.transfer.reference import read
from aimc.random import Key

EVERY, CELLS = 16, 4096

_ROUNDED = 2.0
"""Steps that rounding may miss by: the largest step of soft bounds is twice the one at 0."""


def counts_of(tiles: int, device: torch.device, content: bool) -> State:
    """What the classes here count in.

    Returns:
        ``answers`` int64 ``[T, 2]``: devices that had pulses, and those of them that did not move; with ``content``
        also ``content`` float64 ``[2]``: what was to be written, in steps of the tile that rounds, and what of it was
        lost.
    """
    found: State = {"answers": torch.zeros(tiles, 2, dtype=torch.int64, device="cpu")}
    return found | ({"content": torch.zeros(2, dtype=torch.float64, device=device)} if content else {})


def places(array: Array, number: int, columns: int) -> Tensor | None:
    """Which of the visited columns are looked at, counted from the first one; None for none.

    Args:
        number: of the transfer.
        columns: visited.
    """
    if number % EVERY or 0 in array.shape:
        return None
    n = min(max(CELLS // array.shape[0], 1), columns)
    return (torch.arange(n, device="cpu") + number // EVERY * n) % columns


class Before:
    """Some columns of some tiles before an operation.

    Args:
        columns: their numbers.
        first: tile; those above it are noted, too.
    """

    def __init__(self, array: Array, state: State, columns: Tensor, first: int = 0):
        self.array, self.state, self.columns, self.first = array, state, columns, first
        self.held, self.counts = self._part(state["held"]), self._part(state["counts"])
        self.read = self._part(state["w"]) if "w" in state else self.held

    def _part(self, value: Tensor) -> Tensor:
        return value[self.first :, :, self.columns]

    def count_answers(self, once: bool = False) -> Tensor:
        """Count the devices that had pulses, and those that did not move.

        Args:
            once: only those with a single pulse, where several may go both ways.

        Returns:
            Pulses of each device ``[T, R, n]``.
        """
        pulses = self._part(self.state["counts"]) - self.counts
        pulsed = pulses == 1 if once else pulses > 0
        still = (self._part(self.state["held"]) - self.held).abs() <= LEAST * self.array.cell.granularity
        found = torch.stack([pulsed.sum((1, 2)), (pulsed & still).sum((1, 2))], 1)
        numbers(self.state, "answers")[self.first :] += found.cpu().numpy()
        return pulses

    def count_unwritten(self, shares: tuple[float, ...], wanted: Tensor | None) -> None:
        """Count what the composite misses by more than rounding.

        Args:
            shares: of all tiles.
            wanted: change of the composite ``[R, n]``; None is none, and nothing is asked then.
        """
        factors = share_tensor(shares, self.held.device)[self.first :, None, None]
        change = ((self._part(visible(self.state)) - self.read) * factors).sum(0)
        step = shares[self.first] * self.array.cell.granularity
        missing = change if wanted is None else change - wanted
        lost = (missing.abs() / step - _ROUNDED).clamp_min(0).sum()
        asked = torch.zeros_like(lost) if wanted is None else wanted.abs().sum() / step
        self.state["content"] += torch.stack([asked, lost])


class BufferBefore(Before):
    """The same of a transfer by way of a buffer, whose reads come after all pulses of the fast tile.

    Args:
        buffer: before it.
        visited: places of the columns among those of this transfer, each of which is read once.
    """

    def __init__(self, array: Array, state: State, buffer: Buffer, visited: Tensor):
        self.buffer, self.visit = buffer, int(buffer.visits[0]) + visited
        super().__init__(array, state, self.visit % array.shape[1], first=1)
        b, c = buffer, self.columns
        self.h, self.sign, self.level = b.h[:, c], None, None
        if b.x_sign is not None and b.d_sign is not None:
            self.sign = b.d_sign[:, None] * b.x_sign[c]
        if b.mean is not None and b.reference is not None:
            flipped = (b.visits[1:][c] != 0).to(b.h.device)
            self.level = torch.where(flipped, b.mean[:, c], b.reference[:, c])

    def count_dropped(self, pulses: Tensor, key: Key) -> None:
        """Count what left the buffer and did not become pulses.

        Args:
            pulses: of each device ``[1, R, n]``.
            key: of the transfer.
        """
        rows, device = self.array.shape[0], self.h.device
        place = (torch.arange(rows, device="cpu")[:, None] + rows * self.visit).to(device)
        gained = read(
            visible(self.state)[0][:, self.columns], one_hot_read(self.array), place, key.at("transfer")
        )
        gained = gained if self.level is None else gained - self.level
        gained = (gained if self.sign is None else gained * self.sign) * self.buffer.gain
        left = self.buffer.h[:, self.columns].abs()
        dropped = torch.where(pulses[0] > 0, (self.h + gained).abs() - pulses[0] - left, 0.0).clamp_min(0)
        self.state["content"] += torch.stack([gained.abs().sum(), dropped.sum()])
