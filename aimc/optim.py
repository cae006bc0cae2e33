"""Optimizers of networks that train in memory: digital parameters by torch, cells by pulses."""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from torch import nn

from aimc import processes
from aimc.arguments import checked
from aimc.errors import AimcError, warn
from aimc.nn.pulsed import CellWeight, PulsedLayer, pulsed_layers

__all__ = ["PulsedOptimizer", "observe", "wrap"]

# Settings of a parameter group that do not make the step another one than lr times the gradient.
_HARMLESS = {
    "params", "param_names", "lr", "initial_lr", "maximize", "foreach", "fused", "differentiable", "capturable", "eps",
    "decoupled_weight_decay", "max_lr", "min_lr", "max_momentum", "base_momentum",
}  # fmt: skip
_MOST_LR = torch.finfo(torch.float32).max


class PulsedOptimizer(torch.optim.Optimizer):
    """Steps a torch optimizer on the digital parameters, and gives every pulsed layer its pulses. Made by :func:`wrap`.

    It stands wherever torch's optimizer stood: its parameter groups are the inner one's, so schedulers reach both, and
    the learning rate of a group is that of the cells in it. A learning rate of 0 drops the pending pulses. A step is
    a unit of time for cells that decay or diffuse, whether it brings pulses or not. Where there are several processes,
    cells that were written in any of them since the last step are first made those of process 0 in all of them.

    Attributes:
        inner: torch's optimizer.
        net: the network.
    """

    def __init__(self, inner: torch.optim.Optimizer, net: nn.Module):
        self.inner, self.net = inner, net
        self._set_up()
        self.claim()

    def _set_up(self) -> None:
        # Optimizer.__init__ would copy the groups; what it sets up besides is done by __setstate__.
        super().__setstate__({})
        for hooks in [name for name in vars(self.inner) if name.endswith("hooks") and "state_dict" in name]:
            setattr(self, hooks, getattr(self.inner, hooks))  # run by the inner one
        self._warn_of_settings(self.param_groups)
        self._claimed: list[PulsedLayer] | None = None
        # The first learning rate of each layer, or None once a change of it was spoken of.
        self._rates: dict[PulsedLayer, float | None] = {}

    def claim(self) -> list[PulsedLayer]:
        """The layers of the network, whose cells become this optimizer's, if they are not yet. A copy waits for its
        first step: a network that holds its own optimizer is not whole before that."""
        if self._claimed is None:
            self._claimed = list(pulsed_layers(self.net).values())
            for layer in self._claimed:
                layer._optimizer = weakref.ref(self)
        return self._claimed

    # Shared with the inner optimizer, also after it has loaded a state.

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        return self.inner.param_groups

    @property
    def state(self):  # type: ignore[override]
        return self.inner.state

    @property
    def defaults(self) -> dict[str, Any]:  # type: ignore[override]
        return self.inner.defaults

    def __getstate__(self):
        return {"inner": self.inner, "net": self.net}

    def __setstate__(self, state) -> None:
        self.__dict__.update(state)
        self._set_up()

    def state_dict(self) -> dict[str, Any]:
        """The inner optimizer's; the cells are in the network's state."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.inner.load_state_dict(state_dict)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        given = param_group["params"]
        known = {id(layer.weight) for layer in self.claim()}
        for p in [given] if isinstance(given, torch.Tensor) else list(given):
            p = p[1] if isinstance(p, tuple) else p  # named parameters
            if isinstance(p, CellWeight) and not p.bias and id(p) not in known:
                raise AimcError(
                    f"cells of layer {p.pending.name if p.pending is not None else '?'!r} came to the network after "
                    "aimc.optim.wrap; wrap again, an optimizer of all parameters",
                    field="params",
                )
        self.inner.add_param_group(param_group)
        self._warn_of_settings(self.param_groups[-1:])

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradients; pulses that wait are cancelled in either case."""
        for group in self.param_groups:
            for p in group["params"]:
                if isinstance(p, CellWeight):
                    p.grad = None
        self.inner.zero_grad(set_to_none)

    def step(self, closure=None):
        """One step of all parameters.

        Raises:
            AimcError: a pending input or gradient is not finite or was changed, or a weight was written directly;
                nothing has been written then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.agree()
        work, idle, missed = [], [], []
        for layer, group in self._placed():
            lr = group["lr"]
            if lr is None:
                raise AimcError("is None", layer=layer.name, field="lr")
            lr = float(lr)
            if not (lr >= 0 and math.isfinite(lr)):
                raise AimcError(f"must not be negative, got {lr}", layer=layer.name, field="lr")
            if not max(lr, lr / layer.scale) <= _MOST_LR:
                raise AimcError(
                    f"{lr:g}, or {lr / layer.scale:.2g} in units of the cells, is beyond float32",
                    layer=layer.name,
                    field="lr",
                )
            if layer.hardware.algorithm.fixed_rates() and self._rates.setdefault(layer, lr) not in (lr, None):
                self._rates[layer] = None
                missed.append(layer)
            layer.pending.join()
            layer.pending.settle()
            if lr == 0:
                layer.pending.clear()
            if layer.pending:
                layer.pending.check()
                work.append((layer, lr, bool(group.get("maximize"))))
            else:
                idle.append(layer)
        if missed:
            self._warn_of_fixed_rates(missed)
        self._step_digital()
        for layer, lr, maximize in work:
            layer.pulse(lr, maximize)
        for layer in idle:
            layer.rest()
        return loss

    def agree(self) -> None:
        """Give cells of process 0 to all processes, where any may differ. Every process has to call it.

        Raises:
            AimcError: a weight was written directly, in every process.
        """
        if processes.count() == 1:
            for layer in self.claim():
                layer.refuse_edits()
            return
        # What is written in another process than the first goes with its cells, where these are given up anyway.
        found = [
            (float(not m._agreed), float((m._agreed or processes.rank() == 0) and m.edited()))
            for m in self.claim()
        ]
        doubts, edits = processes.largest(torch.tensor(found, device="cpu")).unbind(1)
        for layer, edited in zip(self.claim(), edits.tolist()):
            if edited:
                layer.refuse_edits(elsewhere=True)
        doubtful = [layer for layer, doubt in zip(self.claim(), doubts.tolist()) if doubt]
        stale = [layer.name for layer in doubtful if layer.agree() and layer.pending]
        if stale:
            warn(
                f"the cells of layers {', '.join(stale)} were not those of process 0, and are now; the gradients of "
                "this step are those of the old ones. Write or load weights in all processes alike",
            )

    def _placed(self) -> list[tuple[PulsedLayer, dict[str, Any]]]:
        """The pulsed layers in the order of the network, with the group that holds them."""
        group_of = {id(p): g for g in self.param_groups for p in g["params"] if isinstance(p, CellWeight)}
        placed = []
        for layer in self.claim():
            group = group_of.get(id(layer.weight))
            if isinstance(layer.bias, CellWeight):
                _refuse_bias_apart(layer, group, group_of.get(id(layer.bias)))
            if group is not None:
                placed.append((layer, group))
        return placed

    def _step_digital(self) -> None:
        """The inner step, with the cells taken out of its groups meanwhile."""
        held = [group["params"] for group in self.param_groups]
        try:
            for group, params in zip(self.param_groups, held):
                group["params"] = [p for p in params if not isinstance(p, CellWeight)]
            self.inner.step()
        finally:
            for group, params in zip(self.param_groups, held):
                group["params"] = params

    def _warn_of_fixed_rates(self, layers: list[PulsedLayer]) -> None:
        """Say once that a schedule misses some of the rates of these layers."""
        algorithms = {type(m.hardware.algorithm).__name__: m.hardware.algorithm.fixed_rates() for m in layers}
        for name, fixed in algorithms.items():
            of = [m.name for m in layers if type(m.hardware.algorithm).__name__ == name]
            automatic = any(
                getattr(m.hardware.algorithm, "auto_scale", False) for m in layers if m.name in of
            )
            ways = [
                "auto_scale=False with scale_fast_lr=True"
                if rate == "fast_lr" and automatic
                else f"scale_{rate}=True"
                for rate in fixed
            ]
            warn(
                f"the learning rate has changed, but {' and '.join(fixed)} of {name} (layers {', '.join(of)}) stay on "
                f"their own; {', '.join(ways)} ties them to it",
            )

    def _warn_of_settings(self, groups: list[dict[str, Any]]) -> None:
        found = {
            name
            for group in groups
            if any(isinstance(p, CellWeight) for p in group["params"])
            for name, value in group.items()
            if name not in _HARMLESS and value
        }
        if not found and not isinstance(self.inner, torch.optim.SGD):
            found = {"steps"}  # Adagrad's, for one, whose settings are all 0
        if found:
            warn(
                f"{', '.join(sorted(found))} of {type(self.inner).__name__} act on the digital parameters only; cells "
                "take pulses of lr times the gradient",
            )


def _refuse_bias_apart(
    layer: PulsedLayer, weights: dict[str, Any] | None, biases: dict[str, Any] | None
) -> None:
    """An error where an analog bias is not to be trained as its weight is: it is a column of the same array."""
    why, bias = None, layer.bias
    assert bias is not None
    if layer.weight.requires_grad != bias.requires_grad:
        why = "one of them is frozen (requires_grad=False)"
    elif layer.weight.requires_grad and (weights is None) != (biases is None):
        why = "one of them is in the optimizer"
    elif weights is not None and biases is not None:
        odd = [n for n in ("lr", "maximize") if weights.get(n) != biases.get(n)]
        why = f"their groups differ in {odd[0]}" if odd else None
    if why is not None:
        raise AimcError(
            f"the weight and its analog bias are columns of one array, which one pulse trains, but {why}; treat both "
            "alike, or take mapping.analog_bias=False for a digital bias",
            layer=layer.name,
            field="bias",
        )


@checked
def wrap(optimizer: torch.optim.Optimizer, net: nn.Module) -> PulsedOptimizer:
    """Let a torch optimizer train the digital parameters of a network, and pulses its cells.

    Args:
        optimizer: holds all parameters of the pulsed layers, for instance
            ``torch.optim.SGD(net.parameters(), lr=0.1)``. Its learning rate is that of the cells, too; momentum and
            weight decay act on digital parameters only. A step takes the gradient of the cells with it: a second one
            without a new backward pass moves digital parameters alone, also where ``zero_grad`` was left out.
        net: network from :func:`aimc.convert` with a :class:`aimc.PulsedHardware`.

    Returns:
        An optimizer to use in place of the given one, with schedulers and gradient scalers as well. Where there are
        several processes, all have to call this, and have the cells of process 0 from then on.

    Raises:
        AimcError: the network has no pulsed layers, one is missing in the optimizer, the optimizer is wrapped already,
            or it evaluates its loss several times a step.

    Example:
        >>> import aimc
        >>> net = aimc.convert(nn.Linear(2, 1), aimc.presets.reram(), seed=0)
        >>> optimizer = wrap(torch.optim.SGD(net.parameters(), lr=0.1), net)
        >>> net(torch.ones(8, 2)).sum().backward()
        >>> before = net.weight.clone()
        >>> optimizer.step()
        >>> bool((net.weight < before).all())
        True
    """
    if isinstance(optimizer, PulsedOptimizer):
        raise AimcError("is wrapped already; wrap torch's optimizer once", field="optimizer")
    if isinstance(optimizer, torch.optim.LBFGS):
        raise AimcError(
            "LBFGS evaluates the loss several times a step, cells are pulsed once; use SGD", field="optimizer"
        )
    layers = pulsed_layers(net)
    if not layers:
        raise AimcError(
            "the network has no layer that trains in memory; convert it with a PulsedHardware (aimc.presets.reram()), "
            "or use the torch optimizer as it is",
            field="net",
        )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, layer in layers.items():
        layer.cell_weights()  # edits are refused in all processes together, below
        if layer.weight.requires_grad and id(layer.weight) not in held:
            raise AimcError(
                "its weight is not in the optimizer; make one of the converted network's parameters() and wrap it",
                layer=name,
                field="optimizer",
            )
        owner = layer._optimizer() if layer._optimizer is not None else None
        if isinstance(owner, PulsedOptimizer) and owner.inner is optimizer:
            raise AimcError("was wrapped before; use the optimizer that came out", field="optimizer")
    wrapped = PulsedOptimizer(optimizer, net)
    wrapped.agree()
    return wrapped


@checked
def observe(net: nn.Module, loss: float) -> None:
    """Tell the algorithms of a network the training loss of an epoch; those with a warm start follow it.

    Args:
        net: a network with pulsed layers.
        loss: mean training loss, finite.

    Example:
        >>> import aimc
        >>> observe(aimc.convert(nn.Linear(2, 1), aimc.presets.reram()), 0.5)
    """
    layers = pulsed_layers(net)
    if not layers:
        raise AimcError("the network has no layer that trains in memory", field="net")
    if not math.isfinite(loss):
        raise AimcError(f"must be finite, got {loss}", field="loss")
    for layer in layers.values():
        layer.observe(float(loss))
