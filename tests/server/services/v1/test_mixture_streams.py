"""Vectors of a mixture model, streamed: what may be asked, and that it is what the rules say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from statewise import Client, InvalidRequestError
from statewise.rules.mixture import log_density
from statewise.rules.sampling import SamplingParams
from statewise.v1 import generation_pb2 as pb
from statewise.v1.generation_pb2_grpc import GenerationServiceStub
from statewise_server.app import Application
from tests.models import make_repository, reference_decoder
from tests.serving import running_server

MODEL = "lstm-mixture"
PROMPT = np.random.default_rng(1).standard_normal((20, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    with running_server(models=make_repository(tmp_path_factory.mktemp("models"), MODEL)) as application:
        yield application


@pytest.fixture(scope="module")
def client(server: Application) -> Iterator[Client]:
    with Client(server.address, timeout=30) as client:
        yield client


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 2.0])
def test_vectors_are_what_the_reference_draws(temperature: float, client: Client) -> None:
    """The same seed gives PyTorch, by the rules in NumPy, the same series; a log-density comes with each vector."""
    answer = client.generate(MODEL, PROMPT, max_tokens=40, temperature=temperature, seed=5, logprobs=0)
    params = SamplingParams(seed=5, temperature=temperature)

    (expected,), (outputs,) = reference_decoder(MODEL).generate([PROMPT], [params], 40)
    densities = [entry.log_probability for entry in answer.log_probabilities]

    assert answer.vectors == pytest.approx(expected, abs=1e-3)
    head = reference_decoder(MODEL).spec.head
    assert densities == pytest.approx(log_density(outputs, expected, head), abs=1e-2)
    assert answer.info.seed == 5


def test_without_sampling_the_answer_is_the_most_probable_components_mean(client: Client) -> None:
    """Greedy, as for tokens; and with a seed alone the temperature is 1."""
    greedy = client.generate(MODEL, PROMPT, max_tokens=10)

    assert np.array_equal(greedy.vectors, client.generate(MODEL, PROMPT, max_tokens=10, temperature=0.0).vectors)
    drawn = client.generate(MODEL, PROMPT, max_tokens=10, seed=3)
    assert np.array_equal(drawn.vectors, client.generate(MODEL, PROMPT, max_tokens=10, seed=3, temperature=1.0).vectors)
    assert not np.array_equal(greedy.vectors, drawn.vectors)


def test_a_stream_gives_what_the_whole_answer_gives(client: Client) -> None:
    """Vectors come as they are made, in one message or many."""
    whole = client.generate(MODEL, PROMPT, max_tokens=300, seed=9)
    with client.stream(MODEL, PROMPT, max_tokens=300, seed=9) as chunks:
        streamed = np.concatenate([chunk.vectors for chunk in chunks if chunk.vectors is not None])

    assert streamed.tobytes() == whole.vectors.tobytes()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "top_k": ({"top_k": 3}, "top_k"),
    "top_p": ({"top_p": 0.5}, "top_p"),
    "a penalty": ({"repetition_penalty": 1.5}, "repetition_penalty"),
    "a bias": ({"logit_bias": {1: 1.0}}, "logit_bias"),
    "temperature NaN": ({"temperature": float("nan")}, "temperature"),
    "alternatives": ({"logprobs": 2}, "logprobs"),
    "another width": ({"prompt": PROMPT[:, :2]}, "prompt.features"),
    "infinity": ({"prompt": np.full((2, 3), np.inf, np.float32)}, "prompt"),
    "stop strings": ({"stop": "x"}, "stop"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_has_no_meaning_is_refused(name: str, client: Client) -> None:
    """Every rule that works on tokens, by its field."""
    options, field = BAD[name]

    with pytest.raises(InvalidRequestError) as caught:
        client.generate(MODEL, **({"prompt": PROMPT, "max_tokens": 2} | options))

    assert caught.value.field == field


def test_scores_are_log_densities(client: Client) -> None:
    """Of each vector given those before it; the first has none."""
    (score,) = client.score(MODEL, [PROMPT])

    outputs = reference_decoder(MODEL).outputs([PROMPT])[0]
    expected = log_density(outputs[:-1], PROMPT[1:], reference_decoder(MODEL).spec.head)

    assert score.log_probabilities == pytest.approx(expected, abs=1e-3)


def test_the_model_tells_its_head(client: Client) -> None:
    """So that a client knows that it may ask for a forecast."""
    model = client.model(MODEL)

    assert (model.input_kind, model.head_kind, model.input_size) == ("real", "mixture", 3)


def test_a_response_holds_vectors_and_no_tokens(server: Application) -> None:
    """On the wire a log-density is a log-probability without a token."""
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = GenerationServiceStub(channel)  # type: ignore[no-untyped-call] # generated
        request = pb.GenerateRequest(
            model=MODEL,
            vectors=pb.VectorSequence(features=3, values=PROMPT.ravel()),
            stop=pb.StopConditions(max_tokens=1),
            log_probabilities=pb.LogProbabilityOptions(),
        )
        (response,) = stub.Generate(request)

    assert not response.tokens
    assert len(response.vectors.values) == 3
    assert [(entry.token, len(entry.top)) for entry in response.log_probabilities] == [(0, 0)]
