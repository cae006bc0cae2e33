"""The contract of an in-memory training algorithm: a frozen description and pure functions of a flat state."""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from aimc.cells import PulsedCell
from aimc.config import Config
from aimc.ops.pulsed_update import STATISTICS, PulseTrain, Vectors, pulsed_update
from aimc.ops.transfer import Read, Tile
from aimc.periphery import ArrayIO
from aimc.random import Key

State = dict[str, Tensor]
"""Everything an algorithm knows of one layer, tensors only: it is the checkpoint. Updated in place."""

UPDATES, VECTORS = 0, 1
"""Places in ``state["counters"]``: mini-batches and vectors so far. An algorithm's own counters follow."""


@dataclasses.dataclass(frozen=True)
class Array:
    """One layer's cells as an algorithm sees them.

    Attributes:
        cell: what each cell does.
        shape: ``[R, C]``, outputs and inputs.
        key: the layer's key.
        scale: the digital scale, ``weight of the layer = scale * weight of the cells``.
        transfer: periphery of the column reads, or None for exact reads.
        backend: body of the operations.
    """

    cell: PulsedCell
    shape: tuple[int, int]
    key: Key
    scale: float = 1.0
    transfer: ArrayIO | None = None
    backend: str = "auto"

    def tile_key(self, tile: int) -> Key:
        """The key of one tile of cells."""
        return self.key.fold("tile", tile)


@dataclasses.dataclass(frozen=True)
class Transfers:
    """One line of a schedule.

    Attributes:
        source, target: tiles.
        columns_per_epoch: columns transferred in an epoch.
        passes_per_epoch: the same as a share of all columns.
        kappa: pulses that the largest possible read asks for; 0 where transfers go by way of a buffer or read-back.
        budget: pulses of a train.
        when: while it runs, where that is not always.
    """

    source: int
    target: int
    columns_per_epoch: float
    passes_per_epoch: float
    kappa: float
    budget: int
    when: str = ""


