"""Language model of recurrent layers, with a full or an adaptive softmax."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

State = tuple[Tensor, Tensor]
Scores = list[tuple[Tensor, Tensor]]
"""Pairs of logits ``[n, k]`` and targets ``[n]``; their cross entropies, summed, are the text's."""


class AdaptiveSoftmax(nn.Module):
    """Softmax over a vocabulary that is sorted by frequency, in two steps: a common word or a cluster, then the word.

    Nearly all words are common, so that most of the matrix is needed for few of them. Grave et al., "Efficient softmax
    approximation for GPUs", arXiv:1609.04309; the tails are two matrices, of ``width / division^i`` between them.

    Args:
        width: of the input.
        vocabulary: number of words.
        cutoffs: words below the first are common; the other clusters begin at the cutoffs.
        division: how much narrower each cluster is than the one before.

    Example:
        >>> head = AdaptiveSoftmax(8, 100, (10, 40))
        >>> head(torch.randn(3, 8)).exp().sum(1).allclose(torch.ones(3), atol=1e-5)
        True
    """

    def __init__(self, width: int, vocabulary: int, cutoffs: Sequence[int], division: float = 2.0):
        super().__init__()
        bounds = (0, *cutoffs, vocabulary)
        if len(bounds) < 3 or any(a >= b for a, b in zip(bounds, bounds[1:])):
            raise ValueError(f"cutoffs must rise between 0 and {vocabulary}, got {tuple(cutoffs)}")
        self.cutoffs = tuple(cutoffs)
        self.common = nn.Linear(width, cutoffs[0] + len(cutoffs))
        self.tails = nn.ModuleList()
        for number, (a, b) in enumerate(zip(cutoffs, bounds[2:]), 1):
            narrow = max(1, round(width / division**number))
            self.tails.append(nn.Sequential(nn.Linear(width, narrow, bias=False), nn.Linear(narrow, b - a)))

    @torch.no_grad()
    def start_from(self, counts: Tensor) -> None:
        """Begin with the words' frequencies: biases at their logarithms. ``counts`` is ``[vocabulary]``, positive."""
        common, *rest = counts.tensor_split(self.cutoffs)
        _start(self.common, torch.cat([common, torch.stack([c.sum() for c in rest])]))
        for tail, c in zip(self.tails, rest):
            _start(list(tail.children())[1], c)

    def parts(self, hidden: Tensor, targets: Tensor) -> Scores:
        """What decides about targets ``[n]``, from inputs ``[n, width]``: the first step of all, the second of some."""
        first, scores = targets, []
        for number, tail in enumerate(self.tails):
            begin = self.cutoffs[number]
            end = self.cutoffs[number + 1] if number + 1 < len(self.cutoffs) else None
            inside = targets >= begin if end is None else (targets >= begin) & (targets < end)
            first = torch.where(inside, self.cutoffs[0] + number, first)
            rows = inside.nonzero()[:, 0]
            if len(rows):
                scores.append((tail(hidden[rows]), targets[rows] - begin))
        return [(self.common(hidden), first), *scores]

    def forward(self, hidden: Tensor) -> Tensor:
        """Logarithmic probabilities of all words, ``[..., width]`` to ``[..., vocabulary]``."""
        first = F.log_softmax(self.common(hidden), -1)
        common, clusters = first.split((self.cutoffs[0], len(self.cutoffs)), -1)
        return torch.cat(
            [common, *(F.log_softmax(tail(hidden), -1) + clusters[..., i, None] for i, tail in enumerate(self.tails))],
            -1,
        )  # fmt: skip


def _start(linear: nn.Module, counts: Tensor) -> None:
    assert isinstance(linear, nn.Linear)
    logarithms = counts.to(linear.bias.dtype).log()
    linear.bias.copy_(logarithms - logarithms.mean())


class LSTMLanguageModel(nn.Module):
    """Embedding, layers of LSTM, softmax; dropout before and after each layer.

    Zaremba, Sutskever, Vinyals, "Recurrent neural network regularization", arXiv:1409.2329. Weights begin uniform
    within 0.1 (embedding, softmax) or as torch has them, the bias of the forget gates at 1. Call :meth:`start_from`
    before training: a network that has to learn the words' frequencies first drives its states into saturation.

    Args:
        vocabulary: number of words, the commonest first where there are ``cutoffs``.
        width: of the embedding and the layers.
        layers: of LSTM.
        dropout: probability.
        tied: the softmax shares the embedding's matrix (Press, Wolf, arXiv:1608.05859).
        cutoffs: of an adaptive softmax; none is a full softmax.

    Shape:
        tokens ``[streams, window]``, state of two ``[layers, streams, width]`` or None for zeros, to logits or, of an
        adaptive softmax, logarithmic probabilities ``[streams, window, vocabulary]``, and the next state. With targets
        ``[streams, window]`` of an adaptive softmax to :data:`Scores` instead, which costs a part of it.

    Example:
        >>> net = LSTMLanguageModel(50, width=8)
        >>> logits, state = net(torch.zeros(2, 5, dtype=torch.int64))
        >>> logits.shape, state[0].shape
        (torch.Size([2, 5, 50]), torch.Size([2, 2, 8]))
    """

    def __init__(
        self,
        vocabulary: int,
        width: int = 200,
        layers: int = 2,
        dropout: float = 0.2,
        tied: bool = False,
        cutoffs: Sequence[int] = (),
    ):
        super().__init__()
        if tied and cutoffs:
            raise ValueError("an adaptive softmax has no single matrix to tie to the embedding")
        self.embedding = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(dropout)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, dropout=dropout if layers > 1 else 0.0)
        self.head = AdaptiveSoftmax(width, vocabulary, cutoffs) if cutoffs else nn.Linear(width, vocabulary)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        if isinstance(self.head, nn.Linear):
            nn.init.uniform_(self.head.weight, -0.1, 0.1)
            nn.init.zeros_(self.head.bias)
            if tied:
                self.head.weight = self.embedding.weight
        with torch.no_grad():
            for name, bias in self.lstm.named_parameters():
                if name.startswith(
                    "bias_ih"
                ):  # gates in the order input, forget, cell, output; the other bias adds
                    bias[width : 2 * width] = 1

    @torch.no_grad()
    def start_from(self, counts: Tensor) -> None:
        """Begin with the words' frequencies: the softmax's biases at their logarithms.

        Args:
            counts: how often each word occurs, ``[vocabulary]``, positive.

        Example:
            >>> net = LSTMLanguageModel(3, width=4)
            >>> net.start_from(torch.tensor([6.0, 3.0, 1.0]))
            >>> torch.softmax(net.head.bias, 0)
            tensor([0.6000, 0.3000, 0.1000], grad_fn=<SoftmaxBackward0>)
        """
        if isinstance(self.head, AdaptiveSoftmax):
            self.head.start_from(counts)
        else:
            _start(self.head, counts)

    def forward(
        self, tokens: Tensor, state: State | None = None, targets: Tensor | None = None
    ) -> tuple[Tensor | Scores, State]:
        hidden, following = self.lstm(self.dropout(self.embedding(tokens)), state)
        hidden = self.dropout(hidden)
        if targets is not None and isinstance(self.head, AdaptiveSoftmax):
            return self.head.parts(hidden.flatten(0, 1), targets.flatten()), following
        return self.head(hidden), following
