"""A persistent chip: devices written once, that age and are read."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from aimc.arguments import checked
from aimc.cells import ProgrammedCells
from aimc.chip.compensation import Compensation, LeastSquares, TileReader
from aimc.config import differences
from aimc.convert import refuse_newcomers, require_analog
from aimc.crossbar import behind_wires, expand_scale, from_conductance, to_conductance
from aimc.errors import AimcError, warn
from aimc.files import write_atomic
from aimc.hardware import Hardware
from aimc.nn import AnalogLayer, ProgrammedWeights
from aimc.random import Key
from aimc.units import seconds

_FORMAT = "aimc-chip"
_VERSION = 1


_DIGITAL = ("bias", "output_gain", "input_range")


def _digital_side(layer: AnalogLayer) -> dict[str, Tensor]:
    """Copies of the digital numbers around a layer's tiles."""
    found = {name: getattr(layer, name) for name in _DIGITAL}
    return {name: value.detach().clone() for name, value in found.items() if value is not None}


@dataclasses.dataclass
class _Programmed:
    """What the chip holds of one layer; fixed for its life."""

    cells: ProgrammedCells
    scale: Tensor
    hardware: Hardware
    digital: dict[str, Tensor]
    estimators: tuple[Compensation, ...] | None = None
    baselines: tuple[Tensor, ...] | None = None


