"""``save_pretrained`` of Hugging Face models on tiles: what ``from_pretrained`` reads back computes what was saved."""

from __future__ import annotations

import copy
import inspect
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from aimc.errors import warn
from aimc.files import write_atomic
from aimc.nn.base import analog_layers
from aimc.nn.loading import before_gains
from aimc.nn.own_forward import digital_copy
from aimc.nn.pulsed import pulsed_layers

_FILE = "analog.safetensors"


def dotted_kinds(module: nn.Module) -> set[str]:
    """Dotted names of the module's type and its bases, by which libraries are known that need not be installed."""
    return {f"{kind.__module__}.{kind.__qualname__}" for kind in type(module).__mro__}


class SavePretrained:
    """Stands for the method of that name of a network.

    A model of transformers is saved as its digital twin, output gains multiplied in, under the names and with the
    options of the library. What its tiles know besides (ranges, counters, hardware, cells, gains and the weights before
    them) goes into ``analog.safetensors``, for ``load_state_dict(..., strict=False)`` of the model converted again; or
    beside the weights where the caller says anything of ``state_dict``, if only None: so does the Trainer, which gives
    what it finds with the weights to ``load_state_dict``, and looks for no other file.

    Args:
        net: the network.
    """

    def __init__(self, net: nn.Module):
        self.net = net

    def __call__(self, save_directory: str | os.PathLike, *args: Any, **options: Any) -> Any:
        net: Any = self.net
        save = type(net).save_pretrained
        signature = inspect.signature(save)
        bound = signature.bind(net, save_directory, *args, **options)
        given, beside = bound.arguments.get("state_dict"), "state_dict" in bound.arguments
        whole = given is None or given.keys() == net.state_dict().keys()
        if not whole or "transformers.modeling_utils.PreTrainedModel" not in dotted_kinds(net):
            _warn_of_gains(net)
            return save(*bound.args, **bound.kwargs)
        if given is not None:
            net = copy.deepcopy(net)
            net.load_state_dict(given)
        digital = detached(net)
        bound.arguments["self"] = digital
        rest = _rest(net, digital)
        if beside:
            bound.arguments["state_dict"] = {**digital.state_dict(), **rest}
            if "save_original_format" in signature.parameters:  # load_state_dict will look for today's names
                bound.arguments.setdefault("save_original_format", False)
        done = save(*bound.args, **bound.kwargs)
        if not beside and bound.arguments.get("is_main_process", True):
            from safetensors.torch import save_file

            write_atomic(Path(save_directory) / _FILE, lambda place: save_file(rest, place))
        return done


def _warn_of_gains(net: nn.Module) -> None:
    gains = {name: layer.output_gain for name, layer in analog_layers(net).items()}
    names = [name for name, gain in gains.items() if gain is not None and bool((gain != 1).any())]
    if names:
        warn(
            f"{len(names)} layers have trained output gains ({names[0]}, ...), which are not in what is saved here; "
            "save aimc.to_digital(model), or its state_dict()",
        )


def _rest(net: nn.Module, digital: nn.Module) -> dict[str, Tensor]:
    """What the digital twin does not hold, or holds otherwise: weights have their gains multiplied in there."""
    known, cells = digital.state_dict(), tuple(f"{name}." for name in pulsed_layers(net))
    state: dict[str, Tensor] = net.state_dict()
    rest = {n: v for n, v in state.items() if n not in known or (cells and n.startswith(cells))}
    for name in state.keys() & known.keys() - rest.keys():
        if not torch.equal(state[name], known[name]):
            rest[before_gains(name)] = state[name]
    return {name: value.detach().clone() for name, value in rest.items()}


def attach(net: nn.Module) -> None:
    """Save an analog network of Hugging Face so that nothing of its function is lost."""
    if hasattr(type(net), "save_pretrained"):
        net.__dict__["save_pretrained"] = SavePretrained(net)


def detached(net: nn.Module) -> Any:
    """The digital copy, with its own method, and said to be untied where a gain has untied it."""
    digital = digital_copy(net)
    digital.__dict__.pop("save_pretrained", None)
    config: Any = getattr(digital, "config", None)
    if getattr(config, "tie_word_embeddings", False) and _untied(net, digital):
        config.tie_word_embeddings = False
    return digital


def _untied(net: nn.Module, digital: nn.Module) -> bool:
    """Whether parameters that are one in the network are two in its copy."""
    copies, first = dict(digital.named_parameters(remove_duplicate=False)), {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        other = copies.get(first.setdefault(id(parameter), name))
        if other is not None and copies.get(name) is not None and copies[name] is not other:
            return True
    return False
