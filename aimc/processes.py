"""Data-parallel processes: which part of a batch this one has, and what all of them have together.

Without ``torch.distributed``, or before ``init_process_group``, this is one process that has everything. Ranks are
taken to hold parts of one batch, in their order and of equal size, as ``torchrun`` with a ``DistributedSampler`` makes
them.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import sys
import zlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import get_worker_info

from aimc.errors import AimcError
from aimc.random import Key


def rank() -> int:
    """Number of this process, 0 where there is one."""
    return dist.get_rank() if together() else 0


def count() -> int:
    """How many processes there are.

    Example:
        >>> count()
        1
    """
    return dist.get_world_size() if together() else 1


_ALONE: contextvars.ContextVar[bool] = contextvars.ContextVar("alone", default=False)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside, this process is the only one: it waits for no other, and reads as one that has everything.

    Example:
        >>> with alone():
        ...     count()
        1
    """
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def first_evaluated() -> int:
    """Where a process begins to number the vectors that it reads in evaluation, so that no two have the same noise.

    Each counts on by itself: they may have parts of any size.

    Example:
        >>> first_evaluated()
        0
    """
    return rank() << 32


def own_noise(key: Key) -> Key:
    """A key of reads; that of a data-loader worker is its own.

    A worker has a copy of a layer, and counts on from where all others do, in every epoch. Torch gives each worker of
    each epoch a seed, by the loader's generator. It goes into the key, as numbers of vectors have no room for it.

    Example:
        >>> own_noise(Key(1))
        Key(seed=1, stream=0, step=0)
    """
    info = None if _ALONE.get() else get_worker_info()
    return key if info is None else key.fold("worker", info.seed)


def refuse_several(what: str) -> None:
    """Raise where there are several processes, for what gives its own one everything to do."""
    if count() > 1:
        raise AimcError(
            f"{what} trains in one process, and this is process {rank()} of {count()} of a torch.distributed group, "
            "each of which would train on every batch by itself; train your network in a loop of your own with "
            "DistributedDataParallel, see docs/torch.md"
        )


def agreed(number: int) -> int:
    """The number of the first process, in all of them."""
    if count() == 1:
        return number
    numbers = [number]
    dist.broadcast_object_list(numbers, src=0)
    return numbers[0]


def first(values: Tensor) -> Tensor:
    """The values of the first process, in all of them; shape and type have to be the same.

    Example:
        >>> first(torch.ones(1))
        tensor([1.])
    """
    if count() == 1 or values.numel() == 0:
        return values
    sent = _sendable(values)
    dist.broadcast(sent, src=0)
    return sent.to(values.device)


def alike(what: Any) -> bool:
    """Whether something is equal in all processes.

    Example:
        >>> alike("anything")
        True
    """
    everyone: list = [what]
    if count() > 1:
        everyone *= count()
        dist.all_gather_object(everyone, what)
    return all(other == what for other in everyone)


def together() -> bool:
    """Whether this process is one of a group."""
    return dist.is_available() and dist.is_initialized() and not _ALONE.get()


def largest(values: Tensor) -> Tensor:
    """The largest over all processes, element by element."""
    if count() == 1:
        return values
    sent = _sendable(values)
    dist.all_reduce(sent, dist.ReduceOp.MAX)
    return sent.to(values.device)


def _sendable(values: Tensor) -> Tensor:
    """A copy on a device whose tensors the group can send: one of nccl alone knows none of the CPU."""
    # As "cpu:gloo,cuda:nccl".
    devices = [part.partition(":")[0] for part in dist.get_backend_config().split(",")]
    device = values.device
    if device.type not in devices:
        # The current one, which every process of a group of GPUs has set for itself.
        device = torch.device(devices[0])
    return values.to(device, copy=True, memory_format=torch.contiguous_format)


def moments(values: Tensor) -> Tensor:
    """How many numbers, their sum, that of their squares and the largest magnitude, float64 ``[4]``.

    Example:
        >>> moments(torch.tensor([1.0, -3.0])).tolist()
        [2.0, -2.0, 10.0, 3.0]
    """
    x = values.detach().double()
    peak = x.abs().max() if x.numel() else x.new_zeros(())
    return torch.stack([x.new_tensor(x.numel()), x.sum(), (x * x).sum(), peak])


