"""Data sets as plain tensors: MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100, and a part of MNIST in the package."""

from aimc.data.augmentation import AUGMENTATIONS, auto_augment, crop_flip
from aimc.data.batching import batches
from aimc.data.catalogue import DATASETS, Source
from aimc.data.loading import SPLITS, TensorData, load

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "SPLITS",
    "Source",
    "TensorData",
    "auto_augment",
    "batches",
    "crop_flip",
    "load",
]
