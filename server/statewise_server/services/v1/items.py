"""Sequences from the wire as the arrays that a model reads, checked: for rpcs that read whole sequences."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from statewise.bundles.manifest import Manifest, Surround
from statewise.errors import InvalidRequestError
from statewise.model.spec import RealInput
from statewise.v1 import generation_pb2 as pb
from statewise_server.services.v1.reading import LONG_TEXT, included, read_vectors, tokenizer_for

if TYPE_CHECKING:
    from statewise_server.engine.whole_sequences.predictor import Predictor


@dataclass(frozen=True, slots=True)
class ReadSequence:
    """One sequence as a model reads it."""

    items: NDArray[Any]
    """int64 `[time]` or float32 `[time, features]`, at least one item, with the tokens that were added."""
    num_before: int = 0
    """Tokens added before the items that were sent: a start token, or those before a text."""
    num_after: int = 0
    """Tokens added after a text."""
    spans: tuple[tuple[int, int], ...] = ()
    """Of text: the first character of each item sent, and the one behind its last."""


async def read_items(given: pb.Items, predictor: Predictor, field: str) -> NDArray[Any]:
    """Read one sequence, int64 `[time]` or float32 `[time, features]`; tokens are added as in `read_inputs`.

    `field` is the sequence's name on the wire. Raises InvalidRequestError, naming what is wrong with which field.
    """
    (sequence,) = await _read_all([given], [field], predictor)
    return sequence.items


async def read_inputs(inputs: Sequence[pb.Items], predictor: Predictor) -> list[ReadSequence]:
    """Read the sequences of a request, as many as one may have.

    A model that generates has its start token before each. All others read token ids as they are, and a text between
    the tokens that surround texts. Raises InvalidRequestError, naming what is wrong with which field.
    """
    most = predictor.settings.max_inputs
    if not 1 <= len(inputs) <= most:
        raise InvalidRequestError(f"a request has 1 to {most} sequences, got {len(inputs)}", field="inputs")
    return await _read_all(inputs, [f"inputs[{index}]" for index in range(len(inputs))], predictor)


async def _read_all(inputs: Sequence[pb.Items], fields: Sequence[str], predictor: Predictor) -> list[ReadSequence]:
    def read() -> list[ReadSequence]:
        return [_read(given, predictor, field) for given, field in zip(inputs, fields, strict=True)]

    is_long = sum(len(given.text) for given in inputs) > LONG_TEXT
    return await asyncio.to_thread(read) if is_long else read()


def _read(given: pb.Items, predictor: Predictor, field: str) -> ReadSequence:
    manifest, reads = predictor.manifest, predictor.manifest.model.input
    kind = given.WhichOneof("kind")
    if kind is None:
        raise InvalidRequestError("is missing; give text, tokens or vectors", field=field)
    if (kind == "vectors") != isinstance(reads, RealInput):
        wanted = "vectors" if isinstance(reads, RealInput) else "tokens or text"
        raise InvalidRequestError(f"model {manifest.name!r} reads {wanted}", field=f"{field}.{kind}")
    if isinstance(reads, RealInput):
        return ReadSequence(_vectors(given.vectors, reads.features, predictor, f"{field}.vectors"))
    ids, spans = _tokens(given.tokens, predictor, field) if kind == "tokens" else _text(given.text, predictor, field)
    name = f"{field}.tokens.ids" if kind == "tokens" else f"{field}.text"
    if not len(ids):
        raise InvalidRequestError("is empty; give at least one item", field=name)
    added = _added(manifest, is_text=kind == "text")
    _check_length(
        predictor, len(ids) + added.num_tokens, name, num_around=0 if manifest.model.generates else added.num_tokens
    )
    outside = ids[(ids < 0) | (ids >= reads.vocabulary_size)]
    if len(outside):
        raise InvalidRequestError(
            f"id {outside[0]} is outside the vocabulary (0 to {reads.vocabulary_size - 1})", field=name
        )
    items = np.concatenate([np.array(added.before, np.int64), ids, np.array(added.after, np.int64)])
    return ReadSequence(items, len(added.before), len(added.after), spans)


def _added(manifest: Manifest, *, is_text: bool) -> Surround:
    """Return the tokens to add: a start token in a model that generates, around a text in all others."""
    special = manifest.special_tokens
    if manifest.model.generates:
        return Surround(before=() if special.start is None else (special.start,))
    return (special.surround if is_text else None) or Surround()


def _vectors(given: pb.VectorSequence, features: int, predictor: Predictor, field: str) -> NDArray[np.float32]:
    check_length = partial(_check_length, predictor)
    values = read_vectors(given, features, predictor.manifest, field, check_length)
    if not np.isfinite(values).all():
        raise InvalidRequestError("holds NaN or infinity", field=f"{field}.values")
    return values


Ids = tuple[NDArray[np.int64], tuple[tuple[int, int], ...]]


def _tokens(given: pb.TokenSequence, predictor: Predictor, field: str) -> Ids:
    # The length first: a message can hold millions of ids.
    _check_length(predictor, len(given.ids), f"{field}.tokens.ids")
    return np.fromiter(given.ids, np.int64, len(given.ids)), ()


def _text(text: str, predictor: Predictor, field: str) -> Ids:
    tokenizer = tokenizer_for(predictor.tokenizer, predictor.manifest, f"{field}.text")
    # The other ways to encode leave offsets out, or count them in bytes.
    encoding = tokenizer.encode(text, add_special_tokens=False)
    return np.asarray(encoding.ids, np.int64), tuple(encoding.offsets)


def _check_length(predictor: Predictor, length: int, field: str, num_around: int = 0) -> None:
    if length > predictor.max_items:
        raise InvalidRequestError(
            f"has {length} items{included(num_around) or ', a start token included'}; "
            f"at most {predictor.max_items} are allowed",
            field=field,
        )
