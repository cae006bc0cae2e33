"""Small data of every kind, written where the recipes look for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aimc.data import DATASETS
from aimc.recipes import LSTM, Dataset, Encoder, Sentences, Text

_GOOD, _BAD = ("good", "great", "fine"), ("bad", "poor", "dull")
_WORDS = (*_GOOD, *_BAD, "the", "film", "is", "plot", "and")


def shrunk(config: Any, folder, images: int = 16) -> Any:
    """The experiment on data for seconds, made in a folder; language models and encoders get small, and begin anew."""
    dataset, network = config.dataset, config.network
    if isinstance(dataset, Dataset):
        if dataset.name != "mnist_small":
            patterns(folder, dataset.name)
        dataset = dataset.replace(train_images=images, validation_images=4, test_images=4)
    elif isinstance(dataset, Text):
        running_text(folder, dataset.name)
        dataset = dataset.replace(
            train_tokens=500, validation_tokens=60, test_tokens=60, window=10, streams=3
        )
    else:
        assert isinstance(dataset, Sentences)
        sentences(folder, dataset.name)
        dataset = dataset.replace(train_sentences=48, validation_sentences=8, test_sentences=8)
    if isinstance(network, LSTM):
        network = network.replace(width=20, cutoffs=(4, 8) if network.cutoffs else ())
    if isinstance(network, Encoder):
        network = network.replace(name=str(tiny_encoder(folder / "encoder")), dropout=0.0)
    return config.replace(dataset=dataset, network=network)


def patterns(folder, name):
    """One noisy pattern per class, as npz files."""
    about = DATASETS[name]
    generator = np.random.default_rng(0)
    kinds = generator.integers(0, 256, (4, *about.shape))
    (folder / name).mkdir(parents=True, exist_ok=True)
    for part in ("train", "test"):
        labels = np.arange(40) % 4
        pixels = np.clip(kinds[labels] + generator.normal(0, 20, (40, *about.shape)), 0, 255)
        np.savez(folder / name / f"{part}.npz", x=pixels.astype(np.uint8), y=labels)


def running_text(folder, name):
    """Words that mostly follow one another in a fixed order."""
    generator = np.random.default_rng(0)
    (folder / name).mkdir(parents=True, exist_ok=True)
    for split, lines in (("train", 60), ("validation", 10), ("test", 10)):
        steps = np.where(generator.random(lines * 9) < 0.9, 1, 3)
        words = [_WORDS[i % len(_WORDS)] for i in steps.cumsum()]
        rows = [" ".join(words[9 * i : 9 * i + 9]) for i in range(lines)]
        pq.write_table(pa.table({"text": rows}), folder / name / f"{split}-00000-of-00001.parquet")


def sentences(folder, name):
    """Praise and blame."""
    generator = np.random.default_rng(0)
    (folder / name).mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        labels = np.arange(48) % 2
        rows = [
            f"the {generator.choice(('film', 'plot'))} is {generator.choice(_GOOD if label else _BAD)}"
            + " and fine" * int(label and generator.random() < 0.5)
            for label in labels
        ]
        table = pa.table({"sentence": rows, "label": pa.array(labels, pa.int32())})
        pq.write_table(table, folder / name / f"{split}-00000-of-00001.parquet")


def tiny_encoder(folder):
    """A BERT of two narrow layers with random weights, and a tokenizer of these words."""
    transformers = pytest.importorskip("transformers", reason="encoders need aimc[language]")
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *_WORDS]))
    transformers.BertTokenizerFast(vocab_file=str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(special) + len(_WORDS), hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=32, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformers.BertModel(config).save_pretrained(folder)
    return folder
