"""Handwritten digits as sequences of patches: `python -m statewise_vit.digits FOLDER`.

The images are scikit-learn's own, 1,797 of 8x8 pixels (Alpaydin and Kaynak 1998).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

PATCH = 2
"""Side of a patch in pixels."""
NUM_HELD_BACK = 360
"""Number of images in test.npz, which training never sees."""


def to_patches(images: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Cut images `[n, height, width]` into square patches, row by row: `[n, patch, size * size]`."""
    count, height, width = images.shape
    grid = images.reshape(count, height // size, size, width // size, size)
    return grid.transpose(0, 1, 3, 2, 4).reshape(count, -1, size * size)


def write(folder: Path) -> None:
    """Write train.npz and test.npz: items `[n, patch, 4]` between 0 and 1, labels `[n]`."""
    digits = load_digits()
    items = to_patches(digits.images.astype(np.float32) / 16, PATCH)
    order = np.random.default_rng(0).permutation(len(items))
    for name, part in (("test", order[:NUM_HELD_BACK]), ("train", order[NUM_HELD_BACK:])):
        np.savez(folder / f"{name}.npz", items=items[part], labels=digits.target[part].astype(str))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
