"""Attention: the four projections on tiles of their own, everything between them digital."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aimc.arguments import expect_tensor
from aimc.errors import AimcError
from aimc.hardware import PulsedHardware
from aimc.nn.composite import AnyHardware, Composite, Piece
from aimc.nn.linear import AnalogLinear
from aimc.nn.pulsed import PulsedLinear
from aimc.random import Key


class AnalogMultiheadAttention(Composite, nn.MultiheadAttention):
    """``nn.MultiheadAttention`` with tiles ``q_proj``, ``k_proj``, ``v_proj`` and ``out_proj``.

    Arguments as for :class:`AnalogLinear`. torch's own kernels, which compute with the bare weights, are never called.

    Example:
        >>> from aimc import presets
        >>> attention = AnalogMultiheadAttention(nn.MultiheadAttention(8, 2), presets.ideal(), Key(0))
        >>> x = torch.ones(5, 3, 8)
        >>> y, weights = attention(x, x, x)
        >>> y.shape, weights.shape
        (torch.Size([5, 3, 8]), torch.Size([3, 5, 5]))
    """

    def __init__(
        self,
        digital: nn.MultiheadAttention,
        hardware: AnyHardware,
        key: Key,
        name: str = "",
        backend: str = "auto",
    ):
        nn.Module.__init__(self)
        for field in (
            "embed_dim", "kdim", "vdim", "_qkv_same_embed_dim", "num_heads", "dropout", "batch_first", "head_dim",
            "add_zero_attn",
        ):  # fmt: skip
            setattr(self, field, getattr(digital, field))
        pieces = {}
        for k, kind in enumerate("qkv"):
            rows = slice(k * self.embed_dim, (k + 1) * self.embed_dim)
            packed = self._qkv_same_embed_dim
            pieces[f"{kind}_proj"] = Piece(
                "in_proj_weight" if packed else f"{kind}_proj_weight",
                "in_proj_bias" if digital.in_proj_bias is not None else None,
                rows if packed else None,
                rows,
            )
        self._analog_set_up(digital, pieces, hardware, key, name, backend)
        if digital.bias_k is None:
            self.bias_k = self.bias_v = None
        kind: Any = PulsedLinear if isinstance(hardware, PulsedHardware) else AnalogLinear
        below = f"{name}.out_proj" if name else "out_proj"
        self.out_proj = kind(digital.out_proj, hardware, key.fold("out_proj"), below, backend)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Arguments and results as for the torch layer.

        ``is_causal`` is a hint that ``attn_mask`` is causal, and needs the mask as in torch.
        """
        for name, given in (("query", query), ("key", key), ("value", value)):
            expect_tensor(given, self.analog_name, name)
        if query.dim() not in (2, 3) or {key.dim(), value.dim()} != {query.dim()}:
            raise AimcError(
                f"expects query, key and value of 2 or of 3 dimensions, got {query.dim()}, {key.dim()} and "
                f"{value.dim()}",
                layer=self.analog_name,
            )  # fmt: skip
        if is_causal and attn_mask is None:
            raise AimcError("needs attn_mask with is_causal", layer=self.analog_name, field="attn_mask")
        single, swapped = query.dim() == 2, query.dim() == 3 and not self.batch_first

        def batched(x: Tensor) -> Tensor:
            return x[None] if single else x.transpose(0, 1) if swapped else x

        matrices: Any = self._modules
        q, k, v = (
            matrices[f"{kind}_proj"](batched(x)) for kind, x in zip("qkv", (query, key, value), strict=True)
        )
        if k.shape[:2] != v.shape[:2] or len(q) != len(k):
            raise AimcError(
                f"batch and length of query {list(query.shape)}, key {list(key.shape)} and value "
                f"{list(value.shape)} do not fit", layer=self.analog_name,
            )  # fmt: skip
        batch, length, _ = q.shape
        mask = self._mask(attn_mask, key_padding_mask, batch, length, k.shape[1], q.dtype)
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (
                torch.cat([x, b.expand(batch, 1, -1)], 1) for x, b in ((k, self.bias_k), (v, self.bias_v))
            )
        q, k, v = (
            x.view(batch, x.shape[1], self.num_heads, self.head_dim).transpose(1, 2) for x in (q, k, v)
        )
        if self.add_zero_attn:
            k, v = (F.pad(x, (0, 0, 0, 1)) for x in (k, v))
        if mask is not None:
            mask = F.pad(mask, (0, k.shape[2] - mask.shape[3]))  # what was appended is seen by all
        dropout, weights = self.dropout if self.training else 0.0, None
        if need_weights:
            scores = (q / math.sqrt(self.head_dim)) @ k.transpose(2, 3)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            y = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
            weights = weights[0] if single else weights
        else:
            y = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        y = self.out_proj(y.transpose(1, 2).reshape(batch, length, self.embed_dim))
        if single:
            return y[0], weights
        alike = query is key and key is value
        if not (alike and self._torch_is_fast(attn_mask, key_padding_mask)):
            # Torch's results lie sequence first, and whoever takes a .view() counts on it.
            y = y.transpose(0, 1).contiguous().transpose(0, 1)
        return y.transpose(0, 1) if swapped else y, weights

    def _torch_is_fast(self, *masks: Tensor | None) -> bool:
        """Whether self-attention of torch would be a kernel of its own, whose results lie batch first."""
        plain = self._qkv_same_embed_dim and self._analog_pieces["q_proj"].bias is not None
        plain = plain and self.bias_k is None and not self.add_zero_attn and self.num_heads % 2 == 0
        running = not (self.training or torch.is_grad_enabled() or torch.is_autocast_enabled())
        boolean = not any(mask is not None and mask.is_floating_point() for mask in masks)
        enabled = self.batch_first and torch.backends.mha.get_fastpath_enabled()
        return plain and running and boolean and enabled

    def _mask(
        self,
        attn_mask: Tensor | None,
        key_padding_mask: Tensor | None,
        batch: int,
        length: int,
        keys: int,
        dtype: torch.dtype,
    ) -> Tensor | None:
        """What is added to the scores, ``[batch or 1, heads or 1, length or 1, keys]``, or None for nothing."""
        found = []
        if attn_mask is not None:
            shapes = {(length, keys): (1, 1), (batch * self.num_heads, length, keys): (batch, self.num_heads)}
            if tuple(attn_mask.shape) not in shapes:
                raise AimcError(
                    f"expects {' or '.join(str(list(s)) for s in shapes)}", layer=self.analog_name, field="attn_mask",
                    shape=attn_mask.shape,
                )  # fmt: skip
            found.append(attn_mask.view(*shapes[tuple(attn_mask.shape)], length, keys))
        if key_padding_mask is not None:
            if key_padding_mask.numel() != batch * keys:
                raise AimcError(
                    f"expects {[batch, keys]}",
                    layer=self.analog_name,
                    field="key_padding_mask",
                    shape=key_padding_mask.shape,
                )
            found.append(key_padding_mask.view(batch, 1, 1, keys))
        added = [
            torch.zeros_like(m, dtype=dtype).masked_fill_(m, -math.inf)
            if m.dtype == torch.bool
            else m.to(dtype)
            for m in found
        ]
        return sum(added[1:], added[0]) if added else None

    def _analog_blank(self) -> nn.MultiheadAttention:
        digital = nn.MultiheadAttention(
            self.embed_dim, self.num_heads, self.dropout, self._analog_pieces["q_proj"].bias is not None,
            self.bias_k is not None, self.add_zero_attn, self.kdim, self.vdim, self.batch_first, **self.analog_like(),
        )  # fmt: skip
        out: Any = self.out_proj.to_digital()
        digital.out_proj.weight, digital.out_proj.bias = out.weight, out.bias
        return digital
