"""A sequence of items as plain values, whoever sends it: text, token ids or real vectors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from statewise.errors import InvalidRequestError


@dataclass(frozen=True, slots=True)
class Text:
    """A text, for a model with a tokenizer."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Token ids, without the start token."""

    ids: Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """Real vectors, row-major: `values` holds time x features numbers."""

    values: Sequence[float] | NDArray[np.float32]
    features: int


Items = Text | Tokens | Vectors


def items_of(given: Any, field: str = "prompt") -> Items:
    """Return the sequence that a Python value stands for.

    A string is text, integers `[time]` are token ids, floats `[time, features]` (of any array-like, a pandas DataFrame
    too) are vectors. Raises InvalidRequestError, naming the field, for anything else.
    """
    if isinstance(given, str):
        return Text(given)
    try:
        items = np.asarray(given)
    except (ValueError, TypeError) as error:
        raise InvalidRequestError(
            f"must be text, integers [time] or floats [time, features]: {error}", field=field
        ) from error
    if items.ndim == 1 and not len(items):
        return Tokens(np.empty(0, np.int64))
    if items.ndim == 1 and items.dtype.kind in "iu":
        return Tokens(items)
    # Columns of whole numbers in a table are numbers like others.
    if items.ndim == 2 and (items.dtype.kind == "f" or (is_frame(given) and items.dtype.kind in "iu")):
        return Vectors(items.astype(np.float32).reshape(-1), items.shape[1])
    raise InvalidRequestError(
        f"must be text, integers [time] or floats [time, features], got {items.dtype} {list(items.shape)}", field=field
    )


def series_of(given: Any, field: str = "context") -> Vectors:
    """Return a series: numbers `[time, features]`, or `[time]` of one feature. Raises InvalidRequestError."""
    try:
        items = np.asarray(given)
    except (ValueError, TypeError) as error:
        raise InvalidRequestError(f"must be numbers [time, features] or [time]: {error}", field=field) from error
    items = items[:, None] if items.ndim == 1 else items
    if items.ndim != 2 or items.dtype.kind not in "fiu":
        raise InvalidRequestError(
            f"must be numbers [time, features] or [time], got {items.dtype} {list(items.shape)}", field=field
        )
    return Vectors(items.astype(np.float32).reshape(-1), items.shape[1])


def is_frame(given: Any) -> bool:
    """Tell whether this is a pandas DataFrame or Series, without importing pandas."""
    return type(given).__name__ in {"DataFrame", "Series"} and hasattr(given, "index") and hasattr(given, "to_numpy")


def is_many(given: Any) -> bool:
    """Tell whether a value holds several sequences in a list or tuple, rather than being one.

    Several are a list of texts, of lists or arrays of ids, or of arrays or tables of vectors; one are a text, an array,
    a table, a list of integers and a list of lists of floats.
    """
    if not isinstance(given, list | tuple) or not given:
        return False
    first = given[0]
    if isinstance(first, str) or is_frame(first):
        return True
    if isinstance(first, np.ndarray):
        return first.ndim > 1 or first.dtype.kind in "iu"
    if not isinstance(first, list | tuple):
        return False
    return not first or isinstance(first[0], int | np.integer | list | tuple | np.ndarray)


def is_lazy(given: Any) -> bool:
    """Tell whether a value gives its sequences one after another, as an iterator does."""
    return isinstance(given, Iterator) or (
        isinstance(given, Iterable) and not hasattr(given, "__len__") and not hasattr(given, "__array__")
    )
