"""A data set as two tensors, from a folder, the embedded file or the hub."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from aimc.arguments import checked
from aimc.data.cache import read_cached
from aimc.data.catalogue import Source, source
from aimc.data.formats import Images, find_files, read_parquet
from aimc.errors import AimcError, suggest

SPLITS = ("train", "validation", "test", "train+validation")
"""``validation`` is a fixed tenth of the training images, never of the test images."""

PIXELS = ("standardised", "unit", "centred")
"""What inputs run over: mean 0 and deviation 1 over the training images, 0 to 1, -1 to 1."""

Found = TypeVar("Found")

_EMBEDDED = Path(__file__).with_name("mnist_small.npz")
_EMBEDDED_SHA256 = "caf57d5512ade9a6deadba0b0423f4f6e31d449046a926a3cb5d5fc35ea35868"


@dataclass(frozen=True, eq=False)
class TensorData:
    """A data set, or a part of one, in memory.

    Args:
        inputs: float32 [n, channels, height, width].
        targets: int64 [n].
        classes: names in the order of the labels.
        name: of the data set.
        split: which part of it.
        sha256: of the raw pixels and labels that these tensors hold, in their order: the data hash of a run.
        pixels: one of :data:`aimc.data.PIXELS`, what the inputs run over.
    """

    inputs: Tensor
    targets: Tensor
    classes: tuple[str, ...]
    name: str
    split: str
    sha256: str
    pixels: str = "standardised"

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> TensorData:
        """The same data on another device."""
        return replace(self, inputs=self.inputs.to(device), targets=self.targets.to(device))


@checked
def load(
    name: str,
    split: str,
    root: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    pixels: str = "standardised",
) -> TensorData:
    """Load a data set as tensors.

    Files are looked for in ``root`` if given, else in the folder named by the environment variable ``AIMC_DATA`` if
    set, else on the hub (which needs ``huggingface_hub``). ``mnist_small`` is part of the package.

    Args:
        name: one of :data:`aimc.data.DATASETS`.
        split: ``train``, ``validation``, ``test`` or ``train+validation``. Validation is the last tenth of a fixed
            permutation of the training images; ``train`` is the rest, in the order of that permutation.
        root: a folder with a folder ``<name>`` in it, holding parquet, IDX or npz files.
        limit: at most this many images, the first ones.
        pixels: ``standardised``, mean 0 and deviation 1 over the training images; ``unit``, from 0 to 1; or
            ``centred``, from -1 to 1.

    Example:
        >>> data = load("mnist_small", "train", limit=100)
        >>> data.inputs.shape, data.targets.dtype, data.classes[:3]
        (torch.Size([100, 1, 28, 28]), torch.int64, ('0', '1', '2'))
    """
    about = source(name)
    if split not in SPLITS:
        raise AimcError(f"no split is called {split!r}; {suggest(split, SPLITS)}", field="split")
    if limit is not None and limit < 1:
        raise AimcError(f"must be at least 1, got {limit}", field="limit")
    if pixels not in PIXELS:
        raise AimcError(f"no range is called {pixels!r}; {suggest(pixels, PIXELS)}", field="pixels")
    part = "test" if split == "test" else "train"
    images = _embedded(part) if name == "mnist_small" else _from_files(name, about, part, root)

    rows = np.arange(len(images.labels)) if part == "test" else _rows(len(images.labels), split)
    rows = rows[:limit]
    raw, labels = np.ascontiguousarray(images.pixels[rows]), images.labels[rows]
    digest = hashlib.sha256(raw.data)
    digest.update(labels.astype("<i8").data)

    inputs = torch.from_numpy(raw).to(torch.float32).div_(255)
    if pixels == "centred":
        inputs.mul_(2).sub_(1)
    elif pixels == "standardised":
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (about.mean, about.std))
        inputs.sub_(mean).div_(std)
    return TensorData(
        inputs,
        torch.from_numpy(labels),
        images.classes or about.classes,
        name,
        split,
        digest.hexdigest(),
        pixels,
    )


def _rows(count: int, split: str) -> np.ndarray:
    order = np.random.default_rng(0).permutation(count)
    held_out = count // 10
    if split == "train":
        return order[: count - held_out]
    return order[count - held_out :] if split == "validation" else order


def _from_files(name: str, about: Source, part: str, root: str | os.PathLike[str] | None) -> Images:
    place = data_root(root)
    if place is None:
        files, reader = _fetch(name, about.hub, part), read_parquet
    else:
        kinds = f"{part}-*.parquet, or MNIST's IDX files, or {part}.npz with x and y"
        files, reader = look_up(name, about.folders, part, place, find_files, kinds)
    images = read_cached(files, reader)
    _check(images, about, files)
    return images


def data_root(root: str | os.PathLike[str] | None) -> Path | None:
    """The folder of the data sets: the one given, else the environment variable's, else none."""
    place = root if root is not None else os.environ.get("AIMC_DATA") or None
    return Path(place) if place is not None else None