class Algorithm(Config):
    """Base of the algorithms.

    The state holds, for T tiles of cells ``[R, C]`` (tile 0 is the one that receives the gradient):

    ``held`` ``[T, R, C]``: what the cells hold; ``w``: what is read from them, only where the cell has write noise;
    ``parameters`` ``[T, R, C, P]`` (or ``[T, 1, 1, P]`` where devices do not differ); ``counts`` int32 ``[T, R, C]``:
    pulses of each device so far; ``counters`` int64; ``statistics`` int64 ``[T, 7]``: see
    :data:`aimc.ops.pulsed_update.STATISTICS`; ``reads`` int64 ``[T]``: columns read; ``retention.*``: rates of decay
    and diffusion, where there are any; and whatever else the algorithm names.

    Fields:
        pulses: how an update becomes pulses.
    """

    pulses: PulseTrain = PulseTrain()

    COUNTERS = 2
    DIGITAL = ()
    """Tensors of the state that the scheme keeps in digital memory from step to step."""
    COUNTS = ("answers", "content")
    """Tensors that count alone; states of earlier versions may lack them."""

    @property
    def tile_count(self) -> int:
        """How many arrays of cells a layer has."""
        return 1

    @property
    def one_way(self) -> bool:
        """Whether the cells take up pulses alone, so that one at its lower bound is empty and not at an end."""
        return False

    def reach(self, array: Array) -> float:
        """Largest weight of both signs that the tiles hold nominally, in units of the cells."""
        return min(array.cell.w_max, -array.cell.w_min) * self.shares(array)[-1]

    def shares(self, array: Array) -> tuple[float, ...]:
        """Factor of each tile in the composite weight."""
        return (0.0,) * (self.tile_count - 1) + (1.0,)

    # State ---------------------------------------------------------------------------------------------------------

    def init(self, array: Array, weight: Tensor) -> State:
        """A new state that holds ``weight`` (in units of the cells) as well as its devices can."""
        tiles, (rows, columns) = self.tile_count, array.shape
        device = weight.device
        drawn = [array.cell.draw(array.shape, array.tile_key(t), device) for t in range(tiles)]
        state: State = {
            "held": torch.zeros(tiles, rows, columns, device=device, dtype=torch.float32),
            "parameters": torch.stack(drawn),
            "counts": torch.zeros(tiles, rows, columns, dtype=torch.int32, device=device),
            "counters": torch.zeros(self.COUNTERS, dtype=torch.int64, device="cpu"),
            "statistics": torch.zeros(tiles, len(STATISTICS), dtype=torch.int64, device="cpu"),
            "reads": torch.zeros(tiles, dtype=torch.int64, device="cpu"),
        }
        if array.cell.write_noise_std > 0:
            state["w"] = state["held"].clone()
        for t in range(tiles):
            for name, value in array.cell.draw_retention(array.shape, array.tile_key(t), device).items():
                state.setdefault(
                    f"retention.{name}", torch.zeros(tiles, *value.shape, device=device, dtype=torch.float32)
                )[t] = value
        state.update(self.extra(array, device))
        self.program(array, state, weight)
        return state

    def bounds(self, name: str) -> tuple[float | Tensor | None, float | Tensor | None]:
        """Smallest and largest numbers that a tensor of a state can hold, where there are any; files are held to it."""
        counting = ("counts", "counters", "statistics", "reads", *self.COUNTS)
        return (0 if name in counting else None), None

    def extra(self, array: Array, device: torch.device) -> State:
        """What else this algorithm keeps of a layer."""
        return {}

    def program(self, array: Array, state: State, weight: Tensor) -> None:
        """Write a composite weight: the last tile takes what it can hold, the others start at zero.

        Every held value is within its own device's bounds.
        """
        state["held"].zero_()
        last = state["held"][-1]
        last.copy_(array.cell.snap(weight / self.shares(array)[-1], state["parameters"][-1]))
        for t in range(self.tile_count - 1):
            state["held"][t].copy_(array.cell.snap(state["held"][t], state["parameters"][t]))
        show(array, state, "program")

    def weight(self, array: Array, state: State) -> Tensor:
        """The composite weight ``[R, C]`` as it is read now, in units of the cells; a view where one tile is all."""
        read, shares = visible(state), self.shares(array)
        if not any(shares[:-1]):
            return read[-1] if shares[-1] == 1 else read[-1] * shares[-1]
        return (share_tensor(shares, read.device) @ read.view(len(shares), -1)).view(array.shape)

    # Training ------------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def step(self, array: Array, state: State, vectors: Vectors, lr: float) -> None:
        """One mini-batch: move the layer's weight by ``-lr sum_v d_v x_v^T`` in the algorithm's own way.

        Args:
            lr: learning rate of the layer, > 0; in units of the cells it is ``lr / array.scale``.
        """

    def observe(self, array: Array, state: State, loss: float) -> None:
        """Told once per epoch how the training loss is; for algorithms that follow it."""

    def schedule(
        self, array: Array, updates_per_epoch: int, vectors_per_update: int, lr: float
    ) -> list[Transfers]:
        """How often each tile is read into the next one, most frequent first; empty without transfers."""
        return []

    def check(self, array: Array, updates_per_epoch: int, vectors_per_update: int, lr: float) -> list[str]:
        """Warnings about this algorithm on these cells, before training.

        A tile is starved if it does not get one pass over its columns in an epoch; a transfer is beyond the pulse
        budget if its largest read asks for more pulses than a train has.

        Args:
            updates_per_epoch: mini-batches in an epoch.
            vectors_per_update: vectors that this layer sees in a mini-batch.
            lr: learning rate of the layer.
        """
        found = []
        if 0 in array.shape:
            return found  # no cell, no pulse
        most, lines = self.lines(array)
        for t in self.schedule(array, updates_per_epoch, vectors_per_update, lr):
            if t.passes_per_epoch < 1:
                when = f" {t.when}" if t.when else ""
                found.append(
                    f"tile {t.target} is starved{when}: {t.columns_per_epoch:.3g} of {most} {lines} are "
                    f"transferred to it per epoch, a full pass takes {1 / max(t.passes_per_epoch, 1e-9):.3g} epochs; "
                    f"more {lines} per event or a shorter period"
                )
            if t.kappa > t.budget:
                found.append(
                    f"a transfer from tile {t.source} to {t.target} may ask for {t.kappa:.3g} pulses of a cell, the "
                    f"train has {t.budget}; a smaller transfer_lr or longer trains"
                )
        return found

    def lines(self, array: Array) -> tuple[int, str]:
        """How many lines a full pass of the transfers has, and what they are."""
        return array.shape[1], "columns"

    def active_tile(self, state: State) -> int | None:
        """The tile that a warm start is filling, or None."""
        return None

    def passing(self, array: Array) -> int:
        """Digital numbers that the scheme needs within a step, at most, beside the vectors and what it keeps."""
        return 0

    def products(self, array: Array) -> int:
        """Digital multiplications of a vector, beside those that scale it."""
        return 0

    def waiting(self, array: Array, state: State) -> float | None:
        """Share of cells whose digital content is worth a pulse that has not been sent; None without a buffer."""
        return None

    def lost(self, state: State) -> float | None:
        """What was dropped or could not be written, as a share of the content that was to be; None if not known."""
        asked, lost = state["content"].tolist() if "content" in state else (0.0, 0.0)
        return lost / asked if asked > 0 else None

    def telemetry(self, array: Array, state: State) -> dict[str, Any]:
        """How the cells fare, as plain numbers.

        Returns:
            ``active_tile``; ``updates`` and ``vectors`` so far; ``digital``: numbers that are ``kept`` from step to
            step and those ``passing`` within one, and multiplications a vector (``products``); ``lost`` and
            ``waiting``, see the methods; and ``tiles``, one dict per tile: ``pulses`` of all devices since the start;
            ``pulses_mean``, ``pulses_p999``, ``pulses_max`` per device; ``clipped``: share of the rows' pulse
            probabilities that were above 1 (with update management, rows are clipped before columns);
            ``beyond_budget``: share of vectors that would need more pulses than a train has; ``saturated``: share of
            devices within 1 % of a bound, of pairs of their upper one; ``share``: what the tile carries of the
            composite weight, as a share of the summed norms; ``reads``: columns read; ``unanswered``: share of the
            devices that had pulses and did not move, or None where nobody has looked.
        """
        shares, read, tiles = self.shares(array), visible(state), []
        norms = [abs(share) * float(read[t].norm()) for t, share in enumerate(shares)]
        total = sum(norms)
        for t in range(self.tile_count):
            counts, p = state["counts"][t].flatten(), state["parameters"][t]
            counts = counts if counts.numel() else counts.new_zeros(1)  # a layer without inputs or outputs
            found = dict(zip(STATISTICS, state["statistics"][t].tolist(), strict=True))
            low, high = p[..., 3], p[..., 2]
            near = 0.01 * (high - low)
            outside = state["held"][t] >= high - near
            if not self.one_way:
                outside |= state["held"][t] <= low + near
            rank = max(math.ceil(0.999 * counts.numel()), 1)
            pulsed, still = state["answers"][t].tolist() if "answers" in state else (0, 0)
            tiles.append({
                "pulses": found["pulses"],
                "pulses_mean": float(counts.double().mean()),
                "pulses_p999": int(counts.kthvalue(rank).values),
                "pulses_max": int(counts.max()),
                "clipped": found["clipped"] / max(found["probabilities"], 1),
                "beyond_budget": found["beyond_budget"] / max(found["active"], 1),
                "saturated": float(outside.double().sum()) / max(outside.numel(), 1),
                "share": norms[t] / total if total > 0 else 0.0,
                "reads": int(state["reads"][t]),
                "unanswered": still / pulsed if pulsed else None,
            })  # fmt: skip
        kept = sum(state[name].numel() for name in self.DIGITAL if name in state)
        return {
            "active_tile": self.active_tile(state),
            "updates": int(state["counters"][UPDATES]),
            "vectors": int(state["counters"][VECTORS]),
            "digital": {
                "kept": kept, "passing": self.passing(array), "products": self.products(array),
            },
            "lost": self.lost(state),
            "waiting": self.waiting(array, state),
            "tiles": tiles,
        }  # fmt: skip

    # Helpers -------------------------------------------------------------------------------------------------------

    def pulse(self, array: Array, state: State, tile: int, vectors: Vectors, lr: float, **options) -> None:
        """Pulses of a whole mini-batch on one tile, counted. ``options`` go to :func:`pulsed_update`."""
        pulsed_update(
            state["held"][tile], visible(state)[tile], state["parameters"][tile], array.cell, vectors, lr,
            array.tile_key(tile).at(step=mini_batch(state)), self.pulses,
            counts=state["counts"][tile], statistics=state["statistics"][tile], backend=array.backend, **options,
        )  # fmt: skip

    def rest(self, array: Array, state: State) -> bool:
        """A mini-batch without an update: cells that decay or diffuse go on doing so; whether there are any."""
        relaxed = relax(array, state)
        numbers(state)[UPDATES] += relaxed
        return relaxed

    def fixed_rates(self) -> tuple[str, ...]:
        """Rates that do not follow the layer's learning rate, so that no schedule reaches them."""
        return ()

    def finish(self, array: Array, state: State, vectors: Vectors) -> None:
        """End of a mini-batch: decay and diffusion, and the counters move on."""
        relax(array, state)
        counters = numbers(state)
        counters[UPDATES] += 1
        counters[VECTORS] += vectors.count


