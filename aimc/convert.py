"""One verb that makes any torch model analog, and its inverse."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import threading
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from aimc import processes
from aimc.arguments import checked
from aimc.crossbar import Layout, TileSize
from aimc.errors import AimcError, warn
from aimc.handlers import find_handler, matches
from aimc.hardware import Hardware, PulsedHardware
from aimc.nn import AnalogLayer, Composite, PulsedLayer, analog_layers, pulsed_layers
from aimc.nn.opaque import followed
from aimc.nn.pulsed import CellWeight, warn_of_overflow
from aimc.nn.saving import attach, detached, dotted_kinds
from aimc.nn.watching import Product, Watch, Watching
from aimc.ops import check_backend
from aimc.random import Key

_LAYERS = (AnalogLayer, PulsedLayer)

# Parameters of these are not multiplied with a matrix product: a table look-up, an element-wise scale.
_DIGITAL_BY_NATURE = (
    nn.Embedding,
    nn.EmbeddingBag,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.LayerNorm,
    nn.PReLU,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)

# Hugging Face's embeddings look up, concatenate, scale and add, and the biases of its routers are added; the first
# forward passes show one that multiplies.
_DIGITAL_BY_NAME = (
    "transformers.models.*Embedding", "transformers.models.*Embeddings", "transformers.models.*MoeStatics",
)  # fmt: skip

_TUNER = "peft.tuners.tuners_utils.BaseTunerLayer"

# These compute with the bare weights of their children, so a child made analog would be bypassed.
_OPAQUE = (nn.MultiheadAttention,)

_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def _digital_by_nature(module: nn.Module) -> bool:
    """Whether its kind is known, or torch's own forward runs; one that a subclass has written may multiply."""
    if matches(f"{type(module).__module__}.{type(module).__qualname__}", _DIGITAL_BY_NAME):
        return True
    if not isinstance(module, _DIGITAL_BY_NATURE):
        return False
    torchs = next(kind for kind in type(module).__mro__ if kind.__module__.split(".")[0] == "torch")
    return type(module).forward is torchs.forward


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the coverage report."""

    name: str
    kind: str
    where: str  # "analog", "digital" (not a matrix product), "excluded" (by pattern), "unsupported"
    parameters: int
    multiplies: bool
    matrix: int = 0
    bias: int = 0
    tiles: int = 0
    utilisation: float = 0.0
    size: str = "-"
    levels: str = "-"
    g_max: float = 0.0
    cells: str = ""


def _levels(converter) -> str:
    return str(2 * converter.half + 1) if converter is not None and converter.half else "exact"


def _size(tile: TileSize, layout: Layout) -> str:
    """Rows and columns of a tile, and how many groups of a convolution share one."""
    packed = max(layout.blocks) if layout.groups > 1 else 1
    return f"{tile.rows}x{tile.columns or 'any'}" + (f", {packed} groups each" if packed > 1 else "")


def _analog_row(name: str, layer: AnalogLayer) -> Row:
    hardware, layout, matrix = layer.hardware, layer.layout, layer.weight.numel()
    bias = layer.bias.numel() if layer.bias is not None else 0
    extras = sum(p.numel() for p in (layer.input_range, layer.output_gain) if isinstance(p, nn.Parameter))
    return Row(
        name, type(layer).__name__, "analog", matrix + bias + extras, True, matrix, bias,
        layout.tiles, layout.utilisation,
        _size(hardware.tile, layout), f"{_levels(hardware.dac)}/{_levels(hardware.adc)}", hardware.cell.g_max,
    )  # fmt: skip


def _pulsed_row(name: str, layer: PulsedLayer, parameters: int) -> Row:
    hardware, layout, io = layer.hardware, layer.layout, layer.hardware.forward
    arrays, cell = hardware.algorithm.tile_count, hardware.cell
    text = f"{type(cell).__name__}, {cell.states:.10g} states, {type(hardware.algorithm).__name__} on {arrays} arrays"
    if layer.clipped > 0:
        text += f", {layer.clipped:.1%} of the weights clipped"
    bias = 0 if layer.bias is None or hardware.mapping.analog_bias else layer.bias.numel()
    return Row(
        name, type(layer).__name__, "analog", parameters, True, parameters - bias, bias, arrays * layout.tiles,
        layout.utilisation, _size(hardware.tile, layout), f"{_levels(io and io.dac)}/{_levels(io and io.adc)}",
        cells=text,
    )  # fmt: skip


@checked
@torch.inference_mode(False)  # what comes out can be trained
def convert(
    net: nn.Module,
    hardware: Hardware | PulsedHardware,
    *,
    digital: Iterable[str] | str = (),
    seed: int | None = None,
    backend: str = "auto",
    strict: bool = True,
    inplace: bool = False,
    example: Any = None,
) -> nn.Module:
    """Put every matrix product with parameters on analog tiles.

    Modules say what they multiply by; what a forward pass multiplies by beside them (``F.linear`` with another module's
    weight, a product with a buffer) shows when it runs. The first one in training and the first in evaluation are
    watched, and such a product is an error there, or here where an ``example`` is given.

    Args:
        net: any torch model; copied, unless ``inplace``.
        hardware: description of the hardware, for instance ``aimc.presets.pcm()`` for inference, or
            ``aimc.presets.reram()`` for training in memory; then see :func:`aimc.optim.wrap`.
        digital: name patterns (``fnmatch``) of modules, parameters and buffers that stay digital, such as
            ``("head", "embed*")``, or of modules that multiply by them; a pattern that matches nothing is an error.
            Adapters of Hugging Face PEFT stay digital without being named; merge them to have them on tiles.
        seed: seed of every draw; None takes one from torch's generator, so ``torch.manual_seed`` rules it. A layer's
            draws depend on the seed and its name alone.
        backend: ``auto``, ``reference`` or ``cpu``.
        strict: refuse a network of which some matrix product would stay digital although it was not excluded.
        inplace: change the network itself; its parameters stay the same objects, so an optimizer remains valid (but for
            weights that train in memory, which are new objects).
        example: an input with which a copy of the network is run once: a tensor, a tuple of arguments, or a dict of
            named ones. What that run only looks up, moves or adds is no matrix product.

    Returns:
        The analog network (a bare layer comes back as its analog twin).

    Raises:
        AimcError: names every parameter of a matrix product that would stay digital; or nothing is left to convert; or
            a weight that is to train in memory is shared by two modules; or a parameter is not finite.

    Example:
        >>> from aimc import presets
        >>> analog = convert(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), presets.pcm(), digital=("2",))
        >>> print([type(m).__name__ for m in analog])
        ['AnalogLinear', 'ReLU', 'Linear']
    """
    check_backend(backend)
    for name, module in net.named_modules():
        if getattr(module, "_is_fsdp_managed_module", False) or any(
            map(processes.sharded, module._parameters.values())
        ):
            raise AimcError(
                "its parameters are sharded; convert the network first, then call fully_shard", layer=name
            )
    patterns = (digital,) if isinstance(digital, str) else tuple(digital)
    rows = _survey(net, patterns, type(hardware))
    unsupported = [row for row in rows if row.where == "unsupported"]
    if unsupported and example is not None:
        shown = _followed(net, example)
        unsupported = [row for row in unsupported if row.name not in shown.used - shown.multiplied]
    if strict and unsupported:
        lines = "".join(f"\n  {row.name} ({row.kind}, {row.parameters} parameters)" for row in unsupported)
        names = ", ".join(repr(row.name) for row in unsupported[:3])
        raise AimcError(
            f"these matrix products would stay digital:{lines}\nKeep them digital on purpose with "
            f"digital=({names}, ...), pass strict=False, or {_other_ways(net, unsupported)}; what is only looked up or "
            "added is told from a product where an example=... of an input is given",
            field="net",
        )
    if not any(row.where == "analog" for row in rows):
        raise AimcError("nothing to convert: no layer is left that an analog tile could hold", field="net")
    if any(isinstance(m, _LAYERS) for m in net.modules()):
        raise AimcError(
            "the network is already analog; exchange its hardware with aimc.set_hardware, or convert "
            "aimc.to_digital(net)",
            field="net",
        )
    chosen = {row.name for row in rows if row.where == "analog"}
    for name, module in net.named_modules():
        if name in chosen:
            _refuse_rubbish(module, name)
    if seed is None:
        seed = processes.agreed(int(torch.randint(0, 2**63 - 1, (), device="cpu")))
    if not inplace:
        net = copy.deepcopy(net)
    first_name = {module: name for name, module in net.named_modules()}  # a shared module has several names
    if isinstance(hardware, PulsedHardware):
        handed = [(m, find_handler(m, type(hardware))) for m, name in first_name.items() if name in chosen]
        _refuse_ties(net, [p for m, found in handed if found is not None for p in found.matrices(m).values()])
    twins: dict[nn.Module, nn.Module] = {}
    key = Key(seed)

    def twin(module: nn.Module, name: str) -> nn.Module:
        if module not in twins:
            found = find_handler(module, type(hardware))
            assert found is not None
            try:
                made = found.handler(module, hardware, key.fold(name), name, backend)
            except AimcError as error:
                raise error.at(layer=name) from None
            for hooks in _HOOKS:
                setattr(made, hooks, getattr(module, hooks))
            twins[module] = made
        return twins[module]

    # Build every twin before touching the network, so that an error leaves it as it was.
    placed = [
        (parent, child, twin(module, _join(path, child)))
        for path, parent in list(net.named_modules(remove_duplicate=False))
        for child, module in parent._modules.items()  # named_children would skip a shared module
        if module is not None and first_name.get(module) in chosen
    ]
    if "" in chosen:
        net = twin(net, "")
    for parent, child, made in placed:
        setattr(twins.get(parent, parent), child, made)
    _switch_off_fast_paths(net)
    net.__dict__["_aimc_digital"] = patterns  # for the report: what was left digital on purpose
    for layer in analog_layers(net).values():
        layer.network_seed = key.seed
    _watch(net, strict)
    attach(net)
    pulsed = pulsed_layers(net).values()
    if pulsed:
        # Cells have no gradient to be averaged: the optimizer gathers the vectors of all processes instead.
        cells = [name for name, p in net.named_parameters() if isinstance(p, CellWeight)]
        cells += [n for n, _ in net.named_buffers() if "cells" in n.split(".")]
        kept = getattr(net, "_ddp_params_and_buffers_to_ignore", [])
        net.__dict__["_ddp_params_and_buffers_to_ignore"] = [*kept, *cells]
    for layer in pulsed:
        layer._network = weakref.ref(net)
    warn_of_overflow(pulsed)
    if example is not None and "_aimc_watch" in net.__dict__:
        _run(net, example)
        _refuse_products(net)
    return net


def _other_ways(net: nn.Module, rows: Iterable[Row]) -> str:
    """How products by these could be made on tiles."""
    parameters = dict(net.named_parameters())
    most = max((parameters[row.name].dim() for row in rows if row.name in parameters), default=2)
    kernel = "let an nn.Conv1d, nn.Conv2d or nn.Conv3d hold and apply what is the kernel of a convolution"
    products = "see aimc.register_products and aimc.register"
    if most == 2:
        return products
    return f"{kernel}; else {products if most == 3 else 'see aimc.register'}"


def _refuse_rubbish(module: nn.Module, name: str) -> None:
    """Raise where a parameter that goes onto tiles or into cells is no number, or a kernel is empty."""
    if isinstance(module, nn.modules.conv._ConvNd) and 0 in module.weight.shape:
        raise AimcError(
            f"a {type(module).__name__} with a weight of {list(module.weight.shape)} has nothing that a tile or a "
            "cell could hold; take the layer out, or leave it digital with digital=(...)",
            layer=name or type(module).__name__,
        )
    for field, parameter in module.named_parameters():
        if not parameter.is_meta and not bool(torch.isfinite(parameter.detach()).all()):
            raise AimcError(
                "holds NaN or infinite values, which no cell can hold; load or initialise finite ones before "
                "aimc.convert, or leave the layer digital with digital=(...)",
                layer=name or type(module).__name__, field=field, shape=parameter.shape,
            )  # fmt: skip


# Products beside the tiles ------------------------------------------------------------------------------------------

_JUDGED = "_aimc_judged"
"""Mark of a module that was there at the conversion; it goes along into copies and into whatever wraps it."""

_CHILDREN = "_aimc_children"
"""Mark of a network: the children of its modules as they were when it was followed."""

# Networks whose forward pass is being followed, by thread.
_FOLLOWING: dict[tuple[int, int], Watching] = {}


def _watch(net: nn.Module, strict: bool) -> None:
    """Follow the first forward passes."""
    if isinstance(net, _LAYERS):
        return  # a layer that is alone
    watch = Watch(strict)
    net.__dict__["_aimc_watch"] = watch
    for module in net.modules():
        module.__dict__[_JUDGED] = True
    for layer in _on_tiles(net).values():
        layer.watch = watch
    net.register_forward_pre_hook(_begin)
    net.register_forward_hook(_end, always_call=True)


def _unwatch(net: nn.Module) -> None:
    """A copy without tiles has nothing beside them."""
    for module in net.modules():
        for mark in (_JUDGED, _CHILDREN):
            module.__dict__.pop(mark, None)
        if module.__dict__.pop("_aimc_watch", None) is not None:
            for hooks in (module._forward_pre_hooks, module._forward_hooks):
                for number in [n for n, hook in hooks.items() if hook in (_begin, _end)]:
                    del hooks[number]
                    module._forward_hooks_always_called.pop(number, None)


def _begin(net: nn.Module, args: tuple) -> None:
    if torch.compiler.is_compiling():
        return
    watch, place = net.__dict__.get("_aimc_watch"), (threading.get_ident(), id(net))
    if watch is None or place in _FOLLOWING or (net.training in watch.seen and not _changed(net)):
        return
    if followed(args[0] if args else None):
        return
    _FOLLOWING[place] = _watching(net)
    _FOLLOWING[place].__enter__()


def _changed(net: nn.Module) -> bool:
    """Whether some module has other children than when the network was followed."""
    return any(now != then for now, then in net.__dict__.get(_CHILDREN, ()))


def _watching(net: nn.Module) -> Watching:
    layers = _on_tiles(net).values()
    return Watching(net, [m._parameter() if isinstance(m, AnalogLayer) else m.weight for m in layers])


def _end(net: nn.Module, args: tuple, output: Any) -> None:
    if torch.compiler.is_compiling():
        return
    watching = _FOLLOWING.pop((threading.get_ident(), id(net)), None)
    if watching is None:
        return
    watching.__exit__(None, None, None)
    watch = net.__dict__["_aimc_watch"]
    watch.add(watching)
    refuse_newcomers(net)
    if watching.found:
        _refuse_products(net)
    if _changed(net):
        watch.seen -= {True, False}
    watch.seen.add(net.training)
    net.__dict__[_CHILDREN] = [(m._modules, dict(m._modules)) for m in net.modules() if m._modules]


def _run(net: nn.Module, example: Any) -> None:
    """Follow a digital forward pass of a copy."""
    watch = net.__dict__["_aimc_watch"]
    watch.add(_followed(net, example))
    watch.seen.add("example")


def _followed(net: nn.Module, example: Any) -> Watching:
    """What a digital forward pass of a copy shows, which leaves no trace."""
    twin = copy.deepcopy(net).eval()
    _unwatch(twin)
    named = example if isinstance(example, dict) else {}
    given = () if named else (example if isinstance(example, tuple) else (example,))
    with contextlib.ExitStack() as stack:
        for layer in analog_layers(twin).values():
            stack.enter_context(layer.observed(lambda x: None))
        stack.enter_context(torch.random.fork_rng(devices=[]))
        stack.enter_context(torch.no_grad())
        watching = stack.enter_context(_watching(twin))
        twin(*given, **named)
    return watching


def _beside(net: nn.Module) -> list[tuple[Product, bool]]:
    """Products that were found beside the tiles and are not of a digital layer, and whether they are meant to be.

    Some may be of layers that were taken out since, as adapters are that have been merged.
    """
    watch = net.__dict__.get("_aimc_watch")
    if watch is None or not watch.found:
        return []
    patterns, adapters = net.__dict__.get("_aimc_digital", ()), _adapters(net)
    digital = {r.name for r in _modules_rows(net) if r.multiplies and r.where != "analog"}
    return [
        (
            product,
            any(_named(name, patterns) for name in (*product.names, product.module))
            or not adapters.isdisjoint(prefix for name in product.names for prefix in _prefixes(name)),
        )
        for product in watch.found
        if all(_holds(net, name) for name in product.names)
        and not any(prefix in digital for name in product.names for prefix in _prefixes(name))
    ]


def _holds(net: nn.Module, name: str) -> bool:
    path, _, child = name.rpartition(".")
    try:
        return hasattr(net.get_submodule(path), child)
    except AttributeError:
        return False


def _refuse_products(net: nn.Module) -> None:
    """An error, or where the conversion was not strict a warning, for products beside the tiles."""
    found = [product for product, meant in _beside(net) if not meant]
    if not found:
        return
    lines = "".join(
        f"\n  {p.function} by {' and '.join(p.names)} in {p.module or 'the network'} ({p.kind}, {p.line})"
        for p in found
    )
    text = f"these matrix products are not made on tiles, and no hardware acts on them:{lines}\n"
    if not net.__dict__["_aimc_watch"].strict:
        warn(text + "aimc.summary(net) counts them as digital")
        return
    first = found[0]
    name, inside = first.names[0], f"{first.module}." if first.module else ""
    pattern = repr(name.removeprefix(inside)) if name.startswith(inside) else "..."
    raise AimcError(
        f"{text}Let an nn.Linear make the product (one that shares the weight of an embedding stays tied), put a "
        f"matrix of parameters on tiles with aimc.register_products({first.kind}, weights=[{pattern}]), or keep it "
        f"digital on purpose with digital=({name!r}, ...)",
        field="net",
    )


def refuse_newcomers(net: nn.Module) -> None:
    """An error, or where the conversion was not strict a warning, for digital layers that came after the conversion."""
    for path, part in net.named_modules():
        watch = part.__dict__.get("_aimc_watch")
        if watch is None or not (found := _newcomers(part)):
            continue
        lines = "".join(
            f"\n  {_join(path, row.name)} ({row.kind}, {row.parameters} parameters)" for row in found
        )
        text = f"these came after aimc.convert and are digital, so that no hardware acts on their products:{lines}\n"
        if not watch.strict:
            warn(text + "aimc.summary(net) counts them as digital")
            continue
        raise AimcError(
            f"{text}Make the change before aimc.convert, put aimc.convert(layer, hardware) in the layer's place, or "
            "keep it digital on purpose: aimc.convert(aimc.to_digital(net), hardware, "
            f"digital=({found[0].name!r}, ...))",
            field="net",
        )


def _newcomers(net: nn.Module) -> list[Row]:
    """Matrix products of digital modules that nobody has judged, as a layer that was put in another's place."""
    modules = dict(net.named_modules())
    return [
        row
        for row in _modules_rows(net)
        if row.multiplies
        and row.where not in ("analog", "excluded")
        and _JUDGED not in modules.get(row.name, modules.get(row.name.rpartition(".")[0], net)).__dict__
    ]


