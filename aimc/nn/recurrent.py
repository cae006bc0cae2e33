"""Recurrent layers: input and recurrent matrices on tiles of their own, gates and states digital.

The input matrix reads all steps in one product, the recurrent one reads step by step. Both are disturbed once per
forward pass, as the devices of a chip do not change from token to token; every read has read noise of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from aimc.arguments import expect_tensor
from aimc.errors import AimcError
from aimc.nn.composite import AnyHardware, Composite, Piece, held
from aimc.nn.once import once
from aimc.nn.opaque import outside_graphs
from aimc.random import Key

State = tuple[Tensor, ...]
"""``(h,)``, or ``(h, c)`` of an LSTM, each ``[batch, size]``."""
Gates = Callable[[Tensor, Tensor, State], State]
"""A new state from the input's and the hidden state's share of the gates ``[batch, gates * hidden]``, and the old."""


def _lstm(x: Tensor, h: Tensor, state: State) -> State:
    """Hochreiter and Schmidhuber, Neural Computation 9 (1997), with forget gates; i, f, g, o as torch has them."""
    return _LSTMGates.apply(x + h, state[1])  # type: ignore[return-value]


def _gru(x: Tensor, h: Tensor, state: State) -> State:
    """Cho et al., arXiv:1406.1078, with the reset gate after the product; r, z, n as torch has them."""
    (xr, xz, xn), (hr, hz, hn) = x.chunk(3, 1), h.chunk(3, 1)
    new, keep, old = torch.tanh(xn + torch.sigmoid(xr + hr) * hn), torch.sigmoid(xz + hz), state[0]
    wide = torch.promote_types(new.dtype, old.dtype)  # under autocast the state may have another type
    return (torch.lerp(new.to(wide), old.to(wide), keep.to(wide)),)


def _tanh(x: Tensor, h: Tensor, state: State) -> State:
    return (torch.tanh(x + h),)


def _relu(x: Tensor, h: Tensor, state: State) -> State:
    return (torch.relu(x + h),)


_GATES: dict[str, Gates] = {"LSTM": _lstm, "GRU": _gru, "RNN_TANH": _tanh, "RNN_RELU": _relu}


class _LSTMGates(torch.autograd.Function):
    """``c' = f c + i g`` and ``h' = o tanh(c')``, in a third of the passes over memory that autograd would take."""

    @staticmethod
    def forward(ctx, gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        size = c.shape[1]
        act = torch.sigmoid(gates)
        torch.tanh(gates[:, 2 * size : 3 * size], out=act[:, 2 * size : 3 * size])
        i, f, g, o = act.chunk(4, 1)
        new = torch.addcmul(f * c, i, g)
        squashed = torch.tanh(new)
        ctx.save_for_backward(act, c, squashed)
        ctx.by = (c if c.requires_grad else gates,)
        return o * squashed, new

    @staticmethod
    @once
    def backward(ctx, grad_h: Tensor, grad_c: Tensor) -> tuple[Tensor, Tensor]:
        act, c, squashed = ctx.saved_tensors
        size = c.shape[1]
        i, f, g, o = act.chunk(4, 1)
        d = torch.addcmul(grad_c, grad_h * o, 1 - squashed * squashed)
        grad = act * (1 - act)
        grad[:, 2 * size : 3 * size] = 1 - g * g
        for k, factor in enumerate((d * g, d * c, d * i, grad_h * squashed)):
            grad[:, k * size : (k + 1) * size] *= factor
        return grad, d * f


def _given_states(hx: Any, shapes: list[tuple[int, ...]], layer: Composite) -> State:
    """The hidden states that a caller hands over.

    Args:
        hx: one tensor, or the tuple ``(h, c)`` of an LSTM.
        shapes: of each state.
        layer: the one that takes them.

    Raises:
        AimcError: another number of states, or one of another shape or type.
    """
    pair, wanted = len(shapes) == 2, " and ".join(str(list(shape)) for shape in shapes)
    several = isinstance(hx, (tuple, list))
    if several != pair or (several and len(hx) != len(shapes)):
        expected = f"a tuple (h, c) of hidden states {wanted}" if pair else f"one hidden state {wanted}"
        got = f"a {type(hx).__name__} of {len(hx)}" if several else f"a {type(hx).__name__}"
        raise AimcError(f"expects {expected}, got {got}", layer=layer.analog_name, field="hx")
    states = tuple(hx) if several else (hx,)
    for state, shape in zip(states, shapes, strict=True):
        expect_tensor(state, layer.analog_name, "hx")
        if state.shape != shape:
            raise AimcError(
                f"expects a hidden state {list(shape)}",
                layer=layer.analog_name,
                field="hx",
                shape=state.shape,
            )
        _refuse_double(state, layer, "hx")
    return states


def _refuse_double(x: Tensor, layer: Composite, field: str) -> None:
    """Raise where double precision meets another type, as torch does; half precision may be autocast's."""
    weight = layer.analog_like()["dtype"]
    if not x.is_floating_point() or (x.dtype == torch.float64) != (weight == torch.float64):
        raise AimcError(
            f"expects {weight}, as its weights are, got {x.dtype}; cast one of them",
            layer=layer.analog_name,
            field=field,
        )


class _Recurrent(Composite):
    """What LSTM, GRU and RNN share."""

    mode: str
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int
    _all_weights: list[list[str]]

    def __init__(
        self, digital: nn.RNNBase, hardware: AnyHardware, key: Key, name: str = "", backend: str = "auto"
    ):
        nn.Module.__init__(self)
        for field in (
            "mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional",
            "proj_size", "_all_weights",
        ):  # fmt: skip
            setattr(self, field, getattr(digital, field))
        if self.mode.startswith("RNN"):
            self.nonlinearity = self.mode[4:].lower()
        self._init_flat_weights()
        pieces = {}
        for suffix in self._suffixes():
            for kind in ("ih", "hh"):
                bias = f"bias_{kind}_{suffix}" if self.bias else None
                pieces[f"{kind}_{suffix}"] = Piece(f"weight_{kind}_{suffix}", bias)
            if self.proj_size > 0:
                pieces[f"hr_{suffix}"] = Piece(f"weight_hr_{suffix}")
        self._analog_set_up(digital, pieces, hardware, key, name, backend)

    def _suffixes(self) -> list[str]:
        """``l0``, ``l0_reverse``, ..., in the order of the hidden states."""
        directions = ("", "_reverse") if self.bidirectional else ("",)
        return [f"l{layer}{direction}" for layer in range(self.num_layers) for direction in directions]

    # torch keeps flat lists of the weights for its own kernels, which would bypass the tiles.

    def _init_flat_weights(self) -> None:
        self._flat_weights, self._flat_weights_names, self._flat_weight_refs = [], [], []

    def flatten_parameters(self) -> None:
        """Nothing: the weights are on tiles."""

    def reset_parameters(self) -> None:
        """As torch does; the tiles' ranges and gains stay. Weights in cells are written with ``program``."""
        for value in self._parameters.values():
            if value is not None:
                nn.init.uniform_(value, -(self.hidden_size**-0.5), self.hidden_size**-0.5)

    # Forward -------------------------------------------------------------------------------------------------------

    @outside_graphs
    def forward(self, input: Tensor | PackedSequence, hx: Any = None):
        """Arguments and results as for the torch layer."""
        packed = isinstance(input, PackedSequence)
        if packed:
            x, sizes = input.data, input.batch_sizes.tolist()
            order, back = input.sorted_indices, input.unsorted_indices
            single = False
        else:
            expect_tensor(input, self.analog_name)
            if input.dim() not in (2, 3):
                raise AimcError("expects 2 or 3 dimensions", layer=self.analog_name, shape=input.shape)
            single, order, back = input.dim() == 2, None, None
            x = input[:, None] if single else input.transpose(0, 1) if self.batch_first else input
            sizes = [x.shape[1]] * x.shape[0]
            x = x.reshape(-1, x.shape[2])
        if x.shape[-1] != self.input_size:
            raise AimcError(f"expects {self.input_size} features", layer=self.analog_name, shape=x.shape)
        if not sizes:
            raise AimcError("the sequence has no steps", layer=self.analog_name, shape=x.shape)
        _refuse_double(x, self, "input")
        states = self._first_states(hx, x, sizes[0], single, order)
        directions, last = 2 if self.bidirectional else 1, []
        for layer in range(self.num_layers):
            if layer > 0 and self.dropout > 0:
                x = F.dropout(x, self.dropout, self.training)
            outputs = []
            for direction, suffix in enumerate(self._suffixes()[layer * directions :][:directions]):
                first = tuple(s[layer * directions + direction] for s in states)
                y, end = self._run(x, sizes, first, suffix, direction == 1)
                outputs.append(y)
                last.append(end)
            x = outputs[0] if directions == 1 else torch.cat(outputs, 1)
        final = tuple(torch.stack(s) for s in zip(*last, strict=True))
        if back is not None:
            final = tuple(s.index_select(1, back) for s in final)
        final = tuple(s[:, 0] for s in final) if single else final
        hidden = final if self.mode == "LSTM" else final[0]
        if packed:
            return PackedSequence(x, input.batch_sizes, order, back), hidden
        x = x.view(len(sizes), sizes[0], x.shape[-1])
        x = x[:, 0] if single else x.transpose(0, 1) if self.batch_first else x
        return x, hidden

    def _first_states(self, hx: Any, x: Tensor, batch: int, single: bool, order: Tensor | None) -> State:
        """The given states, or zeros, each ``[layers * directions, batch, size]``."""
        lstm = self.mode == "LSTM"
        sizes = (self.proj_size or self.hidden_size, self.hidden_size)[: 1 + lstm]
        count = self.num_layers * (2 if self.bidirectional else 1)
        if hx is None:
            return tuple(x.new_zeros(count, batch, size) for size in sizes)
        given = _given_states(hx, [(count, size) if single else (count, batch, size) for size in sizes], self)
        given = tuple(s[:, None] for s in given) if single else given
        return given if order is None else tuple(s.index_select(1, order) for s in given)

    def _run(
        self, x: Tensor, sizes: list[int], first: State, suffix: str, reverse: bool
    ) -> tuple[Tensor, State]:
        """One layer in one direction.

        Args:
            x: inputs of all steps, ``[sum(sizes), features]``.
            sizes: sequences that are not over, at each step.
            first: the state before.

        Returns:
            outputs in the order of the inputs, and the state after each sequence's last step.
        """
        matrices: Any = self._modules
        ih, hh, hr = (matrices.get(f"{kind}_{suffix}") for kind in ("ih", "hh", "hr"))
        gates, steps = ih(x).split(sizes), range(len(sizes))
        # Of torch's own on a CPU, oneDNN's LSTM alone brings the states to the type of the gates under autocast.
        whole = self.mode == "LSTM" and self.proj_size == 0
        first = first if not whole and x.is_cpu else tuple(s.to(gates[0].dtype) for s in first)
        state, outputs, over = tuple(s[: sizes[-1] if reverse else sizes[0]] for s in first), [], []
        with held(hh, len(sizes)), held(hr, len(sizes)):
            for t in reversed(steps) if reverse else steps:
                now = len(state[0])
                if sizes[t] < now:  # the shortest are over
                    over.append(tuple(s[sizes[t] :] for s in state))
                    state = tuple(s[: sizes[t]] for s in state)
                elif sizes[t] > now:  # backwards, shorter ones begin later
                    state = tuple(torch.cat([s, f[now : sizes[t]]]) for s, f in zip(state, first))
                state = _GATES[self.mode](gates[t], hh(state[0]), state)
                if hr is not None:
                    state = (hr(state[0]), state[1])
                outputs.append(state[0])
        if over:
            state = tuple(torch.cat(parts) for parts in zip(state, *reversed(over), strict=True))
        return torch.cat(outputs[::-1] if reverse else outputs), state


class AnalogLSTM(_Recurrent, nn.LSTM):
    """``nn.LSTM`` with input, recurrent and projection matrices on tiles; arguments as for :class:`AnalogLinear`.

    The tiles are children: ``ih_l0``, ``hh_l0``, ``hr_l0``, ``ih_l0_reverse`` and so on.

    Example:
        >>> from aimc import presets
        >>> y, (h, c) = AnalogLSTM(nn.LSTM(3, 5), presets.ideal(), Key(0))(torch.ones(7, 2, 3))
        >>> y.shape, h.shape
        (torch.Size([7, 2, 5]), torch.Size([1, 2, 5]))
    """

    def _analog_blank(self) -> nn.LSTM:
        return nn.LSTM(*_sizes(self), proj_size=self.proj_size, **self.analog_like())


class AnalogGRU(_Recurrent, nn.GRU):
    """``nn.GRU`` on tiles, see :class:`AnalogLSTM`.

    Example:
        >>> from aimc import presets
        >>> AnalogGRU(nn.GRU(3, 5), presets.ideal(), Key(0))(torch.ones(7, 2, 3))[0].shape
        torch.Size([7, 2, 5])
    """

    def _analog_blank(self) -> nn.GRU:
        return nn.GRU(*_sizes(self), **self.analog_like())


class AnalogRNN(_Recurrent, nn.RNN):
    """``nn.RNN`` on tiles, see :class:`AnalogLSTM`.

    Example:
        >>> from aimc import presets
        >>> AnalogRNN(nn.RNN(3, 5, nonlinearity="relu"), presets.ideal(), Key(0))(torch.ones(7, 2, 3))[0].shape
        torch.Size([7, 2, 5])
    """

    nonlinearity: str

    def _analog_blank(self) -> nn.RNN:
        size, hidden, layers, *rest = _sizes(self)
        return nn.RNN(size, hidden, layers, self.nonlinearity, *rest, **self.analog_like())


def _sizes(layer: _Recurrent) -> tuple:
    return (
        layer.input_size, layer.hidden_size, layer.num_layers, layer.bias, layer.batch_first, layer.dropout,
        layer.bidirectional,
    )  # fmt: skip


class _Cell(Composite):
    """What the three cells share; every call is a forward pass of its own, with weights disturbed anew."""

    input_size: int
    hidden_size: int
    bias: bool
    mode: str

    def __init__(
        self, digital: nn.RNNCellBase, hardware: AnyHardware, key: Key, name: str = "", backend: str = "auto"
    ):
        nn.Module.__init__(self)
        self.input_size, self.hidden_size, self.bias = digital.input_size, digital.hidden_size, digital.bias
        if isinstance(digital, nn.RNNCell):
            self.nonlinearity = digital.nonlinearity
            self.mode = f"RNN_{digital.nonlinearity.upper()}"
        pieces = {
            kind: Piece(f"weight_{kind}", f"bias_{kind}" if self.bias else None) for kind in ("ih", "hh")
        }
        self._analog_set_up(digital, pieces, hardware, key, name, backend)

    reset_parameters = _Recurrent.reset_parameters

    @outside_graphs
    def forward(self, input: Tensor, hx: Any = None):
        """Arguments and results as for the torch cell."""
        expect_tensor(input, self.analog_name)
        if input.dim() not in (1, 2):
            raise AimcError("expects 1 or 2 dimensions", layer=self.analog_name, shape=input.shape)
        single, lstm = input.dim() == 1, self.mode == "LSTM"
        x = input[None] if single else input
        _refuse_double(x, self, "input")
        if hx is None:
            state = (x.new_zeros(len(x), self.hidden_size),) * (1 + lstm)
        else:
            shape = (self.hidden_size,) if single else (len(x), self.hidden_size)
            state = tuple(s[None] if single else s for s in _given_states(hx, [shape] * (1 + lstm), self))
        matrices: Any = self._modules
        gates = matrices["ih"](x)
        state = state if x.is_cpu else tuple(s.to(gates.dtype) for s in state)  # under autocast, as torch's
        state = _GATES[self.mode](gates, matrices["hh"](state[0]), state)
        state = tuple(s[0] for s in state) if single else state
        return state if lstm else state[0]


class AnalogLSTMCell(_Cell, nn.LSTMCell):
    """``nn.LSTMCell`` on tiles ``ih`` and ``hh``; arguments as for :class:`AnalogLinear`."""

    mode = "LSTM"

    def _analog_blank(self) -> nn.LSTMCell:
        return nn.LSTMCell(self.input_size, self.hidden_size, self.bias, **self.analog_like())


class AnalogGRUCell(_Cell, nn.GRUCell):
    """``nn.GRUCell`` on tiles ``ih`` and ``hh``; arguments as for :class:`AnalogLinear`."""

    mode = "GRU"

    def _analog_blank(self) -> nn.GRUCell:
        return nn.GRUCell(self.input_size, self.hidden_size, self.bias, **self.analog_like())


class AnalogRNNCell(_Cell, nn.RNNCell):
    """``nn.RNNCell`` on tiles ``ih`` and ``hh``; arguments as for :class:`AnalogLinear`."""

    nonlinearity: str

    def _analog_blank(self) -> nn.RNNCell:
        return nn.RNNCell(
            self.input_size, self.hidden_size, self.bias, self.nonlinearity, **self.analog_like()
        )
