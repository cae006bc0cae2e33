"""Files to images (parquet, MNIST's IDX layout, npz). A reader is a pure function of bytes.

Pixels are uint8 [n, channels, height, width], labels int64 [n].
"""

from __future__ import annotations

import gzip
import io
import json
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from aimc.data.tables import decode_parquet
from aimc.errors import AimcError


@dataclass(frozen=True)
class Images:
    """Decoded images of one split; ``classes`` is empty where the files carry no names."""

    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...] = ()


Reader = Callable[[list[bytes]], Images]


def find_files(folder: Path, split: str) -> tuple[list[Path], Reader] | None:
    """The files of a split (``train`` or ``test``) and their reader, or None where the folder has none.

    Known are ``<split>-*.parquet`` or ``<split>.parquet``, the IDX files of MNIST (also with ``.gz``), and
    ``<split>.npz`` holding ``x`` and ``y``.
    """
    shards = find_parquet(folder, split)
    if shards:
        return shards, read_parquet
    prefix = "t10k" if split == "test" else split
    images, labels = (
        sorted(folder.glob(f"{prefix}-{kind}-ubyte")) or sorted(folder.glob(f"{prefix}-{kind}-ubyte.gz"))
        for kind in ("images?idx3", "labels?idx1")
    )
    if images and labels:
        return [images[0], labels[0]], read_idx
    archive = folder / f"{split}.npz"
    if archive.is_file():
        return [archive], read_npz
    return None


def find_parquet(folder: Path, split: str) -> list[Path] | None:
    """All parquet files of a split, or None where the folder has none."""
    shards = sorted(folder.glob(f"{split}-*.parquet")) or sorted(folder.glob(f"{split}.parquet"))
    if shards:
        _check_shards(shards)
    return shards or None


def _check_shards(shards: list[Path]) -> None:
    total = re.search(r"-of-(\d+)\.parquet$", shards[0].name)
    if total and int(total[1]) != len(shards):
        raise AimcError(
            f"{shards[0].parent} has {len(shards)} of {int(total[1])} files like {shards[0].name}; fetch the others",
            field="root",
        )


class FileError(AimcError):
    """What is wrong with one of several files.

    Attributes:
        place: of the file among them.

    Example:
        >>> FileError("damaged", place=1).place
        1
    """

    place: int = 0

    def __init__(self, message: str, place: int = 0, **where):
        super().__init__(message, **where)
        self.place = place


def _each(read: Callable[..., Any], files: list[bytes], *more: tuple[Any, ...]) -> list[Any]:
    """As ``map``, over files and what goes with each; an error says which of the files it is of."""
    found = []
    for place, given in enumerate(zip(files, *more)):
        try:
            found.append(read(*given))
        except AimcError as error:
            raise FileError(error.message, place) from None
    return found


def read_parquet(files: list[bytes]) -> Images:
    """Encoded images in a column of structs with ``bytes``, whole numbers in ``label`` or ``fine_label``."""
    parts = _each(_read_parquet, files)
    shapes = {image.shape for part, _, _ in parts for image in part}
    if len(shapes) > 1:
        raise AimcError(f"the images differ in shape: {sorted(shapes)}")
    pixels = [image for part, _, _ in parts for image in part]
    return Images(
        np.stack(pixels) if pixels else np.zeros((0, 0, 0, 0), np.uint8),
        np.concatenate([labels for _, labels, _ in parts]),
        parts[0][2],
    )


def _read_parquet(data: bytes) -> tuple[list[np.ndarray], np.ndarray, tuple[str, ...]]:
    table = decode_parquet(data)
    image = find_column(table.column_names, ("image", "img"))
    label = find_column(table.column_names, ("label", "fine_label"))
    try:
        encoded = [row["bytes"] for row in table[image].to_pylist()]
    except (TypeError, KeyError):
        raise AimcError(f"the column {image!r} does not hold images as structs with 'bytes'") from None
    pixels = [_decode(content, row) for row, content in enumerate(encoded)]
    return pixels, _labels(table[label], label), class_names(table, label)


def _labels(column: Any, name: str) -> np.ndarray:
    import pyarrow

    if not pyarrow.types.is_integer(column.type):
        raise AimcError(f"the column {name!r} holds {column.type}, and has to hold whole numbers")
    if column.null_count:
        raise AimcError(f"the column {name!r} has no label in {column.null_count} of {len(column)} rows")
    return column.to_numpy().astype(np.int64)


def find_column(columns: list[str], names: tuple[str, ...]) -> str:
    """The first of the names that is a column, or an error."""
    for name in names:
        if name in columns:
            return name
    raise AimcError(f"the columns are {columns}; one of {list(names)} is needed")


_FORMATS = ("PNG", "JPEG", "JPEG2000", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Of pictures; Pillow knows others, some of which other programs draw."""


def _decode(data: bytes | None, row: int) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data or b""), formats=_FORMATS) as image:
            grey = image.mode in ("1", "L", "I;16", "I")
            array = np.asarray(image.convert("L" if grey else "RGB"))
    except Exception as error:  # Pillow has many kinds for a broken image
        raise AimcError(f"the image in row {row} does not decode: {type(error).__name__} {error}") from None
    return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)


def class_names(table: Any, label: str) -> tuple[str, ...]:
    """What the metadata of a table call the values of a column of labels; empty where they do not."""
    try:
        names = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"][label]["names"]
        return tuple(str(name) for name in names)
    except (KeyError, ValueError, TypeError, RecursionError):
        return ()  # the names are a courtesy of the file


def read_idx(files: list[bytes]) -> Images:
    """MNIST's own layout: images (magic 2051) and labels (magic 2049), plain or gzipped."""
    images, labels = _each(_read_idx_array, files, (3, 1))
    return Images(images[:, None], labels.astype(np.int64))


def _read_idx_array(data: bytes, dimensions: int) -> np.ndarray:
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise AimcError(f"not a whole gzip file: {error}") from None
    head = 4 + 4 * dimensions
    if len(data) < head or data[:4] != bytes((0, 0, 8, dimensions)):
        raise AimcError(
            f"not an IDX file of bytes in {dimensions} dimensions: it begins with {data[:4].hex()}"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:head])
    if len(data) - head != int(np.prod(shape)):
        raise AimcError(f"the IDX file promises {list(shape)} values and holds {len(data) - head} bytes")
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def read_npz(files: list[bytes]) -> Images:
    """Arrays ``x``, uint8 [n, h, w], [n, h, w, c] or [n, c, h, w], and ``y``, whole numbers [n]."""
    try:
        with np.load(io.BytesIO(files[0]), allow_pickle=False) as archive:
            x, y = archive["x"], archive["y"]
    except KeyError as error:
        raise AimcError(f"the npz file needs the arrays x and y: {error}") from None
    except Exception as error:  # numpy parses headers as Python, and zipfile has errors of many kinds
        raise AimcError(f"not a whole npz file: {error or type(error).__name__}") from None
    if x.dtype != np.uint8 or x.ndim not in (3, 4):
        raise AimcError(
            f"x must be uint8 [n, h, w], [n, h, w, c] or [n, c, h, w], got {x.dtype} {list(x.shape)}"
        )
    if y.dtype.kind not in "iu" or y.ndim != 1:
        raise AimcError(f"y must be whole numbers [n], got {y.dtype} {list(y.shape)}")
    if x.ndim == 3:
        x = x[:, None]
    elif x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    return Images(np.ascontiguousarray(x), y.astype(np.int64))