def _refuse_ties(net: nn.Module, weights: list[nn.Parameter]) -> None:
    """Cells are one layer's: two modules with one weight would each train a copy."""
    places: dict[int, list[str]] = {}
    for path, owner in net.named_modules():
        for child, value in owner._parameters.items():
            if value is not None:
                places.setdefault(id(value), []).append(_join(path, child))
    for weight in weights:
        names = places[id(weight)]
        if len(names) > 1:
            raise AimcError(
                f"{' and '.join(names)} are one parameter, and cells belong to one layer; untie them, or keep them "
                "digital",
                field="net",
            )


def _join(path: str, child: str) -> str:
    return f"{path}.{child}" if path else child


def _prefixes(name: str) -> list[str]:
    """The dotted name and those of all modules around it."""
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _named(name: str, patterns: Iterable[str]) -> bool:
    return any(matches(prefix, patterns) for prefix in _prefixes(name))


def _survey(
    net: nn.Module, patterns: tuple[str, ...], hardware: type = Hardware, strict: bool = True
) -> list[Row]:
    used: set[str] = set()
    adapters = _adapters(net)

    def excluded(name: str) -> bool:
        prefixes = _prefixes(name)
        hits = [p for p in patterns if any(matches(n, (p,)) for n in prefixes)]
        used.update(hits)
        return bool(hits) or not adapters.isdisjoint(prefixes)

    rows = []
    whole: list[str] = []  # modules that one row speaks for, with all that is in them
    spoken: set[str] = set()  # parameters in lists, of which the row of the module around them speaks
    for name, module in net.named_modules():
        if any(name.startswith(f"{outer}.") or not outer for outer in whole):
            continue
        own = dict(module.named_parameters(recurse=False))
        plain = (n for n, v in vars(module).items() if isinstance(v, torch.Tensor))
        for held in (
            *own,
            *module._buffers,
            *plain,
        ):  # also of what is no product here: it may be one elsewhere
            excluded(_join(name, held))
        excluded(name)
        if any(isinstance(p, nn.parameter.UninitializedParameter) for p in own.values()):
            raise AimcError("has no shape yet; run the network once before converting it", layer=name)
        kind = type(module).__name__
        if strict and _adapts_weights(module) and not excluded(name):
            raise AimcError(
                "an adapter of PEFT adds to the weight itself here (in nn.MultiheadAttention, routers and experts), "
                "not to an output, and cannot stay digital over tiles; choose other target_modules, call "
                f"merge_and_unload() before aimc.convert, or keep the module digital: digital=({name!r},)",
                layer=name,
            )
        if isinstance(module, AnalogLayer):
            rows.append(_analog_row(name, module))
            whole.append(name)  # a parametrization makes what is on the tiles
            continue
        if isinstance(module, PulsedLayer):
            rows.append(_pulsed_row(name, module, sum(p.numel() for p in own.values())))
            continue
        if isinstance(module, Composite):  # what its matrices hold is in their rows
            spoken.update(_join(name, n) for n in module.analog_placed())
            rest = sum(p.numel() for n, p in own.items() if n not in module.analog_placed())
            if rest:
                rows.append(Row(name, kind, "digital", rest, False))
            continue
        try:
            found = find_handler(module, hardware)
        except AimcError as error:
            raise error.at(layer=name) from None
        if found is not None or isinstance(module, _OPAQUE):
            entire = found is None or found.whole
            if entire:
                whole.append(name)
            inside = dict(module.named_parameters(recurse=entire))
            count = sum(p.numel() for p in inside.values())
            matrices = found.matrices(module) if found is not None else inside
            spoken.update(_join(name, n) for n in matrices)
            matrix = sum(p.numel() for p in matrices.values() if p.dim() >= 2)
            bias = count - sum(p.numel() for n, p in matrices.items() if n in inside and p.dim() >= 2)
            left = [n for n in matrices if excluded(_join(name, n))]
            if left and len(left) < len(matrices):
                raise AimcError(
                    f"{', '.join(map(repr, left))} would stay digital and the rest of the {kind} would not; it is "
                    f"converted whole, so exclude {name!r}",
                    layer=name, field="digital",
                )  # fmt: skip
            where = "excluded" if left else ("analog" if found is not None else "unsupported")
            rows.append(Row(name, kind, where, count, True, matrix, bias))
        elif own and _digital_by_nature(module):
            excluded(name)
            rows.append(Row(name, kind, "digital", sum(p.numel() for p in own.values()), False))
        else:
            for parameter, value in own.items():
                full = _join(name, parameter)
                if full in spoken:
                    continue
                multiplies = value.dim() >= 2
                where = "excluded" if excluded(full) else ("unsupported" if multiplies else "digital")
                matrix = value.numel() if multiplies else 0
                rows.append(Row(full, kind, where, value.numel(), multiplies, matrix))
    unused = [p for p in patterns if p not in used]
    if unused and strict:
        raise AimcError(
            f"no module, parameter or buffer matches {', '.join(map(repr, unused))}", field="digital"
        )
    return rows


