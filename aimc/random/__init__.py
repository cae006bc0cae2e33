"""Randomness as a pure function of (seed, stream, step, position).

Nothing here has state: the same :class:`Key` and position give the same number in any order, on any number of
threads, and in any division of the work. The generator is Philox 4x32-10 (J. K. Salmon, M. A. Moraes,
R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11).

There are two bodies. ``backend="reference"`` is plain torch and runs on any device, ``backend="cpu"`` is
compiled, for CPU tensors of float32. ``"auto"`` takes the second where it applies and the first elsewhere.
Words, uniforms, Bernoulli draws and permutations of the two are equal bit for bit; normals differ by at most
1e-6 * max(1, abs(z)). An explicit choice never falls back to the other body.

Example:
    >>> key = Key(seed=7).fold("layer1").at("read", step=3)
    >>> bool((normal(key, (2, 3)) == normal(key, 6).view(2, 3)).all())
    True
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from aimc.errors import AimcError, suggest
from aimc.random import cpu, reference
from aimc.random._pool import run_chunks

__all__ = [
    "STREAMS",
    "Key",
    "bernoulli",
    "log_uniform",
    "normal",
    "normals_at",
    "permutation",
    "run_chunks",
    "torch_draws",
    "uniform",
    "words",
]

#: Named streams. The numbers are part of the results: never renumber, only add.
STREAMS = {
    "device": 1,
    "programming": 2,
    "drift": 3,
    "read": 4,
    "faults": 5,
    "modifier": 6,
    "output_noise": 7,
    "probe": 8,
    "pulses_x": 9,
    "pulses_d": 10,
    "time": 11,
    "bootstrap": 12,
    "data": 13,
    "pulse_noise": 14,
    "pulses_x_low": 18,
    "pulses_d_low": 19,
    "transfer": 15,
    "algorithm": 16,
    "decay": 17,
}

_M32 = 2**32 - 1
_M64 = 2**64 - 1
_FOLD_STREAM = _M32  # the last two words of the counter of a fold; no draw may use this stream
_THREAD_CHUNK = 1 << 19  # elements; below twice this many the hand-over to a thread is not worth it


def _integer(value: object, field: str, low: int, high: int) -> int:
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise AimcError(f"must be an integer, got {value!r}", field=field) from None
    if not low <= number <= high:
        raise AimcError(f"must be between {low} and {high}, got {number}", field=field)
    return number


@dataclass(frozen=True)
class Key:
    """Names a sequence of random words: position p of it is a pure function of the key and p.

    Args:
        seed: any integer, reduced mod 2**64.
        stream: 0 to 2**32 - 2, or a name in :data:`STREAMS`; what the numbers are for.
        step: 0 to 2**32 - 1; which repetition (training step, read, ...) they belong to.

    Raises:
        AimcError: naming the field, when a value is not an integer, is out of range or is an unknown name.

    Example:
        >>> Key(-1).at("read", step=5)
        Key(seed=18446744073709551615, stream=4, step=5)
    """

    seed: int
    stream: int = 0
    step: int = 0

    def __post_init__(self):
        try:
            seed = operator.index(self.seed) & _M64
        except TypeError:
            raise AimcError(f"must be an integer, got {self.seed!r}", field="seed") from None
        object.__setattr__(self, "seed", seed)
        object.__setattr__(self, "stream", _stream(self.stream))
        object.__setattr__(self, "step", _integer(self.step, "step", 0, _M32))

    def fold(self, *data: int | str) -> Key:
        """A key with an independent seed, derived from this seed and the data; stream and step are kept.

        ``fold(a, b)`` is ``fold(a).fold(b)``. Integers are reduced mod 2**64; an integer and the string of
        its digits give different keys.

        Raises:
            AimcError: naming field `data`, when a value is neither an integer nor a string.

        Example:
            >>> key = Key(1)
            >>> key.fold("conv1", 3) == key.fold("conv1").fold(3) != key.fold("conv1", "3")
            True
        """
        return _checked(_fold(self.seed, *((type(item), item) for item in data)), self.stream, self.step)

    def at(self, stream: str | int | None = None, step: int | None = None) -> Key:
        """The same seed at another stream and/or step; None keeps the present one.

        Raises:
            AimcError: for an unknown stream name (the nearest one is suggested) or a number out of range.

        Example:
            >>> Key(1).at("drift").stream, Key(1, stream=9).at(step=2).stream
            (3, 9)
        """
        return _checked(
            self.seed,
            self.stream if stream is None else _stream(stream),
            self.step if step is None else _integer(step, "step", 0, _M32),
        )


def _checked(seed: int, stream: int, step: int) -> Key:
    """A key of numbers that are known to be in range; every layer makes several at every step."""
    key = object.__new__(Key)
    key.__dict__.update(seed=seed, stream=stream, step=step)
    return key


@functools.lru_cache(1 << 14)  # layers fold the same purposes into their key at every step
def _fold(seed: int, *data: tuple[type, int | str]) -> int:
    # The type is part of the data because 1 == True and both must not share a line of the cache with "1".
    for _, item in data:
        if isinstance(item, str):
            value = int.from_bytes(hashlib.blake2b(item.encode(), digest_size=8).digest(), "little")
        else:
            try:
                value = operator.index(item) & _M64
            except TypeError:
                raise AimcError(f"must be integers or strings, got {item!r}", field="data") from None
        counter = (value & _M32, value >> 32, int(isinstance(item, str)), _FOLD_STREAM)
        low, high, *_ = reference.block(counter, (seed & _M32, seed >> 32))
        seed = low | high << 32
    return seed


def _stream(stream: str | int) -> int:
    if isinstance(stream, str):
        if stream not in STREAMS:
            raise AimcError(f"unknown stream {stream!r}; {suggest(stream, STREAMS)}", field="stream")
        return STREAMS[stream]
    return _integer(stream, "stream", 0, _FOLD_STREAM - 1)


def _shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    if not isinstance(shape, Sequence):
        shape = (shape,)
    return tuple(_integer(size, "shape", 0, 2**63 - 1) for size in shape)


def _offset(offset: int, n: int) -> int:
    """The offset as an int, if positions offset .. offset + n - 1 all lie below 2**63."""
    return _integer(offset, "offset", 0, 2**63 - n)


def _compiled(backend: str, device: torch.device, fits: bool) -> bool:
    """Whether the compiled body is to be used; ``fits``: whether it can make the dtype."""
    if backend == "auto":
        return device.type == "cpu" and fits
    if backend == "reference":
        return False
    if backend != "cpu":
        hint = suggest(str(backend), ("auto", "reference", "cpu"))
        raise AimcError(f"unknown backend {backend!r}; {hint}", field="backend")
    if device.type != "cpu":
        raise AimcError(f"'cpu' cannot fill a tensor on {device}; use 'auto' or 'reference'", field="backend")
    if not fits:
        raise AimcError("'cpu' makes float32 only; for others use 'auto' or 'reference'", field="backend")
    return True


def _filled(kernel, n: int, key: Key, offset: int) -> torch.Tensor:
    out = torch.empty(n, dtype=torch.float32, device="cpu")
    array, args = out.numpy(), cpu.key_words(key)
    run_chunks(lambda a, b: kernel(array[a:b], b - a, *args, offset + a), n, _THREAD_CHUNK)
    return out


@contextlib.contextmanager
def torch_draws(key: Key, devices: Sequence[torch.device] = ()) -> Iterator[None]:
    """Torch's own generators give draws of the key inside, and outside go on as if nothing had been drawn.

    Args:
        key: seed, stream and step all count.
        devices: GPUs whose generators are meant besides the CPU's.

    Example:
        >>> with torch_draws(Key(1)):
        ...     first = torch.rand(3)
        >>> with torch_draws(Key(1)):
        ...     print(torch.equal(torch.rand(3), first))
        True
    """
    with torch.random.fork_rng(devices=list(devices)):
        torch.default_generator.manual_seed(key.seed)
        for device in devices:
            torch.cuda.default_generators[device.index].manual_seed(key.seed)
        yield


def words(
    key: Key, n: int, offset: int = 0, device: torch.device | str | None = None, backend: str = "auto"
) -> torch.Tensor:
    """The 32-bit words at positions ``offset`` to ``offset + n - 1``.

    Args:
        key: what to draw from.
        n: how many.
        offset: first position; ``offset + n`` may be up to 2**63.
        device: where the result goes; None is the CPU.
        backend: "auto", "reference" or "cpu".

    Returns:
        int64 tensor of shape [n], values 0 to 2**32 - 1.

    Raises:
        AimcError: naming the argument that is out of range, or `backend` when it cannot be had.

    Example:
        >>> [f"{word:08x}" for word in words(Key(0), 4)]
        ['6627e8d5', 'e169c58d', 'bc57ac4c', '9b00dbd8']
    """
    n = _integer(n, "n", 0, 2**63 - 1)
    offset, device = _offset(offset, n), torch.device(device or "cpu")
    if _compiled(backend, device, True):
        out = torch.empty(n, dtype=torch.int64, device="cpu")
        array, args = out.numpy(), cpu.key_words(key)
        run_chunks(lambda a, b: cpu.fill_words(array[a:b], *args, offset + a), n, _THREAD_CHUNK)
        return out
    return reference.words(key.seed, key.stream, key.step, offset, n, device)


def uniform(
    key: Key,
    shape: int | Sequence[int],
    offset: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> torch.Tensor:
    """Uniform numbers in the open interval (0, 1): (word // 2**9 + 1/2) * 2**-23, exact in float32.

    Args:
        key: what to draw from.
        shape: shape of the result; elements are numbered in row-major order.
        offset: position of the first element.
        device: where the result goes; None is the CPU.
        dtype: float32 or float64 (the same values).
        backend: "auto", "reference" or "cpu".

    Raises:
        AimcError: naming the argument, as for :func:`words`; `dtype` for one that cannot hold the values.

    Example:
        >>> u = uniform(Key(0), (2, 2))
        >>> u.shape, bool(((u > 0) & (u < 1)).all())
        (torch.Size([2, 2]), True)
    """
    shape = _shape(shape)
    if dtype not in (torch.float32, torch.float64):
        raise AimcError(f"must be float32 or float64 to hold the values, got {dtype}", field="dtype")
    n = math.prod(shape)
    offset, device = _offset(offset, n), torch.device(device or "cpu")
    if _compiled(backend, device, True):
        return _filled(cpu.fill_uniforms, n, key, offset).to(dtype).view(shape)
    return reference.to_uniform(
        reference.words(key.seed, key.stream, key.step, offset, n, device), dtype
    ).view(shape)


def normal(
    key: Key,
    shape: int | Sequence[int],
    offset: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> torch.Tensor:
    """Standard normal numbers, one word each, by the inverse of the distribution function; abs(z) <= 6.34.

    Args:
        key: what to draw from.
        shape: shape of the result; elements are numbered in row-major order.
        offset: position of the first element.
        device: where the result goes; None is the CPU.
        dtype: any floating dtype; all but float32 come from the reference body (float64, then cast).
        backend: "auto", "reference" or "cpu".

    Raises:
        AimcError: naming the argument, as for :func:`words`.

    Example:
        >>> z = normal(Key(0), 100_000)
        >>> bool(z.mean().abs() < 0.02), bool((z.std() - 1).abs() < 0.02)
        (True, True)
    """
    shape = _shape(shape)
    if not dtype.is_floating_point:
        raise AimcError(f"must be a floating dtype, got {dtype}", field="dtype")
    n = math.prod(shape)
    offset, device = _offset(offset, n), torch.device(device or "cpu")
    if _compiled(backend, device, dtype is torch.float32):
        return _filled(cpu.fill_normals, n, key, offset).view(shape)
    return reference.to_normal(
        reference.words(key.seed, key.stream, key.step, offset, n, device), dtype
    ).view(shape)


def normals_at(key: Key, positions: torch.Tensor) -> torch.Tensor:
    """Standard normals at any positions: float32, equal bit for bit to what the compiled body makes there.

    Args:
        key: what to draw from.
        positions: int64 tensor of any shape and device, values below 2**63.

    Example:
        >>> bool((normals_at(Key(0), torch.arange(9)) == normal(Key(0), 9, backend="cpu")).all())
        True
    """
    return reference.compiled_normal(reference.words_at(key.seed, key.stream, key.step, positions))


def bernoulli(
    key: Key,
    shape: int | Sequence[int],
    p: float,
    offset: int = 0,
    device: torch.device | str | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """True with probability ``p``, rounded to a multiple of 2**-32; p = 0 and p = 1 are exact.

    Args:
        key: what to draw from.
        shape: shape of the result; elements are numbered in row-major order.
        p: probability, 0 to 1. With one key a larger p only adds True elements.
        offset: position of the first element.
        device: where the result goes; None is the CPU.
        backend: "auto", "reference" or "cpu".

    Returns:
        bool tensor.

    Raises:
        AimcError: naming the argument, as for :func:`words`; `p` when it is no probability.

    Example:
        >>> bool(bernoulli(Key(0), 1000, 1.0).all()), bool(bernoulli(Key(0), 1000, 0.0).any())
        (True, False)
    """
    shape, p = _shape(shape), float(p)
    if not 0.0 <= p <= 1.0:
        raise AimcError(f"must be between 0 and 1, got {p}", field="p")
    n, threshold = math.prod(shape), round(p * 2**32)
    offset, device = _offset(offset, n), torch.device(device or "cpu")
    if _compiled(backend, device, True):
        out = torch.empty(n, dtype=torch.bool, device="cpu")
        array, args = out.numpy(), cpu.key_words(key)
        run_chunks(
            lambda a, b: cpu.fill_bernoulli(array[a:b], threshold, *args, offset + a), n, _THREAD_CHUNK
        )
        return out.view(shape)
    return (reference.words(key.seed, key.stream, key.step, offset, n, device) < threshold).view(shape)


def log_uniform(key: Key, low: float, high: float) -> float:
    """One number, its logarithm uniform between those of low and high; from the words at positions 0 and 1.

    Args:
        key: what to draw from.
        low, high: ``0 < low <= high``, finite; the unit of the result is theirs.

    Raises:
        AimcError: naming field `low` or `high`.

    Example:
        >>> 1e-3 <= log_uniform(Key(0), 1e-3, 1e3) <= 1e3
        True
    """
    low, high = float(low), float(high)
    if not 0.0 < low < math.inf:
        raise AimcError(f"must be positive and finite, got {low}", field="low")
    if not low <= high < math.inf:
        raise AimcError(f"must be finite and at least low = {low}, got {high}", field="high")
    w0, w1, *_ = reference.block((0, 0, key.step, key.stream), (key.seed & _M32, key.seed >> 32))
    u = (((w0 << 32 | w1) >> 11) + 0.5) * 2.0**-53
    return min(max(math.exp(math.log(low) + u * (math.log(high) - math.log(low))), low), high)


def permutation(
    key: Key, n: int, device: torch.device | str | None = None, backend: str = "auto"
) -> torch.Tensor:
    """A random order of ``range(n)``: the stable argsort of n 64-bit words, two words each from position 0.

    Args:
        key: what to draw from.
        n: how many.
        device: where the result goes; None is the CPU.
        backend: "auto", "reference" or "cpu".

    Returns:
        int64 tensor of shape [n].

    Raises:
        AimcError: naming the argument, as for :func:`words`.

    Example:
        >>> sorted(permutation(Key(0), 5).tolist())
        [0, 1, 2, 3, 4]
    """
    n = _integer(n, "n", 0, 2**61)
    pairs = words(key, 2 * n, device=device, backend=backend).view(n, 2)
    # the shift wraps into the sign bit; any total order of the 64-bit patterns will do
    return torch.argsort(pairs[:, 0] << 32 | pairs[:, 1], stable=True)
