"""A device beside the CPU without any hardware: tensors that say they are elsewhere and compute on the CPU.

Inside of :class:`OtherDevice` what is made on ``DEVICE`` is elsewhere, and an operation that mixes it with the CPU's
tensors fails, as it does with a GPU; only numbers (no dimension) may mix, and indices may stay on the CPU. So it shows
that code keeps to the device of its inputs, and that the values are those of the CPU.
"""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("meta")  # needs no initialisation, and no build of torch lacks it
_MAY_MIX = {
    "aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::copy_", "aten::_to_copy",
}  # fmt: skip


class Elsewhere(Tensor):
    """A tensor on the other device; ``inner`` holds its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, real: Tensor):
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, real.size(), strides=real.stride(), storage_offset=real.storage_offset(), dtype=real.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.inner = real
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _computed(func, args, kwargs or {})

    def tolist(self):  # type: ignore[override]  (torch declares it for numbers of every kind)
        return self.inner.tolist()


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _computed(func, args, kwargs or {})


class OtherDevice:
    """Context in which the other device exists."""

    def __enter__(self):
        self.operations, self.patches = _Operations(), pytest.MonkeyPatch()
        self.operations.__enter__()
        for name in ("tensor", "as_tensor"):
            self.patches.setattr(torch, name, _seen(getattr(torch, name)))
        self.patches.setattr(nn.Parameter, "__new__", _parameter)

    def __exit__(self, *error):
        self.patches.undo()
        self.operations.__exit__(*error)


def _seen(make):
    """What makes a tensor in C++, where no operation is seen, and takes it to its device afterwards."""

    def made(data, *, device=None, **options):
        tensor = make(data, **options)
        return tensor if device is None else tensor.to(device)

    return made


_new_parameter = nn.Parameter.__new__


def _parameter(cls, data=None, requires_grad=True):
    """torch keeps the class of a parameter that lies on a GPU, but not that of a parameter of a tensor's subclass."""
    if not isinstance(data, Elsewhere) or cls is nn.Parameter:
        return _new_parameter(cls, data, requires_grad)
    return _both(cls)(data.inner).requires_grad_(requires_grad)


@functools.cache
def _both(cls):
    return type(f"Elsewhere{cls.__name__}", (Elsewhere, cls), {})


def _computed(func, args, kwargs):
    there: dict[int, Elsewhere] = {}
    here: list[Tensor] = []

    def real(value):
        """The argument as the CPU computes with it; notes where it is."""
        if isinstance(value, Elsewhere):
            there[id(value.inner)] = value
            return value.inner
        if isinstance(value, Tensor):
            here.append(value)
        return [real(v) for v in value] if isinstance(value, list) else value

    real_args = [real(value) for value in args]
    real_kwargs = {name: real(value) for name, value in kwargs.items()}
    name = func._schema.name
    if there and any(t.dim() > 0 for t in here) and name not in _MAY_MIX:
        raise RuntimeError(f"{name}: tensors on two devices, here {[list(t.shape) for t in here]}")
    goes = bool(there)
    if kwargs.get("device") is not None:
        goes, real_kwargs["device"] = torch.device(kwargs["device"]) == DEVICE, torch.device("cpu")
    with torch._C._DisableTorchDispatch():  # type: ignore[attr-defined]
        found = func(*real_args, **real_kwargs)

    def placed(value):
        if isinstance(value, (list, tuple)):
            return type(value)(placed(v) for v in value)
        if not isinstance(value, Tensor):
            return value
        if id(value) in there:  # an operation in place returns what it was given
            return there[id(value)]
        return Elsewhere(value) if goes and all(value is not t for t in here) else value

    return placed(found)
