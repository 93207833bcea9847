"""Labelled sequences in .npz archives of NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.errors import ConfigError
from statewise_training.config import LabelledData

_TARGETS = {"label": "labels", "tags": "tags", "value": "values"}


@dataclass(frozen=True)
class Row:
    """Sequence at one index of an archive."""

    place: str
    """Position for errors: file and index."""
    items: NDArray[Any]
    """Sequence `[time, features]` without its padding."""
    items_field: str
    target: Any
    target_field: str


def read_rows(path: Path, data: LabelledData) -> Iterator[Row]:
    """Yield every sequence of an archive with its target.

    Arrays: `items` `[n, time, features]` or `[n, time]`; `labels` `[n]`, `tags` `[n, time]` or `values` `[n]` or
    `[n, size]`; where the sequences differ in length, `lengths` `[n]`. Raises ConfigError naming file and array.
    """
    arrays = _load(path)
    items_field, target_field = data.input_field or "items", data.target_field or _TARGETS[data.target]
    for option, field in (("input_field", items_field), ("target_field", target_field)):
        if field not in arrays:
            known = ", ".join(arrays) or "none"
            raise ConfigError(f"{path}: has no array {field!r} (it has {known}); set data.{option}")
    items, targets = arrays[items_field], arrays[target_field]
    if items.dtype.kind not in "fiu" or items.ndim not in (2, 3):
        raise ConfigError(
            f"{path}: {items_field!r} must hold numbers [n, time, features], got {items.dtype} {list(items.shape)}"
        )
    lengths = arrays.get("lengths", np.full(len(items), items.shape[1]))
    _check_counts(path, items, {"lengths": lengths, target_field: targets})
    if data.target == "tags" and targets.shape[1:] != items.shape[1:2]:
        raise ConfigError(f"{path}: {target_field!r} must have a label for each of {items.shape[1]} items")
    for index, length in enumerate(lengths.tolist()):
        target = targets[index][:length] if data.target == "tags" else targets[index]
        yield Row(f"{path}, index {index}", items[index, :length], items_field, target.tolist(), target_field)


def _load(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except (OSError, ValueError, EOFError, AttributeError, TypeError) as error:
        raise ConfigError(f"{path}: not a readable .npz file of arrays: {error}") from error


def _check_counts(path: Path, items: NDArray[Any], others: dict[str, NDArray[Any]]) -> None:
    for name, array in others.items():
        if array.ndim == 0 or len(array) != len(items):
            raise ConfigError(f"{path}: {name!r} has shape {list(array.shape)}, but there are {len(items)} sequences")
    lengths = others["lengths"]
    if lengths.dtype.kind not in "iu" or lengths.ndim != 1 or ((lengths < 1) | (lengths > items.shape[1])).any():
        raise ConfigError(f"{path}: 'lengths' must be integers between 1 and {items.shape[1]}, one for each sequence")