def _adapts_weights(module: nn.Module) -> bool:
    """Whether a layer of Hugging Face PEFT adds its adapter to a weight before it calls the base layer."""
    return not dotted_kinds(module).isdisjoint(
        ("peft.tuners.lora.layer.ParamWrapper", "peft.tuners.lora.layer.MultiheadAttention")
    )


def _adapters(net: nn.Module) -> set[str]:
    """Names of the adapters of Hugging Face PEFT: all that its layers hold beside a base layer on tiles."""
    return {
        _join(name, child)
        for name, module in net.named_modules()
        if _TUNER in dotted_kinds(module)
        for child in module._modules
        if child != "base_layer"
    }


_FAST = ("activation_relu_or_gelu", "enable_nested_tensor", "use_nested_tensor")
"""By what torch's encoder and its layers tell whether to compute with bare weights in evaluation."""


def _switch_off_fast_paths(net: nn.Module) -> None:
    """torch's encoder computes with the bare weights of its layers in evaluation; that would bypass the tiles."""
    for module in net.modules():
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerEncoder)) and _on_tiles(module):
            before = {name: getattr(module, name) for name in _FAST if hasattr(module, name)}
            module.__dict__.update(dict.fromkeys(before, False), _aimc_fast=before)


def _restore_fast_paths(net: nn.Module) -> None:
    """As they were before the tiles."""
    for module in net.modules():
        module.__dict__.update(module.__dict__.pop("_aimc_fast", {}))


