"""What a batch costs: the loss of a training step, for each kind of task."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aimc.data import Inputs
from aimc.hwa import distillation_loss
from aimc.train.config import Stage


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a batch came to.

    Attributes:
        loss: mean over the targets, to be differentiated.
        count: targets.
        right: of them answered correctly, or None where nobody counts.
    """

    loss: Tensor
    count: int
    right: int | None = None


class Objective(abc.ABC):
    """The loss of a training step. What it carries from batch to batch is a part of a stage's checkpoint."""

    @abc.abstractmethod
    def __call__(
        self, net: nn.Module, teacher: nn.Module | None, inputs: Inputs, targets: Tensor, stage: Stage
    ) -> Outcome:
        """Run the network, and the teacher where there is one, on a batch."""

    @abc.abstractmethod
    def carried(self) -> dict[str, Tensor]:
        """What later batches of an epoch depend on."""

    @abc.abstractmethod
    def carry_on(self, tensors: dict[str, Tensor]) -> None:
        """Take up what :meth:`carried` returned; with nothing, a new epoch begins."""


class Classification(Objective):
    """Cross entropy of ``net(*inputs)``, and with a teacher :func:`aimc.hwa.distillation_loss`."""

    def __call__(
        self, net: nn.Module, teacher: nn.Module | None, inputs: Inputs, targets: Tensor, stage: Stage
    ) -> Outcome:
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        logits = net(*inputs)
        hints = None
        if teacher is not None:
            with torch.no_grad():
                hints = teacher(*inputs)
        right = int((logits.detach().argmax(-1) == targets).sum())
        return Outcome(_cost(logits, hints, targets, stage), len(targets), right)

    def carried(self) -> dict[str, Tensor]:
        return {}  # batches are independent

    def carry_on(self, tensors: dict[str, Tensor]) -> None:
        pass


class LanguageModelling(Objective):
    """Cross entropy of the next token, over windows of a text between which the state is carried, but no gradient.

    Networks are called as :class:`aimc.Perplexity` calls them. Where scores come in parts, so does the distillation.
    """

    def __init__(self) -> None:
        self._states: dict[str, Any] = {}

    def __call__(
        self, net: nn.Module, teacher: nn.Module | None, inputs: Inputs, targets: Tensor, stage: Stage
    ) -> Outcome:
        scores = self._scores("net", net, inputs, targets)
        hints = None
        if teacher is not None:
            with torch.no_grad():
                hints = self._scores("teacher", teacher, inputs, targets)
        count = targets.numel()
        loss = sum(
            len(part) / count * _cost(logits, hints[k][0] if hints is not None else None, part, stage)
            for k, (logits, part) in enumerate(scores)
        )
        assert isinstance(loss, Tensor)
        return Outcome(loss, count)

    def _scores(
        self, name: str, net: nn.Module, inputs: Inputs, targets: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        scores, state = net(inputs, self._states.get(name), targets)
        self._states[name] = _detached(state)
        if isinstance(scores, Tensor):
            return [(scores.flatten(0, 1), targets.flatten())]
        return scores

    def carried(self) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, state in self._states.items():
            _flatten(state, name, found)
        return found

    def carry_on(self, tensors: dict[str, Tensor]) -> None:
        tree: dict[str, Any] = {}
        for path, tensor in tensors.items():
            *branches, leaf = path.split(".")
            node = tree
            for branch in branches:
                node = node.setdefault(branch, {})
            node[leaf] = tensor
        self._states = {name: _tuples(state) for name, state in tree.items()}


def _cost(logits: Tensor, hints: Tensor | None, targets: Tensor, stage: Stage) -> Tensor:
    if hints is None:
        return F.cross_entropy(logits, targets)
    return distillation_loss(logits, hints, targets, stage.temperature, stage.distillation)


def _detached(state: Any) -> Any:
    return state.detach() if isinstance(state, Tensor) else tuple(_detached(s) for s in state)


def _flatten(state: Any, path: str, found: dict[str, Tensor]) -> None:
    if isinstance(state, Tensor):
        found[path] = state
    else:
        for place, inner in enumerate(state):
            _flatten(inner, f"{path}.{place}", found)


def _tuples(tree: Any) -> Any:
    """The inverse of :func:`_flatten`."""
    if isinstance(tree, Tensor):
        return tree
    return tuple(_tuples(tree[place]) for place in sorted(tree, key=int))