def spread(values: Tensor, what: str) -> tuple[float, float]:
    """Standard deviation and largest magnitude over all processes; NaN without any, or if one is not finite.

    Args:
        values: of this process.
        what: says what is asked for, by the same words in all of them.

    Raises:
        AimcError: another process asks for something else, in every process.

    Example:
        >>> spread(torch.tensor([1.0, -1.0]), "something")
        (1.4142135381698608, 1.0)
    """
    if count() > 1:
        return spread_of(moments(values), what)
    number, finite = values.numel(), bool(torch.isfinite(values).all())
    if number == 0 or not finite:
        return float("nan"), float("nan")
    return float(values.std()) if number > 1 else 0.0, float(values.abs().max())


def spread_of(own: Tensor, what: str) -> tuple[float, float]:
    """:func:`spread` of numbers of which this process has the :func:`moments` ``own``."""
    parts = own[None]
    if count() > 1:
        # Collectives know no names: layers that some processes leave out would get the numbers of others.
        sent = _sendable(torch.cat([own.new_tensor([zlib.crc32(what.encode())]), own]))
        found = [torch.empty_like(sent) for _ in range(count())]
        dist.all_gather(found, sent)
        together = torch.stack(found).to(own.device)
        if bool((together[:, 0] != together[0, 0]).any()):
            raise AimcError(
                f"the processes are at different places, this one at {what}, whose input range starts from the inputs "
                "of all. While ranges start, all processes have to run the same layers as often; measure them before "
                "with aimc.calibrate, or give hardware.input_range.value"
            )
        parts = together[:, 1:]
    number, total, square = parts[:, :3].sum(0).tolist()
    if number == 0 or not math.isfinite(square):
        return float("nan"), float("nan")
    variance = max(0.0, (square - total * total / number) / (number - 1)) if number > 1 else 0.0
    return math.sqrt(variance), float(parts[:, 3].max())


def sharded(tensor: Any) -> bool:
    """Whether this process holds a part of a tensor and the others the rest, as ``fully_shard`` leaves parameters.

    Example:
        >>> sharded(torch.ones(1))
        False
    """
    # Before somebody has imported it there are none; the import takes long.
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


@contextlib.contextmanager
def whole(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor with all its parts, in every process; what is changed inside is written into the parts.

    Example:
        >>> w = torch.ones(2)
        >>> with whole(w) as all_of_it:
        ...     all_of_it[1] = 3
        >>> w
        tensor([1., 3.])
    """
    held: Any = tensor
    found = held.full_tensor() if sharded(tensor) else tensor
    yield found
    if found is not tensor:
        write(tensor, found)


def write(tensor: Tensor, values: Tensor) -> None:
    """Give a tensor values; of a sharded one every process has to give the same, and takes its part of them."""
    if sharded(tensor):
        from torch.distributed.tensor import DTensor, Replicate

        held: Any = tensor
        mesh = held.device_mesh
        everywhere = DTensor.from_local(values, mesh, [Replicate()] * mesh.ndim, run_check=False)
        values = everywhere.redistribute(placements=held.placements)
    tensor.copy_(values)


def joined(values: Tensor, what: str) -> Tensor:
    """The values of all processes in the order of their ranks, one after another along the first dimension.

    Args:
        values: ``[n, ...]``; n may differ from process to process, the rest may not.
        what: for messages.

    Raises:
        AimcError: the other dimensions or the type differ, in every process.
    """
    if count() == 1:
        return values
    mine = (tuple(values.shape), str(values.dtype))
    everyone: list = [None] * count()
    dist.all_gather_object(everyone, mine)
    if len({(shape[1:], dtype) for shape, dtype in everyone}) > 1:
        raise AimcError(f"the processes have different {what}: {', '.join(map(str, everyone))}")
    longest = max(shape[0] for shape, _ in everyone)
    padded = values.new_zeros((longest, *values.shape[1:]))
    padded[: len(values)] = values
    sent = _sendable(padded)
    parts = [torch.empty_like(sent) for _ in everyone]
    dist.all_gather(parts, sent)
    found = torch.cat([part[: shape[0]] for part, (shape, _) in zip(parts, everyone, strict=True)])
    return found.to(values.device)
