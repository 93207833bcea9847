"""Inputs of the certificate, fed to both sides: random items for parity, held-out ones for divergence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from statewise.model.spec import InputSpec, ModelSpec, TokenInput, ValueHead
from statewise.rules.sampling import SamplingParams
from statewise_training.checkpoints.held_out import Pair
from statewise_training.reference.decoding import ReferenceDecoder

Array = NDArray[Any]

DATA_SEED = 20_111
NUM_ROWS = 16
MAX_ROW_LENGTH = 256


@dataclass(frozen=True)
class Scale:
    """Mean and deviation of the vectors that a model reads, one number per feature or one for all."""

    mean: ArrayLike = 0.0
    deviation: ArrayLike = 1.0


@dataclass(frozen=True)
class Prompts:
    """Rows to continue, and the source of each where the model has one."""

    items: list[Array]
    sources: list[Array] | None = None

    def __len__(self) -> int:
        return len(self.items)

    def take(self, rows: Iterable[int]) -> Prompts:
        """Some of the rows, in this order."""
        chosen = list(rows)
        sources = None if self.sources is None else [self.sources[row] for row in chosen]
        return Prompts([self.items[row] for row in chosen], sources)


@dataclass(frozen=True)
class HeldOut:
    """Rows to measure a variant's divergence on."""

    rows: list[Array]
    source: Literal["data", "sampled"]
    sources: list[Array] | None = None
    """Source of each row, where the model has one."""


def random_sources(spec: ModelSpec, lengths: Iterable[int]) -> list[Array] | None:
    """Sources of these lengths, or of the longest there may be; None where the model has none."""
    if spec.source is None or spec.max_source_positions is None:
        return None
    longest = spec.max_source_positions
    return _random(spec.source, [min(length, longest) for length in lengths], Scale(), DATA_SEED + 1)


def random_items(spec: ModelSpec, lengths: Iterable[int], scale: Scale) -> list[Array]:
    """Rows of these lengths: tokens, all as likely; or normally distributed vectors."""
    return _random(spec.input, lengths, scale, DATA_SEED)


def _random(reads: InputSpec, lengths: Iterable[int], scale: Scale, seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    if isinstance(reads, TokenInput):
        return [rng.integers(0, reads.vocabulary_size, length) for length in lengths]
    features, mean, deviation = reads.features, np.asarray(scale.mean), np.asarray(scale.deviation)
    return [(mean + deviation * rng.standard_normal((length, features))).astype(np.float32) for length in lengths]


def held_out_rows(
    items: Array | list[Pair] | None, reference: ReferenceDecoder, scale: Scale, start: int | None
) -> HeldOut:
    """The held-out items of a checkpoint, in rows, or its pairs; where it has none, samples of the float32 model.

    Random tokens would show nothing: on text that a model finds absurd, its distributions are flat or arbitrary.
    """
    spec = reference.spec
    length = min(MAX_ROW_LENGTH, spec.max_positions or MAX_ROW_LENGTH)
    if isinstance(items, list):
        return HeldOut([target[:length] for _, target in items], "data", [source for source, _ in items])
    if items is not None:
        length = min(length, len(items))
        num_rows = min(NUM_ROWS, len(items) // length)
        return HeldOut(list(items[: num_rows * length].reshape(num_rows, length, *items.shape[1:])), "data")
    length = min(length, MAX_ROW_LENGTH // 2)
    sources = random_sources(spec, [length] * NUM_ROWS)
    if isinstance(spec.head, ValueHead):
        return HeldOut(random_items(spec, [length] * NUM_ROWS, scale), "sampled", sources)
    first = random_items(spec, [1] * NUM_ROWS, scale) if start is None else [np.array([start])] * NUM_ROWS
    params = [SamplingParams(seed=DATA_SEED + row) for row in range(NUM_ROWS)]
    rows, _ = reference.generate(first, params, length - 1, sources)
    return HeldOut([np.concatenate(pair) for pair in zip(first, rows, strict=True)], "sampled", sources)
