"""The plain torch body."""

from __future__ import annotations

import torch

from aimc.random import normal


def read_out(total, partial, scale, ranges, setting, key, variance, magnitude, lost, gain, bias):
    _, outputs, positions = partial.shape
    if partial.dtype == torch.float16:  # steps of small ranges would be zero
        p, s, r = partial.float(), scale.float(), ranges.float()
        bias = bias if total is None else None
        v, m, lo, g, b = (None if t is None else t.float() for t in (variance, magnitude, lost, gain, bias))
        found, saturated, count = read_out(None, p, s, r, setting, key, v, m, lo, g, b)
        if total is not None:
            return total.add_(found), saturated, count
        wide = any(t is not None and t.dtype != torch.float16 for t in (scale, ranges, gain, bias))
        return (found if wide else found.half()), saturated, count  # under autocast a bias is float32
    full = scale.view(1, -1, 1) * ranges.view(-1, 1, 1)
    analog = partial
    if setting.wire_load:
        load = torch.where(full > 0, magnitude / full, 0) * setting.wire_load
        analog = analog - (load * (0.05 * load**2 - 0.2 * load + 0.5)).clamp_max(1.0) * lost
    if setting.output_noise or setting.short_term:
        std = setting.output_noise * full
        if setting.short_term:
            std = torch.sqrt(std**2 + setting.short_term**2 * scale.view(1, -1, 1) * variance)
        offset = setting.offset * outputs * positions
        draws = normal(key, tuple(partial.shape), offset=offset, device=partial.device, dtype=partial.dtype)
        analog = analog + std * draws
    saturated, count = None, 0
    if setting.bound:
        limit = setting.bound * full
        saturated = analog.abs() > limit
        if setting.half:
            step = limit / setting.half
            level = torch.round(torch.where(step > 0, analog / step, 0)).clamp(-setting.half, setting.half)
            analog = level * step
        else:
            analog = torch.minimum(torch.maximum(analog, -limit), limit)
        count = int(saturated.sum())
        saturated = saturated if count else None
    if gain is not None:
        analog = analog * gain.view(1, -1, 1)
    if total is None:
        return (analog.clone() if bias is None else analog + bias.view(1, -1, 1)), saturated, count
    total += analog
    return total, saturated, count


def read_out_backward(grad, saturated, gain):
    if gain is not None:
        grad = grad * gain.view(1, -1, 1)
    return grad if saturated is None else grad.masked_fill(saturated, 0)
