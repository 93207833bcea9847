"""What both clients do, without a transport: arguments to requests, messages to values, codes to errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypedDict, cast

import grpc
import numpy as np
from numpy.typing import NDArray

from statewise.client.values import (
    Chunk,
    FinishReason,
    Generation,
    GenerationInfo,
    Hypothesis,
    Model,
    Prompt,
    TokenLogProbability,
    Usage,
)
from statewise.errors import InternalError, InvalidRequestError, StatewiseError, UnavailableError
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

_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "seed",
)

_BEAM_SEARCH = ("num_beams", "length_penalty", "num_hypotheses", "early_stopping")

_FINISH_REASONS: dict[int, FinishReason] = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}

_STATES: dict[int, Literal["loading", "ready", "refused"]] = {
    pb.MODEL_STATE_LOADING: "loading",
    pb.MODEL_STATE_READY: "ready",
    pb.MODEL_STATE_REFUSED: "refused",
}


class GenerateOptions(TypedDict, total=False):
    """How to continue a prompt. Without a sampling option the answer is greedy; None means absent."""

    version: int
    """Version of the model; by default the newest that is ready."""
    max_tokens: int | None
    """Most items to generate; by default the server's number."""
    temperature: float | None
    """0 is greedy; 1 (the default beside another sampling option) is the model's own distribution."""
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None
    """The same seed gives the same tokens; by default the server picks one and returns it."""
    stop: str | Sequence[str]
    """Strings that end the answer, and are no part of it."""
    ignore_end_token: bool
    logprobs: int | None
    """0 for the log-probability of each chosen token; n for those of the n most probable tokens too."""
    source: Prompt | None
    """What an encoder-decoder decodes; the prompt is then what the answer begins with, and mostly empty."""
    num_beams: int | None
    """Searches for the most probable answers, following so many beginnings at once; the next three need it."""
    length_penalty: float | None
    """Answers are ranked by log-probability / length ** length_penalty; by default 1."""
    num_hypotheses: int | None
    """How many answers of a search are returned; by default 1."""
    early_stopping: bool
    """Whether a search ends with its first `num_beams` answers."""
    timeout: float | None
    """Seconds until the whole answer must be there; by default the client's."""


def generate_request(model: str, prompt: Prompt, options: GenerateOptions) -> pb.GenerateRequest:
    """Build the request. Raises InvalidRequestError for what a message cannot hold."""
    unknown = set(options) - set(GenerateOptions.__annotations__)
    if unknown:
        raise TypeError(f"unknown options: {', '.join(sorted(unknown))}")
    request = pb.GenerateRequest()
    set_field(request, "model", model)
    set_field(request, "version", options.get("version", 0))
    set_prompt(request, prompt)
    for name in _SAMPLING:
        if (value := options.get(name)) is not None:
            set_field(request.sampling, name, value)
    if (max_tokens := options.get("max_tokens")) is not None:
        set_field(request.stop, "max_tokens", max_tokens)
    stop = options.get("stop", ())
    set_field(request.stop, "strings", [stop] if isinstance(stop, str) else list(stop))
    set_field(request.stop, "ignore_end_token", options.get("ignore_end_token", False))
    if (source := options.get("source")) is not None:
        request.source.SetInParent()
        set_prompt(request.source, source, field="source")
    _set_beam_search(request, options)
    if (logprobs := options.get("logprobs")) is not None:
        request.log_probabilities.SetInParent()
        set_field(request.log_probabilities, "top", logprobs)
    return request


def _set_beam_search(request: pb.GenerateRequest, options: GenerateOptions) -> None:
    given = {name: value for name in _BEAM_SEARCH if (value := options.get(name)) not in (None, False)}
    if not given:
        return
    if "num_beams" not in given:
        raise InvalidRequestError(f"is needed for {', '.join(given)}", field="num_beams")
    for name, value in given.items():
        set_field(request.beam_search, name, value)


def set_prompt(request: pb.GenerateRequest | pb.Items, prompt: Prompt, field: str = "prompt") -> None:
    """Set a sequence. Raises InvalidRequestError, naming the field, for what is none."""
    if isinstance(prompt, str):
        set_field(request, "text", prompt)
        return
    items = np.asarray(prompt) if len(prompt) else np.empty(0, np.int64)
    if items.ndim == 2 and items.dtype.kind == "f":
        request.vectors.features = items.shape[1]
        set_field(request.vectors, "values", items.astype(np.float32).reshape(-1).tolist())
    elif items.ndim == 1 and items.dtype.kind in "iu":
        request.tokens.SetInParent()
        set_field(request.tokens, "ids", items.tolist())
    else:
        raise InvalidRequestError(
            f"must be text, integers [time] or floats [time, features], got {items.dtype} {list(items.shape)}",
            field=field,
        )


def set_field(message: Any, name: str, value: Any) -> None:
    """Set a field of a message. Raises InvalidRequestError for what it cannot hold."""
    try:
        if isinstance(value, list):
            getattr(message, name).extend(value)
        elif isinstance(value, Mapping):
            getattr(message, name).update(value)
        else:
            setattr(message, name, value)
    except (TypeError, ValueError, OverflowError) as error:
        raise InvalidRequestError(f"cannot be sent: {error}", field=name) from error


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


def model_from(message: pb.Model) -> Model:
    """Read the description of a model."""
    optional = {"start_token", "end_token"}
    values = {
        field.name: getattr(message, field.name)
        for field in message.DESCRIPTOR.fields
        if field.name not in optional or message.HasField(cast(Any, field.name))
    }
    values |= {name: tuple(values[name]) for name in ("methods", "labels")}
    return Model(**({"start_token": None, "end_token": None} | values | {"state": _STATES[message.state]}))


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
    if code is grpc.StatusCode.UNAVAILABLE and field is None:
        # From the connection, not from the server: gRPC's own words say how, but not what to do.
        return UnavailableError(
            f"no Statewise server can be reached at {address} ({details}); start one with "
            "`statewise serve --models DIR`, or give its address"
        )
    return error_from(code, details, field)
