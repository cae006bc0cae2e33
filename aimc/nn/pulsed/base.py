"""What every layer shares whose weights live in cells and are trained in place."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from aimc import processes
from aimc.algorithms import Array, State
from aimc.arguments import checked
from aimc.config import differences
from aimc.crossbar import Layout
from aimc.errors import AimcError, warn
from aimc.hardware import PulsedHardware
from aimc.nn.base import hardware_record, refuse_hooks, saved_hardware
from aimc.nn.loading import LARGEST, misfit, misfit_counters, misfits
from aimc.nn.once import once
from aimc.nn.opaque import NO_GRAPH, outside_graphs, transformed
from aimc.nn.pulsed.read import Reads
from aimc.nn.pulsed.weight import CellWeight, Form, PendingUpdate
from aimc.nn.watching import Watch
from aimc.ops import check_backend
from aimc.ops.pulsed_update import choose_body, has_compiled_response, same
from aimc.random import Key

_LAYERS: weakref.WeakKeyDictionary[PulsedLayer, None] = (
    weakref.WeakKeyDictionary()
)  # in the order they were made
_LEAST_ERROR = (
    0.01  # relative error of the weights above which ``overflow="warn"`` warns of rounding to levels, too
)
_MOST_GROWTH = 10.0
_NOTES = ("_stale", "_written")  # changed in every step


class _NoName:
    """The name that ``torch.jit`` asks a class for, before it trips over buffers that are called as methods are."""

    def __get__(self, cells: Cells | None, owner: type[Cells]) -> str:
        if cells is not None:
            raise AttributeError  # torch looks through all that there is first
        raise AimcError(f"{NO_GRAPH}, as torch.jit makes; trace aimc.to_digital(net)")


class Cells(nn.Module):
    """Holder of an algorithm's state: its tensors are buffers here, in the precision they were made in."""

    _jit_override_qualname = _NoName()

    def __init__(self, state: State):
        super().__init__()
        self._buffers.update(state)

    @property
    def state(self) -> State:
        """The live state, whose tensors algorithms change in place."""
        return self._buffers  # type: ignore[return-value]  (no buffer here is None)

    def _apply(self, fn, recurse=True):
        for name, held in self.state.items():
            moved = fn(held)
            if moved.dtype != held.dtype:
                moved = held.to(moved.device)
            # Counters are read on the host in every step; and memory_format=torch.channels_last is for images.
            self._buffers[name] = (
                held if held.dtype == torch.int64 and not moved.is_cpu else moved.contiguous()
            )
        return self

    def _load_from_state_dict(self, *args):
        """The layer loads its cells, all or nothing."""


