"""What every analog layer shares: its tiles, its counters, its place in a chip."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aimc import processes
from aimc.arguments import checked
from aimc.config import Config, differences
from aimc.crossbar import Layout, behind_wires, column_scale, expand_scale, from_conductance, to_conductance
from aimc.errors import AimcError, warn
from aimc.hardware import Hardware
from aimc.hwa import FixedClip, GaussianClip, clip_, clip_bound, modify_weights
from aimc.nn.held import HeldPass
from aimc.nn.loading import described, misfit_counters, misfits, started, take_before_gains
from aimc.nn.opaque import followed, read_opaquely, register, result_dtype
from aimc.nn.product import AnalogProduct, Geometry, Periphery, Statistics, Tiles
from aimc.nn.replay import Record, Records, fingerprint, inside_backward, may_come_back
from aimc.nn.watching import Watch
from aimc.ops import check_backend
from aimc.periphery import Wires
from aimc.random import Key

_EXTRAS = ("input_range", "output_gain", "column_scale", "analog_state", "analog_hardware")
_LAYERS: weakref.WeakKeyDictionary[AnalogLayer, None] = weakref.WeakKeyDictionary()
_NOTHING = contextlib.nullcontext()
_PUTTING = threading.Lock()  # two threads may want to put a chip in at once


@dataclasses.dataclass
class ProgrammedWeights:
    """Weights that a chip holds at one time, put in place of the layer's own.

    Attributes:
        weights: ``[outputs, rows]`` in the units of the weight.
        scale: ``[row_tiles, outputs]``.
        compensation: digital factor ``[row_tiles, outputs]``, or None.
        bias, gain, input_range: the layer's digital side as it was programmed.
        keys: keys of the reads, one per row tile.
    """

    weights: Tensor
    scale: Tensor
    compensation: Tensor | None
    bias: Tensor | None
    gain: Tensor | None
    input_range: Tensor | None
    keys: tuple[Key, ...]


@dataclasses.dataclass
class Call:
    """What one forward pass hands to its backward pass.

    ``finish`` views ``[vectors, outputs, positions]`` in the caller's shape, ``flatten`` is its inverse.
    """

    keys: tuple[Key, ...]
    offset: int
    backend: str
    check_finite: bool
    finish: Callable[[Tensor], Tensor]
    flatten: Callable[[Tensor], Tensor]
    range_gradient: Callable[[Tensor, Tensor, Call], Tensor]
    statistics: Statistics | None = None
    vectors: int = 0
    held: HeldPass | None = None


def version(tensor: Tensor) -> int:
    """Counts the changes of a tensor; 0 where torch does not count, in inference mode, where nothing is trained."""
    return 0 if tensor.is_inference() else tensor._version


def made_by_hooks(module: nn.Module) -> set[str]:
    """Names of what a hook of torch computes before every forward pass: pruned or normalised weights and biases.

    Example:
        >>> from torch.nn.utils import prune
        >>> made_by_hooks(prune.identity(nn.Linear(2, 2), "weight"))
        {'weight'}
    """
    # torch's hooks keep "weight_orig" or "weight_g" and "weight_v" as parameters and leave "weight" as a plain tensor.
    stems = {n.rpartition("_")[0] for n in module._parameters if n.endswith(("_orig", "_g", "_v"))}
    return stems & module.__dict__.keys()


def refuse_hooks(module: nn.Module, name: str) -> None:
    """Raise where a hook of torch computes a weight or a bias: it is that of the last forward pass, steps miss it."""
    made = made_by_hooks(module)
    if made:
        what = min(made)
        raise AimcError(
            f"torch.nn.utils.prune, weight_norm or spectral_norm computes the {what} by a hook from other parameters, "
            "and clipping, chips and exports would miss these. Make it permanent: prune.remove(layer, "
            f"{what!r}), remove_weight_norm, remove_spectral_norm; or use torch.nn.utils.parametrize, whose {what} is "
            "always up to date",
            layer=name or type(module).__name__, field=what,
        )  # fmt: skip


def _smallest(dtype: torch.dtype) -> float:
    """The smallest input range: its inverse stays finite."""
    return min(torch.finfo(dtype).tiny * 1e6, 1e-4)


def _largest(dtype: torch.dtype) -> float:
    """The largest input range; nothing is beyond it."""
    return torch.finfo(dtype).max


def _no_gradient(push: Tensor, ranges: Tensor, call: Call) -> Tensor:
    """While the first batches set the range, the optimizer does not."""
    return torch.zeros_like(push)


class AnalogLayer(nn.Module):
    """A mixin in front of a torch layer; the torch layer's ``weight`` and ``bias`` keep their names, shapes and units.

    Attributes:
        hardware: the frozen description; assign with :meth:`set_hardware`.
        layout: the split over tiles.
        input_range: learned or fixed range per row tile, 0 until training or calibration sets it (so that averages over
            states start from something); None without a DAC or with dynamic ranges.
        output_gain: learned digital gain per output, or None. Range and gain of a frozen weight are made frozen; later,
            ``layer.requires_grad_(...)`` freezes or trains them with it.
        statistics: shares of clipped inputs and saturated outputs in the last forward pass.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    input_range: Tensor | None
    output_gain: nn.Parameter | None
    column_scale: Tensor | None
    _is_fsdp_managed_module = False  # fully_shard says so
    watch: Watch | None = None  # the network's; set by aimc.convert
    _unclipped = False  # whether it was said that the weight is not clipped

    def _set_up(self, hardware: Hardware, layout: Layout, key: Key, name: str, backend: str) -> None:
        """Called once by the leaf's constructor, after weight and bias exist."""
        self.hardware, self.layout, self.key, self.name = hardware, layout, key, name
        self.backend = check_backend(backend)
        self.check_finite = True
        self.network_seed = key.seed  # convert gives all layers of a network the same
        self.noise_strength: float | None = None
        self.statistics: Statistics | None = None
        self._programmed: ProgrammedWeights | None = None
        self._evaluated_clean = 0  # vectors read before a chip was put in place
        self._holder: int | None = None  # the thread that put it in
        self._pass: HeldPass | None = None
        self._observer: Callable[[Tensor], None] | None = None
        self._records = Records()
        self._replay: Record | None = None
        self._recording: Record | None = None
        self._folded: tuple[tuple[Key, int], list[list[Key]]] | None = None
        self._step = self._evaluated = self._range_batches = 0
        self._clipped_version = self._range_version = -1
        self._sharded: weakref.ref[Tensor] | None = None
        self._due_bound: float | None = None
        self._due_range: Tensor | None = None
        like = {"dtype": self.weight.dtype, "device": self.weight.device}
        setting, trained = hardware.input_range, self._trained()
        if hardware.dac is None or setting.mode == "dynamic":
            self.register_buffer("input_range", None)
        else:
            start = torch.full((layout.row_tiles,), setting.value or 0.0, **like)
            if setting.mode == "learned":
                self.input_range = nn.Parameter(start, trained)
            else:
                self.register_buffer("input_range", start)
        if hardware.mapping.learned_gain:
            self.output_gain = nn.Parameter(torch.ones(layout.outputs, **like), trained)
        else:
            self.register_parameter("output_gain", None)
        self.periphery = Periphery(
            hardware.dac, hardware.adc, hardware.output_noise, hardware.short_term_noise, hardware.ir_drop,
            hardware.wires,
        )  # fmt: skip
        fixed = hardware.training is not None and hardware.training.remap_every != 1
        self.register_buffer("column_scale", self._weight_scale() if fixed else None)
        _LAYERS[self] = None
        self._handle = register(self)
        _watch_optimizers()

    # Weights -------------------------------------------------------------------------------------------------------

    def _parameter(self) -> nn.Parameter | None:
        """The parameter that ``weight`` is, or is a part of; None where it is gone."""
        return self.weight

    def _trained(self) -> bool:
        """Whether the weight is trained; a frozen layer is not to change its function by a range or a gain either."""
        with torch.enable_grad():  # a parametrization computes its weight here
            parameter = self._parameter()
        return parameter is not None and parameter.requires_grad

    def _outputs_first(self) -> Tensor:
        """The weight as ``[outputs, rows]`` once it is reshaped, differentiable; override where torch's is not."""
        return self.weight

    def _part(self, whole: Tensor) -> Tensor:
        """The weight in the parameter that it is, or is a part of; a view."""
        return whole

    def matrix(self) -> Tensor:
        """The clean weight as ``[outputs, rows]``."""
        self.refuse_shards()
        matrix = self._lent(self._outputs_first().detach())
        wanted = self.layout.outputs, self.layout.rows
        if matrix.shape[0] != wanted[0] or matrix.numel() != math.prod(wanted):
            raise AimcError(
                f"the weight has another shape than at aimc.convert, and its tiles hold {list(wanted)}. Change shapes "
                "(resize_token_embeddings, say, also where only the table is tied to this layer) before aimc.convert",
                layer=self.name, field="weight", shape=self.weight.shape,
            )  # fmt: skip
        matrix = matrix.reshape(wanted).contiguous()
        return matrix if self._due_bound is None else matrix.clamp(-self._due_bound, self._due_bound)

    def shaped_like_weight(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`matrix`."""
        return matrix.reshape(self.weight.shape)

    def _weight_scale(self) -> Tensor:
        return column_scale(self.matrix(), self.layout, self.hardware.mapping)

    @torch.no_grad()
    def remap(self) -> None:
        """Let the digital scale follow the present weights; the layer's function does not change."""
        if self.column_scale is not None:
            self.column_scale.copy_(self._weight_scale())

    def present_scale(self) -> Tensor:
        """The digital scale in use, ``[row_tiles, outputs]``."""
        return self.column_scale if self.column_scale is not None else self._weight_scale()

    @torch.no_grad()
    def constrain(self) -> None:
        """Clip the weights and keep the input range positive; runs after every optimizer step that moved them."""
        training = self.hardware.training
        parameter = self._parameter()
        clip = None if training is None else training.clip
        if clip is not None and parameter is not None and parameter.requires_grad:
            self._clip_weight(parameter, clip)
        self.constrain_range()

    @torch.no_grad()
    def constrain_range(self) -> None:
        """Keep the input range positive."""
        if isinstance(self.input_range, nn.Parameter):
            dtype, known = self.input_range.dtype, self.input_range != 0
            self.input_range.clamp_(_smallest(dtype), _largest(dtype))
            if self.hardware.input_range.value is None:
                self.input_range.mul_(known)  # what is not set yet stays so

    def _clip_changes(self) -> None:
        """Before a forward pass in training mode, if the weights changed otherwise than by an optimizer."""
        training = self.hardware.training
        if not self.training or training is None or training.clip is None:
            return
        if "parametrizations" in self._modules and not isinstance(self._parameter(), nn.Parameter):
            if not self._unclipped:
                warn(
                    f"layer {self.name!r}: training.clip does not reach a weight that a parametrization computes; let "
                    "one more parametrization clip it, and take hardware.replace(**{'training.clip': None})",
                )
            self._unclipped = True
            return
        if not self._is_fsdp_managed_module:
            if version(self.weight) != self._clipped_version:
                self.constrain()
            return
        known = self._sharded() if self._sharded is not None else None
        unchanged = known is not None and version(known) == self._clipped_version
        if self._due_bound is None and not unchanged and self.weight.requires_grad:
            self._due_bound = clip_bound(self.weight, training.clip)

    def _clip_weight(self, parameter: Tensor, clip: FixedClip | GaussianClip) -> None:
        with processes.whole(parameter) as whole:
            clip_(self._part(whole), clip)
        self._now_clipped(parameter)

    def _now_clipped(self, parameter: Tensor) -> None:
        """Remember the weight as it is."""
        self._clipped_version = version(parameter)
        if processes.sharded(parameter):
            self._sharded = weakref.ref(parameter)

    # Shards --------------------------------------------------------------------------------------------------------
    # While a module computes, fully_shard puts the whole parameters in the place of the parts. What is written into
    # them then is lost, so it is kept aside until the parts are back.

    def refuse_shards(self) -> None:
        """Raise where the weight is not whole, or is nobody's parameter."""
        refuse_hooks(self, self.name)
        parameter = self._parameter()
        if self._is_fsdp_managed_module and not isinstance(parameter, nn.Parameter):
            raise AimcError(
                "FullyShardedDataParallel puts flat copies in the place of its weight, which cannot be constrained; "
                "take torch.distributed.fsdp.fully_shard",
                layer=self.name,
            )
        if processes.sharded(parameter):
            raise AimcError(
                "its weight is sharded, and this takes the whole. In training, call the module that fully_shard was "
                "given (tensor parallel is not supported: a tile's columns belong together). For chips, drift and "
                "exports load torch.distributed.checkpoint.state_dict.get_model_state_dict(net, options="
                "StateDictOptions(full_state_dict=True)) into a converted network that is not sharded",
                layer=self.name,
            )

    @torch.no_grad()
    def settle_shards(self) -> None:
        """Write into the parts what forward passes have kept aside; before a step, and before a state is saved."""
        bound, ranges, parameter = self._due_bound, self._due_range, self._parameter()
        if bound is not None and parameter is not None and processes.sharded(parameter):
            self._clip_weight(parameter, FixedClip(value=bound))
            self._due_bound = None
        if ranges is not None and processes.sharded(self.input_range):
            assert self.input_range is not None
            processes.write(self.input_range, ranges)
            self._due_range = None

    def _lent(self, value: Tensor) -> Tensor:
        """A parameter's value for compiled bodies: numpy never lets go of memory that fully_shard wants to free."""
        return value.clone() if self._is_fsdp_managed_module and value.is_cpu else value

    def before_sharded_step(self, stepped: set[int]) -> None:
        """Settle before a step of this layer.

        Args:
            stepped: ids of the parameters.
        """
        parameter: Any = self._parameter()
        if processes.sharded(parameter):
            if id(parameter) not in stepped and id(self.input_range) not in stepped:
                return
            if parameter.device_mesh.size() != processes.count():
                raise AimcError(
                    f"is sharded over {parameter.device_mesh.size()} of {processes.count()} processes, and noise and "
                    "input ranges are those of all; give fully_shard a mesh of all of them",
                    layer=self.name,
                )
            self.settle_shards()
        elif self._sharded is not None and id(self._sharded()) in stepped:
            raise AimcError(
                "the step changes its shards while the gathered weight is in their place; call reshard() of the module "
                "that fully_shard was given, or make no forward pass between backward() and step()",
                layer=self.name,
            )

    def present_range(self) -> Tensor | None:
        """The input range, detached."""
        held = self._due_range if self._due_range is not None else self.input_range
        return None if held is None else self._lent(held.detach())

    def _put_range(self, values: Tensor) -> None:
        if self._is_fsdp_managed_module and isinstance(self.input_range, nn.Parameter):
            self._due_range = values
        else:
            assert self.input_range is not None
            self.input_range.copy_(values)

    def _tiles(self) -> Tiles:
        step, programmed, replay = self._step, self._programmed, self._replay
        if replay is not None:
            step, programmed = replay.step, replay.programmed
        if programmed is not None:
            held = programmed
            if self.training:
                raise AimcError(
                    "a chip is in place and the network is in training mode; call net.eval() first"
                )
            weights = [held.weights[:, a:b] for a, b in self.layout.row_splits]
            return Tiles(weights, held.scale, compensation=held.compensation, trained=False)
        training = self.hardware.training if self.training else None
        if replay is None:
            self._clip_changes()
            if training is not None and training.remap_every > 1 and step % training.remap_every == 0:
                self.remap()
        matrix = self.matrix()
        scale = self.column_scale
        if scale is None and self.hardware.mapping.scale != "column":
            scale = column_scale(matrix, self.layout, self.hardware.mapping)
        modifiers = training.modifiers if training is not None else ()
        strength = self.noise_strength
        if strength is None:
            strength = training.strength(step) if training is not None else 0.0
        own, network = map(processes.own_noise, (self.key, Key(self.network_seed)))
        weights, scale, factor = modify_weights(
            matrix, self.layout, modifiers, self.hardware.cell, scale,
            own.at("modifier", step=step), strength, True, self.backend, network,
        )  # fmt: skip
        if self.periphery.wires is not None:
            weights = self._behind_wires(weights, scale, self.periphery.wires)
        return Tiles(weights, scale, factor)

    def _behind_wires(self, weights: list[Tensor], scale: Tensor, wires: Wires) -> list[Tensor]:
        """The weights of the row tiles as they act from terminal to terminal; the gradient passes by the wires."""
        cell, full = self.hardware.cell, expand_scale(scale, self.layout)
        normalised = torch.where(full > 0, torch.cat(weights, 1) / full, 0)
        seen = behind_wires(to_conductance(normalised, cell), self.layout, wires)
        matrix = from_conductance(seen, cell) * full
        return [matrix[:, a:b].contiguous() for a, b in self.layout.row_splits]

    # Input range ---------------------------------------------------------------------------------------------------

    def _ranges(self, x: Tensor) -> Tensor:
        """``[row_tiles, 1]``, or ``[row_tiles, vectors]`` for dynamic ranges.

        x is ``[vectors, groups, channels, positions]``.
        """
        if self.periphery.dac is None:
            return torch.ones(self.layout.row_tiles, 1, dtype=x.dtype, device=x.device)
        if self.input_range is None:
            if x.numel() == 0:
                return torch.ones(self.layout.row_tiles, x.shape[0], dtype=x.dtype, device=x.device)
            largest = [x[:, :, a:b].abs().amax((1, 2, 3)) for a, b in self.layout.splits]
            found = torch.stack(largest)
            # A vector of zeros has no range of its own.
            return torch.where(found > 0, found.clamp_min(_smallest(x.dtype)), 1)
        setting = self.hardware.input_range
        starts = self.training and setting.mode == "learned" and setting.value is None
        starting = starts and self._range_batches < setting.init_batches
        if starting:
            self._start_range(x)
        held, values = False, self.present_range()
        assert values is not None
        if self._programmed is not None and self._programmed.input_range is not None:
            held, values = True, self._programmed.input_range
        # Parameters that fully_shard gathers anew do not count their versions.
        changed = held or self._is_fsdp_managed_module or self._range_version != version(values)
        unset = changed and not all(v > 0 for v in values.tolist())
        if unset and starts:  # a tile that has seen nothing but zeros
            if self._range_batches >= setting.init_batches:
                self._start_range(x)
            values = self.present_range()
            assert values is not None
            return torch.where(values > 0, values, 1).unsqueeze(1)  # for zeros any range will do
        if unset and x.numel() == 0:
            return torch.ones_like(values).unsqueeze(1)
        if unset:
            raise AimcError(
                "the input range is not set; train the network, measure it with aimc.calibrate(net, batches), or give "
                "hardware.input_range.value",
                field="input_range",
            )
        self._range_version = -1 if held else version(values)
        # The backward pass needs the range of this read, and the next one of the same layer moves it on.
        return (values.clone() if starting else values).unsqueeze(1)

    @torch.no_grad()
    def _start_range(self, x: Tensor) -> None:
        """Running mean of so many standard deviations over the first batches, for each tile that sees an input."""
        run, present = self._pass, self.present_range()
        assert present is not None
        ranges = present.clone()
        if run is not None and run.first_range is not None:
            ranges.copy_(run.first_range)
        setting, k = self.hardware.input_range, self._range_batches
        tiny = _smallest(x.dtype)
        for tile, (a, b) in enumerate(self.layout.splits):
            part = x[:, :, a:b]
            what = f"row tile {tile} of layer {self.name!r}"
            if run is None:
                spread, largest = processes.spread(part, what)
            else:  # what the pass has read so far is one batch
                spread, largest = processes.spread_of(run.saw(tile, part), what)
            value = setting.init_std * spread if spread > 0 else largest
            if not value > 0:  # also where there is nothing, or something that is not finite
                continue
            # In single precision at least: a sum of two ranges may be beyond half precision.
            wide = torch.promote_types(part.dtype, torch.float32)
            old = ranges[tile].to(wide)
            value = old.new_tensor(min(value, _largest(part.dtype))).clamp_min(tiny)
            if k >= setting.init_batches and old > 0:
                continue  # started long ago
            ranges[tile] = (old * k + value) / (k + 1) if old > 0 else value
        self._put_range(ranges)
        self._range_batches += run is None

    def _range_gradient(self, push: Tensor, ranges: Tensor, call: Call) -> Tensor:
        setting = self.hardware.input_range
        r = ranges.squeeze(1)
        assert call.statistics is not None
        fits = [float(1 - c > setting.keep) for c in call.statistics.clipped]
        grad = push * r
        if setting.gradient_scale != 1:
            grad *= setting.gradient_scale
        if any(fits):
            shrink = setting.decay / (1 if call.held is None else call.held.reads)
            grad.add_(r if all(fits) else r * r.new_tensor(fits), alpha=shrink)
        if setting.manage_output_clipping:
            lost = [s if s > 1 - setting.keep else 0.0 for s in call.statistics.saturated]
            grad.sub_(r * r.new_tensor(lost), alpha=1 / (1 if call.held is None else call.held.reads))
        present = self.present_range()
        # The range of a tile that has seen nothing but zeros was a stand-in, which a step must not move.
        return grad if present is None else grad * (present > 0)

    # Forward -------------------------------------------------------------------------------------------------------

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Arguments and result of the torch layer; only transposed convolutions have an ``output_size``."""
        if followed(input):
            return read_opaquely(self, input, output_size)
        return self.read(input) if output_size is None else self.read(input, output_size)

    def read(self, input: Tensor, *args: Any) -> Tensor:
        """One forward pass through the tiles; arguments as for the torch layer."""
        raise NotImplementedError

    def digital(self, input: Tensor, weight: Tensor, *args: Any) -> Tensor:
        """The torch layer's own product, of the same shape as what :meth:`read` returns."""
        raise NotImplementedError

    def _read_keys(self) -> tuple[Key, ...]:
        """Keys of the reads of this forward pass, one per row tile."""
        if self._folded is None or self._folded[0] != (self.key, self.layout.row_tiles):
            purposes = ("training", "evaluation")
            keys = [
                [self.key.fold(p, k).at("output_noise") for k in range(self.layout.row_tiles)]
                for p in purposes
            ]
            self._folded = (self.key, self.layout.row_tiles), keys
        keys = self._folded[1][0 if self.training else 1]
        step = self._step if self._replay is None else self._replay.step
        return tuple(k.at(step=step) for k in keys) if self.training else tuple(keys)

    def _analog(
        self,
        x: Tensor,
        geometry: Geometry,
        finish: Callable[[Tensor], Tensor],
        flatten: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """``[vectors, groups, channels, positions]`` -> ``[vectors, outputs, positions]``, finished."""
        if x.dtype != self.weight.dtype and x.is_floating_point():
            x = x.to(self.weight.dtype)
        x = self.layout.for_tiles(x)
        if self._observer is not None:
            self._observer(x.detach())
        x = x.contiguous()
        run = self._pass
        with self._replayed(x) if self._replay is None and run is None and inside_backward() else _NOTHING:
            return self._read_tiles(x, geometry, finish, flatten)

    def _read_tiles(
        self,
        x: Tensor,
        geometry: Geometry,
        finish: Callable[[Tensor], Tensor],
        flatten: Callable[[Tensor], Tensor],
    ) -> Tensor:
        replay = self._replay
        held = self._programmed if replay is None else replay.programmed
        if held is not None and replay is None:
            self._refuse_other_threads()
        new = replay is None and self._pass is None and self._recording is None
        if new and may_come_back(self.training) and x.is_floating_point():
            self._record(fingerprint(x))
        try:
            if not x.is_floating_point():
                raise AimcError(f"expects floating-point inputs, got {x.dtype}")
            self.refuse_shards()
            run = self._pass
            tiles = self._tiles() if run is None else run.tiles
            started = self._range_batches >= self.hardware.input_range.init_batches
            evaluated = self._evaluated
            if replay is None:
                ranges = self._ranges(x.detach())
                if self._recording is not None:
                    self._recording.ranges.append(ranges)
            else:
                started, evaluated = replay.started, replay.evaluated
                ranges = replay.ranges[min(replay.position, len(replay.ranges) - 1)]
                replay.position += 1
            # In training a process reads its part of the batch, and numbers it as such.
            before = processes.rank() * x.shape[0] + (0 if run is None else run.vectors * processes.count())
            call = Call(
                tuple(map(processes.own_noise, held.keys if held is not None else self._read_keys())),
                before if self.training else processes.first_evaluated() + evaluated,
                self.backend,
                self.check_finite,
                finish,
                flatten,
                self._range_gradient if started or not self.training else _no_gradient,
                held=run,
            )
            bias, gain = (self.bias, self.output_gain) if held is None else (held.bias, held.gain)
            bias, gain = (v if v is None else self._lent(v) for v in (bias, gain))
            y = AnalogProduct.apply(
                x, self._outputs_first() if run is None else run.weight, self.input_range, gain, bias,
                ranges, tiles, self.layout, geometry, self.periphery, call,
            )  # fmt: skip
        except AimcError as error:
            raise error.at(layer=self.name or type(self).__name__, shape=x.shape) from None
        state = self.__dict__  # past torch's search for parameters and modules, at every step of every layer
        if replay is None:
            state["statistics"] = call.statistics
            if not self.training:
                state["_evaluated"] += call.vectors
            elif run is None:
                state["_step"] += 1
            if run is None:
                state["_recording"] = None
        if run is not None:
            run.add(call)
        dtype = result_dtype(x)
        return y if y.dtype == dtype else y.to(dtype)

    # Once more ----------------------------------------------------------------------------------------------------

    def _record(self, mark: tuple | None) -> Record:
        """Write down what this forward pass depends on, so that it can be made again."""
        started = self._range_batches >= self.hardware.input_range.init_batches
        self._recording = self._records.add(
            step=self._step, evaluated=self._evaluated, training=self.training, started=started,
            chip=weakref.ref(self._programmed) if self._programmed is not None else None, fingerprint=mark,
        )  # fmt: skip
        return self._recording

    @contextlib.contextmanager
    def _replayed(self, what: Tensor | Record | None) -> Iterator[None]:
        """Make a forward pass again: that of a record, of such an input, or the last one; else a new one."""
        record = what if isinstance(what, Record) else None
        if record is None and len(self._records):
            record = self._records.matching(fingerprint(what) if isinstance(what, Tensor) else None)
        if record is None:
            yield
            return
        record.used, record.position, self._replay = True, 0, record
        try:
            yield
        finally:
            self._replay = None

    @contextlib.contextmanager
    def programmed(self, weights: ProgrammedWeights) -> Iterator[None]:
        """Put a chip's weights in place, and take them out again. Reads are numbered from zero inside."""
        with _PUTTING:
            if self._programmed is not None:
                self._refuse_other_threads()
            before = self._programmed, self._evaluated, self._holder
            if self._programmed is None:
                self._evaluated_clean = self._evaluated
            self._programmed, self._evaluated, self._holder = weights, 0, threading.get_ident()
        try:
            yield
        finally:
            if self._programmed is not weights:
                raise AimcError(
                    "chips were taken out of the network in another order than put in", layer=self.name
                )
            self._programmed, self._evaluated, self._holder = before

    def _refuse_other_threads(self) -> None:
        """Raise where the chip in place is another thread's. Replicas of DataParallel have threads of their own."""
        if self._holder not in (None, threading.get_ident()) and not getattr(self, "_is_replica", False):
            raise AimcError(
                "another thread has a chip in place, which this one would compute with, or put out; give every thread "
                "a network of its own (twin = copy.deepcopy(net), and a chip of the twin), as aimc.evaluate_over_time "
                "does, or enter `with chip.at(...)` in the thread that computes",
                layer=self.name,
            )

    @contextlib.contextmanager
    def observed(self, observer: Callable[[Tensor], None]) -> Iterator[None]:
        """Show every input to ``observer`` and compute as a digital layer meanwhile."""
        before = self.periphery, self._programmed, self._evaluated
        self.periphery, self._programmed, self._observer = (
            Periphery(None, None, 0.0, 0.0, None),
            None,
            observer,
        )
        try:
            yield
        finally:
            self.periphery, self._programmed, self._evaluated = before
            self._observer = None

    @torch.no_grad()
    def set_input_range(self, values: Tensor) -> None:
        """Set the range of every row tile; a learned range goes on from there."""
        if self.input_range is None:
            raise AimcError("has no input range to set (no DAC, or dynamic ranges)", layer=self.name)
        if self._is_fsdp_managed_module:
            raise AimcError(
                "its input range is sharded; calibrate the network before fully_shard", layer=self.name
            )
        self.input_range.copy_(values.clamp_max(_largest(self.input_range.dtype)))
        self._range_batches = self.hardware.input_range.init_batches

    # State ---------------------------------------------------------------------------------------------------------

    def set_hardware(self, hardware: Hardware) -> None:
        """Exchange the hardware and keep the weights; ranges and gains are kept where the new hardware has them.

        Parameters that stay are the same objects; those that are new or gone need an optimizer made again.
        """
        if self._programmed is not None:
            raise AimcError(
                "a chip is in place; leave its `with chip.at(...)` before the hardware changes",
                layer=self.name,
            )
        if self._is_fsdp_managed_module:
            raise AimcError(
                "its parameters are sharded; exchange the hardware before fully_shard", layer=self.name
            )
        here = self.layout
        layout = Layout.of(hardware.tile, here.outputs, here.channels, here.kernel, here.groups)
        kept = {n: getattr(self, n) for n in ("input_range", "output_gain")}
        counters = self._step, self._evaluated, self._range_batches
        settings = self.check_finite, self.noise_strength, self.network_seed
        clipped = self._clipped_version
        for name in ("input_range", "output_gain", "column_scale"):
            self._parameters.pop(name, None)
            self._buffers.pop(name, None)
        self._set_up(hardware, layout, self.key, self.name, self.backend)
        self._step, self._evaluated, self._range_batches = counters
        self.check_finite, self.noise_strength, self.network_seed = settings
        self._clipped_version = clipped
        for name, old in kept.items():
            new = getattr(self, name)
            if old is None or new is None or old.shape != new.shape:
                continue
            with torch.no_grad():  # a range that was never set gives way to a given one
                old.copy_(torch.where(old > 0, old, new))
            if isinstance(old, nn.Parameter) and isinstance(new, nn.Parameter):
                setattr(self, name, old)
            else:
                with torch.no_grad():
                    new.copy_(old)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        self.settle_shards()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "analog_state"] = self.analog_state
        destination[prefix + "analog_hardware"] = self.analog_hardware

    @property
    def analog_state(self) -> Tensor:
        """Seeds and counters, as a state dict carries them; torch's distributed checkpoints look up every name."""
        own, network = (s - (1 << 64) if s >= 1 << 63 else s for s in (self.key.seed, self.network_seed))
        counters = [own, self._step, self._evaluated, self._range_batches, network]
        return torch.tensor(counters, dtype=torch.int64, device="cpu")

    @property
    def analog_hardware(self) -> Tensor:
        """The description, likewise."""
        return hardware_record(self.hardware)

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, strict, missing_keys, *rest):
        unexpected, errors = rest
        # Everything is checked before anything is written.
        found = self.misfits(state_dict, prefix)
        if found:
            errors += found
            return
        saved, changed = state_dict.get(prefix + "analog_state"), []
        if prefix + "analog_hardware" in state_dict:
            theirs = saved_hardware(state_dict, prefix[:-1])
            changed = differences(theirs, self.hardware)
            if not isinstance(theirs, Hardware):
                saved = None  # cells count other things
        if saved is not None:
            seed, self._step, self._evaluated, self._range_batches, *network = (int(v) for v in saved)
            self.key = dataclasses.replace(self.key, seed=seed % (1 << 64))
            if network:  # earlier files do not have it
                self.network_seed = network[0] % (1 << 64)
        if changed:
            # The hardware stays the caller's. What belongs to the saved one and has no place here is left out.
            warn(
                f"layer {self.name!r} was saved with other hardware, its own stays: {'; '.join(changed)}",
            )
        state_dict = self._placed(state_dict, prefix, bool(changed))
        if prefix + "input_range" in state_dict:
            state_dict[prefix + "input_range"] = started(state_dict[prefix + "input_range"])
        own: list[str] = []
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, own, *rest)
        for name in list(unexpected):
            if name.removeprefix(prefix) in ("analog_state", "analog_hardware"):
                unexpected.remove(name)
        # A digital checkpoint has the weight and none of the analog extras: that is complete.
        complete = saved is None or changed
        missing_keys += [m for m in own if not (complete and m.removeprefix(prefix) in _EXTRAS)]
        if prefix + "column_scale" not in state_dict:
            self.remap()
        # Weights saved from an analog layer were clipped; clipping at n deviations again would shrink them.
        self._clipped_version = self._range_version = -1
        self._due_bound = self._due_range = None
        parameter = self._parameter()
        if saved is not None and parameter is not None:
            self._now_clipped(parameter)

    def misfits(self, state: Mapping[str, Any], prefix: str) -> list[str]:
        """Why a state cannot be loaded here, one line for each entry; empty where it can."""
        changed = False
        if prefix + "analog_hardware" in state:
            try:
                theirs = saved_hardware(state, prefix[:-1])
            except AimcError as error:
                return [str(error)]
            changed = bool(differences(theirs, self.hardware))
            counted = isinstance(theirs, Hardware)
        else:
            counted = True
        found = list(misfits(self, self._placed(state, prefix, changed), prefix))
        if counted and prefix + "analog_state" in state:
            why = misfit_counters(state[prefix + "analog_state"], range(4, 6), (1 << 32) - 1)
            if why is not None:
                found.append(("analog_state", why))
        return [f"{prefix}{name}: {why}" for name, why in found]

    def _placed(self, state: Mapping[str, Any], prefix: str, changed: bool) -> dict[str, Any]:
        """The state without what belongs to other hardware and has no place here."""
        placed = {
            name: value
            for name, value in state.items()
            if not changed
            or name.removeprefix(prefix) not in _EXTRAS[:3]
            or self._fits(name.removeprefix(prefix), value)
        }
        take_before_gains(placed, prefix, ("weight", "bias"), gains=prefix + "output_gain" in placed)
        return placed

    def _fits(self, name: str, value: Any) -> bool:
        here = getattr(self, name, None)
        return here is not None and here.shape == getattr(value, "shape", None)

    def __getstate__(self):
        state = self.__dict__.copy()
        state["_clipped_version"] = self._clipped_version == version(
            self.weight
        )  # a copy counts versions from zero
        state["_range_version"] = -1
        state["statistics"] = state["_observer"] = state["_pass"] = None
        state["_replay"] = state["_recording"] = state["_sharded"] = state["_holder"] = None
        if self._programmed is not None:
            state["_programmed"], state["_evaluated"] = None, self._evaluated_clean
            if self._holder == threading.get_ident():
                warn(
                    "a copy of a network does not take along the chip that is in place: it computes with the network's "
                    "own weights. Copy outside of `with chip.at(...)`; chip.save(path) and Chip.load(path, copy) "
                    "give a copy the chip",
                )
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        self._count_versions()
        _LAYERS[self] = None
        self._handle = register(self)

    def _count_versions(self) -> None:
        """Make of "was clipped" the version of a copied weight."""
        self._clipped_version = version(self.weight) if self._clipped_version else -1

    def analog_description(self) -> str:
        h, parts = self.hardware, self.layout
        return f"{parts.tiles} tiles of {h.tile.rows}x{parts.columns}, cell={type(h.cell).__name__}"

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.analog_description()}"


