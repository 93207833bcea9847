"""Reading pairs, with errors that name the position and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from statewise.errors import ConfigError
from statewise_training.config import PairsData
from statewise_training.data.corpus import Series, expand, member, read_records, read_text, text_member


@dataclass(frozen=True)
class Pair:
    """A source and its target text."""

    place: str
    """Position for errors: file and line."""
    source: str | Series
    target: str


def read_pairs(data: PairsData) -> list[Pair]:
    """Return every pair, in an order that depends on the data alone.

    Raises ConfigError naming the file and the line.
    """
    pairs = list(_read_records(data) if data.files else _read_lines(data))
    if not pairs:
        raise ConfigError("data: the files hold no pairs")
    for pair in pairs:
        if not len(pair.source):
            raise ConfigError(f"{pair.place}: the source is empty; there is nothing to encode")
        if _kind(pair) != _kind(pairs[0]):
            raise ConfigError(
                f"{pair.place}: the source is {_kind(pair)}, but that of {pairs[0].place} is {_kind(pairs[0])}"
            )
    return pairs


def _kind(pair: Pair) -> str:
    return "a text" if isinstance(pair.source, str) else f"vectors of {pair.source.shape[1]} numbers"


def _read_records(data: PairsData) -> Iterator[Pair]:
    for path in expand(data.files or ()):
        for place, record in read_records(path):
            target = text_member(record, data.target_field, place, "data.target_field")
            yield Pair(place, _source(record, data.source_field, place), target)


def _source(record: dict[str, Any], field: str, place: str) -> str | Series:
    raw = member(record, field, place, "data.source_field")
    if not isinstance(raw, list):
        return text_member(record, field, place, "data.source_field")
    try:
        vectors = np.array(raw, np.float32)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{place}: {field!r} must be a string or a list of vectors of one size") from error
    if vectors.ndim != 2 or not np.isfinite(vectors).all():
        raise ConfigError(f"{place}: {field!r} must be a string or a list of vectors, all numbers finite")
    return vectors


def _read_lines(data: PairsData) -> Iterator[Pair]:
    sources = expand(data.source_files or (), "data.source_files")
    targets = expand(data.target_files or (), "data.target_files")
    if len(sources) != len(targets):
        raise ConfigError(f"data.target_files: {len(targets)} files, but data.source_files names {len(sources)}")
    for source_path, target_path in zip(sources, targets, strict=True):
        lines = _lines(read_text(source_path)), _lines(read_text(target_path))
        if len(lines[0]) != len(lines[1]):
            raise ConfigError(
                f"{target_path}: has {len(lines[1])} lines, but {source_path} has {len(lines[0])}; "
                "line n of the one belongs to line n of the other"
            )
        for number, (source, target) in enumerate(zip(*lines, strict=True), start=1):
            if source or target:
                yield Pair(f"{source_path}, line {number}", source, target)


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").removesuffix("\n").split("\n")


def split_pairs(pairs: list[Pair], held_out: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """Return training and held-out pairs; no source is in both, so held-out sources are new to the model.

    Raises ConfigError where there are fewer than two sources.
    """
    keys = [pair.source if isinstance(pair.source, str) else pair.source.tobytes() for pair in pairs]
    distinct = list(dict.fromkeys(keys))
    if len(distinct) < 2:
        raise ConfigError("data.held_out: all pairs have one source, so none can be held out; add data")
    count = min(max(1, round(held_out * len(distinct))), len(distinct) - 1)
    chosen = {distinct[index] for index in np.random.default_rng(seed).permutation(len(distinct))[:count]}
    keyed = list(zip(pairs, keys, strict=True))
    return [pair for pair, key in keyed if key not in chosen], [pair for pair, key in keyed if key in chosen]
