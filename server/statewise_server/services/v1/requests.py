"""Messages of statewise.v1 into plain values; the model that they ask reads and checks these."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from statewise.client.fields import generate_field, sequence_field
from statewise.client.items import Items, Text, Tokens, Vectors
from statewise.client.options import ForecastOptions, GenerateOptions
from statewise.errors import InvalidRequestError
from statewise.v1 import generation_pb2 as pb
from statewise.v1 import prediction_pb2


def read_version(version: int) -> int:
    """The version that a request names; 0 is the newest."""
    if version < 0:
        raise InvalidRequestError(f"must be 0 (newest) or more, got {version}", field="version")
    return version


def items_from(message: pb.Items, field: str) -> Items:
    """The sequence of a message. Raises InvalidRequestError where there is none."""
    kind = message.WhichOneof("kind")
    if kind is None:
        raise InvalidRequestError("is missing; give text, tokens or vectors", field=field)
    return _content(message, kind)


def inputs_from(request: prediction_pb2.PredictRequest | prediction_pb2.ScoreRequest) -> list[Items]:
    """The sequences of a request. Raises InvalidRequestError, naming the first that is missing."""
    return [items_from(given, f"inputs[{index}]") for index, given in enumerate(request.inputs)]


def prompt_from(request: pb.GenerateRequest) -> Items:
    """The prompt of a request; an empty text where there is none."""
    return _content(request, request.WhichOneof("prompt") or "text")


def source_from(request: pb.GenerateRequest) -> Items | None:
    """The source of a request, if there is one."""
    return items_from(request.source, "source") if request.HasField("source") else None


def vectors_from(message: pb.VectorSequence) -> Vectors:
    """Real vectors, not copied yet."""
    return Vectors(message.values, message.features)


def _content(message: pb.Items | pb.GenerateRequest, kind: str) -> Items:
    if kind == "text":
        return Text(message.text)
    return vectors_from(message.vectors) if kind == "vectors" else Tokens(message.tokens.ids)


def generate_options(request: pb.GenerateRequest) -> GenerateOptions:
    """The options of a request."""
    stop = request.stop
    options = GenerateOptions(stop=tuple(stop.strings), ignore_end_token=stop.ignore_end_token)
    if stop.HasField("max_tokens"):
        options["max_tokens"] = stop.max_tokens
    if request.HasField("log_probabilities"):
        options["logprobs"] = request.log_probabilities.top
    if request.HasField("sampling"):
        options.update(_sampling(request.sampling))
    if request.HasField("beam_search"):
        options.update(_beam_search(request.beam_search))
    return options


def _sampling(given: pb.SamplingParameters) -> GenerateOptions:
    options = GenerateOptions(
        # Set in any case: the message itself asks for sampling.
        temperature=given.temperature if given.HasField("temperature") else 1.0,
        top_k=given.top_k,
        top_p=given.top_p if given.HasField("top_p") else 1.0,
        min_p=given.min_p,
        repetition_penalty=given.repetition_penalty if given.HasField("repetition_penalty") else 1.0,
        presence_penalty=given.presence_penalty,
        frequency_penalty=given.frequency_penalty,
        logit_bias=given.logit_bias,
    )
    if given.HasField("seed"):
        options["seed"] = given.seed
    return options


def _beam_search(given: pb.BeamSearch) -> GenerateOptions:
    options = GenerateOptions(num_beams=given.num_beams, early_stopping=given.early_stopping)
    if given.HasField("length_penalty"):
        options["length_penalty"] = given.length_penalty
    if given.HasField("num_hypotheses"):
        options["num_hypotheses"] = given.num_hypotheses
    return options


def forecast_options(request: prediction_pb2.ForecastRequest) -> ForecastOptions:
    """The options of a request."""
    options = ForecastOptions(quantiles=tuple(request.quantiles), return_paths=request.return_paths)
    if request.HasField("num_paths"):
        options["num_paths"] = request.num_paths
    if request.HasField("temperature"):
        options["temperature"] = request.temperature
    if request.HasField("seed"):
        options["seed"] = request.seed
    return options


@contextmanager
def generate_fields(request: pb.GenerateRequest) -> Iterator[None]:
    """Name the field of the message in errors that name an argument."""
    kinds = {"prompt": request.WhichOneof("prompt"), "source": request.source.WhichOneof("kind")}
    with _renamed(lambda field: generate_field(field, kinds.get)):
        yield


@contextmanager
def input_fields(request: prediction_pb2.PredictRequest | prediction_pb2.ScoreRequest) -> Iterator[None]:
    """Name the field of the message in errors that name an input."""
    kinds = {f"inputs[{index}]": given.WhichOneof("kind") for index, given in enumerate(request.inputs)}
    with _renamed(lambda field: sequence_field(field, kinds.get)):
        yield


@contextmanager
def inspect_fields(request: prediction_pb2.InspectRequest) -> Iterator[None]:
    """Name the field of the message in errors that name the sequence."""
    kind = request.input.WhichOneof("kind")
    with _renamed(lambda field: sequence_field(field.replace("sequence", "input", 1), {"input": kind}.get)):
        yield


@contextmanager
def forecast_fields() -> Iterator[None]:
    """Name the field of the message in errors that name the context."""
    with _renamed({"context": "context.values"}.get):
        yield


@contextmanager
def _renamed(name_of: Any) -> Iterator[None]:
    try:
        yield
    except InvalidRequestError as error:
        if error.field is None:
            raise
        raise error.renamed(name_of(error.field) or error.field) from error
