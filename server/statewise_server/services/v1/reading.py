"""What the rpcs read alike: the version that a request names, its deadline, vectors and text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from statewise.bundles.manifest import Manifest
from statewise.errors import DeadlineExceededError, InvalidRequestError
from statewise.v1 import generation_pb2 as pb

LONG_TEXT = 4096
"""Characters beyond which text is tokenized off the event loop; below, the hop costs more than the work."""

CheckLength = Callable[[int, str], None]
"""Raises InvalidRequestError for too many items, by their number and the field that holds them."""


def read_version(version: int) -> int:
    """The version that a request names; 0 is the newest."""
    if version < 0:
        raise InvalidRequestError(f"must be 0 (newest) or more, got {version}", field="version")
    return version


def read_deadline(seconds_left: float | None) -> float | None:
    """The deadline in time.monotonic() seconds, if there is one. Raises DeadlineExceededError where it has passed."""
    if seconds_left is None:
        return None
    if seconds_left <= 0:
        raise DeadlineExceededError("the deadline had passed when the request came")
    return time.monotonic() + seconds_left


def read_vectors(
    given: pb.VectorSequence, features: int, manifest: Manifest, field: str, check_length: CheckLength, of: str = ""
) -> NDArray[np.float32]:
    """Vectors, float32 `[time, features]`, at least one; `of` says in errors what the model reads that has features.

    Raises InvalidRequestError for what only the wire can get wrong, and as `check_length`, before they are copied.
    """
    if given.features != features:
        raise InvalidRequestError(
            f"model {manifest.name!r} reads {of}{features} features, got {given.features}", field=f"{field}.features"
        )
    count = len(given.values)
    if not count or count % features:
        raise InvalidRequestError(
            f"must hold time x {features} numbers, time at least 1; got {count}", field=f"{field}.values"
        )
    check_length(count // features, f"{field}.values")
    return np.fromiter(given.values, np.float32, count).reshape(-1, features)


def tokenizer_for(tokenizer: Tokenizer | None, manifest: Manifest, field: str) -> Tokenizer:
    """The tokenizer that reads a text. Raises InvalidRequestError where the model has none."""
    if tokenizer is None:
        raise InvalidRequestError(f"model {manifest.name!r} has no tokenizer; send token ids in `tokens`", field=field)
    return tokenizer


def included(num_added: int) -> str:
    """Say in an error about a text's length how many of its items are special tokens that surround it."""
    return f", {num_added} special tokens around the text included" if num_added else ""


async def encode_text(text: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of a text, without tokens around it; a long one does not hold up the event loop."""
    encode = tokenizer.encode_batch_fast
    if len(text) > LONG_TEXT:
        (encoding,) = await asyncio.to_thread(encode, [text], add_special_tokens=False)
    else:
        (encoding,) = encode([text], add_special_tokens=False)
    ids: list[int] = encoding.ids
    return ids
