"""The plain torch bodies: one column and one slot after another, every row at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aimc.cells.pulsed import PulsedCell
from aimc.ops.pulsed_update import reference as pulses
from aimc.ops.pulsed_update.train import PulseTrain
from aimc.ops.pulsed_update.vectors import Vectors
from aimc.ops.transfer.tile import Read, Tile
from aimc.periphery.converter import round_to_grid
from aimc.random import Key, normals_at
from aimc.random.reference import words_at


def single(value: float) -> Tensor:
    """A number in the precision of the compiled bodies."""
    return torch.tensor(value, dtype=torch.float32, device="cpu")


def _whole(position: Tensor | int) -> Tensor:
    return position if isinstance(position, Tensor) else torch.tensor(position, device="cpu")


def word_at(key: Key, position: Tensor | int) -> Tensor:
    return words_at(key.seed, key.stream, key.step, _whole(position))


def read(values: Tensor, how: Read, position: Tensor | int, key: Key) -> Tensor:
    """Outputs of one-hot reads; ``position`` numbers them."""
    if how.noise > 0:
        values = values + single(how.noise) * normals_at(key, _whole(position))
    if how.half > 0:
        values = round_to_grid(values, single(how.bound), how.half)
    return values


def column_pulse(tile: Tile, column: int, where: Tensor, up: Tensor, place: int, key: Key) -> None:
    """One pulse on the devices of a column where ``where`` is True."""
    rows, columns = tile.held.shape
    c = slice(column, column + 1)
    p = tile.parameters if tile.parameters.shape[1] == 1 else tile.parameters[:, c]
    positions = pulses.numbered((rows, columns), place, slice(None), c, tile.held.device)
    pulses.pulse(
        tile.cell,
        tile.held[:, c],
        tile.w[:, c],
        p,
        tile.counts[:, c],
        where[:, None],
        up[:, None],
        *positions,
        key,
    )


def direct(
    tile: Tile, source: Tensor, column: int, columns: int, number: int, lr: float, granularity: float, how: Read,
    train: PulseTrain, stride: int, key: Key, statistics: Tensor,
) -> None:  # fmt: skip
    rows, width = source.shape
    row = torch.arange(rows, device=source.device)
    for n in range(number, number + columns):
        c = (column + n - number) % width
        y = read(source[:, c].clone(), how, n * rows + row, key.at("transfer"))
        statistics[0] += 1
        largest = float(y.abs().max())
        if largest == 0:
            continue
        statistics[1] += 1
        slots, a, b, kappa = pulses.train_of(1.0, largest, lr, granularity, train)
        statistics[4] += kappa > train.length
        p = pulses.rounded(y.abs().double() * a, train.d_resolution)
        q = pulses.rounded(torch.tensor([b], dtype=torch.float64, device="cpu"), train.x_resolution)
        statistics[5] += int((p > 0).sum())
        statistics[6] += int((p > 1 + 1e-6).sum())
        statistics[3] += slots
        for slot in range(slots):
            place = n * stride + slot
            if not bool(pulses.fired(key.at("pulses_x"), key.at("pulses_x_low"), place, q)[0]):
                continue
            where = pulses.fired(key.at("pulses_d"), key.at("pulses_d_low"), place, p)
            column_pulse(tile, c, where, y > 0, place, key.at("pulse_noise"))
            statistics[2] += int(where.sum())


def buffered(
    tile: Tile, source: Tensor, buffer: Tensor, signs: tuple[Tensor, Tensor] | None,
    references: tuple[Tensor, Tensor] | None, visits: Tensor, gain: float, momentum: float, forget: bool, most: int,
    chop: float, random_chop: bool, d_chop: float, beta: float, how: Read, key: Key, statistics: Tensor,
) -> None:  # fmt: skip
    rows, width = source.shape
    row = torch.arange(rows, device=source.device)
    number = int(visits[0])
    c, sweep = number % width, number // width
    every = max(math.ceil(1 / chop), 2) if chop > 0 else 0
    kept = single(momentum)
    y = read(source[:, c].clone(), how, number * rows + row, key.at("transfer"))
    writes, gained = True, y
    if references is not None:
        mean, reference = references
        share = single(beta)
        if bool(visits[1 + c] != 0):
            reference[:, c] = mean[:, c]
        gained = y - reference[:, c]
        mean[:, c] = (1 - share) * mean[:, c] + share * y
        writes = every == 0 or sweep > every
    if signs is not None:
        gained = gained * (signs[0][c] * signs[1])
    total = buffer[:, c] + gained * single(gain)
    if writes:
        over = total.abs() >= 1
        count = torch.where(over, total.trunc().clamp(-most, most), 0)
        rest = total * kept if forget else total - (1 - kept) * count
        total = torch.where(over, rest, total)
        for k in range(int(count.abs().max()) if rows else 0):
            column_pulse(tile, c, count.abs() > k, count > 0, number * most + k, key.at("pulse_noise"))
        statistics[2] += int(count.abs().sum())
    buffer[:, c] = total
    statistics[:2] += 1
    if signs is not None:
        flips = False
        if every > 0:
            chance = float(word_at(key.at("algorithm"), number)) * 2.0**-32
            flips = chance < chop if random_chop else sweep % every == every - 1
        if flips:
            signs[0][c] *= -1
        visits[1 + c] = int(flips)
        if d_chop > 0 and c == width - 1:
            chance = word_at(key.fold("rows").at("algorithm"), sweep * rows + row).double() * 2.0**-32
            signs[1].copy_(torch.where(chance < d_chop, -signs[1], signs[1]))
    visits[0] += 1


def whole_steps(
    tile: Tile, chi: Tensor, size: float, most: int, number: int, key: Key, statistics: Tensor
) -> None:
    size_ = single(size)
    count = torch.where(chi.abs() < size_, 0, (chi / size_).trunc().clamp(-most, most))
    chi -= count * size_
    for k in range(int(count.abs().max()) if count.numel() else 0):
        shape = (tile.held.shape[0], tile.held.shape[1])
        positions = pulses.numbered(shape, number * most + k, slice(None), slice(None), tile.held.device)
        pulses.pulse(
            tile.cell, tile.held, tile.w, tile.parameters, tile.counts, count.abs() > k, count > 0, *positions,
            key.at("pulse_noise"),
        )  # fmt: skip
    statistics[0] += 1
    statistics[2] += int(count.abs().sum())


def uniform_at(key: Key, position: Tensor) -> Tensor:
    return ((word_at(key.at("algorithm"), position).double() + 0.5) * 2.0**-32).float()


def reencode(
    cell: PulsedCell, held: Tensor, w: Tensor, parameters: Tensor, counts: Tensor, nominal: Tensor, shares: Tensor,
    gradient: Tensor | None, rate: float, decay: float, column: int, columns: int, number: int, threshold: float,
    tries: int, last_tries: int, floor: float, least: float, unit: float, stochastic: bool, how: Read, key: Key,
    statistics: Tensor, reads: Tensor,
) -> None:  # fmt: skip
    tiles, rows, width = held.shape
    device, most = held.device, max(tries, last_tries)
    # Pulses of a cell, tile and visit: on the way down, the carry, on the way down from there.
    slots = 2 * most + 1
    row, quiet = (
        torch.arange(rows, device=device),
        torch.full((rows,), cell.NOMINAL, device=device, dtype=torch.float32),
    )
    least_, unit_ = single(least), single(unit)
    for n in range(columns):
        c = (column + n) % width
        visit = (number + n) * tiles
        word = (row << 40) + number + n
        y = []
        for t in range(tiles):
            place = (visit + t) * (slots + 1)
            y.append(read(w[t, :, c].clone(), how, place * rows + row, key.at("transfer")))
            reads[t] += 1
        start = -(single(rate) * gradient[:, n]) if gradient is not None else torch.zeros_like(quiet)
        if decay > 0:
            content = torch.zeros_like(quiet)
            for t in range(tiles):
                content = content + shares[t] * y[t]
            start = start - single(decay) * content
        moved = torch.zeros_like(quiet)

        def below(start: Tensor, y=y) -> list[Tensor]:
            """Of each tile: what is to be written, with all that less significant tiles hold."""
            sums = [start]
            for t in range(tiles - 1):
                sums.append(sums[t] + shares[t] * y[t])
            return sums

        def missing_on(t: int, prefix: Tensor, y=y) -> tuple[Tensor, Tensor, Tensor]:
            missing = (prefix + moved) / shares[t]  # noqa: B023  (called within the iteration)
            up = missing > 0
            after = cell.step(y[t], nominal[0], up, quiet)
            return missing, up, torch.where(up, after - y[t], y[t] - after)

        def fire(t: int, where: Tensor, up: Tensor, slot: int, y=y, c=c, visit=visit) -> Tensor:
            nonlocal moved
            tile = Tile(cell, held[t], w[t], parameters[t], counts[t])
            column_pulse(tile, c, where, up, (visit + t) * slots + slot, key.at("pulse_noise"))
            statistics[t, 2] += int(where.sum())
            place = (visit + t) * (slots + 1) + 1 + slot
            now = read(w[t, :, c].clone(), how, place * rows + row, key.at("transfer"))
            change = torch.where(where, now - y[t], 0)
            moved = torch.where(where, moved - shares[t] * change, moved)
            y[t] = torch.where(where, now, y[t])
            reads[t] += 1
            return change

        def settle(t: int, prefix: Tensor, trying: Tensor, first: int, uniform: Tensor | None) -> Tensor:
            """Where something is missing that this tile cannot do."""
            stuck = torch.zeros_like(trying)
            for k in range(tries if t > 0 else last_tries):
                missing, up, size = missing_on(t, prefix)
                if uniform is not None:
                    fires = uniform * size < missing.abs()
                    stuck |= trying & (size <= least_) & (missing != 0)
                else:
                    fires = missing.abs() > single(threshold) * (
                        size.clamp_min(float(single(floor))) if t > 0 else size
                    )
                trying = trying & fires & (size > least_)
                if not bool(trying.any()):
                    return stuck
                if uniform is not None:
                    # Rounded up to a step: what the pulse misses of it, or does too much, is rounded next.
                    short, more = trying & (missing.abs() < size), (size - missing.abs()) * shares[t]
                    prefix.copy_(torch.where(short, prefix + torch.where(up, more, -more), prefix))
                    uniform = torch.where(short, uniform * size / missing.abs(), uniform)
                answers = fire(t, trying, up, first + k).abs() > least_
                stuck |= trying & ~answers
                trying = trying & answers
            return stuck | trying

        prefix = below(start)
        everyone = torch.ones(rows, dtype=torch.bool, device=device)
        for t in range(tiles - 1, 0, -1):
            settle(t, prefix[t], everyone, 0, None)
        stuck = settle(0, prefix[0], everyone, 0, uniform_at(key, word) if stochastic else None)
        if not stochastic:
            continue
        # What tile 0 could not do, a more significant tile does with a whole step of tile 0 and the chance that makes
        # it right in the mean; those below then take back what it did too much.
        missing = prefix[0] + moved
        carrying = stuck & (uniform_at(key.fold("carry"), word) * unit_ < missing.abs())
        if not bool(carrying.any()):
            continue
        whole = missing.abs().clamp_min(float(unit_))
        start = torch.where(carrying, torch.where(missing > 0, whole, -whole) - moved, start)
        level = torch.zeros_like(row)
        for t in range(1, tiles):
            _, up, size = missing_on(t, start)
            where = carrying & (size > least_)
            if not bool(where.any()):
                continue
            answered = where & (fire(t, where, up, most).abs() > least_)
            level[answered] = t
            carrying = carrying & ~answered
        prefix = below(start)
        for t in range(tiles - 2, -1, -1):
            if bool((level > t).any()):
                uniform = uniform_at(key.fold("return"), word) if t == 0 else None
                settle(t, prefix[t], level > t, most + 1, uniform)
    statistics[:, :2] += columns


class _One(Vectors):
    """Vectors that are unfolded already."""

    def __init__(self, x: Tensor, d: Tensor):
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "d", d)

    def unfolded(self) -> tuple[Tensor, Tensor]:
        return self.x, self.d


def buffered_update(
    fast: Tile, slow: Tile, vectors: Vectors, lr: float, key: Key, transfer_key: Key, b, so_far: int, period: int,
    columns: int, how: Read, train: PulseTrain, stride: int, means: Tensor, rate: float, statistics: Tensor,
    slow_statistics: Tensor,
) -> None:  # fmt: skip
    x, d = vectors.unfolded()
    signs = (b.x_sign, b.d_sign) if b.x_sign is not None else None
    references = (b.mean, b.reference) if b.mean is not None else None
    for v in range(x.shape[1]):
        one = _One(x[:, v : v + 1], d[:, v : v + 1])
        now = lr
        if rate > 0:
            for side, part in enumerate((one.x, one.d)):
                value, mean = float(part.abs().max()), float(means[side])
                means[side] = value if mean == 0 else mean + rate * (value - mean)
            now = lr / max(float(means[0]) * float(means[1]), 1e-30)
        pulses.update(
            fast.cell, fast.held, fast.w, fast.parameters, fast.counts, one, b.x_sign, b.d_sign, v, now,
            fast.cell.granularity, train, stride, key, statistics,
        )  # fmt: skip
        if (so_far + v + 1) % period == 0:
            for _ in range(columns):
                buffered(
                    slow, fast.w, b.h, signs, references, b.visits, b.gain, b.momentum, b.forget, b.most, b.chop,
                    b.random_chop, b.d_chop, b.beta, how, transfer_key, slow_statistics,
                )  # fmt: skip
