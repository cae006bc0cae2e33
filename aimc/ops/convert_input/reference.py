"""The plain torch body."""

from __future__ import annotations

import torch
from torch import Tensor


def convert_input(x: Tensor, ranges: Tensor, splits, half: int, contiguous_tiles: bool):
    parts, clipped = [], []
    whole = torch.empty_like(x)
    for k, (a, b) in enumerate(splits):
        part = x[:, :, a:b]
        r = ranges[k].view(-1, 1, 1, 1)
        clipped.append(int((part.abs() > r).sum()))
        if half:
            # In float16 half / r would be infinite for ranges below 2e-3.
            r = r.float() if r.dtype == torch.float16 else r
            part = (torch.round(part * (half / r)).clamp(-half, half) * (r / half)).to(x.dtype)
        else:
            part = torch.minimum(torch.maximum(part, -r), r)
        if contiguous_tiles:
            parts.append(part.contiguous())
        else:
            whole[:, :, a:b] = part
            parts.append(whole[:, :, a:b])
    return parts, clipped, bool(torch.isfinite(x).all())


def convert_input_backward(x: Tensor, grads: list[Tensor], ranges: Tensor, splits):
    result = torch.empty_like(x)
    push = []
    for k, (a, b) in enumerate(splits):
        part, d = x[:, :, a:b], grads[k]
        r = ranges[k].view(-1, 1, 1, 1)
        above, below = part > r, part < -r
        push.append((d.clamp_max(0) * above).sum() - (d.clamp_min(0) * below).sum())
        result[:, :, a:b] = d.masked_fill(above | below, 0)
    return result, torch.stack(push)