def look_up(
    name: str,
    known: tuple[str, ...],
    part: str,
    root: Path,
    find: Callable[[Path, str], Found | None],
    kinds: str,
) -> Found:
    """What ``find`` makes of the first known folder under a root that has files of a part of a data set."""
    folders = [root / folder for folder in known]
    if root.name in known:
        folders.append(root)
    for folder in folders:
        found = find(folder, part)
        if found is not None:
            return found
    looked = ", ".join(str(folder) for folder in folders if folder.is_dir()) or "no folder, for there is none"
    raise AimcError(
        f"{root} has no {part} files of {name!r} (looked in {looked}); put {kinds} into {root / name}, "
        "or name another folder: --data on the command line, root= in Python",
        field="root",
    )


def name_a_folder(files: str) -> str:
    """The way out where the hub gives nothing."""
    return f"name a folder that has {files} with --data, root= in Python or AIMC_DATA in the environment"


def _fetch(name: str, hub: tuple[str, str] | None, part: str) -> list[Path]:
    """Download a part of a data set from the hub."""
    way_out = (
        name_a_folder(f"{name}/{part}-*.parquet") + " (or IDX or npz files); 'mnist_small' needs no files"
    )
    assert hub is not None, name  # mnist_small alone has none
    repository, folder = hub
    try:
        import huggingface_hub  # pyright: ignore[reportMissingImports]  (an extra)
    except ImportError:
        raise AimcError(
            f"no folder with {name!r} is known, and huggingface_hub is not installed: {way_out}; "
            "or install aimc[hub] to download it",
            field="root",
        ) from None
    try:
        path = huggingface_hub.hf_hub_download(
            repository, f"{folder}/{part}-00000-of-00001.parquet", repo_type="dataset"
        )
    except Exception as error:  # the hub's client raises errors of its own and of three libraries below it
        raise AimcError(
            f"cannot download {name!r} from {repository}: {error}; {way_out}", field="root"
        ) from error
    return [Path(path)]


def _check(images: Images, about: Source, files: list[Path]) -> None:
    where = ", ".join(map(str, files))
    count = len(images.labels)
    if len(images.pixels) != count or count == 0:
        raise AimcError(f"{where}: {len(images.pixels)} images and {count} labels", field="root")
    if images.pixels.shape[1:] != about.shape:
        raise AimcError(
            f"{where}: the images are {list(images.pixels.shape[1:])}, not {list(about.shape)}", field="root"
        )
    top = len(about.classes)
    if images.labels.min() < 0 or images.labels.max() >= top:
        raise AimcError(
            f"{where}: labels run from {images.labels.min()} to {images.labels.max()}, not within 0 to {top - 1}",
            field="root",
        )
    if images.classes and len(images.classes) != top:
        raise AimcError(f"{where}: {len(images.classes)} class names, not {top}", field="root")


@lru_cache(maxsize=1)
def _open_embedded(path: Path, sha256: str):
    try:
        content = path.read_bytes()
    except OSError as error:
        raise AimcError(
            f"the embedded data set {path} cannot be read: {error.strerror}; reinstall aimc"
        ) from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise AimcError(
            f"the embedded data set {path} is damaged (its sha256 is not {sha256}); reinstall aimc"
        )
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def _embedded(part: str) -> Images:
    arrays = _open_embedded(_EMBEDDED, _EMBEDDED_SHA256)
    return Images(arrays[f"{part}_x"][:, None], arrays[f"{part}_y"].astype(np.int64))
