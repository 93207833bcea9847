"""Requests that Generate refuses: code, field and message."""

from __future__ import annotations

import math

import grpc
import pytest

from statewise.v1 import generation_pb2 as pb
from statewise.v1.generation_pb2_grpc import GenerationServiceStub
from statewise_server.app import Application
from tests.server.services.v1.test_generation import (
    canary,  # noqa: F401 - a fixture of every test here
    failure,
    generate,
    request,
    stopped,
)

INVALID = grpc.StatusCode.INVALID_ARGUMENT


GENERATE = "/statewise.v1.GenerationService/Generate"


def sampled(**fields: object) -> pb.GenerateRequest:
    return request(text="a", sampling=pb.SamplingParameters(**fields))


BAD_REQUESTS = {
    "version below zero": (request(version=-1), "version: must be 0"),
    "empty prompt without a start token": (request("plain"), "prompt: is empty"),
    "no ids without a start token": (request("plain", tokens=pb.TokenSequence()), "tokens.ids: is empty"),
    "no vectors": (
        request("sum", vectors=pb.VectorSequence(features=2)),
        "vectors.values: must hold time x 2",
    ),
    "an id below the vocabulary": (
        request(tokens=pb.TokenSequence(ids=[5, -1])),
        "tokens.ids: id -1",
    ),
    "an id above the vocabulary": (
        request(tokens=pb.TokenSequence(ids=[258])),
        "tokens.ids: id 258 is outside the vocabulary (0 to 257)",
    ),
    "text too long": (request(text="a" * 64), "text: has 65 items, a start token included; at most 64"),
    "long text too long": (request(text="a" * 5000), "text: has 5001 items"),
    "too many ids": (
        request(tokens=pb.TokenSequence(ids=[5] * 64)),
        "tokens.ids: has 65 items",
    ),
    "too many vectors": (
        request("sum", vectors=pb.VectorSequence(features=2, values=[0.0] * 130)),
        "vectors.values: has 65 items, a start token included; at most 64",
    ),
    "text for a model without a tokenizer": (
        request("plain", text="a"),
        "text: model 'plain' has no tokenizer",
    ),
    "vectors for a model of tokens": (
        request(vectors=pb.VectorSequence(features=2)),
        "vectors.values: model 'text' reads",
    ),
    "tokens for a model of vectors": (
        request("sum", tokens=pb.TokenSequence(ids=[1])),
        "tokens.ids: model 'sum' reads",
    ),
    "text for a model of vectors": (request("sum", text="a"), "text: model 'sum' reads vectors"),
    "vectors of the wrong width": (
        request("sum", vectors=pb.VectorSequence(features=3, values=[1, 2, 3])),
        "vectors.features: model 'sum' reads 2 features, got 3",
    ),
    "half a vector": (
        request("sum", vectors=pb.VectorSequence(features=2, values=[1])),
        "vectors.values: must hold",
    ),
    "a vector with NaN": (
        request("sum", vectors=pb.VectorSequence(features=2, values=[1, math.nan])),
        "vectors.values: holds NaN",
    ),
    "max_tokens zero": (stopped(max_tokens=0), "stop.max_tokens: must lie in [1, 500000], got 0"),
    "max_tokens below zero": (stopped(max_tokens=-5), "stop.max_tokens: must lie"),
    "max_tokens above the limit": (stopped(max_tokens=500_001), "stop.max_tokens: must lie"),
    "too many stop strings": (stopped(strings=["a", "b", "c"]), "stop.strings: at most 2"),
    "an empty stop string": (stopped(strings=[""]), "stop.strings"),
    "a stop string too long": (stopped(strings=["a" * 257]), "stop.strings[0]: at most 256 characters"),
    "stop strings without a tokenizer": (
        request("plain", tokens=pb.TokenSequence(ids=[1]), stop=pb.StopConditions(strings=["a"])),
        "stop.strings",
    ),
    "temperature NaN": (sampled(temperature=math.nan), "sampling.temperature: must lie in [0, 100], got nan"),
    "temperature below zero": (sampled(temperature=-0.5), "sampling.temperature: must lie"),
    "temperature infinite": (sampled(temperature=math.inf), "sampling.temperature: must lie"),
    "top_p zero": (sampled(top_p=0.0), "sampling.top_p: must lie in (0, 1], got 0"),
    "top_p above one": (sampled(top_p=1.5), "sampling.top_p: must lie"),
    "top_k below zero": (sampled(top_k=-1), "sampling.top_k: must be 0 (off) or more, got -1"),
    "min_p above one": (sampled(min_p=1.5), "sampling.min_p: must lie"),
    "repetition_penalty zero": (sampled(repetition_penalty=0.0), "sampling.repetition_penalty: must lie"),
    "presence_penalty NaN": (sampled(presence_penalty=math.nan), "sampling.presence_penalty: must lie"),
    "frequency_penalty too large": (sampled(frequency_penalty=3.0), "sampling.frequency_penalty: must lie"),
    "a bias outside the vocabulary": (sampled(logit_bias={258: 1.0}), "sampling.logit_bias: token 258"),
    "a bias of NaN": (sampled(logit_bias={1: math.nan}), "sampling.logit_bias: must lie"),
    "too many biases": (
        sampled(logit_bias=dict.fromkeys(range(1025), 1.0)),
        "sampling.logit_bias: at most 1024",
    ),
    "sampling of real vectors": (
        request(
            "sum",
            vectors=pb.VectorSequence(features=2, values=[1, 2]),
            sampling=pb.SamplingParameters(seed=1),
        ),
        "sampling: model 'sum' gives values",
    ),
    "log-probabilities below zero": (
        request(text="a", log_probabilities=pb.LogProbabilityOptions(top=-1)),
        "log_probabilities.top: must be 0 or more, got -1",
    ),
    "too many log-probabilities": (
        request(text="a", log_probabilities=pb.LogProbabilityOptions(top=21)),
        "log_probabilities.top: must lie in [0, 20], got 21",
    ),
    "log-probabilities of real vectors": (
        request(
            "sum",
            vectors=pb.VectorSequence(features=2, values=[1, 2]),
            log_probabilities=pb.LogProbabilityOptions(),
        ),
        "log_probabilities.top: ",
    ),
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_request_is_refused_naming_the_field(stub: GenerationServiceStub, case: str) -> None:
    """A request that can never succeed is INVALID_ARGUMENT, and its message begins with the field."""
    message, expected = BAD_REQUESTS[case]

    code, details = failure(lambda: generate(stub, message))

    assert (code, details[: len(expected)]) == (INVALID, expected)


@pytest.mark.parametrize("method", ["Generate", "GetModel"])
def test_unknown_model_is_not_found_and_the_known_ones_are_named(stub, method: str) -> None:
    """NOT_FOUND lists what there is."""
    message = request("nope") if method == "Generate" else pb.GetModelRequest(model="nope")

    code, details = failure(
        lambda: list(getattr(stub, method)(message)) if method == "Generate" else stub.GetModel(message)
    )

    assert code == grpc.StatusCode.NOT_FOUND
    assert "'nope'" in details
    assert "plain, sum, sums, text" in details


def test_unknown_version_is_not_found(stub: GenerationServiceStub) -> None:
    """A version that does not exist is NOT_FOUND, though the model exists."""
    code, details = failure(lambda: generate(stub, request(version=7)))

    assert (code, "version 7" in details) == (grpc.StatusCode.NOT_FOUND, True)


def test_refused_model_says_why(stub: GenerationServiceStub) -> None:
    """A damaged model is FAILED_PRECONDITION with the damaged file, and GetModel gives the same reason."""
    code, details = failure(lambda: generate(stub, request("broken")))
    model = stub.GetModel(pb.GetModelRequest(model="broken")).model

    assert (code, "step.cpu-float32.onnx" in details) == (grpc.StatusCode.FAILED_PRECONDITION, True)
    assert (model.state, model.reason in details) == (pb.MODEL_STATE_REFUSED, True)


def test_invalid_utf8_names_the_field(channel: grpc.Channel) -> None:
    """Text that is not UTF-8 is INVALID_ARGUMENT; such a message cannot be made with the stub."""
    raw_call = channel.unary_stream(GENERATE)

    code, details = failure(lambda: list(raw_call(b"\x0a\x04text\x1a\x02\xff\xfe")))

    assert (code, details) == (INVALID, "text: is not valid UTF-8")


def test_damaged_protobuf_is_internal(channel: grpc.Channel) -> None:
    """Bytes that are no protobuf are INTERNAL, never UNKNOWN."""
    code, details = failure(lambda: list(channel.unary_stream(GENERATE)(b"\x0a\xff\xff\xff")))

    assert (code, "protobuf" in details) == (grpc.StatusCode.INTERNAL, True)


def test_unknown_method_is_unimplemented(channel: grpc.Channel) -> None:
    """A method that does not exist is UNIMPLEMENTED."""
    code, _ = failure(lambda: channel.unary_unary("/statewise.v1.GenerationService/Nope")(b""))

    assert code == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_message_over_the_limit_is_resource_exhausted(stub, compression: grpc.Compression) -> None:
    """A request over the size limit is RESOURCE_EXHAUSTED, also where it is small only while compressed."""
    code, _ = failure(lambda: list(stub.Generate(request(text="a" * (2 << 20)), compression=compression)))

    assert code == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_deadline_in_the_past(server: Application, stub: GenerationServiceStub) -> None:
    """A deadline that has passed is DEADLINE_EXCEEDED."""
    code, _ = failure(lambda: list(stub.Generate(request(text="a"), timeout=-1)))

    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
