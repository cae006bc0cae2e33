"""What convolutions of both halves share: what they ask of their inputs, and being called with torch's arguments."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from aimc.arguments import expect_tensor
from aimc.errors import AimcError


class TorchsArguments:
    """A mixin in front of a torch layer: its type, called with torch's arguments, makes the torch layer.

    PEFT and others make further layers by ``type(layer)(channels, ...)``, and those are digital.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        if (args or kwargs) and not any(isinstance(a, nn.Module) for a in (*args, *kwargs.values())):
            torchs: Any = next(kind for kind in cls.__mro__ if kind.__module__.split(".")[0] == "torch")
            return torchs(*args, **kwargs)
        return super().__new__(cls)  # also a copy, which is made without arguments


def batched(input: Tensor, spatial: int, channels: int, name: str) -> tuple[Tensor, bool]:
    """The input with a dimension of images, and whether that was added.

    Args:
        input: an image, or several.
        spatial: dimensions of an image beside its channels.
        channels: how many the layer takes.
        name: of the layer.

    Raises:
        AimcError: other dimensions or channels, or images without a pixel.

    Example:
        >>> import torch
        >>> x, added = batched(torch.ones(3, 8), 1, 3, "first")
        >>> x.shape, added
        (torch.Size([1, 3, 8]), True)
    """
    expect_tensor(input, name)
    if input.dim() not in (spatial + 1, spatial + 2):
        raise AimcError(f"expects {spatial + 1} or {spatial + 2} dimensions", layer=name, shape=input.shape)
    if input.shape[-spatial - 1] != channels:
        raise AimcError(f"expects {channels} channels", layer=name, shape=input.shape)
    if 0 in input.shape[-spatial:]:
        raise AimcError("the images have no pixels", layer=name, shape=input.shape)
    single = input.dim() == spatial + 1
    return input[None] if single else input, single


def pad_images(x: Tensor, amounts: Sequence[int], mode: str, name: str) -> Tensor:
    """``F.pad``, whose refusals name the layer."""
    try:
        return F.pad(x, amounts, mode=mode)
    except RuntimeError as error:
        raise AimcError(f"its padding of mode {mode!r} does not fit: {error}", layer=name) from None


def check_kernel(out: Iterable[int], name: str, shape: Sequence[int]) -> None:
    """Raise where there is no output position.

    Args:
        out: output positions in every dimension, less than one where the kernel does not fit.
        name: of the layer.
        shape: of its input.
    """
    if any(n < 1 for n in out):
        raise AimcError("the kernel is larger than the padded input", layer=name, shape=shape)
