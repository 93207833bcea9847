"""GenerationService over a real connection: what it refuses, and that nothing stays behind."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import grpc
import pytest

from statewise.v1 import generation_pb2 as pb
from statewise.v1.generation_pb2_grpc import GenerationServiceStub
from statewise_server.app import Application

INVALID = grpc.StatusCode.INVALID_ARGUMENT
GENERATE = "/statewise.v1.GenerationService/Generate"


def request(model: str = "text", **fields: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(model=model, **fields)


def sampled(**fields: object) -> pb.GenerateRequest:
    return request(text="a", sampling=pb.SamplingParameters(**fields))


def stopped(**fields: object) -> pb.GenerateRequest:
    return request(text="a", stop=pb.StopConditions(**fields))


def endless(model: str = "text") -> pb.GenerateRequest:
    return request(model, stop=pb.StopConditions(max_tokens=500_000, ignore_end_token=True))


def generate(stub: GenerationServiceStub, message: pb.GenerateRequest) -> list[pb.GenerateResponse]:
    return list(stub.Generate(message, timeout=30))


def failure(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.005)


def in_use(server: Application) -> int:
    engines = [entry.engine for entry in server.repository.entries() if entry.engine]
    return sum(engine.num_running + engine.num_waiting for engine in engines)


@pytest.fixture(autouse=True)
def _canary(server: Application, stub: GenerationServiceStub):
    """After each test no row is in use, and an ordinary request is answered."""
    yield
    wait_until(lambda: in_use(server) == 0)
    responses = generate(stub, stopped(max_tokens=3, ignore_end_token=True))
    assert sum(len(response.tokens) for response in responses) == 3


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


def test_deadline_during_the_answer_ends_it(server: Application, stub: GenerationServiceStub) -> None:
    """When the deadline passes the stream ends, and its row is free."""
    code, _ = failure(lambda: list(stub.Generate(endless(), timeout=0.3)))

    assert code == grpc.StatusCode.DEADLINE_EXCEEDED


def test_full_queue_is_resource_exhausted_and_cancelling_makes_room(server, stub) -> None:
    """With two rows and one place to wait, the fourth request is refused; a cancelled one makes room."""
    running = [stub.Generate(endless()) for _ in range(2)]
    for call in running:
        next(call)
    waiting = stub.Generate(endless())
    engine = server.repository.get("text")
    wait_until(lambda: engine.num_waiting == 1)

    code, details = failure(lambda: list(stub.Generate(endless())))
    waiting.cancel()
    wait_until(lambda: engine.num_waiting == 0)

    assert (code, "retry later" in details) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True)
    assert engine.num_running == 2
    for call in running:
        call.cancel()


def test_cancelling_frees_the_row(server: Application, stub: GenerationServiceStub) -> None:
    """A cancelled stream's row is free soon after."""
    call = stub.Generate(endless())
    next(call)
    assert in_use(server) == 1

    call.cancel()

    wait_until(lambda: in_use(server) == 0)


def test_killed_client_frees_the_row(server: Application) -> None:
    """A client that is killed while its stream runs leaves no row behind."""
    program = (
        "import sys; from statewise import Client\n"
        "for chunk in Client(sys.argv[1]).stream('text', '', max_tokens=500_000, ignore_end_token=True): pass"
    )
    client = subprocess.Popen([sys.executable, "-c", program, server.address])
    wait_until(lambda: in_use(server) == 1)

    os.kill(client.pid, signal.SIGKILL)
    client.wait()

    wait_until(lambda: in_use(server) == 0)


def test_first_and_last_message_say_what_only_they_say(stub: GenerationServiceStub) -> None:
    """The first message tells what answers, the last one why it ended and what was used."""
    responses = generate(stub, stopped(max_tokens=40, ignore_end_token=True))

    assert [response.HasField("info") for response in responses] == [True] + [False] * (len(responses) - 1)
    assert [response.HasField("usage") for response in responses] == [False] * (len(responses) - 1) + [True]
    assert (responses[0].info.model, responses[0].info.version) == ("text", 1)
    assert responses[-1].finish_reason == pb.FINISH_REASON_LENGTH
    assert responses[-1].usage == pb.Usage(prompt_tokens=2, completion_tokens=40)


def test_seed_that_the_server_picks_repeats_the_answer(stub: GenerationServiceStub) -> None:
    """Without a seed the server picks one, and with it the same tokens come again."""
    stop = pb.StopConditions(max_tokens=40, ignore_end_token=True)
    first = generate(stub, request(text="a", stop=stop, sampling=pb.SamplingParameters()))
    seed = first[0].info.seed

    again = generate(stub, request(text="a", stop=stop, sampling=pb.SamplingParameters(seed=seed)))

    assert [t for r in again for t in r.tokens] == [t for r in first for t in r.tokens]


def test_log_probabilities_come_with_each_token(stub: GenerationServiceStub) -> None:
    """Each token has its own log-probability and those of the most probable tokens, in falling order."""
    message = request(
        text="a",
        stop=pb.StopConditions(max_tokens=5, ignore_end_token=True),
        log_probabilities=pb.LogProbabilityOptions(top=3),
    )

    responses = generate(stub, message)

    entries = [entry for response in responses for entry in response.log_probabilities]
    tokens = [token for response in responses for token in response.tokens]
    assert [entry.token for entry in entries] == tokens
    for entry in entries:
        top = [other.log_probability for other in entry.top]
        assert (len(top), sorted(top, reverse=True)) == (3, top)
        # Greedy: the chosen token is the most probable one.
        assert (entry.top[0].token, top[0]) == (entry.token, entry.log_probability)


def test_models_are_described(stub: GenerationServiceStub) -> None:
    """ListModels gives every model with its limits, and GetModel the same for one."""
    models = {model.name: model for model in stub.ListModels(pb.ListModelsRequest()).models}

    assert sorted(models) == ["broken", "plain", "sum", "sums", "text"]
    text, real = models["text"], models["sum"]
    assert (text.input_kind, text.head_kind, text.input_size) == ("tokens", "categorical", 258)
    assert (text.has_tokenizer, text.start_token, text.end_token) == (True, 0, 1)
    assert (text.max_rows, text.max_waiting, text.max_prompt_tokens) == (2, 1, 64)
    assert (real.input_kind, real.input_size, real.HasField("start_token")) == ("real", 2, False)
    assert stub.GetModel(pb.GetModelRequest(model="text")).model == text