class Chip:
    """A network's weights in devices. Made by :func:`program`; the same seed is the same chip, to the bit.

    A chip holds its analog layers whole: devices, scales, biases, output gains, input ranges. Training the network on
    does not change it. What else the network computes digitally (norms, embeddings) remains the network's.

    Attributes:
        net: the network that was programmed.
        seed: rules every device of the chip.
        compensation: the estimator, or None for no drift compensation.
    """

    def __init__(
        self, net: nn.Module, seed: int, compensation: Compensation | None, held: dict[str, _Programmed]
    ):
        self.net, self.seed, self.compensation = net, seed, compensation
        self._held = held
        self._time = 0.0

    @property
    def time(self) -> float:
        """Present time, seconds after the end of programming; 0 outside of :meth:`at`."""
        return self._time

    @property
    def key(self) -> Key:
        return Key(self.seed)

    @checked
    @contextlib.contextmanager
    def at(self, time: float | str) -> Iterator[Chip]:
        """Move the chip to a time and put its weights into the network; leaving restores both.

        Other threads are refused the network meanwhile, and copies of it that are made inside have their own weights.

        Args:
            time: seconds after programming, or text such as ``"1h"``.

        Raises:
            AimcError: a time after programming where the cells do not drift. A forward pass in training mode inside the
                context is one, too.

        Example:
            >>> import aimc
            >>> net = aimc.convert(nn.Linear(4, 2), aimc.presets.pcm().replace(**{"input_range.value": 1.0})).eval()
            >>> chip = aimc.program(net, seed=7)
            >>> with chip.at("1h"):
            ...     y = net(torch.ones(1, 4))
        """
        moment = seconds(time)
        layers = self._layers()
        before = self._time
        held = {name: self._weights_at(name, layer, moment) for name, layer in layers.items()}
        with contextlib.ExitStack() as stack:
            for name, layer in layers.items():
                stack.enter_context(layer.programmed(held[name]))
            self._time = moment
            try:
                yield self
            finally:
                self._time = before

    @checked
    def weights(self, compensated: bool = True) -> dict[str, Tensor]:
        """Effective weights by layer name at the present time, shaped like the layers' weights and in their units.

        The learned output gain is digital and not part of them.

        Args:
            compensated: with the measured digital factor, or as the array holds them.
        """
        result = {}
        for name, layer in self._layers().items():
            held = self._weights_at(name, layer, self._time, compensated)
            weight = held.weights
            if held.compensation is not None:
                parts = layer.layout.row_splits
                weight = torch.cat(
                    [weight[:, a:b] * held.compensation[k][:, None] for k, (a, b) in enumerate(parts)], 1
                )
            result[name] = layer.shaped_like_weight(weight)
        return result

    def conductances(self) -> dict[str, Tensor]:
        """Conductances by layer name at the present time, uS, ``[2, outputs, rows]`` for pairs (G+, G-)."""
        return {
            name: held.hardware.cell.read(held.cells, self._time, self.key.fold(name))
            for name, held in self._held.items()
        }

    def compensation_factors(self) -> dict[str, Tensor]:
        """The measured factors by layer name at the present time, ``[row_tiles, outputs]``."""
        found = {
            n: self._weights_at(n, layer, self._time).compensation for n, layer in self._layers().items()
        }
        return {name: factor for name, factor in found.items() if factor is not None}

    def _layers(self) -> dict[str, AnalogLayer]:
        layers = require_analog(self.net)
        if layers.keys() != self._held.keys():
            odd = sorted(layers.keys() ^ self._held.keys())
            raise AimcError(f"the network has changed since it was programmed: {', '.join(odd)}", field="net")
        for name, layer in layers.items():
            changed = differences(
                self._held[name].hardware.replace(training=None), layer.hardware.replace(training=None)
            )
            if changed:
                raise AimcError(
                    f"the hardware has changed since the chip was programmed ({'; '.join(changed)})",
                    layer=name,
                )
        return layers

    def _weights_at(
        self, name: str, layer: AnalogLayer, time: float, compensated: bool = True
    ) -> ProgrammedWeights:
        held = self._held[name]
        key = self.key.fold(name)
        try:
            weights = _in_weight_units(held.hardware.cell.read(held.cells, time, key), held, layer)
        except AimcError as error:
            raise error.at(layer=name) from None
        factor = None
        if compensated and held.estimators is not None and held.baselines is not None:
            noise = key.fold("reading", repr(float(time)))
            rows = []
            for k, (a, b) in enumerate(layer.layout.row_splits):
                reader = TileReader(held.scale[k], layer.periphery, layer.backend)
                now = held.estimators[k].measure(
                    reader, weights[:, a:b], key.fold("probes", k), noise.fold(k)
                )
                rows.append(held.estimators[k].factor(held.baselines[k], now, layer.layout.column_tile[k]))
            factor = torch.stack(rows)
            sound = torch.isfinite(factor) & (factor > 0)
            lost = ~sound & (held.scale > 0)  # a column without weights has nothing to read
            if bool(lost.any()):
                warn(
                    f"layer {name!r}: the drift compensation could not read {int(lost.sum())} of {lost.numel()} "
                    "columns (too few steps of the converters, or all noise); they stay uncompensated",
                )
            factor = torch.where(sound, factor, 1)
        reads, dtype = key.fold("evaluation", repr(float(time))), layer.weight.dtype
        return ProgrammedWeights(
            weights=weights.to(dtype),
            scale=held.scale.to(dtype),
            compensation=factor.to(dtype) if factor is not None else None,
            bias=held.digital.get("bias"),
            gain=held.digital.get("output_gain"),
            input_range=held.digital.get("input_range"),
            keys=tuple(reads.fold(k).at("output_noise") for k in range(layer.layout.row_tiles)),
        )

    def fingerprint(self) -> str:
        """sha256 over every device of the chip."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self._tensors().items()):
            digest.update(name.encode() + tensor.contiguous().view(torch.uint8).cpu().numpy().tobytes())
        return digest.hexdigest()

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {}
        for name, held in self._held.items():
            parts = {
                "target": held.cells.target,
                "conductance": held.cells.conductance,
                "exponent": held.cells.exponent,
                "stuck": held.cells.stuck,
                "scale": held.scale,
            }
            parts |= held.digital
            parts |= {f"baseline{k}": b for k, b in enumerate(held.baselines or ())}
            tensors |= {f"{name}/{part}": value for part, value in parts.items() if value is not None}
        return tensors

    @checked
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the chip to one safetensors file, atomically."""
        from safetensors.torch import save

        metadata = {
            "format": _FORMAT,
            "version": str(_VERSION),
            "seed": str(self.seed),
            "compensation": self.compensation.to_json(None) if self.compensation is not None else "null",
            "layers": json.dumps(
                {
                    name: {
                        "hardware": held.hardware.to_dict(),
                        "estimators": [e.to_dict() for e in held.estimators]
                        if held.estimators is not None
                        else None,
                    }
                    for name, held in self._held.items()
                }
            ),
            "fingerprint": self.fingerprint(),
        }
        metadata["checksum"] = _checksum(metadata)
        data = save({n: t.contiguous().cpu() for n, t in self._tensors().items()}, metadata)
        write_atomic(path, data)

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike[str], net: nn.Module) -> Chip:
        """Read a chip that :meth:`save` wrote, for a network with the same layers and cells.

        Raises:
            AimcError: not a chip, damaged, or layers, shapes or hardware that differ, each by name.
        """
        from safetensors import SafetensorError, safe_open

        path = os.fspath(path)
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
        except (OSError, SafetensorError) as error:
            raise AimcError(f"cannot read {path}: {error}", field="path") from None
        if metadata.get("format") != _FORMAT:
            raise AimcError(f"{path} is not a chip written by aimc", field="path")
        damaged = AimcError(f"{path} is damaged: its content does not match its fingerprint", field="path")
        version = metadata.get("version", "")
        if version.isdecimal() and int(version) > _VERSION:
            raise AimcError(f"{path} was written by a newer aimc", field="path")
        if metadata.pop("checksum", None) != _checksum(metadata):
            raise damaged
        saved = json.loads(metadata["layers"])
        layers = require_analog(net)
        if saved.keys() != layers.keys():
            odd = ", ".join(sorted(saved.keys() ^ layers.keys()))
            raise AimcError(f"the chip and the network have different layers: {odd}", field="path")
        held = {}
        for name, layer in layers.items():
            hardware = Hardware.from_dict(saved[name]["hardware"])
            changed = differences(hardware.replace(training=None), layer.hardware.replace(training=None))
            if changed:
                raise AimcError(
                    f"the chip was programmed with other hardware ({'; '.join(changed)}); call aimc.set_hardware first",
                    layer=name,
                )
            part = {n.removeprefix(f"{name}/"): t for n, t in tensors.items() if n.startswith(f"{name}/")}
            shape = (hardware.cell.devices, layer.layout.outputs, layer.layout.rows)
            baseline_names = {f"baseline{k}" for k in range(len(saved[name]["estimators"] or ()))}
            if not {"target", "conductance", "exponent", "scale", *baseline_names} <= part.keys():
                raise damaged
            if tuple(part["conductance"].shape) != shape:
                raise AimcError(
                    f"the network needs {list(shape)}", layer=name, shape=part["conductance"].shape
                )
            part = {n: t.to(layer.weight.device) for n, t in part.items()}
            cells = ProgrammedCells(part["target"], part["conductance"], part["exponent"], part.get("stuck"))
            estimators = baselines = None
            if saved[name]["estimators"] is not None:
                estimators = tuple(Compensation.from_dict(e) for e in saved[name]["estimators"])
                baselines = tuple(part[f"baseline{k}"] for k in range(len(estimators)))
            digital = {n: part[n] for n in _DIGITAL if n in part}
            held[name] = _Programmed(cells, part["scale"], hardware, digital, estimators, baselines)
        compensation = json.loads(metadata["compensation"])
        chip = cls(
            net, int(metadata["seed"]), Compensation.from_dict(compensation) if compensation else None, held
        )
        if chip.fingerprint() != metadata["fingerprint"]:
            raise damaged
        return chip


