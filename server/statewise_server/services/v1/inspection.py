"""PredictionService.Inspect: what a model attends to, or how its gates stand, at every item of a sequence."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from statewise.errors import InvalidRequestError
from statewise.v1 import prediction_pb2 as pb
from statewise_server.services.v1.answers import info_of, open_graph
from statewise_server.services.v1.items import read_items

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from statewise_server.engine.whole_sequences.batcher import Batcher
    from statewise_server.engine.whole_sequences.predictor import Predictor
    from statewise_server.repository.repository import Repository

MAX_NUMBERS = 1 << 22
"""Numbers in one answer: 16 MiB of them. Attention weights grow with the square of the length."""


async def inspect(request: pb.InspectRequest, repository: Repository, seconds_left: float | None) -> pb.InspectResponse:
    """Answer one request. Raises InvalidRequestError, naming the field, and whatever keeps the model from running."""
    predictor, batcher, deadline = await open_graph(repository, request.model, request.version, "inspect", seconds_left)
    items = await read_items(request.input, predictor, "input")
    _check_size(len(items), batcher)
    shown = await asyncio.wrap_future(batcher.submit(items, deadline))
    # Millions of numbers into a message: long enough for running streams to notice.
    return await asyncio.to_thread(_response, predictor, items, shown)


def _check_size(length: int, batcher: Batcher) -> None:
    count = batcher.num_numbers(length)
    if count <= MAX_NUMBERS:
        return
    longest = next(n for n in range(length, -1, -1) if batcher.num_numbers(n) <= MAX_NUMBERS)
    raise InvalidRequestError(
        f"what the model shows of {length} items would be {count:,} numbers, at most {MAX_NUMBERS:,} are sent; "
        f"give at most {longest} items, a start token included",
        field="input",
    )


def _response(
    predictor: Predictor, items: NDArray[Any], shown: Mapping[str, NDArray[np.float32]]
) -> pb.InspectResponse:
    pieces = [] if predictor.tokenizer is None else _pieces(items.tolist(), predictor.tokenizer)
    response = pb.InspectResponse(items=pieces, info=info_of(predictor))
    for name, values in shown.items():
        response.tensors.add(name=name, shape=values.shape, values=values.ravel().tolist())
    return response


def _pieces(ids: list[int], tokenizer: Tokenizer) -> list[str]:
    """Each token as text; where it is none by itself (a part of a character, a special token), by its own name."""
    texts = tokenizer.decode_batch([[token] for token in ids])
    names = [tokenizer.id_to_token(token) or str(token) for token in ids]
    return [text if text and "\ufffd" not in text else name for text, name in zip(texts, names, strict=True)]
