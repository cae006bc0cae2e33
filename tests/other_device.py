"""A device beside the CPU without any hardware: tensors that say they are elsewhere and compute on the CPU.

Inside of :class:`OtherDevice` what is made on ``DEVICE`` is elsewhere, and an operation that mixes it with the CPU's
tensors fails, as it does with a GPU; only numbers (no dimension) may mix, and indices may stay on the CPU. So it shows
that code keeps to the device of its inputs, and that the values are those of the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor
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
        self.operations, self.tensor = _Operations(), torch.tensor
        self.operations.__enter__()

        def tensor(data, *, device=None, **options):
            """``torch.tensor`` works in C++, where no operation is seen."""
            return self.tensor(data, **options).to(device or "cpu")

        torch.tensor = tensor

    def __exit__(self, *error):
        torch.tensor = self.tensor
        self.operations.__exit__(*error)


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
