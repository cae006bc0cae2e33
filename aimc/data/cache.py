"""Decoded images, kept in the user's cache folder so that a second run does not decode again.

The key is the hash of the source's bytes, so a changed source is another entry. Nothing depends on the cache: an
entry that is broken is made again, and a folder that cannot be written is done without.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from pathlib import Path

import numpy as np

from aimc.data.formats import FileError, Images, Reader
from aimc.errors import AimcError
from aimc.files import write_atomic

_LAYOUT = "2"  # part of the key: raise it when a reader changes what it returns


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/aimc/data``, or the same under ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "aimc" / "data"


def read_cached(files: list[Path], reader: Reader) -> Images:
    """Read and decode files, through the cache. Errors name the file."""
    try:
        contents = [path.read_bytes() for path in files]
    except OSError as error:
        raise AimcError(f"cannot read {error.filename}: {error.strerror}", field="root") from None
    digest = hashlib.sha256(f"{_LAYOUT} {reader.__name__}".encode())
    for content in contents:
        digest.update(hashlib.sha256(content).digest())
    entry = cache_folder() / f"{digest.hexdigest()}.npz"

    found = _load(entry)
    if found is not None:
        return found
    try:
        images = reader(contents)
    except AimcError as error:
        where = [files[error.place]] if isinstance(error, FileError) else files
        raise AimcError(f"{', '.join(map(str, where))}: {error.message}", field="root") from None
    _store(entry, images)
    return images


def _load(entry: Path) -> Images | None:
    try:
        with np.load(entry, allow_pickle=False) as archive:
            return Images(archive["pixels"], archive["labels"], tuple(str(c) for c in archive["classes"]))
    except Exception:  # of numpy and zipfile, which raise many kinds
        return None


def _store(entry: Path, images: Images) -> None:
    buffer = io.BytesIO()
    np.savez(
        buffer, pixels=images.pixels, labels=images.labels, classes=np.array(images.classes, dtype=np.str_)
    )
    with contextlib.suppress(OSError, AimcError):
        entry.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(entry, buffer.getvalue())
