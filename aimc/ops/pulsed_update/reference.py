"""The plain torch body: one vector and one slot after another, every device at once. Slow, and obviously right."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aimc.cells.pulsed import PulsedCell
from aimc.ops.pulsed_update.train import MODES, PulseTrain
from aimc.ops.pulsed_update.vectors import Vectors
from aimc.random import Key, normals_at, words


def fired(key: Key, low: Key, place: int, probability: Tensor) -> Tensor:
    """Bits of one slot: a number of 32 bits per line, below ``2^32 p`` where the line fires.

    With n16 lines, the next multiple of 16, the high byte of line i is byte ``place n16 + i`` of the stream, four to a
    word, the lowest first; the low 24 bits are the high ones of word ``place n16 + i`` of the stream ``low``.
    """
    n, device = len(probability), probability.device
    n16 = -(-n // 16) * 16
    word = words(key, n16 // 4, offset=place * (n16 // 4), device=device, backend="reference")
    byte = torch.stack([word >> shift & 255 for shift in (0, 8, 16, 24)], 1).view(-1)[:n]
    number = byte << 24 | words(low, n, offset=place * n16, device=device, backend="reference") >> 8
    return number < (probability.clamp(max=1.0) * 2.0**32).to(torch.int64)


def pulse(
    cell: PulsedCell, held: Tensor, w: Tensor, parameters: Tensor, counts: Tensor | None, where: Tensor, up: Tensor,
    steps: Tensor, writes: Tensor, key: Key,
) -> None:  # fmt: skip
    """One pulse on every device where ``where`` is True; ``steps`` and ``writes`` are the positions of its normals."""
    xi = normals_at(key, steps)
    moved = cell.step(held, parameters, up, xi)
    held.copy_(torch.where(where, moved, held))
    if cell.write_noise_std > 0:
        noise = normals_at(key, writes) * torch.tensor(
            cell.write_noise_std * cell.dw_min, dtype=torch.float32, device="cpu"
        )
        w.copy_(torch.where(where, held + noise, w))
    if counts is not None:
        counts += where


def numbered(
    shape: tuple[int, int], place: int, rows: slice, columns: slice, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Positions of the normals of devices of an array: words twice their number in all places, and one more."""
    number = torch.arange(shape[0] * shape[1], device=device).view(shape)[rows, columns]
    number = 2 * (number + place * shape[0] * shape[1])
    return number, number + 1


def ranked(where: Tensor, devices: int, place: int) -> tuple[Tensor, Tensor]:
    """Positions of the normals of a slot's pulses, which are counted row by row; the others' do not matter."""
    rank = (where.flatten().cumsum(0) - 1).clamp_min(0).view(where.shape)
    devices4 = -(-devices // 4) * 4
    return 2 * place * devices4 + rank, (2 * place + 1) * devices4 + rank


def train_of(xm: float, dm: float, lr: float, g: float, train: PulseTrain) -> tuple[int, float, float, float]:
    """Slots, and the factors of the probabilities: ``BL, A (for d), B (for x), kappa``."""
    dm = train.gradient_scale * dm
    kappa = lr * xm * dm / g
    slots = train.length
    if train.length_management:
        slots = min(math.ceil(kappa), train.length)
    elif not train.fixed_length and g * train.length < lr:
        return math.ceil(lr / g), 1.0, 1.0, kappa
    slots = max(slots, 1)
    a = b = math.sqrt(lr / (g * slots))
    if train.management:
        top = dm if kappa <= train.length else dm * train.length / kappa
        a *= math.sqrt(xm / top)
        b *= math.sqrt(top / xm)
    return slots, a, b, kappa


def rounded(p: Tensor, resolution: float) -> Tensor:
    return torch.round(p / resolution) * resolution if resolution > 0 else p


def update(
    cell: PulsedCell, held: Tensor, w: Tensor, parameters: Tensor, counts: Tensor | None, vectors: Vectors,
    x_sign: Tensor | None, d_sign: Tensor | None, first: int, lr: float, granularity: float, train: PulseTrain,
    stride: int, key: Key, statistics: Tensor,
) -> None:  # fmt: skip
    xs, ds = vectors.unfolded()
    groups, rows = xs.shape[0], ds.shape[2]
    x_key, d_key, noise_key = key.at("pulses_x"), key.at("pulses_d"), key.at("pulse_noise")
    x_low, d_low = key.at("pulses_x_low"), key.at("pulses_d_low")
    for v in range(xs.shape[1]):
        for g in range(groups):
            x, d = xs[g, v], ds[g, v]
            part = slice(g * rows, (g + 1) * rows)
            of_group = parameters if parameters.shape[0] == 1 else parameters[part]
            count_part = counts[part] if counts is not None else None
            statistics[0] += 1
            xm, dm = float(x.abs().max()), float(d.abs().max())
            if xm == 0 or dm == 0:
                continue
            statistics[1] += 1
            slots, a, b, kappa = train_of(xm, dm, lr, granularity, train)
            statistics[4] += kappa > train.length
            p = rounded(d.abs().double() * a, train.d_resolution)
            q = rounded(x.abs().double() * b, train.x_resolution)
            statistics[5] += int((p > 0).sum())
            statistics[6] += int((p > 1 + 1e-6).sum())
            up = (d < 0)[:, None] != (x < 0)[None]
            if x_sign is not None and d_sign is not None:
                up = up != ((d_sign[part] < 0)[:, None] != (x_sign < 0)[None])
            number = (first + v) * groups + g
            mode = MODES[train.kind]
            pulses = torch.zeros(len(p), len(q), dtype=torch.int64, device="cpu")
            if mode == 1:
                pulses = torch.round(
                    torch.outer(torch.round(slots * p.clamp(max=1)), torch.round(slots * q.clamp(max=1)))
                    / slots
                )
            elif mode == 2:
                pulses = torch.round(slots * p.clamp(max=1)[:, None] * q.clamp(max=1)[None])
            for slot in range(slots if mode == 0 else int(pulses.max())):
                place = number * stride + slot
                if mode == 0:
                    where = fired(d_key, d_low, place, p)[:, None] & fired(x_key, x_low, place, q)[None]
                    positions = ranked(where, held.numel(), place)
                else:
                    where = slot < pulses
                    shape = (held.shape[0], held.shape[1])
                    positions = numbered(shape, place, part, slice(None), held.device)
                statistics[2] += int(where.sum())
                pulse(cell, held[part], w[part], of_group, count_part, where, up, *positions, noise_key)
            statistics[3] += slots
