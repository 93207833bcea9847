"""Held-out data in a checkpoint, on which `statewise export` measures the cost of quantization."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.errors import ConfigError
from statewise.model.spec import InputSpec, ModelSpec, TokenInput
from statewise_training.checkpoints.weights import read_weights

Items = NDArray[np.integer[Any]] | NDArray[np.float32]
Pair = tuple[Items, Items]
"""Source, and target with start and end token."""

MAX_ITEMS = 4096
"""Maximum number of items kept; for pairs, of target items."""


def to_tensors(held_out: Items | Sequence[Pair]) -> dict[str, NDArray[Any]]:
    """Return the first held-out data as the tensors of `heldout.safetensors`.

    `items`; for pairs also `source`, and the lengths of both sides, whose sequences are concatenated.
    """
    if isinstance(held_out, np.ndarray):
        return {"items": _widened(held_out[:MAX_ITEMS])}
    ends = accumulate(len(target) for _, target in held_out)
    kept = held_out[: max(1, sum(end <= MAX_ITEMS for end in ends))]
    sides = zip(*kept, strict=True)
    tensors = {}
    for name, lengths, side in zip(("source", "items"), ("source_lengths", "lengths"), sides, strict=True):
        tensors[name] = _widened(np.concatenate(side))
        tensors[lengths] = np.array([len(part) for part in side])
    return tensors


def _widened(items: Items) -> Items:
    return items.astype(np.float32 if items.dtype.kind == "f" else np.int64)


def read_items(path: Path, spec: ModelSpec) -> Items:
    """Read items `[time]` or `[time, features]`. Raises ConfigError where they do not fit the model."""
    items: Items = _read(path).get("items", np.empty(0))
    if not _are(items, spec.input) or len(items) < 2:
        raise ConfigError(f"{path}: `items` are not two or more of what the model reads")
    return items


def read_pairs(path: Path, spec: ModelSpec) -> list[Pair]:
    """Read sources and targets. Raises ConfigError where they do not fit the model."""
    assert spec.source is not None
    tensors = _read(path)
    sources = _cut(tensors.get("source"), tensors.get("source_lengths"), spec.source)
    targets = _cut(tensors.get("items"), tensors.get("lengths"), spec.input)
    if sources is None or targets is None or len(sources) != len(targets):
        raise ConfigError(f"{path}: `source` and `items` are not pairs of what the model reads")
    return list(zip(sources, targets, strict=True))


def _read(path: Path) -> dict[str, NDArray[Any]]:
    return {name: tensor.numpy() for name, tensor in read_weights(path).items()}


def _are(items: NDArray[Any], spec: InputSpec) -> bool:
    if isinstance(spec, TokenInput):
        is_line = items.ndim == 1 and items.dtype == np.int64
        return is_line and bool(((items >= 0) & (items < spec.vocabulary_size)).all())
    return items.dtype == np.float32 and items.shape[1:] == (spec.features,)


def _cut(items: NDArray[Any] | None, lengths: NDArray[Any] | None, spec: InputSpec) -> list[Items] | None:
    """Cut the items into parts of these lengths; None where they do not fit."""
    if items is None or lengths is None or not _are(items, spec):
        return None
    if lengths.ndim != 1 or lengths.dtype != np.int64 or (lengths < 1).any() or lengths.sum() != len(items):
        return None
    return np.split(items, np.cumsum(lengths)[:-1])
