"""GenerationService over a real connection: what it refuses, and that nothing stays behind."""

from __future__ import annotations

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


def request(model: str = "text", **fields: object) -> pb.GenerateRequest:
    return pb.GenerateRequest(model=model, **fields)


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
def canary(server: Application, stub: GenerationServiceStub):
    """After each test no row is in use, and an ordinary request is answered."""
    yield
    wait_until(lambda: in_use(server) == 0)
    responses = generate(stub, stopped(max_tokens=3, ignore_end_token=True))
    assert sum(len(response.tokens) for response in responses) == 3


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