class PulsedLayer(nn.Module):
    """A mixin in front of a torch layer; ``weight`` has the name, shape and unit of torch's, and lives in cells.

    A backward pass leaves its inputs and output gradients, in evaluation mode too, as torch leaves gradients; a step of
    the optimizer from :func:`aimc.optim.wrap` makes pulses of them. There is no dense gradient unless ``weight.grad``
    is read.

    Attributes:
        hardware: the frozen description.
        layout: the split over tiles; every tile exists once for each array of the algorithm.
        weight: ``scale`` times what the algorithm's arrays amount to, see :class:`CellWeight`.
        bias: digital parameter, or a :class:`CellWeight` where ``mapping.analog_bias``.
        cells: the algorithm's state.
        pending: the vectors that wait for a step.
        mapping_error, clipped: relative error of the weights when they were last programmed, and the share of weights
            that their devices could not hold.
    """

    weight: CellWeight
    bias: nn.Parameter | None
    _is_fsdp_managed_module = False  # fully_shard says so
    watch: Watch | None = None  # the network's; set by aimc.convert
    _array: Array | None = None  # made anew where something in it has changed
    _agreed = False  # whether all processes are known to hold the same cells

    def _set_up(
        self,
        digital: Any,
        hardware: PulsedHardware,
        key: Key,
        name: str,
        backend: str,
        layout: Layout,
        form: Form,
    ) -> None:
        """Called once by the leaf's constructor."""
        self.hardware, self.key, self.name, self.layout, self.form = hardware, key, name, layout, form
        self.backend = check_backend(backend)
        try:
            choose_body(backend, hardware.cell)
        except AimcError as error:
            raise error.at(layer=name) from None
        self.training = digital.training
        blank = torch.empty_like(digital.weight, memory_format=torch.contiguous_format)
        self.weight = CellWeight(blank, digital.weight.requires_grad)
        columns = digital.weight.shape[1:].numel()
        self.bias = digital.bias
        if hardware.mapping.analog_bias and digital.bias is not None:
            self.bias = CellWeight(torch.empty_like(digital.bias), digital.bias.requires_grad)
            columns += 1
        self.pending = PendingUpdate(
            form, name, digital.weight.shape[1:].numel(), isinstance(self.bias, CellWeight)
        )
        self.reads = Reads(hardware, layout, key)
        self.shape = (digital.weight.shape[0], columns)
        self.mapping_error = self.clipped = 0.0
        self._scale, self._stale = 1.0, False
        self._optimizer: weakref.ref | None = None  # set by aimc.optim.wrap
        self._network: weakref.ref | None = None  # set by aimc.convert
        self._link()
        target = self._target(digital.weight, digital.bias)
        state = hardware.algorithm.init(
            self.array, torch.zeros(self.shape, device=target.device, dtype=torch.float32)
        )
        self.cells = Cells({**state, "digital_scale": torch.ones((), dtype=torch.float64, device="cpu")})
        self._program(target)
        _watch_optimizers()

    def _link(self) -> None:
        """Connect what copies and files cannot keep connected."""
        _LAYERS[self] = None
        weight, bias = self.weight, self.bias
        if not weight.is_cpu:
            warn(
                f"cells on {weight.device.type!r} are pulsed by the plain torch body, which is right but many times "
                "slower than the compiled body for CPUs; there is no body for GPUs yet",
            )
        elif self.backend == "auto" and not has_compiled_response(type(self.hardware.cell)):
            warn(
                f"cells of {type(self.hardware.cell).__name__} are pulsed by the plain torch body, which is right but "
                "many times slower than the compiled one: that knows the responses of aimc's own cells (backend="
                "'reference' says that this is meant)",
            )
        weight.pending = self.pending
        # Same memory and version as the parameters, without a gradient: written in every step.
        self._own: list[Tensor] = [weight.detach()]
        self._views: list[Tensor] = [weight.detach().view(len(weight), weight.shape[1:].numel())]
        if isinstance(bias, CellWeight):
            bias.pending, bias.bias = self.pending, True
            self._own.append(bias.detach())
            self._views.append(bias.detach()[:, None])
        # What the cells were last seen to amount to: some ways of writing a weight leave no other trace.
        self._shown = [view.clone() for view in self._views]

    def __setattr__(self, name: str, value: Any) -> None:
        # Torch looks through parameters, buffers and modules first, which takes longer than what a step has to note.
        if name in _NOTES:
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    # Cells ---------------------------------------------------------------------------------------------------------

    @property
    def scale(self) -> float:
        """The digital scale between cells and weights."""
        return self._scale

    @property
    def array(self) -> Array:
        """The cells as the algorithm sees them."""
        hardware, kept = self.hardware, self._array
        if (
            kept is None or kept.scale != self._scale or kept.key is not self.key or kept.backend != self.backend
            or kept.cell is not hardware.cell or kept.transfer is not hardware.transfer
        ):  # fmt: skip
            kept = Array(hardware.cell, self.shape, self.key, self._scale, hardware.transfer, self.backend)
            self._array = kept
        return kept

    def _target(self, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The weights that the cells are to hold, float32 ``[R, C]``."""
        matrix = weight.detach().reshape(len(weight), weight.shape[1:].numel()).float()
        if self.shape[1] > matrix.shape[1]:
            assert bias is not None
            matrix = torch.cat([matrix, bias.detach().float()[:, None]], 1)
        if not bool(torch.isfinite(matrix).all()):
            raise AimcError(
                "the weights hold NaN or infinite values, which cells cannot; write finite ones",
                layer=self.name, shape=weight.shape,
            )  # fmt: skip
        return matrix

    @torch.no_grad()
    def program(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Write weights into the cells, all arrays of the algorithm together, and cancel what is pending.

        Args:
            weight: in the shape and unit of ``layer.weight``.
            bias: likewise, where the bias is analog; None keeps the present one.

        Raises:
            AimcError: a shape differs, a value is not finite, or ``mapping.overflow`` says so. Nothing is written then.

        Example:
            >>> from aimc import convert, presets
            >>> layer = convert(nn.Linear(2, 1), presets.reram(w_max_dtod=0.0, w_min_dtod=0.0))
            >>> layer.program(torch.tensor([[0.25, -0.5]]))
            >>> layer.weight.detach()
            tensor([[ 0.2500, -0.5000]])
        """
        if weight.shape != self._own[0].shape:
            raise AimcError(
                f"expects a weight {list(self._own[0].shape)}", layer=self.name, shape=weight.shape
            )
        if bias is not None and (not isinstance(self.bias, CellWeight) or bias.shape != self.bias.shape):
            raise AimcError(
                "has no analog bias of this shape", layer=self.name, field="bias", shape=bias.shape
            )
        self._program(self._target(weight, bias if bias is not None else self.bias))
        warn_of_overflow([self])

    @torch.no_grad()
    def _program(self, target: Tensor) -> None:
        hardware, array, state = self.hardware, self.array, self.cells.state
        target = target.to(state["held"].device)
        cell, algorithm, mapping = hardware.cell, hardware.algorithm, hardware.mapping
        may_fail = mapping.overflow in ("grow", "error")
        before = {name: value.clone() for name, value in state.items()} if may_fail else {}
        bound = algorithm.reach(array)
        largest = float(target.abs().max()) if target.numel() else 0.0
        first = scale = mapping.scale_of(self.shape[1], bound, largest)
        # Written values are exact up to rounding, or up to half a step where a cell has discrete levels.
        probe = torch.full((1, 1), 0.3 * cell.w_max, device=target.device, dtype=torch.float32)
        nominal = cell.replace(**{n: 0.0 for n in cell.field_names() if n.endswith("_dtod")})
        exact = torch.allclose(nominal.snap(probe, nominal.draw((1, 1), self.key, target.device)), probe)
        slack = 1e-4 * bound if exact else cell.granularity
        alive = (state["parameters"][-1][..., :2] != 0).any(-1)
        while True:
            algorithm.program(array, state, target / scale)
            # Of what is held: write noise comes with every reading and is no error of the programming.
            held = {name: value for name, value in state.items() if name != "w"}
            error = algorithm.weight(array, held) * scale - target
            over = error.abs() > slack * scale
            if mapping.overflow != "grow" or not bool((over & alive).any()):
                break
            scale *= 1.1
            if scale > _MOST_GROWTH * first:
                self._restore(before)
                raise AimcError(
                    f"the digital scale would have to grow more than {_MOST_GROWTH:g}-fold before every device holds "
                    "its weight; cells with less spread of their bounds, or overflow='warn' or 'clip'",
                    layer=self.name, field="mapping.overflow",
                )  # fmt: skip
        norm = float(target.norm())
        self.mapping_error = float(error.norm()) / norm if norm > 0 else 0.0
        self.clipped = float(over.float().mean()) if over.numel() else 0.0
        if mapping.overflow == "error" and self.clipped > 0:
            self._restore(before)
            raise AimcError(
                f"{self.clipped:.1%} of the weights are beyond what their devices hold (relative error "
                f"{self.mapping_error:.1%}); a larger mapping.scale or mapping.factor, cells with less spread of their "
                "bounds, or overflow='warn', 'clip' or 'grow'",
                layer=self.name, field="mapping.overflow",
            )  # fmt: skip
        state["digital_scale"].fill_(scale)
        self._scale, self._agreed = scale, False
        self.pending.clear()
        self.refresh()

    def _restore(self, before: State) -> None:
        for name, value in before.items():
            self.cells.state[name].copy_(value)

    def refresh(self) -> None:
        """Bring ``weight`` up to the cells; what else was written into it is gone."""
        self._stale = True  # until the end: an interrupt may come in between
        composite = self.hardware.algorithm.weight(self.array, self.cells.state)
        parts = (composite,) if len(self._views) == 1 else composite.split((self.pending.columns, 1), 1)
        for view, shown, part in zip(self._views, self._shown, parts, strict=True):
            torch.mul(part, self._scale, out=view)
            shown.copy_(view)
        self._take_back()
        self._stale = False

    def _take_back(self) -> None:
        """Let the parameters be where the cells write, and as they are."""
        if self._moved():
            for held, own in zip(self.cell_weights(), self._own):
                held.data = own
        self._written = self._versions()

    def _versions(self) -> int:
        return sum([view._version for view in self._views])

    def cell_weights(self) -> list[nn.Parameter]:
        """The parameters that the cells amount to.

        Raises:
            AimcError: one was taken out of the layer.
        """
        found: list[nn.Parameter] = []
        for name in ("weight", "bias")[: len(self._own)]:
            parameter = self._parameters.get(name)
            if parameter is None:
                raise AimcError(
                    f"the {name} is no parameter of the layer any more, as after torch.nn.utils.prune, weight_norm, "
                    "spectral_norm, a parametrization or an assignment, but it is what the cells hold and cannot be "
                    "computed from another. Do that to the digital network and make it permanent before aimc.convert",
                    layer=self.name or type(self).__name__, field=name,
                )  # fmt: skip
            found.append(parameter)
        return found

    def _moved(self) -> bool:
        """Whether a parameter was given another tensor's memory, as ``weight.data = ...`` does."""
        for held, own in zip(self.cell_weights(), self._own):
            if held.data_ptr() != own.data_ptr() or held.shape != own.shape or held.stride() != own.stride():
                return True
        return False

    def edited(self) -> bool:
        """Whether the weight holds something else than the cells amount to, however it was written.

        Costs one look at every weight; what is equal again counts as not written.
        """
        weight = self._parameters.get("weight")
        if weight is not None and not isinstance(weight, CellWeight):
            return False  # somebody else's for a while; forward passes refuse it
        if self._stale:
            self.refresh()
        for held, own, shown in zip(self.cell_weights(), self._own, self._shown):
            here = held.detach()
            if here.shape != own.shape or here.dtype != own.dtype or here.device != own.device:
                return True
            if not _same_bits(here, shown):
                return True
        self._take_back()
        return False

    def refuse_edits(self, elsewhere: bool = False) -> None:
        """Raise where something else was written into the weight than the cells amount to, before it is lost.

        Args:
            elsewhere: in one of the processes, whether here or not.

        Raises:
            AimcError: names the layer and the ways out.

        Example:
            >>> from aimc import convert, presets
            >>> layer = convert(nn.Linear(2, 1), presets.reram(w_max_dtod=0.0, w_min_dtod=0.0))
            >>> layer.refuse_edits()
            >>> layer.weight.data.zero_()  # not seen by torch's own books
            tensor([[0., 0.]])
            >>> layer.refuse_edits()
            Traceback (most recent call last):
            ...
            aimc.errors.AimcError: layer 'PulsedLinear', field 'weight': the weight was written directly, ...
        """
        if elsewhere or self.edited():
            raise AimcError(
                "the weight was written directly, but it lives in cells, which know nothing of that: "
                "layer.program(layer.weight) writes it into them, layer.refresh() takes it back; or initialise the "
                "network before aimc.convert. An average of weights (EMA, SWA) is one of aimc.to_digital(net), and so "
                "are parameters made from a vector, see docs/torch.md",
                layer=self.name or type(self).__name__, field="weight",
            )  # fmt: skip

    def step(self, lr: float, maximize: bool = False) -> None:
        """Make pulses of the pending vectors, as optimizers from :func:`aimc.optim.wrap` do.

        Args:
            lr: learning rate in the units of the weight, > 0.
            maximize: climb instead of descend.
        """
        self.refuse_edits()
        self.pulse(lr, maximize)

    def pulse(self, lr: float, maximize: bool = False) -> None:
        """:meth:`step` of a layer whose weight is known to be that of its cells."""
        try:
            vectors = self.pending.take(-1.0 if maximize else 1.0)
            self._stale = True
            self.hardware.algorithm.step(self.array, self.cells.state, vectors, lr)
        except AimcError as error:
            raise error.at(layer=self.name) from None
        finally:
            self.refresh()  # after an interrupt, too: the weight is what the cells have come to

    def rest(self) -> None:
        """Let a step pass without pulses: cells that decay or diffuse go on. Wrapped optimizers call it."""
        if self.hardware.algorithm.rest(self.array, self.cells.state):
            self.refresh()

    def observe(self, loss: float) -> None:
        """Tell the algorithm the training loss of the last epoch; see :func:`aimc.optim.observe`."""
        self.refuse_edits()
        self.hardware.algorithm.observe(self.array, self.cells.state, loss)
        self._agreed = False  # each process may have a loss of its own
        self.refresh()

    def telemetry(self) -> dict[str, Any]:
        """How the cells fare, as plain numbers; see :meth:`aimc.algorithms.Algorithm.telemetry`."""
        return self.hardware.algorithm.telemetry(self.array, self.cells.state)

    # Processes -----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def agree(self) -> bool:
        """Take the cells, scales, seed and counters of the first process; every process has to call it.

        DistributedDataParallel gives parameters and not cells, whose weights it would leave to differ.

        Returns:
            Whether the weight is another one now.

        Raises:
            AimcError: the processes have other hardware or shapes, in every process. Nothing is written then.
        """
        own = self.cells.state
        shapes = {name: (tuple(value.shape), str(value.dtype)) for name, value in own.items()}
        if not processes.alike((self.hardware.to_yaml(), self.shape, shapes)):
            raise AimcError(
                "the processes have different hardware or shapes here, so their cells cannot be the same; convert the "
                "same network with the same hardware in all of them",
                layer=self.name,
            )
        before = [view.clone() for view in self._views]
        self._hold(
            {name: processes.first(value) for name, value in own.items()}, processes.first(self.analog_state)
        )
        numbers = torch.tensor([self.mapping_error, self.clipped], dtype=torch.float64, device="cpu")
        self.mapping_error, self.clipped = processes.first(numbers).tolist()
        self._agreed = True
        return not all(map(torch.equal, before, self._views))

    def _hold(self, state: State, analog_state: Tensor | None) -> None:
        """Take over the cells of a layer like this one, and its seed and counters."""
        own = self.cells.state
        for name in self.hardware.algorithm.COUNTS:
            if name in own and name not in state:
                own[name].zero_()
        for name, value in state.items():
            if name in own:
                own[name].copy_(value)
            else:
                own[name] = value.clone()
        if analog_state is not None:
            seed, *numbers = (int(v) for v in analog_state)
            self.key = dataclasses.replace(self.key, seed=seed % (1 << 64))
            self.reads = Reads(self.hardware, self.layout, self.key, *numbers)
        self._scale = float(own["digital_scale"])
        self.refresh()

    # Forward -------------------------------------------------------------------------------------------------------

    @outside_graphs
    def _product(self, x: Tensor) -> Tensor:
        """``x`` in the shape that the form takes; the output likewise."""
        if transformed():
            raise AimcError(
                "transforms of torch.func (grad, vmap and those made of them) do not reach cells, whose pulses are "
                "made from the inputs and output gradients of backward(); call backward(), or transform "
                "aimc.to_digital(net)",
                layer=self.name,
            )
        if not isinstance(self.weight, CellWeight):
            self.cell_weights()  # says it where there is no parameter at all
            if not (self._is_fsdp_managed_module or processes.sharded(self.weight)):
                raise AimcError(
                    "another tensor was put in place of the weight, as torch.func.functional_call does, but the weight "
                    "is what the cells hold; leave it out of the tensors that are given (digital parameters may be), "
                    "write it with layer.program(weight), or call aimc.to_digital(net) with them",
                    layer=self.name, field="weight",
                )  # fmt: skip
            raise AimcError(
                "its cells are sharded, and would take wrong pulses; leave them whole: fully_shard(net, "
                "ignored_params={p for p in net.parameters() if isinstance(p, aimc.nn.CellWeight)}), with that set for "
                "every module that is sharded, or take DistributedDataParallel",
                layer=self.name, field="weight",
            )  # fmt: skip
        if not x.is_floating_point():
            raise AimcError(f"expects floating-point inputs, got {x.dtype}", layer=self.name, shape=x.shape)
        if self._stale or self._versions() != self._written or self._moved():
            self.refuse_edits()
        try:
            bias = self.bias
            if bias is not None and not isinstance(bias, CellWeight) and self._is_fsdp_managed_module:
                bias = bias.clone()  # compiled bodies never let go of memory that fully_shard wants to free
            exact = self.hardware.forward is None and self.hardware.backward is None
            place = (0, 0) if exact else self.reads.begin(x, self.training)
            return CellProduct.apply(x, self.weight, bias, self, place)  # type: ignore[return-value]
        except AimcError as error:
            raise error.at(layer=self.name, shape=x.shape) from None

    # State ---------------------------------------------------------------------------------------------------------

    def _apply(self, fn, recurse=True):
        if self.pending:
            here = self.weight.detach()
            there = fn(here)
            if there.dtype == here.dtype and there.data_ptr() == here.data_ptr():
                return self  # trainers tidy up with .cpu(), also after an error of somebody else's
            raise AimcError("step or zero_grad before the network is moved or cast", layer=self.name)
        self.refuse_edits()
        super()._apply(fn, recurse)
        for name in ("weight", "bias"):
            held = self._parameters.get(name)  # where there is no bias, there is none to hold
            if held is not None and (name == "weight" or self.pending.with_bias):
                if not isinstance(held, CellWeight):
                    held = self._parameters[name] = CellWeight(held.detach(), held.requires_grad)
                if not held.is_contiguous():  # memory_format=torch.channels_last: cells have one order
                    held.data = held.data.contiguous()
        self._link()
        self.refresh()  # a cast to half precision and back must not leave a trace
        return self

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        self.refuse_edits()
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "analog_state"] = self.analog_state
        destination[prefix + "analog_hardware"] = self.analog_hardware

    @property
    def analog_state(self) -> Tensor:
        """Seed and counters, as a state dict carries them; torch's distributed checkpoints look up every name."""
        seed = self.key.seed - (1 << 64) if self.key.seed >= 1 << 63 else self.key.seed
        return torch.tensor([seed, *self.reads.counters], dtype=torch.int64, device="cpu")

    @property
    def analog_hardware(self) -> Tensor:
        """The description, likewise."""
        return hardware_record(self.hardware)

    @torch.no_grad()
    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, unexpected, errors):
        # Everything is checked before anything is written.
        found = self.misfits(state_dict, prefix)
        if found:
            errors += found
            return
        saved = self._saved_cells(state_dict, prefix)
        weight, bias = state_dict.get(prefix + "weight"), state_dict.get(prefix + "bias")
        exact, changed = self._meaning(state_dict, prefix, saved)
        known = ("weight", "analog_state", "analog_hardware", *(f"cells.{n}" for n in saved))
        rest = {n: v for n, v in state_dict.items() if n.removeprefix(prefix) not in known}
        analog_bias = isinstance(self.bias, CellWeight)
        if analog_bias:
            rest.pop(prefix + "bias", None)
        if exact:
            self._agreed = False
            self.pending.clear()
            self._hold(saved, state_dict.get(prefix + "analog_state"))
        elif weight is not None:
            self.program(weight, bias if analog_bias else None)  # may be refused: first of all
        lost: list[str] = []
        super()._load_from_state_dict(rest, prefix, metadata, strict, lost, unexpected, errors)
        optional = (prefix + "weight", prefix + "bias") if exact or analog_bias else (prefix + "weight",)
        missing += [n for n in lost if n not in optional or (not exact and n not in state_dict)]
        if changed:
            warn(
                f"layer {self.name!r} was saved with other hardware, its own stays: {'; '.join(changed)}"
                + ("" if exact else "; the weights were programmed into this layer's own devices"),
            )

    def misfits(self, state: Mapping[str, Any], prefix: str) -> list[str]:
        """Why a state cannot be loaded here, one line for each entry; empty where it can."""
        saved = self._saved_cells(state, prefix)
        try:
            exact, _ = self._meaning(state, prefix, saved)
        except AimcError as error:
            return [str(error)]
        found = list(misfits(self, state, prefix))
        if exact:
            found += self._odd_cells(saved)
            if prefix + "analog_state" in state:
                why = misfit_counters(state[prefix + "analog_state"], range(1, 4), LARGEST)
                found += [("analog_state", why)] if why is not None else []
        return [f"{prefix}{name}: {why}" for name, why in found]

    def _odd_cells(self, saved: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Saved cells that cannot be this layer's: name, and why."""
        own = self.cells.state
        odd = [n for n, v in self._needed(saved) if getattr(saved.get(n), "shape", None) != v.shape]
        if odd:
            yield "cells", f"{', '.join(odd)} missing or of another shape"
        for name, value in saved.items():
            if name in odd:
                continue
            least, most = self.hardware.algorithm.bounds(name)
            if name == "digital_scale":
                least, most = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
            why = misfit(value, own[name] if name in own else value, least, most)
            odd += [name] if why is not None else []
            if why is not None:
                yield f"cells.{name}", why
        if not odd:  # finite numbers may amount to weights that are not
            read = {n: v.to(own[n].device, own[n].dtype) for n, v in saved.items() if n in own}
            composite = self.hardware.algorithm.weight(self.array, read) * float(read["digital_scale"])
            if not bool(torch.isfinite(composite.to(self.weight.dtype)).all()):
                yield "cells.digital_scale", "brings cells.held to NaN or infinite weights"

    def _needed(self, saved: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
        """The own cells that a saved state has to have: counts were added later."""
        counts = self.hardware.algorithm.COUNTS
        return [(n, v) for n, v in self.cells.state.items() if n in saved or n not in counts]

    @staticmethod
    def _saved_cells(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        start = prefix + "cells."
        return {n.removeprefix(start): v for n, v in state.items() if n.startswith(start)}

    def _meaning(
        self, state: Mapping[str, Any], prefix: str, saved: Mapping[str, Any]
    ) -> tuple[bool, list[str]]:
        """Whether saved cells are taken as they are, not their weights alone; and how the hardware differs."""
        if prefix + "analog_hardware" not in state:
            return bool(saved), []
        theirs = saved_hardware(state, prefix[:-1])
        fits = all(getattr(saved.get(n), "shape", None) == v.shape for n, v in self._needed(saved))
        exact = bool(saved) and isinstance(theirs, PulsedHardware) and self._same_devices(theirs, fits)
        return exact, differences(theirs, self.hardware)

    def _same_devices(self, theirs: PulsedHardware, fits: bool) -> bool:
        """Whether saved cells mean here what they meant where they were saved."""
        mine, array = self.hardware, self.array
        if mine.cell != theirs.cell or type(mine.algorithm) is not type(theirs.algorithm):
            return False
        return mine.algorithm == theirs.algorithm or (
            fits and mine.algorithm.shares(array) == theirs.algorithm.shares(array)
        )

    def __getstate__(self):
        self.refuse_edits()
        return {name: v for name, v in self.__dict__.items() if name not in ("_own", "_views", "_shown")} | {
            "_optimizer": None,
            "_network": None,
            "_agreed": False,
        }

    def __setstate__(self, state):
        super().__setstate__(state)
        self._link()
        self._written = self._versions()

    def extra_repr(self) -> str:
        h = self.hardware
        return (
            f"{super().extra_repr()}, {h.algorithm.tile_count} x {self.layout.tiles} tiles, "
            f"cell={type(h.cell).__name__}, algorithm={type(h.algorithm).__name__}"
        )

    @torch.no_grad()
    def _exported(self, digital: Any) -> Any:
        """A digital twin with copies of what the cells amount to, in this layer's precision, device and mode."""
        refuse_hooks(self, self.name)  # a digital bias
        digital = digital.to(self.weight.device, self.weight.dtype).train(self.training)
        if self._stale:
            self.refresh()
        for name in ("weight", "bias"):
            here, there = getattr(self, name), getattr(digital, name)
            if here is not None:
                there.copy_(here)
                there.requires_grad_(here.requires_grad)
        return digital


class CellProduct(torch.autograd.Function):
    """The product of a layer; its backward pass keeps the vectors instead of multiplying them out."""

    @staticmethod
    def forward(ctx, x, weight, bias, layer: PulsedLayer, place: tuple[int, int]):
        ctx.save_for_backward(x, weight)
        ctx.layer, ctx.number, ctx.by = layer, place[0], (weight,)
        if layer.hardware.forward is None:
            return layer.form.product(x, weight, bias)
        return layer.reads.forward(layer, x, weight, bias, place)

    @staticmethod
    @once
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        layer, (need_x, need_weight, need_bias) = ctx.layer, ctx.needs_input_grad[:3]
        # Without cells there is nothing to pulse.
        if need_weight and 0 not in layer.shape and _wanted(ctx, layer):
            # What has no gradient is data: a caller may fill the same buffer again before the step.
            layer.pending.add(x if need_x else x.clone(), grad)
        need_bias = need_bias and layer.shape[1] == layer.pending.columns
        grad_x, grad_bias = None, None
        if layer.hardware.backward is None:
            grad_x, grad_bias = layer.form.input_gradient(grad, x, weight, need_x, need_bias)
        else:
            if need_x:
                grad_x = layer.reads.backward(layer, grad, x, weight, ctx.number)
            if need_bias:
                grad_bias = layer.form.bias_gradient(grad)
        return grad_x, None, grad_bias, None, None


def _wanted(ctx, layer: PulsedLayer) -> bool:
    """Whether this backward pass is one that leaves gradients in parameters, not a call of ``autograd.grad``."""
    try:
        return torch._C._will_engine_execute_node(ctx.next_functions[1][0])
    except RuntimeError:
        raise AimcError(
            "cells have no dense gradient for autograd.grad; call backward() and read weight.grad",
            layer=layer.name,
        ) from None


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether as many numbers of one type are the same, row by row; NaN is equal to itself."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    a, b = (v.contiguous().view(-1).view(kind) for v in (a, b))
    # Once a step for every layer: a tenth of the time of torch.equal. No array outlives this line, for torch gives a
    # tensor other memory where it goes to another process.
    return same(a.numpy(), b.numpy()) if a.is_cpu else torch.equal(a, b)


@checked
def pulsed_layers(net: nn.Module) -> dict[str, PulsedLayer]:
    """The layers that train in memory by dotted name, each once.

    Example:
        >>> pulsed_layers(nn.Linear(2, 2))
        {}
    """
    return {name: m for name, m in net.named_modules() if isinstance(m, PulsedLayer)}


def warn_of_overflow(layers: Iterable[PulsedLayer]) -> None:
    """One warning for all layers whose devices could not hold the weights they were given."""
    lines = [
        f"{layer.name or type(layer).__name__} ("
        + (f"{_percent(layer.clipped)} of the weights" if layer.clipped > 0 else "rounded to levels")
        + f", relative error {_percent(layer.mapping_error)})"
        for layer in layers
        if layer.hardware.mapping.overflow == "warn"
        and (layer.clipped > 0 or layer.mapping_error > _LEAST_ERROR)
    ]
    if lines:
        warn(
            f"weights beyond what their devices hold: {', '.join(lines)}. mapping.overflow chooses what happens: "
            f"'clip' says nothing, 'grow' raises the digital scale, at most {_MOST_GROWTH:g}-fold, 'error' refuses; "
            "cells whose bounds spread less hold more, and so do algorithms of more tiles",
        )


def _percent(share: float) -> str:
    """With a decimal, or as small as it is."""
    return f"{share:.1%}" if share == 0 or share >= 0.001 else f"{100 * share:.1g}%"


_WATCHED = False


def _watch_optimizers() -> None:
    """Notice an optimizer that steps past the cells, whichever it is."""
    global _WATCHED
    if not _WATCHED:
        from torch.optim.optimizer import register_optimizer_step_pre_hook

        register_optimizer_step_pre_hook(_before_step)
        _WATCHED = True


def _before_step(optimizer: torch.optim.Optimizer, args, kwargs) -> None:
    getattr(optimizer, "claim", lambda: None)()
    held: set[int] = set()
    for layer in list(_LAYERS):
        if not layer.pending:
            continue
        owner = layer._optimizer() if layer._optimizer is not None else None
        if owner is optimizer:
            continue
        held = held or {id(p) for group in optimizer.param_groups for p in group["params"]}
        # A layer that is nobody's belongs with the rest of its network; what steps another network does not concern it.
        network = layer._network() if layer._network is not None and owner is None else None
        if id(layer.weight) in held or (
            owner is None and any(id(p) in held for p in (network or layer).parameters())
        ):
            way_out = (
                "step an optimizer made by aimc.optim.wrap(optimizer, net)"
                if owner is None
                else "step the optimizer that aimc.optim.wrap made last for this network"
            )
            raise AimcError(
                f"{type(optimizer).__name__} steps while cells wait for pulses, which it cannot give; {way_out}. "
                "Nothing was written",
                layer=layer.name,
            )
