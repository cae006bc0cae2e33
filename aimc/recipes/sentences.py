"""Classification of sentences as a task."""

from __future__ import annotations

import dataclasses
import os

from torch import Tensor

from aimc import data as datasets
from aimc.chip import Accuracy
from aimc.errors import AimcError
from aimc.recipes.encoders import Encoder
from aimc.recipes.networks import Network
from aimc.recipes.parts import Data, Shuffled, Task
from aimc.train import Classification


class Sentences(Data):
    """Which labelled sentences, and how many of them. The network is an :class:`Encoder`, whose tokenizer reads them.

    Fields:
        name: as :func:`aimc.data.load_sentences` knows it.
        train_sentences, validation_sentences, test_sentences: at most so many, or null for all.
        longest: sentences are cut after so many tokens.
    """

    name: str = "sst2"
    train_sentences: int | None = None
    validation_sentences: int | None = None
    test_sentences: int | None = None
    longest: int = 128

    def validate(self):
        for name in ("train_sentences", "validation_sentences", "test_sentences"):
            value = getattr(self, name)
            self.require(value is None or value >= 1, name, f"must be at least 1, got {value}")
        self.require(self.longest >= 3, "longest", f"must be at least 3, got {self.longest}")

    def load(self, root: str | os.PathLike[str] | None, network: Network) -> LabelledSentences:
        if not isinstance(network, Encoder):
            raise AimcError(
                f"sentences need a network with a tokenizer, an Encoder; got {type(network).__name__}",
                field="network",
            )
        read = network.tokenizer(self.longest)
        return LabelledSentences(
            **{
                split: datasets.load_sentences(
                    self.name, split, read, root, limit=getattr(self, f"{split}_sentences")
                )
                for split in datasets.TEXT_SPLITS
            }
        )


@dataclasses.dataclass
class LabelledSentences(Task):
    """The three parts of a data set."""

    train: datasets.SentenceData
    validation: datasets.SentenceData
    test: datasets.SentenceData

    @property
    def hashes(self) -> dict[str, str]:
        return {n: getattr(self, n).sha256 for n in datasets.TEXT_SPLITS}

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def classes(self) -> int:
        return len(self.train.classes)

    def batches(self, batch_size: int, seed: int) -> Shuffled:
        return Shuffled(self.train, batch_size, seed)

    def objective(self) -> Classification:
        return Classification()

    def metric(self, split: str, batch_size: int = 1000) -> Accuracy:
        """Accuracy. Sentences of a length go together, so that there is little padding.

        What padding there is, is read by the hardware, too, so that the batch size also moves the draws of read noise.
        """
        part = getattr(self, split)
        order = part.inputs[1].sum(1).argsort(stable=True)
        inputs = tuple(x[order] for x in part.inputs)
        return Accuracy(inputs, part.targets[order], batch_size, classes=self.classes)

    def calibration(self, count: int) -> list[tuple[Tensor, ...]]:
        return list(zip(*(x[:count].split(50) for x in self.train.inputs)))
