"""Data sets as tensors: MNIST (a part of it in the package), Fashion-MNIST, CIFAR-10, CIFAR-100, WikiText-2, SST-2."""

from aimc.data.augmentation import AUGMENTATIONS, auto_augment, crop_flip
from aimc.data.batching import Inputs, Samples, batches
from aimc.data.catalogue import DATASETS, TEXTS, Source, TextSource
from aimc.data.loading import PIXELS, SPLITS, TensorData, load
from aimc.data.text import TEXT_SPLITS, SentenceData, TokenData, Tokenizer, load_sentences, load_tokens

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "PIXELS",
    "SPLITS",
    "Inputs",
    "Samples",
    "TEXTS",
    "TEXT_SPLITS",
    "SentenceData",
    "Source",
    "TensorData",
    "TextSource",
    "TokenData",
    "Tokenizer",
    "auto_augment",
    "batches",
    "crop_flip",
    "load",
    "load_sentences",
    "load_tokens",
]
