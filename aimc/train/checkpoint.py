"""Checkpoints: safetensors files that are whole or absent, and say so when they are damaged."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

import torch
from torch import Tensor, nn

from aimc.arguments import checked
from aimc.convert import gpus
from aimc.errors import AimcError
from aimc.files import not_json, write_atomic

_FORMAT = "aimc-checkpoint"
_VERSION = 1


def _digest(tensors: dict[str, Tensor], details: str) -> str:
    digest = hashlib.sha256(details.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@checked
def save_checkpoint(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], details: dict[str, Any]
) -> None:
    """Write tensors and plain data to one file, atomically and with a checksum.

    Args:
        path: the file; an old one is replaced only by a complete new one.
        tensors: any names and shapes, and dtypes that safetensors knows; dense, with data.
        details: what JSON can hold.

    Raises:
        AimcError: names the entry that a file cannot hold, or says why the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_checkpoint(f"{folder}/a.safetensors", {"w": torch.ones(2)}, {"epoch": 3})
        ...     load_checkpoint(f"{folder}/a.safetensors")
        ({'w': tensor([1., 1.])}, {'epoch': 3})
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    def write(place: str) -> None:
        try:
            save_file(held, place, metadata)
        except SafetensorError as error:  # a full disk, mostly
            raise OSError(str(error)) from None
        except KeyError as error:  # what safetensors says of a dtype that it does not know
            name = next((n for n, t in held.items() if t.dtype == error.args[0]), None)
            raise AimcError(
                f"safetensors holds no {error.args[0]}; convert it", field=f"tensors.{name}"
            ) from None

    wrong = not_json(details)
    if wrong:
        raise AimcError(f"{wrong}; convert it", field="details")
    held = _apart(tensors)
    text = json.dumps(details)
    metadata = {"format": _FORMAT, "version": str(_VERSION), "details": text, "sha256": _digest(held, text)}
    write_atomic(path, write)


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as a file takes them: on the CPU, contiguous, no memory in common. Copied only where they are not."""
    held: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        kind = _special(tensor)
        if kind:
            raise AimcError(f"is {kind}; a file takes dense tensors with data", field=f"tensors.{name}")
        tensor = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in places or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        places.add(tensor.untyped_storage().data_ptr())
        held[name] = tensor
    return held


def _special(tensor: Tensor) -> str | None:
    """What makes a tensor none that lies in memory element by element."""
    if tensor.is_nested:
        return "nested"
    if tensor.is_meta and type(tensor) in (Tensor, nn.Parameter):  # a subclass may hold its values
        return "on the meta device, without data"
    if tensor.is_quantized:
        return "quantized"
    return None if tensor.layout is torch.strided else f"of the layout {tensor.layout}"


@checked
def load_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_checkpoint` wrote: tensors and details.

    Raises:
        AimcError: names the file if it is missing, foreign, damaged, cut short or from a newer aimc.
    """
    from safetensors import SafetensorError, safe_open

    path = os.fspath(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except FileNotFoundError:
        raise AimcError(f"no such checkpoint: {path}", field="checkpoint") from None
    except (OSError, SafetensorError) as error:
        raise AimcError(f"{path} is damaged or no safetensors file: {error}", field="checkpoint") from None
    if metadata.get("format") != _FORMAT:
        raise AimcError(f"{path} was not written as a checkpoint of aimc", field="checkpoint")
    if metadata.get("version") != str(_VERSION):
        raise AimcError(f"{path} was written by another version of aimc, or is damaged", field="checkpoint")
    text = metadata.get("details", "")
    if metadata.get("sha256") != _digest(tensors, text):
        raise AimcError(
            f"{path} is damaged: its checksum does not fit; delete it to start over", field="checkpoint"
        )
    try:
        details = json.loads(text)
    except ValueError:
        details = None
    if not isinstance(details, dict):
        raise AimcError(f"{path} is damaged: its details are no names and values", field="checkpoint")
    return tensors, details


def prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under ``prefix/name``."""
    return {f"{prefix}/{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with ``prefix/``, without it."""
    return {n.removeprefix(f"{prefix}/"): t for n, t in tensors.items() if n.startswith(f"{prefix}/")}


def load_state(net: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Put a state into a network, or say that ``source`` belongs to another one."""
    try:
        net.load_state_dict(state)
    except (RuntimeError, AimcError) as error:  # the latter of analog layers, which name the entry
        raise AimcError(f"{source} belongs to another network: {error}", field="checkpoint") from None


def generators(net: nn.Module) -> dict[str, Tensor]:
    """The states of torch's generators that training a network draws from: the CPU's, and that of its GPU."""
    states = {"generator": torch.get_rng_state()}
    return states | {f"generator of {d}": torch.cuda.get_rng_state(d) for d in gpus(net)}


def set_generators(net: nn.Module, states: dict[str, Tensor], source: str) -> None:
    """Give torch's generators what :func:`generators` returned, or say that ``source`` holds no state of them."""
    try:
        torch.set_rng_state(states["generator"])
        for device in gpus(net):
            if f"generator of {device}" in states:
                torch.cuda.set_rng_state(states[f"generator of {device}"], device)
    except (RuntimeError, TypeError) as error:
        raise AimcError(f"{source} has no state of torch's generator: {error}", field="checkpoint") from None


def moments(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What a torch optimizer remembers of each parameter, as tensors with flat names.

    Example:
        >>> p = nn.Parameter(torch.ones(1))
        >>> optimizer = torch.optim.SGD([p], lr=1.0, momentum=0.9)
        >>> p.grad = torch.ones(1); optimizer.step(); moments(optimizer)
        {'0/momentum_buffer': tensor([1.])}
    """
    state = optimizer.state_dict()["state"]
    return {f"{i}/{k}": v for i, held in state.items() for k, v in held.items() if isinstance(v, Tensor)}


def load_moments(optimizer: torch.optim.Optimizer, saved: dict[str, Tensor]) -> None:
    """Give an optimizer what :func:`moments` returned; its learning rates and other settings stay."""
    state: dict[int, dict[str, Tensor]] = {}
    for path, tensor in saved.items():
        index, key = path.split("/", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