def _on_tiles(net: nn.Module) -> dict[str, AnalogLayer | PulsedLayer]:
    """Layers of either kind by name."""
    return {**analog_layers(net), **pulsed_layers(net)}


@checked
@torch.inference_mode(False)  # what comes out can be trained
def to_digital(net: nn.Module) -> nn.Module:
    """A digital copy: every analog layer becomes the torch layer with the same weights, output gains multiplied in.

    A layer that trains in memory gives what its cells amount to.

    Example:
        >>> from aimc import presets
        >>> to_digital(convert(nn.Linear(2, 2), presets.pcm()))
        Linear(in_features=2, out_features=2, bias=True)
    """
    digital = detached(net)
    _unwatch(digital)
    _restore_fast_paths(digital)
    return digital


@checked
def set_hardware(net: nn.Module, hardware: Hardware) -> None:
    """Exchange the hardware of every analog layer; weights, and ranges and gains that still apply, stay.

    An optimizer of parameters that are new or gone has to be made again.

    Example:
        >>> from aimc import presets
        >>> net = convert(nn.Linear(4, 2), presets.pcm())
        >>> set_hardware(net, presets.ideal()); net.hardware == presets.ideal()
        True
    """
    for layer in require_analog(net).values():
        layer.set_hardware(hardware)