def hardware_record(hardware: Config) -> Tensor:
    """A description as uint8, so that a state dict can carry it; :func:`saved_hardware` reads it."""
    return torch.frombuffer(bytearray(hardware.to_json(None).encode()), dtype=torch.uint8).clone()


def saved_hardware(state: Mapping[str, Tensor], layer: str = "") -> Config:
    """The hardware that a state dict was saved with; load it with ``set_hardware`` to restore it.

    Args:
        state: from ``state_dict()``, of an analog network.
        layer: dotted name of the layer, "" for a bare one.

    Example:
        >>> from aimc import convert, presets
        >>> net = convert(nn.Sequential(nn.Linear(2, 2)), presets.pcm())
        >>> saved_hardware(net.state_dict(), "0") == presets.pcm()
        True
    """
    name = f"{layer}.analog_hardware" if layer else "analog_hardware"
    if name not in state:
        raise AimcError(
            "the state was not saved from an analog layer of that name", layer=layer, field="state"
        )
    return described(state[name], layer)


@checked
def analog_layers(net: nn.Module) -> dict[str, AnalogLayer]:
    """Analog layers by dotted name, each once.

    Example:
        >>> analog_layers(nn.Linear(2, 2))
        {}
    """
    return {name: m for name, m in net.named_modules() if isinstance(m, AnalogLayer)}


_WATCHED = False


def _watch_optimizers() -> None:
    """Constrain a layer after any optimizer has stepped its parameters, so that no wrapper is needed."""
    global _WATCHED
    if not _WATCHED:
        from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

        register_optimizer_step_pre_hook(_before_step)
        register_optimizer_step_post_hook(_after_step)
        _WATCHED = True


def _before_step(optimizer: torch.optim.Optimizer, args, kwargs) -> None:
    stepped: set[int] | None = None
    for layer in list(_LAYERS):
        if not layer._is_fsdp_managed_module:
            continue
        stepped = stepped or {id(p) for group in optimizer.param_groups for p in group["params"]}
        layer.before_sharded_step(stepped)


def _after_step(optimizer: torch.optim.Optimizer, args, kwargs) -> None:
    stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for layer in list(_LAYERS):
        parameter = layer._parameter()
        if parameter is not None and id(parameter) in stepped and parameter.grad is not None:
            layer.constrain()
        elif layer.input_range is not None and id(layer.input_range) in stepped:
            layer.constrain_range()  # clipping shrinks weights that have not moved, too
