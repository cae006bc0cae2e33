"""The plain torch body."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from aimc.random import Key, normal, uniform

_BEYOND = 1 + 1e-6  # the largest weight of a column is 1 up to rounding, and keeps its gradient


def perturb_weights(
    weight: Tensor, splits, scale, changes, key: Key, contiguous_tiles: bool, clips: bool, with_factor: bool
):
    shape, where = tuple(weight.shape), {"device": weight.device, "dtype": weight.dtype}
    if scale is None:
        scale = torch.stack(
            [weight[:, a:b].abs().amax(1) if b > a else weight.new_zeros(len(weight)) for a, b in splits]
        )
    full = torch.cat([scale[k][:, None].expand(-1, b - a) for k, (a, b) in enumerate(splits)], 1)
    w = torch.where(full > 0, weight / full, 0)
    factor = torch.ones_like(w) if with_factor else None
    if clips:
        assert factor is not None
        factor = factor.masked_fill(w.abs() > 1, 0)
        w = w.clamp(-1, 1)
    for m, (kind, *numbers) in enumerate(changes):
        draw = key.fold(m)
        if kind == "add_normal":
            w = w + numbers[0] * normal(draw, shape, **where)
        elif kind == "multiply_normal":
            w = w * (1 + numbers[0] * normal(draw, shape, **where))
        elif kind in ("polynomial", "polynomial_keep_sign"):
            r = w.abs()
            std = numbers[0] * (numbers[1] + r * (numbers[2] + r * (numbers[3] + r * numbers[4])))
            moved = w + std.clamp_min(0) * normal(draw, shape, **where)
            keep = kind == "polynomial_keep_sign"
            w = torch.where(w < 0, -moved.abs(), torch.where(w > 0, moved.abs(), moved)) if keep else moved
        elif kind == "discretize":
            assert factor is not None
            factor = factor.masked_fill(w.abs() > _BEYOND, 0)
            w = torch.round(w.clamp(-1, 1) * numbers[0]) / numbers[0]
        elif kind == "dorefa":
            half, clip = numbers
            bent = torch.tanh(w)
            gain = clip / math.tanh(1.0)
            assert factor is not None
            factor = factor * ((1 - bent**2) * gain)
            w = torch.round(bent * gain * half) / half
        elif kind == "drop":
            kept = uniform(draw, shape, **where) >= numbers[0]
            assert factor is not None
            w, factor = w * kept, factor * kept
    w = w * full
    tiles = [w[:, a:b] for a, b in splits]
    return [t.contiguous() if contiguous_tiles else t for t in tiles], scale, factor
