"""Reading labelled sequences, with errors that name the position and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.errors import ConfigError
from statewise_training.config import LabelledData
from statewise_training.data.corpus import Series, expand, member, read_records, text_member
from statewise_training.data.labelled.archives import Row, read_rows

Value = NDArray[np.float32]


@dataclass(frozen=True)
class Span:
    """Label of a range of items in a sequence: characters of a text, or vectors."""

    start: int
    end: int
    """End index, exclusive."""
    label: str


@dataclass(frozen=True)
class Example:
    """A sequence and its target: a label, tags, or a value."""

    place: str
    """Position for errors: file, and line or index."""
    items: str | Series
    target: str | list[Span] | Value


def read_labelled(data: LabelledData) -> list[Example]:
    """Return every example, in an order that depends on the data alone.

    Raises ConfigError naming the file, the line or index, and the member.
    """
    examples = [example for path in expand(data.files) for example in _read(path, data)]
    if not examples:
        raise ConfigError("data.files: the files hold no sequence")
    first = examples[0]
    for example in examples:
        if isinstance(example.items, str) != isinstance(first.items, str):
            raise ConfigError(f"{example.place}: texts and vectors cannot be mixed; {first.place} holds the other kind")
        for name, part in (("items", lambda e: e.items), ("target", lambda e: e.target)):
            _check_same_size(name, part(example), part(first), example.place, first.place)
    return examples


def _check_same_size(name: str, array: object, first: object, place: str, first_place: str) -> None:
    if isinstance(array, np.ndarray) and isinstance(first, np.ndarray) and array.shape[-1] != first.shape[-1]:
        raise ConfigError(
            f"{place}: {name} of {array.shape[-1]} numbers, but {first_place} has {first.shape[-1]}; all need the same"
        )


def _read(path: Path, data: LabelledData) -> Iterator[Example]:
    if path.suffix == ".npz":
        return (_from_arrays(row, data) for row in read_rows(path, data))
    if path.suffix in {".jsonl", ".json", ".ndjson"}:
        return (_from_record(record, place, data) for place, record in read_records(path))
    raise ConfigError(f"data.files: {path} must be .jsonl or .npz")


def _from_record(record: dict[str, Any], place: str, data: LabelledData) -> Example:
    field = data.input_field or "text"
    raw = member(record, field, place, "data.input_field")
    target_field = data.target_field or data.target
    target = member(record, target_field, place, "data.target and data.target_field")
    if _is_list_of(raw, str):
        return _from_words(raw, target, place, target_field, data)
    items = (
        text_member(record, field, place, "data.input_field") if isinstance(raw, str) else _vectors(raw, place, field)
    )
    if not len(items):
        raise ConfigError(f"{place}: {field!r} is empty; leave the line out")
    return Example(place, items, _target(target, items, place, target_field, data))


def _from_arrays(row: Row, data: LabelledData) -> Example:
    items = _vectors(row.items, row.place, row.items_field)
    return Example(row.place, items, _target(row.target, items, row.place, row.target_field, data))


def _from_words(words: list[str], target: Any, place: str, field: str, data: LabelledData) -> Example:
    """Join words with spaces, because clients send texts, not words."""
    text = " ".join(words)
    if not text.strip():
        raise ConfigError(f"{place}: {data.input_field or 'text'!r} is empty; leave the line out")
    if data.target != "tags" or not _is_list_of(target, str):
        return Example(place, text, _target(target, text, place, field, data))
    if len(target) != len(words):
        raise ConfigError(f"{place}: {field!r} has {len(target)} labels for {len(words)} words")
    ends = np.cumsum([len(word) + 1 for word in words]) - 1
    placed = zip(words, ends.tolist(), target, strict=True)
    return Example(place, text, [Span(end - len(word), end, label) for word, end, label in placed if word])


def _is_list_of(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(element, kind) for element in value)


def _vectors(raw: Any, place: str, field: str) -> Series:
    array = _numbers(raw, place, field)
    if array.ndim not in (1, 2):
        raise ConfigError(f"{place}: {field!r} must be a string, a list of words, or a list of numbers or of vectors")
    return array.reshape(len(array), -1)


def _numbers(raw: Any, place: str, field: str) -> NDArray[np.float32]:
    try:
        array = np.array(raw)
    except ValueError as error:
        raise ConfigError(f"{place}: {field!r} holds vectors of different sizes") from error
    if array.dtype.kind not in "fiu":
        raise ConfigError(f"{place}: {field!r} must hold numbers, got {str(raw)[:60]}")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ConfigError(f"{place}: {field!r} holds a number that is not finite")
    return array


def _target(raw: Any, items: str | Series, place: str, field: str, data: LabelledData) -> str | list[Span] | Value:
    if data.target == "value":
        value = np.atleast_1d(_numbers(raw, place, field))
        if value.ndim != 1 or not len(value):
            raise ConfigError(f"{place}: {field!r} must be a number or a list of numbers")
        return value
    if data.target == "label":
        return _label(raw, place, field)
    if isinstance(items, str):
        return _spans(raw, len(items), place, field)
    if not isinstance(raw, list) or len(raw) != len(items):
        got = len(raw) if isinstance(raw, list) else type(raw).__name__
        raise ConfigError(f"{place}: {field!r} must be a list of {len(items)} labels, one for each vector, got {got}")
    return [Span(index, index + 1, _label(label, place, field)) for index, label in enumerate(raw)]


def _label(raw: Any, place: str, field: str) -> str:
    """Return the name of a label: a string, an integer, or true or false. Raises ConfigError for anything else."""
    if isinstance(raw, bool | np.bool_):
        return str(raw).lower()
    if isinstance(raw, str | int | np.integer) and str(raw):
        return str(raw)
    raise ConfigError(f"{place}: {field!r} must be a label, a string or an integer, got {raw!r}")


def _spans(raw: Any, length: int, place: str, field: str) -> list[Span]:
    if not isinstance(raw, list):
        raise ConfigError(f"{place}: {field!r} must be a list of [start, end, label], got {type(raw).__name__}")
    spans = sorted((_span(one, length, place, field) for one in raw), key=lambda span: span.start)
    for before, after in pairwise(spans):
        if after.start < before.end:
            raise ConfigError(
                f"{place}: {field!r} has tags that overlap: [{before.start}, {before.end}, {before.label!r}] and "
                f"[{after.start}, {after.end}, {after.label!r}]"
            )
    return spans


def _span(raw: Any, length: int, place: str, field: str) -> Span:
    is_triple = isinstance(raw, list) and len(raw) == 3
    if not is_triple or not all(isinstance(edge, int) and not isinstance(edge, bool) for edge in raw[:2]):
        raise ConfigError(f"{place}: each of {field!r} must be [start, end, label], in characters, got {raw!r}")
    start, end, label = raw
    if not 0 <= start < end <= length:
        raise ConfigError(
            f"{place}: {field!r} has [{start}, {end}, {label!r}], but the text has {length} characters "
            "(start is the first one, end the one behind the last)"
        )
    return Span(start, end, _label(label, place, field))