@checked
def set_backend(net: nn.Module, backend: str) -> None:
    """Choose the body of the operations for every analog layer."""
    check_backend(backend)
    layers = _on_tiles(net) or require_analog(net)
    for layer in layers.values():
        layer.backend = backend


@checked
def set_noise_strength(net: nn.Module, strength: float | None) -> None:
    """Scale the training noise of every analog layer; None gives it back to the hardware's own ramp."""
    if strength is not None and not 0 <= strength < math.inf:
        raise AimcError(f"must be finite and not negative, got {strength}", field="strength")
    for layer in require_analog(net).values():
        layer.noise_strength = strength


@checked
def set_check_finite(net: nn.Module, check: bool) -> None:
    """Whether every analog layer refuses NaN and infinite inputs (it does at first), or passes them through.

    Example:
        >>> from aimc import presets
        >>> net = convert(nn.Linear(2, 2), presets.ideal())
        >>> set_check_finite(net, False)
        >>> net(torch.tensor([[float("nan"), 0.0]])).isnan().all()
        tensor(True)
    """
    for layer in require_analog(net).values():
        layer.check_finite = check


@checked
def remap(net: nn.Module) -> None:
    """Let every digital scale follow the present weights; the network's function does not change."""
    for layer in require_analog(net).values():
        layer.remap()


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What of a network is analog; ``str()`` is a table.

    Attributes:
        rows: one per module with parameters of its own.
    """

    rows: tuple[Row, ...]

    @property
    def analog_share(self) -> float:
        """Share of the parameters of matrix products that sit on tiles."""
        total = sum(r.multiplies * r.matrix for r in self.rows)
        return sum(r.matrix for r in self.rows if r.where == "analog") / total if total else 0.0

    def __str__(self) -> str:
        head = (
            "layer",
            "type",
            "where",
            "parameters",
            "tiles",
            "tile size",
            "share used",
            "levels in/out",
            "g_max",
            "cells" if any(r.cells for r in self.rows) else "",
        )
        lines: list[tuple[str, ...]] = [head]
        for r in self.rows:
            lines.append(
                (
                    r.name or "(the network)",
                    r.kind,
                    r.where + (f" (bias of {r.bias} digital)" if r.where == "analog" and r.bias else ""),
                    f"{r.parameters:,}",
                    str(r.tiles or "-"),
                    r.size,
                    f"{r.utilisation:.0%}" if r.tiles else "-",
                    r.levels,
                    f"{r.g_max:g} uS" if r.g_max else "-",
                    r.cells,
                )
            )
        widths = [max(len(line[c]) for line in lines) for c in range(len(head))]
        text = ["  ".join(v.ljust(w) for v, w in zip(line, widths, strict=True)).rstrip() for line in lines]
        tiles = sum(r.tiles for r in self.rows)
        text.append(
            f"{self.analog_share:.1%} of the matrix parameters that modules own on {tiles} tiles; the rest is digital"
        )
        return "\n".join(text)


def _modules_rows(net: nn.Module) -> list[Row]:
    rows = _survey(net, net.__dict__.get("_aimc_digital", ()), strict=False)
    held, watch = _on_tiles(net), net.__dict__.get("_aimc_watch")
    added = watch.used - watch.multiplied if watch is not None else set()

    def seen(row: Row) -> Row:
        if row.name in added:  # a bare parameter, of which only a forward pass tells what it is for
            return dataclasses.replace(row, where="digital", multiplies=False, matrix=0)
        gone = row.where == "analog" and row.name not in held
        return dataclasses.replace(row, where="digital") if gone else row

    return [seen(row) for row in rows]


@checked
def coverage(net: nn.Module, example: Any = None) -> Coverage:
    """Where every parameter of a network lives, and what its forward passes multiply by beside the tiles.

    Args:
        net: an analog network; of a digital one the parameters alone are listed.
        example: an input with which a copy of the network is run, as for :func:`convert`; without it, products beside
            the tiles are those that the first forward passes have shown.

    Example:
        >>> from aimc import presets
        >>> coverage(convert(nn.Sequential(nn.Linear(4, 2), nn.LayerNorm(2)), presets.pcm())).analog_share
        1.0
    """
    if example is not None:
        if "_aimc_watch" not in net.__dict__:
            raise AimcError("only a network that aimc.convert made can be followed", field="example")
        _run(net, example)
    rows = _modules_rows(net)
    for product, meant in _beside(net):
        for name, size in zip(product.names, product.sizes, strict=True):
            row = Row(
                name,
                f"{product.function} in {product.kind}",
                "excluded" if meant else "unsupported",
                0,
                True,
                size,
            )
            if row not in rows:
                rows.append(row)
    return Coverage(tuple(rows))


@checked
def summary(net: nn.Module, example: Any = None) -> str:
    """The coverage as a table: layer, where it lives, tiles and their use, converter levels, full scale."""
    return str(coverage(net, example))


def gpus(net: nn.Module) -> list[torch.device]:
    """Where a network's parameters are, but for the CPU.

    Example:
        >>> gpus(nn.Linear(1, 1))
        []
    """
    return sorted({p.device for p in net.parameters() if p.device.type == "cuda"}, key=str)


@contextlib.contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode again outside."""
    modes = [(m, m.training) for m in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def require_analog(net: nn.Module) -> dict[str, AnalogLayer]:
    """The analog layers of an inference network by name; an error where there are none.

    The names are those in the network itself, also where torch has wrapped it: devices are drawn by them.
    """
    if pulsed_layers(net):
        raise AimcError(
            "the network trains in memory, and what was asked for belongs to inference hardware: chips, drift, ranges "
            "and noise strength. Put its present weights there: aimc.convert(aimc.to_digital(net), aimc.presets.pcm())",
            field="net",
        )
    layers = analog_layers(_unwrapped(net))
    if not layers:
        raise AimcError("the network has no analog layer; call aimc.convert first", field="net")
    return {".".join(p for p in name.split(".") if p != _COMPILED): m for name, m in layers.items()}


_COMPILED = "_orig_mod"
"""What torch.compile calls the module that it wraps."""


def _unwrapped(net: nn.Module) -> nn.Module:
    """The network in the wrappers of torch."""
    while True:
        if _COMPILED in net._modules:
            inner = net._modules[_COMPILED]
        elif isinstance(net, (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)):
            inner = net.module
        else:
            return net
        assert isinstance(inner, nn.Module)
        net = inner
