"""The source of a GenerateRequest as the array that an encoder reads."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from statewise.bundles.manifest import Surround
from statewise.errors import InvalidRequestError
from statewise.model.spec import RealInput
from statewise.v1 import generation_pb2 as pb
from statewise_server.services.v1.reading import encode_text, included, read_vectors, tokenizer_for

if TYPE_CHECKING:
    from statewise_server.engine.generation.engine import Engine


async def read_source(request: pb.GenerateRequest, engine: Engine) -> NDArray[Any] | None:
    """The source, int64 `[time]` or float32 `[time, features]`; None where the model has none, and none is given.

    Raises InvalidRequestError for what only the wire can get wrong, and where it is too long to be copied.
    """
    reads, kind, name = engine.manifest.model.source, request.source.WhichOneof("kind"), engine.manifest.name
    if reads is None:
        if request.HasField("source"):
            raise InvalidRequestError(f"model {name!r} reads no source; give a prompt alone", field="source")
        return None
    wanted = "vectors" if isinstance(reads, RealInput) else "tokens or text"
    if kind is None:
        raise InvalidRequestError(f"is missing; model {name!r} makes its output of {wanted}", field="source")
    if (kind == "vectors") != isinstance(reads, RealInput):
        raise InvalidRequestError(f"model {name!r} reads sources of {wanted}", field=f"source.{kind}")
    if isinstance(reads, RealInput):
        check_length = partial(_check_length, engine)
        return read_vectors(
            request.source.vectors, reads.features, engine.manifest, "source.vectors", check_length, of="sources of "
        )
    ids = await _text(request.source.text, engine) if kind == "text" else _tokens(request.source.tokens, engine)
    if not len(ids):
        raise InvalidRequestError("is empty; give at least one item", field=f"source.{kind}")
    return ids


def _tokens(given: pb.TokenSequence, engine: Engine) -> NDArray[np.int64]:
    # The length first: a message can hold millions of ids.
    _check_length(engine, len(given.ids), "source.tokens.ids")
    return np.fromiter(given.ids, np.int64, len(given.ids))


async def _text(text: str, engine: Engine) -> NDArray[np.int64]:
    """Return the ids of a text between the tokens that surround it; none for an empty text."""
    tokenizer = tokenizer_for(engine.tokenizer, engine.manifest, "source.text")
    encoded = await encode_text(text, tokenizer)
    surround = (engine.manifest.special_tokens.surround if encoded else None) or Surround()
    ids = np.array([*surround.before, *encoded, *surround.after], np.int64)
    _check_length(engine, len(ids), "source.text", num_added=surround.num_tokens)
    return ids


def _check_length(engine: Engine, length: int, field: str, num_added: int = 0) -> None:
    limit = engine.manifest.model.max_source_positions
    if limit is not None and length > limit:
        raise InvalidRequestError(
            f"the source has {length} items{included(num_added)}, and model {engine.manifest.name!r} reads at most "
            f"{limit}",
            field=field,
        )
