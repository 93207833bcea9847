"""Logic of both clients without a transport: arguments to requests, messages to values, codes to errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, cast

import grpc
import numpy as np
from numpy.typing import NDArray

from statewise.client.fields import argument_of
from statewise.client.items import Items, Text, Tokens, Vectors, items_of
from statewise.client.options import GenerateOptions, beam_search_of, check_known, sampling_of, stop_strings_of
from statewise.client.values import (
    Chunk,
    FinishReason,
    Generation,
    GenerationInfo,
    Hypothesis,
    ModelInfo,
    Prompt,
    TokenLogProbability,
    Usage,
)
from statewise.errors import InternalError, InvalidRequestError, OverloadedError, StatewiseError, UnavailableError
from statewise.status import FIELD_KEY, error_from
from statewise.v1 import generation_pb2 as pb

DEFAULT_ADDRESS = "127.0.0.1:50051"

CHANNEL_OPTIONS = (
    # The server's limit decides, not gRPC's default of 4 MiB.
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # One connection for each client object, so that closing it ends what it has started.
    ("grpc.use_local_subchannel_pool", 1),
)

_REFUSED_STREAM = "RST_STREAM with error code 7"
"""gRPC's words for HTTP/2's REFUSED_STREAM (RFC 9113, section 7): the connection has too many streams."""

_FINISH_REASONS: dict[int, FinishReason] = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}

_STATES: dict[int, Literal["loading", "ready", "refused"]] = {
    pb.MODEL_STATE_LOADING: "loading",
    pb.MODEL_STATE_READY: "ready",
    pb.MODEL_STATE_REFUSED: "refused",
}


def generate_request(model: str, prompt: Prompt, options: GenerateOptions) -> pb.GenerateRequest:
    """Build the request. Raises InvalidRequestError for what a message cannot hold."""
    check_known(options, GenerateOptions)
    request = pb.GenerateRequest()
    set_field(request, "model", model)
    set_field(request, "version", options.get("version", 0))
    set_items(request, items_of(prompt), "prompt")
    for name, value in sampling_of(options).items():
        set_field(request.sampling, name, value)
    if (max_tokens := options.get("max_tokens")) is not None:
        set_field(request.stop, "max_tokens", max_tokens)
    set_field(request.stop, "strings", stop_strings_of(options), argument="stop")
    set_field(request.stop, "ignore_end_token", options.get("ignore_end_token", False))
    if (source := options.get("source")) is not None:
        request.source.SetInParent()
        set_items(request.source, items_of(source, "source"), "source")
    for name, value in beam_search_of(options).items():
        set_field(request.beam_search, name, value)
    if (logprobs := options.get("logprobs")) is not None:
        request.log_probabilities.SetInParent()
        set_field(request.log_probabilities, "top", logprobs, argument="logprobs")
    return request


def set_items(message: pb.GenerateRequest | pb.Items, items: Items, argument: str) -> None:
    """Set a sequence. Raises InvalidRequestError, naming the argument, for what a message cannot hold."""
    if isinstance(items, Text):
        set_field(message, "text", items.text, argument)
    elif isinstance(items, Tokens):
        message.tokens.SetInParent()
        set_field(message.tokens, "ids", np.asarray(items.ids).tolist(), argument)
    else:
        set_vectors(message.vectors, items, argument)


def set_vectors(message: pb.VectorSequence, vectors: Vectors, argument: str) -> None:
    """Set real vectors. Raises InvalidRequestError, naming the argument, for what a message cannot hold."""
    message.features = vectors.features
    set_field(message, "values", np.asarray(vectors.values).tolist(), argument)


def set_field(message: Any, name: str, value: Any, argument: str | None = None) -> None:
    """Set a field of a message. Raises InvalidRequestError, naming the argument, for what it cannot hold."""
    try:
        if isinstance(value, list):
            getattr(message, name).extend(value)
        elif isinstance(value, Mapping):
            getattr(message, name).update(value)
        else:
            setattr(message, name, value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequestError(f"cannot be sent: {error}", field=argument or name) from error


def chunk_from(response: pb.GenerateResponse) -> Chunk:
    """Read one message of a stream."""
    info = response.info
    return Chunk(
        text=response.text,
        tokens=tuple(response.tokens),
        vectors=vectors_from(response.vectors) if response.HasField("vectors") else None,
        log_probabilities=tuple(map(_log_probability, response.log_probabilities)),
        finish_reason=_FINISH_REASONS.get(response.finish_reason),
        usage=_usage(response.usage) if response.HasField("usage") else None,
        info=(GenerationInfo(info.model, info.version, info.variant, info.seed) if response.HasField("info") else None),
        hypotheses=tuple(map(_hypothesis, response.hypotheses)),
    )


def _hypothesis(message: pb.Hypothesis) -> Hypothesis:
    reason = _FINISH_REASONS[message.finish_reason]
    return Hypothesis(message.text, tuple(message.tokens), message.log_probability, message.score, reason)


def _usage(message: pb.Usage) -> Usage:
    return Usage(message.prompt_tokens, message.completion_tokens, message.cached_prompt_tokens, message.source_tokens)


def vectors_from(message: pb.VectorSequence) -> NDArray[np.float32]:
    """Read real vectors, `[time, features]`."""
    return np.array(message.values, np.float32).reshape(-1, message.features)


def _log_probability(message: pb.TokenLogProbability) -> TokenLogProbability:
    return TokenLogProbability(message.token, message.log_probability, tuple(map(_log_probability, message.top)))


def fold(chunks: Iterable[Chunk]) -> Generation:
    """Put a stream together. Raises InternalError where its first or last message is missing."""
    chunks = list(chunks)
    if not chunks or chunks[0].info is None or chunks[-1].usage is None or chunks[-1].finish_reason is None:
        raise InternalError("the server's answer has no end; client and server may be of different versions")
    vectors = [chunk.vectors for chunk in chunks if chunk.vectors is not None]
    return Generation(
        text="".join(chunk.text for chunk in chunks),
        tokens=tuple(token for chunk in chunks for token in chunk.tokens),
        vectors=np.concatenate(vectors) if vectors else None,
        log_probabilities=tuple(entry for chunk in chunks for entry in chunk.log_probabilities),
        finish_reason=chunks[-1].finish_reason,
        usage=chunks[-1].usage,
        info=chunks[0].info,
        hypotheses=chunks[-1].hypotheses,
    )


def model_from(message: pb.Model) -> ModelInfo:
    """Read the description of a model."""
    optional = {"start_token", "end_token"}
    values = {
        field.name: getattr(message, field.name)
        for field in message.DESCRIPTOR.fields
        if field.name not in optional or message.HasField(cast(Any, field.name))
    }
    values |= {name: tuple(values[name]) for name in ("methods", "labels")}
    return ModelInfo(**({"start_token": None, "end_token": None} | values | {"state": _STATES[message.state]}))


@contextmanager
def errors_mapped(address: str) -> Iterator[None]:
    """Turn the errors of gRPC into Statewise's."""
    try:
        yield
    except grpc.RpcError as error:
        raise error_of(error, address) from error


def error_of(error: Any, address: str) -> StatewiseError:
    """Return the Statewise error that an ended call stands for."""
    code = error.code()
    details = error.details() or code.name
    field = dict(error.trailing_metadata() or ()).get(FIELD_KEY)
    if code is grpc.StatusCode.UNAVAILABLE and field is None and _REFUSED_STREAM in details:
        return OverloadedError(
            f"the server at {address} takes no more streams from one connection ({details}); open fewer, or retry later"
        )
    if code is grpc.StatusCode.UNAVAILABLE and field is None:
        # From the connection, not from the server: gRPC's own words say how, but not what to do.
        return UnavailableError(
            f"no Statewise server can be reached at {address} ({details}); start one with "
            "`statewise serve --models DIR`, or give its address"
        )
    mapped = error_from(code, details, field)
    if isinstance(mapped, InvalidRequestError) and mapped.field:
        return mapped.renamed(argument_of(mapped.field))
    return mapped
