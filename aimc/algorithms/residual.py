"""Residual learning: several tiles of few states, each finer one holding what the coarser ones cannot."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Literal

import torch
from torch import Tensor

from aimc.algorithms.base import (
    UPDATES,
    Array,
    State,
    Transfers,
    numbers,
    one_hot_read,
    share_tensor,
    show,
    visible,
)  # fmt: skip
from aimc.algorithms.losses import Before, counts_of, places
from aimc.algorithms.plateau import KEPT, FirstThen, PlateauRule
from aimc.algorithms.transferring import Transferring, transfer_columns, transfers
from aimc.config import Config
from aimc.ops.pulsed_update import PulseTrain, Vectors, check_vectors
from aimc.ops.transfer import reencode

ACTIVE, HITS, FLAG, VALUES, SEEN_PULSES, VISITS = range(2, 8)


class WarmStart(Config):
    """Fill the tiles one after another, from a target down to the source, before the chain runs.

    It goes on only where :func:`aimc.optim.observe` is called once per epoch, as the recipes do.

    Fields:
        source: tile that the active one is filled from, 0 or 1; null takes the order's own.
        target: tile that is filled first, above the source; null takes the most significant one. Tiles above it get
            nothing before the chain runs.
        period_of: tile whose period the filling has; null takes the order's own.
        rule: when to go on to the next tile.
        signal: what the rule sees, once per epoch: ``loss``, the training loss, so that all layers go together; or
            ``pulses``, those of the layer's own tile 0, which follow its gradient, so that each layer decides.
        self_transfer: whether a tile that is its own source is transferred onto itself, as in the published GPU code;
            otherwise ``cuda`` goes straight on to its chain, and ``cpu`` rests there until the next plateau.
    """

    source: Literal[0, 1] | None = None
    target: int | None = None
    period_of: Literal[0, 1] | None = None
    rule: PlateauRule = FirstThen()
    signal: Literal["loss", "pulses"] = "loss"
    self_transfer: bool = False


class Residual(Transferring):
    """W = sum_k share_k W_k over ``tiles`` tiles, tile 0 the least significant.

    With the order ``reencode`` (ours, the default) the columns that are visited are read on all tiles and written anew
    from the most significant tile down, with read-back, so that the composite does not jump and nothing is counted
    twice. With the orders ``paper``, ``cpu`` and ``cuda`` tiles are added onto their neighbours and keep what they had,
    as published (Z. Li et al., arXiv:2510.02516, whose text and two programs differ from each other).

    ``docs/algorithms/residual.md`` compares them, and says how the defaults were found.

    Fields (see :class:`aimc.algorithms.Transferring` for the rest):
        tiles: how many.
        order: what happens when.
        ratio: share of a tile relative to the next more significant one; null derives it from the cell's states.
        shares_of: the shares themselves, tile 0 first, in place of a ratio.
        gradient: for ``reencode``: ``digital``, the gradient of the visited columns is worked out in floating point and
            rounded onto tile 0 on the spot; ``pulsed``, tile 0 collects it by pulses, as in the published orders.
        columns: visited per mini-batch, or ``all``; null takes as many as ``cells_per_visit`` allow (for ``reencode``),
            or one.
        cells_per_visit: see ``columns``.
        rounding: with ``digital``, how coarse tile 0 may round, relative to the usual change of a weight; where a more
            significant tile is fine enough, it takes tile 0's place for the moment. 0 always takes tile 0.
        weight_decay: of ``reencode``: a step takes the share ``lr weight_decay`` off the weights, as an optimizer's
            does off digital ones. A visit reads them anyway.
        threshold, tries, last_tries, floor: of ``reencode``, see :func:`aimc.ops.transfer.reencode`. With ``pulsed``
            there are at least as many tries as a train has slots.
        period, period_growth: mini-batches between the transfers of tile 0, and the factor from tile to tile.
        periods: the periods themselves, in place of the two.
        transfer_growth: ``transfer_lr`` is that of tile T-1, every less significant tile has this factor more.
        transfer_lrs: the rates themselves.
        transfer_pulses: how what was read becomes pulses.
        reset_chance: of the published orders: probability that a column of the source is reset after it was read, to
            the cell's ``rest``.
        rows: of the published orders: transfer row by row, through the transposed array; ``columns`` then counts rows.
        warm_start: for the published orders, or null.

    Example:
        >>> Residual(tiles=4).tile_count
        4
    """

    tiles: int = 6
    order: Literal["reencode", "paper", "cpu", "cuda"] = "reencode"
    ratio: float | None = None
    shares_of: tuple[float, ...] = ()
    gradient: Literal["digital", "pulsed"] = "digital"
    columns: int | Literal["all"] | None = None
    cells_per_visit: int = 16384
    rounding: float = 0.1
    weight_decay: float = 0.0
    threshold: float = 0.6
    tries: int = 6
    last_tries: int = 4
    floor: float = 1.0
    period: int = 2
    period_growth: int = 5
    periods: tuple[int, ...] = ()
    transfer_lr: float = 0.1
    scale_transfer_lr: bool = False
    transfer_growth: float = 1.2
    transfer_lrs: tuple[float, ...] = ()
    transfer_pulses: PulseTrain = PulseTrain()
    reset_chance: float = 0.0
    rows: bool = False
    warm_start: WarmStart | None = None

    COUNTERS = 8

    @property
    def tile_count(self) -> int:
        return self.tiles

    @property
    def by_rows(self) -> bool:
        return self.rows

    def validate(self):
        self.require(2 <= self.tiles <= 32, "tiles", f"is between 2 and 32, got {self.tiles}")
        self.require(self.fast_lr > 0, "fast_lr", f"must be positive, got {self.fast_lr}")
        self.require(self.transfer_lr > 0, "transfer_lr", f"must be positive, got {self.transfer_lr}")
        self.require(
            self.columns is None or self.columns == "all" or self.columns >= 1,
            "columns",
            "is at least 1, 'all' or null",
        )
        self.require(
            self.ratio is None or 0 < self.ratio < 1, "ratio", f"is between 0 and 1, got {self.ratio}"
        )
        for name, length in (
            ("shares_of", self.tiles),
            ("periods", self.tiles - 1),
            ("transfer_lrs", self.tiles - 1),
        ):
            value = getattr(self, name)
            self.require(
                len(value) in (0, length) and all(v > 0 for v in value),
                name,
                f"is {length} positive numbers, or empty",
            )
        self.require(not self.shares_of or self.ratio is None, "ratio", "excludes shares_of")
        self.require(self.period >= 1, "period", "must be at least 1")
        self.require(self.period_growth >= 1, "period_growth", "must be at least 1")
        self.require(self.cells_per_visit >= 1, "cells_per_visit", "must be at least 1")
        for name in ("tries", "last_tries"):
            self.require(1 <= getattr(self, name) <= 1024, name, "is between 1 and 1024")
        self.require(self.threshold > 0, "threshold", "must be positive")
        for name in ("floor", "rounding", "weight_decay"):
            self.require(getattr(self, name) >= 0, name, "must not be negative")
        self.require(self.transfer_growth > 0, "transfer_growth", "must be positive")
        self.require(
            self.transfer_pulses.kind == "stochastic",
            "transfer_pulses.kind",
            "a direct transfer is stochastic",
        )
        self.require(0 <= self.reset_chance <= 1, "reset_chance", f"is in [0, 1], got {self.reset_chance}")
        self.require(
            self.reset_chance == 0 or self.order != "reencode",
            "reset_chance",
            "is of the published orders; 'reencode' takes from a tile what it passes on",
        )
        self.require(
            self.weight_decay == 0 or self.order == "reencode",
            "weight_decay",
            "is of the order 'reencode', which reads every weight that it writes",
        )
        self.require(
            not self.rows or self.order != "reencode",
            "rows",
            "is of the published orders; 'reencode' goes through columns, whose gradient it has",
        )
        self.require(
            self.warm_start is None or self.order != "reencode",
            "warm_start",
            "is of the published orders; with 'reencode' every tile is reached at once",
        )
        self._refuse_unused()
        warm = self.warm_start
        self.require(
            warm is None or warm.period_of != 1 or self.tiles > 2,
            "warm_start.period_of",
            "is 0 with two tiles, whose last one is not read",
        )
        if warm is not None and warm.target is not None:
            source = self.source_of(warm)
            self.require(
                source < warm.target < self.tiles,
                "warm_start.target",
                f"is a tile above the source {source} and below tiles ({self.tiles}), got {warm.target}",
            )

    def _refuse_unused(self) -> None:
        """Every order has settings of its own."""
        if self.order == "reencode":
            self.unused(
                "with the order 'reencode', which goes through all tiles in every visit", "period", "period_growth",
                "periods", "transfer_lr", "scale_transfer_lr", "transfer_growth", "transfer_lrs", "transfer_pulses",
            )  # fmt: skip
            if self.gradient == "digital":
                why = "with gradient 'digital', which sends no trains"
                self.unused(why, "fast_lr", "scale_fast_lr", "pulses")
            else:
                self.unused("with gradient 'pulsed'", "rounding")
        else:
            self.unused(
                f"with the order {self.order!r}, only with 'reencode'", "gradient", "cells_per_visit", "rounding",
                "threshold", "tries", "last_tries", "floor",
            )  # fmt: skip
        if self.columns is not None:
            self.unused("where columns are given", "cells_per_visit")
        if self.periods:
            self.unused("where periods are given", "period", "period_growth")
        if self.transfer_lrs:
            self.unused("where transfer_lrs are given", "transfer_lr", "transfer_growth")

    # The numbers of a layer ------------------------------------------------------------------------------------------

    def shares(self, array: Array) -> tuple[float, ...]:
        if self.shares_of:
            return self.shares_of
        ratio = self.ratio
        if ratio is None:
            # A finer tile has to reach over one step of the coarser one, devices that fall short included.
            states = max(array.cell.states, 1.0)
            ratio = min(0.4, 2 / states**0.5) if self.order == "reencode" else min(1.25 / states, 0.9)
        return _powers(ratio, self.tiles)

    def columns_of(self, array: Array) -> int:
        (columns, _), rows = self.lines(array), array.shape[0]
        if self.columns == "all":
            return columns
        if self.columns is not None:
            return min(self.columns, columns)
        return min(max(self.cells_per_visit // max(rows, 1), 1), columns) if self.order == "reencode" else 1

    def source_of(self, warm: WarmStart) -> int:
        """Tile that a warm start fills the others from."""
        return warm.source if warm.source is not None else (1 if self.order == "cuda" else 0)

    def period_of(self, tile: int) -> int:
        """Mini-batches between transfers of a tile to the next one."""
        return self.periods[tile] if self.periods else self.period * self.period_growth**tile

    def rate_of(self, tile: int, lr: float) -> float:
        """Transfer rate of a tile to the next one."""
        rate = (
            self.transfer_lrs[tile]
            if self.transfer_lrs
            else self.transfer_lr * self.transfer_growth ** (self.tiles - 1 - tile)
        )
        return rate * (lr if self.scale_transfer_lr else 1.0)

    def fixed_rates(self) -> tuple[str, ...]:
        fast = self.order != "reencode" or self.gradient == "pulsed"
        transfers = self.order != "reencode" and not self.scale_transfer_lr
        return ("fast_lr",) * (fast and not self.scale_fast_lr) + ("transfer_lr",) * transfers

    # State ---------------------------------------------------------------------------------------------------------

    def bounds(self, name: str) -> tuple[float | Tensor | None, float | Tensor | None]:
        if name != "counters":
            return super().bounds(name)
        least = torch.zeros(self.COUNTERS, dtype=torch.int64, device="cpu")
        most = torch.full_like(least, torch.iinfo(torch.int64).max)
        least[ACTIVE] = -1
        most[ACTIVE], most[FLAG], most[VALUES] = self.tiles - 1, 1, KEPT
        return least, most

    def extra(self, array: Array, device: torch.device) -> State:
        found = {"values": torch.zeros(KEPT, dtype=torch.float64, device="cpu")}
        return found | counts_of(self.tiles, device, content=True) if self.order == "reencode" else found

    def passing(self, array: Array) -> int:
        rows = array.shape[0]
        if self.order != "reencode":
            return super().passing(array)
        visit = rows * self.columns_of(array) if self.gradient == "digital" else 0
        return visit + rows * (self.tiles + 2)

    def products(self, array: Array) -> int:
        digital = self.order == "reencode" and self.gradient == "digital"
        return array.shape[0] * self.columns_of(array) if digital else 0

    def init(self, array: Array, weight: Tensor) -> State:
        state = super().init(array, weight)
        warm, last = self.warm_start, self.tiles - 1
        state["counters"][ACTIVE] = -1 if warm is None else last if warm.target is None else warm.target
        return state

    def active_tile(self, state: State) -> int | None:
        active = int(state["counters"][ACTIVE])
        return active if active >= 0 else None

    def observe(self, array: Array, state: State, loss: float) -> None:
        """Once per epoch: does the warm start go on to the next tile?"""
        warm, counters = self.warm_start, state["counters"]
        if warm is None or counters[ACTIVE] < 0:
            return
        pulses = int(state["statistics"][0][2])
        value = loss if warm.signal == "loss" else float(pulses - int(counters[SEEN_PULSES]))
        counters[SEEN_PULSES] = pulses
        values = state["values"]
        if counters[VALUES] == KEPT:
            values.copy_(values.roll(-1))
            counters[VALUES] -= 1
        values[int(counters[VALUES])] = value
        counters[VALUES] += 1
        if warm.rule.hit(values[: int(counters[VALUES])].tolist(), int(counters[HITS])):
            counters[HITS] += 1
            counters[VALUES] = 0
            counters[FLAG] = 1

    # Steps -----------------------------------------------------------------------------------------------------------

    def step(self, array: Array, state: State, vectors: Vectors, lr: float) -> None:
        if self.order == "reencode":
            self._reencode(array, state, vectors, lr)
        else:
            self.pulse(array, state, 0, vectors, self.fast_rate(array, lr))
            for source, target in self.due(state):
                transfer_columns(
                    array,
                    state,
                    source,
                    target,
                    self.columns_of(array),
                    self.rate_of(source, lr),
                    self.transfer_pulses,
                    self.reset_chance,
                    self.rows,
                )
        self.finish(array, state, vectors)

    def _reencode(self, array: Array, state: State, vectors: Vectors, lr: float) -> None:
        columns, width = self.columns_of(array), array.shape[1]
        shares = self.shares(array)
        number = int(numbers(state)[VISITS])
        first = number % width
        gradient, rate, last = None, 0.0, 0
        # Also with all columns at once: the settings may have changed between two visits.
        visited = (
            torch.arange(first, first + columns, device="cpu") % width if columns < width or first else None
        )
        if self.gradient == "digital":
            check_vectors(vectors, array.shape, lr)
            # What is not visited now is visited later: the visited columns stand for the others in the mean.
            gradient, rate = vectors.gradient(visited), lr / array.scale * (width / columns)
            last = self.finest(array, gradient, rate, shares)
        else:
            self.pulse(array, state, 0, vectors, self.fast_rate(array, lr) / shares[0])
        looked = places(array, int(numbers(state)[UPDATES]), columns)
        before = Before(array, state, (first + looked) % width, last) if looked is not None else None
        held, w, parameters, counts = state["held"], visible(state), state["parameters"], state["counts"]
        factors = share_tensor(shares, state["held"].device)
        if last:  # the tiles below rest
            held, w, parameters, counts = held[last:], w[last:], parameters[last:], counts[last:]
            factors = factors[last:]
        decay = min(lr * self.weight_decay * (width / columns), 1.0)
        tries, last_tries = self.tries, self.last_tries
        if self.gradient == "pulsed":
            # What tile 0 has collected leaves it as it moves up, however much it is.
            tries, last_tries = max(tries, self.pulses.length), max(last_tries, self.pulses.length)
        reencode(
            array.cell, held, w, parameters, counts, factors, first, columns, number,
            array.key.fold("reencode", last), gradient=gradient, rate=rate, decay=decay, threshold=self.threshold,
            tries=tries, last_tries=last_tries, floor=self.floor, stochastic=self.gradient == "digital",
            how=one_hot_read(array), backend=array.backend, statistics=state["statistics"][last:],
            reads=state["reads"][last:],
        )  # fmt: skip
        numbers(state)[VISITS] = number + columns
        if before is not None and looked is not None:
            before.count_answers(once=True)
            wanted = None if gradient is None else gradient[:, looked] * -rate
            if decay > 0:
                content = (before.read * factors[:, None, None]).sum(0)
                wanted = -decay * content + (0.0 if wanted is None else wanted)
            before.count_unwritten(shares, wanted)

    def finest(self, array: Array, gradient: Tensor, rate: float, shares: tuple[float, ...]) -> int:
        """The tile that rounds: the most significant one whose step is at most ``rounding`` times the usual change.

        Steps much finer than the changes cost pulses and carries, and gain nothing over the noise of the gradient.
        """
        total = float(torch.linalg.vector_norm(gradient, 1))
        if total == 0:
            return 0
        square = float(torch.linalg.vector_norm(gradient)) ** 2
        if square == 0 or not math.isfinite(square):  # beyond single precision, which the gradient is not
            square = float(gradient.double().square().sum())
        most = self.rounding * (rate * square / total) / array.cell.granularity
        for t in range(len(shares) - 1, 0, -1):
            if shares[t] <= most:
                return t
        return 0

    def due(self, state: State) -> list[tuple[int, int]]:
        """Transfers ``(source, target)`` at the end of the present mini-batch, in order; moves a warm start on."""
        counters, n = numbers(state), self.tiles
        u = int(counters[UPDATES]) + 1
        warm, found = self.warm_start, []
        is_due = [u % self.period_of(t) == 0 for t in range(n - 1)]
        if self.order == "cuda" and is_due[0]:
            found.append((0, 1))
        if counters[FLAG] and counters[ACTIVE] >= 0:
            counters[ACTIVE] -= 1
            counters[FLAG] = 0
        active = int(counters[ACTIVE])
        if warm is not None and active >= 0:
            source = self.source_of(warm)
            if active > source or warm.self_transfer:
                if u % self._filling_period(warm) == 0:
                    found.append((source, active))
            elif active < source or self.order != "cpu":
                counters[ACTIVE] = active = -1
            # The published program for processors finds that a tile is its own source, and waits for the next plateau.
        if self.order == "paper" or active < 0:
            first = 1 if self.order == "cuda" else 0
            found += [(t, t + 1) for t in range(first, n - 1) if is_due[t]]
        return found

    def schedule(
        self, array: Array, updates_per_epoch: int, vectors_per_update: int, lr: float
    ) -> list[Transfers]:
        columns = self.columns_of(array)
        if self.order == "reencode":
            passes = updates_per_epoch * columns / max(array.shape[1], 1)
            return [
                Transfers(t, t + 1, updates_per_epoch * columns, passes, 0.0, self.tries)
                for t in range(self.tiles - 1)
            ]

        def line(source: int, target: int, period: int, when: str = "") -> Transfers:
            events, rate = updates_per_epoch / period, self.rate_of(source, lr)
            found = transfers(array, source, target, columns, events, rate, self.transfer_pulses, self.rows)
            return dataclasses.replace(found, when=when)

        warm, found = self.warm_start, []
        if warm is not None:
            last = self.tiles - 1 if warm.target is None else warm.target
            found = [
                line(self.source_of(warm), t, self._filling_period(warm), "during the warm start")
                for t in range(last, self.source_of(warm), -1)
            ]
        for t in range(self.tiles - 1):
            always = warm is None or self.order == "paper" or (self.order == "cuda" and t == 0)
            found.append(line(t, t + 1, self.period_of(t), "" if always else "after the warm start"))
        return found

    def check(self, array: Array, updates_per_epoch: int, vectors_per_update: int, lr: float) -> list[str]:
        found = super().check(array, updates_per_epoch, vectors_per_update, lr)
        cell, shares = array.cell, self.shares(array)
        for t in range(self.tiles - 1):
            reach, step = shares[t] * (cell.w_max - cell.w_min), shares[t + 1] * cell.granularity
            if reach < step * (1 - 1e-6) and 0 not in array.shape:
                found.append(
                    f"tile {t} reaches over {reach:.3g} from bound to bound, in units of the most significant tile, "
                    f"and a step of tile {t + 1} is {step:.3g}: what lies between its steps is out of reach; larger "
                    "shares of the less significant tiles (ratio, shares_of), or cells of more states"
                )
        return found

    def _filling_period(self, warm: WarmStart) -> int:
        """Mini-batches between transfers to the tile that a warm start fills."""
        of = warm.period_of if warm.period_of is not None else (0 if self.order == "paper" else 1)
        return self.period_of(min(of, self.tiles - 2))

    def program(self, array: Array, state: State, weight: Tensor) -> None:
        """Write a composite weight: what a tile cannot hold goes to the next less significant one."""
        rest = weight
        for t, share in reversed(list(enumerate(self.shares(array)))):
            held = array.cell.snap(rest / share, state["parameters"][t])
            state["held"][t].copy_(held)
            rest = rest - share * held
        show(array, state, "program")


@functools.cache
def _powers(ratio: float, tiles: int) -> tuple[float, ...]:
    """Factors of the tiles; the last one's is 1."""
    return tuple(ratio ** (tiles - 1 - t) for t in range(tiles))
