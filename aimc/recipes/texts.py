"""Language modelling as a task: a running text in parallel streams, judged by perplexity."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from aimc import data as datasets
from aimc.chip import Perplexity
from aimc.models import LSTMLanguageModel
from aimc.recipes.networks import Network
from aimc.recipes.parts import Data, Task
from aimc.train import LanguageModelling


class Text(Data):
    """Which running text, how much of it, and how it is cut.

    Fields:
        name: as :func:`aimc.data.load_tokens` knows it.
        train_tokens, validation_tokens, test_tokens: at most so many, or null for all. The vocabulary is always that of
            the whole training text.
        window: tokens between two updates; the gradient goes no further back, and the weight noise of hardware-aware
            training is held for so long. A stage's batch size is the number of streams that are trained on at once.
        streams: parallel streams of an evaluation; a stream begins without a context.
    """

    name: str = "wikitext-2"
    train_tokens: int | None = None
    validation_tokens: int | None = None
    test_tokens: int | None = None
    window: int = 35
    streams: int = 50

    def validate(self):
        for name in ("train_tokens", "validation_tokens", "test_tokens"):
            value = getattr(self, name)
            self.require(value is None or value >= 2, name, f"must be at least 2, got {value}")
        for name in ("window", "streams"):
            self.require(getattr(self, name) >= 1, name, f"must be at least 1, got {getattr(self, name)}")

    def load(self, root: str | os.PathLike[str] | None, network: Network) -> RunningText:
        parts = {
            split: datasets.load_tokens(self.name, split, root, limit=getattr(self, f"{split}_tokens"))
            for split in datasets.TEXT_SPLITS
        }
        return RunningText(**parts, window=self.window, streams=self.streams)


@dataclasses.dataclass
class RunningText(Task):
    """The three parts of a text."""

    train: datasets.TokenData
    validation: datasets.TokenData
    test: datasets.TokenData
    window: int
    streams: int

    @property
    def hashes(self) -> dict[str, str]:
        return {n: getattr(self, n).sha256 for n in datasets.TEXT_SPLITS}

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def classes(self) -> int:
        return len(self.train.words)

    def batches(self, batch_size: int, seed: int) -> Windows:
        return Windows(self.train.tokens, batch_size, self.window)

    def objective(self) -> LanguageModelling:
        return LanguageModelling()

    def metric(self, split: str, batch_size: int = 1000) -> Perplexity:
        """Perplexity; ``chance`` is that of the words' frequencies in the training text, without any context.

        The number of streams is the configuration's, for it is a part of the result.
        """
        tokens = getattr(self, split).tokens
        return Perplexity(
            tokens, self.streams, self.window, chance=unigram_perplexity(self.train.tokens, tokens[1:], self.classes)
        )  # fmt: skip

    def initialise(self, net: nn.Module) -> None:
        if isinstance(net, LSTMLanguageModel):
            net.start_from(smoothed_counts(self.train.tokens, self.classes))

    def calibration(self, count: int) -> list[tuple[Tensor]]:
        """Windows of the training text; each begins without a context."""
        tokens = self.train.tokens[:count]
        rows = len(tokens) // self.window
        if rows == 0:
            return [(tokens[None],)]
        return [(part,) for part in tokens[: rows * self.window].view(rows, self.window).split(20)]


class Windows:
    """Training batches of a running text: streams side by side, cut into windows that follow one another.

    The text is the same in every epoch. A batch is ``(tokens, next tokens)``, both int64 ``[streams, window]``; the
    last one may be shorter, and fewer tokens than there are streams are left over at the end of the text.

    Example:
        >>> [x.tolist() for x, _ in Windows(torch.arange(11), streams=2, window=3)(epoch=0)]
        [[[0, 1, 2], [5, 6, 7]], [[3, 4], [8, 9]]]
    """

    def __init__(self, tokens: Tensor, streams: int, window: int):
        self._length = (len(tokens) - 1) // streams
        self._window = window
        rows = torch.arange(streams)[:, None] * self._length + torch.arange(self._length)
        self._inputs, self._targets = tokens[rows], tokens[rows + 1]

    def __len__(self) -> int:
        return -(-self._length // self._window)

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(self._inputs.split(self._window, 1), self._targets.split(self._window, 1))


def smoothed_counts(tokens: Tensor, words: int) -> Tensor:
    """How often each word occurs, and once more, so that none is impossible; ``[words]``."""
    return torch.bincount(tokens, minlength=words).double() + 1


def unigram_perplexity(train: Tensor, test: Tensor, words: int) -> float:
    """Perplexity of predicting every token by its frequency in the training text, each word counted once more.

    The best that can be said without a context: what guessing is to a classifier.

    Args:
        train, test: numbers of words, int64 ``[tokens]``.
        words: size of the vocabulary.

    Example:
        >>> round(unigram_perplexity(torch.tensor([0, 0, 1]), torch.tensor([0, 1]), words=2), 3)   # 3/5 and 2/5
        2.041
    """
    counts = smoothed_counts(train, words)
    return math.exp(-float((counts / counts.sum()).log()[test].mean()))