def numbers(state: State, name: str = "counters") -> np.ndarray:
    """Whole numbers of the state, to be read or changed: torch takes microseconds for one of them."""
    return state[name].numpy()


def mini_batch(state: State) -> int:
    """Mini-batches so far, as the step of a key."""
    return int(numbers(state)[UPDATES]) % (1 << 32)


@functools.lru_cache(maxsize=256)
def share_tensor(shares: tuple[float, ...], device: torch.device) -> Tensor:
    """Factors of the tiles as float32 ``[T]``; not to be changed."""
    return torch.tensor(shares, dtype=torch.float32, device=device)


def tile_of(array: Array, state: State, t: int) -> Tile:
    """Views of one tile."""
    return Tile(array.cell, state["held"][t], visible(state)[t], state["parameters"][t], state["counts"][t])


def one_hot_read(array: Array) -> Read:
    """How column reads of this array come out."""
    io = array.transfer
    if io is None:
        return Read()
    return Read(io.output_noise, io.adc.half if io.adc else 0, io.adc.bound if io.adc else 1.0)


def visible(state: State) -> Tensor:
    """What is read from the cells ``[T, R, C]``."""
    return state["w"] if "w" in state else state["held"]


def retention(state: State, t: int) -> dict[str, Tensor]:
    """What decay, diffusion and reset need of the devices of one tile; see :meth:`PulsedCell.draw_retention`."""
    prefix = "retention."
    return {name.removeprefix(prefix): v[t] for name, v in state.items() if name.startswith(prefix)}


def reset(array: Array, state: State, t: int, mask: Tensor, key: Key) -> None:
    """Reset the devices of one tile where ``mask`` is True."""
    held = state["held"][t]
    array.cell.reset(held, state["parameters"][t], retention(state, t), mask, key)
    if "w" in state:
        state["w"][t] = torch.where(mask, array.cell.shown(held, key.at("pulse_noise")), state["w"][t])


def relax(array: Array, state: State) -> bool:
    """Let every tile decay and diffuse for one mini-batch, where its cells do; whether they do."""
    if "retention.rest" not in state and "retention.diffusion" not in state:
        return False
    step = mini_batch(state)
    for t in range(len(state["held"])):
        key = array.tile_key(t).at("decay", step=step)
        array.cell.relax(state["held"][t], state["parameters"][t], retention(state, t), key)
    show(array, state, "relax")
    return True


def show(array: Array, state: State, after: str) -> None:
    """Write noise of every device anew, where the cell has any: what touches whole arrays redraws all of it.

    Args:
        after: what has touched them; draws depend on it and on the mini-batch.
    """
    if "w" in state:
        key = array.key.fold("whole", after).at("pulse_noise", step=mini_batch(state))
        state["w"].copy_(array.cell.shown(state["held"], key))
