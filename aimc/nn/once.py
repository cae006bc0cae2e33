"""Backward passes that are made once: the derivative of their gradients is refused, where it would be zeros."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from aimc.errors import AimcError


class _Once(torch.autograd.Function):
    """Gradients that depend on something in a way that nobody has written down."""

    @staticmethod
    def forward(count: int, *tensors: Tensor):
        return tuple(t.view_as(t) for t in tensors[:count])

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:  # apart from forward(), for torch.func
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, *grads):
        raise AimcError(
            "analog layers have no second derivative (a gradient penalty, torch.autograd.functional.hessian, hvp or "
            "jvp, torch.func.hessian); take it of aimc.to_digital(net)"
        )


def made_once(gradients: Any, by: Iterable[Any]) -> Any:
    """What a backward pass returns, with an error where its derivative by some tensors would be.

    Args:
        gradients: a tensor, or a tuple of tensors and what else there is.
        by: tensors and what else there is; one that requires no gradient is none of the derivatives.
    """
    needed = [t for t in by if isinstance(t, Tensor) and t.requires_grad]
    several = list(gradients) if isinstance(gradients, tuple) else [gradients]
    places = [i for i, t in enumerate(several) if isinstance(t, Tensor)]
    if not needed or not places:
        return gradients
    results: Any = _Once.apply(len(places), *(several[i] for i in places), *needed)
    for i, result in zip(places, results, strict=True):
        several[i] = result
    return tuple(several) if isinstance(gradients, tuple) else several[0]


def once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward pass of a :class:`torch.autograd.Function` that is not differentiable.

    ``torch.autograd.function.once_differentiable`` leaves its gradients with no way to the inputs, so that who asks for
    derivatives by these, with leave to find none, gets zeros. ``ctx.by`` names tensors, beside the gradients that come
    in, by which the result would have a derivative.
    """

    @functools.wraps(backward)
    def run(ctx, *grads):
        if not torch.is_grad_enabled():
            return backward(ctx, *grads)
        with torch.no_grad():
            found = backward(ctx, *grads)
        return made_once(found, (*grads, *getattr(ctx, "by", ())))

    return run