def _checksum(metadata: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(sorted(metadata.items())).encode()).hexdigest()


def _in_weight_units(conductance: Tensor, held: _Programmed, layer: AnalogLayer) -> Tensor:
    if held.hardware.wires is not None:
        conductance = behind_wires(conductance, layer.layout, held.hardware.wires)
    normalised = from_conductance(conductance, held.hardware.cell)
    return normalised * expand_scale(held.scale, layer.layout)


@checked
@torch.inference_mode(False)  # a chip outlives an inference mode
@torch.no_grad()
def program(
    net: nn.Module, seed: int | None = None, compensation: Compensation | None = LeastSquares()
) -> Chip:
    """Write a network's weights into the devices of one chip.

    Args:
        net: an analog network; its weights are read, not changed.
        seed: the chip: same seed, same devices; reduced mod 2**64. None takes one from torch's generator.
        compensation: drift compensation, or None.

    Example:
        >>> import aimc
        >>> net = aimc.convert(nn.Linear(4, 2), aimc.presets.pcm()).eval()
        >>> aimc.program(net, seed=7).fingerprint() == aimc.program(net, seed=7).fingerprint()
        True
    """
    layers = require_analog(net)
    refuse_newcomers(net)
    if seed is None:
        seed = int(torch.randint(0, 2**63 - 1, (), device="cpu"))
    held = {}
    for name, layer in layers.items():
        key, cell = Key(seed).fold(name), layer.hardware.cell
        scale = layer.present_scale().detach().clone()
        full = expand_scale(scale, layer.layout)
        matrix = layer.matrix()
        if not bool(torch.isfinite(matrix).all()):
            raise AimcError("the weights hold NaN or infinite values", layer=name)
        normalised = torch.where(full > 0, matrix / full, 0).clamp(-1, 1)
        cells = cell.program(to_conductance(normalised, cell), key)
        part = _Programmed(cells, scale, layer.hardware, _digital_side(layer))
        if compensation is not None:
            # The baseline is read through the array right after programming, noise and all.
            weights = _in_weight_units(cell.read(cells, 0.0, key), part, layer)
            target = normalised * full
            estimators, baselines = [], []
            for k, (a, b) in enumerate(layer.layout.row_splits):
                reader = TileReader(scale[k], layer.periphery, layer.backend)
                probes, noise = key.fold("probes", k), key.fold("baseline", k)
                estimator = compensation.settle(reader, weights[:, a:b], probes, noise)
                estimators.append(estimator)
                baselines.append(estimator.reference(reader, weights[:, a:b], target[:, a:b], probes, noise))
            part.estimators, part.baselines = tuple(estimators), tuple(baselines)
        held[name] = part
    return Chip(net, seed, compensation, held)
