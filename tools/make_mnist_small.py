"""Make aimc/data/mnist_small.npz from the MNIST parquet files: python tools/make_mnist_small.py FOLDER_WITH_MNIST

The first 500 training and the first 100 test images of each digit, in the order of the files, dealt out in turn
(0, 1, ..., 9, 0, 1, ...), so that any beginning of either split is balanced.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import numpy as np

from aimc.data.formats import find_files

TARGET = Path(__file__).resolve().parent.parent / "aimc" / "data" / "mnist_small.npz"


def select(folder: Path, split: str, per_class: int) -> tuple[np.ndarray, np.ndarray]:
    """The first ``per_class`` images of each digit, dealt out in turn: pixels [n, 28, 28] and labels, uint8."""
    found = find_files(folder, split)
    if found is None:
        sys.exit(f"{folder} has no {split} files of MNIST")
    files, reader = found
    images = reader([f.read_bytes() for f in files])
    rows = np.stack(
        [np.flatnonzero(images.labels == digit)[:per_class] for digit in range(10)], axis=1
    ).ravel()
    return images.pixels[rows, 0], images.labels[rows].astype(np.uint8)


def main() -> None:
    """Write the file and print its size and hash."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    train_x, train_y = select(folder, "train", 500)
    test_x, test_y = select(folder, "test", 100)
    np.savez_compressed(TARGET, train_x=train_x, train_y=train_y, test_x=test_x, test_y=test_y)
    content = TARGET.read_bytes()
    print(f"{TARGET.name}: {len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}")
    print("put the sha256 into aimc/data/loading.py and aimc/data/MNIST_SMALL.md")


if __name__ == "__main__":
    main()
