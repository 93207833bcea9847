"""Both clients against a real server: the same answers, the same errors, nothing left behind."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from statewise import (
    AsyncClient,
    BundleError,
    Client,
    DeadlineExceededError,
    Generation,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    StatewiseError,
    UnavailableError,
)
from statewise.client import core
from statewise.client.values import Chunk
from statewise.v1 import generation_pb2 as pb
from statewise_server.app import Application
from tests.serving import running_server

ENDLESS: dict[str, Any] = {"max_tokens": 60_000, "ignore_end_token": True}


def call_sync(address: str, method: str, *arguments: Any, **options: Any) -> Any:
    with Client(address) as client:
        return getattr(client, method)(*arguments, **options)


def call_async(address: str, method: str, *arguments: Any, **options: Any) -> Any:
    async def run() -> Any:
        async with AsyncClient(address) as client:
            return await getattr(client, method)(*arguments, **options)

    return asyncio.run(run())


both = pytest.mark.parametrize("call", [call_sync, call_async], ids=["sync", "async"])


def wait_until_free(server: Application) -> None:
    engine = server.repository.get("text")
    deadline = time.monotonic() + 10
    while engine.num_running or engine.num_waiting:
        assert time.monotonic() < deadline, "a row is still in use"
        time.sleep(0.005)


@both
def test_text_is_continued(server: Application, call: Callable[..., Any]) -> None:
    """An answer has text, tokens, the reason of its end, and what answered."""
    answer = call(server.address, "generate", "text", "héllo", max_tokens=20, ignore_end_token=True, seed=3)

    assert isinstance(answer, Generation)
    assert (len(answer.tokens), answer.finish_reason) == (20, "length")
    assert answer.text == server.repository.get("text").tokenizer.decode(list(answer.tokens))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (7, 20)
    assert (answer.info.model, answer.info.version, answer.info.seed) == ("text", 1, 3)


@both
@pytest.mark.parametrize("prompt", [[3, 4, 5], np.array([3, 4, 5]), (3, 4, 5), np.array([3, 4, 5], np.uint8)])
def test_every_spelling_of_ids_gives_the_same(server: Application, call: Callable[..., Any], prompt: Any) -> None:
    """Ids may be any sequence or array of integers."""
    expected = call(server.address, "generate", "text", "\x01\x02\x03", max_tokens=5, ignore_end_token=True)

    answer = call(server.address, "generate", "text", prompt, max_tokens=5, ignore_end_token=True)

    assert answer.tokens == expected.tokens


@both
def test_real_vectors_are_continued(server: Application, call: Callable[..., Any]) -> None:
    """Vectors go in and come out as arrays: this model adds up what it has read, and then itself."""
    answer = call(server.address, "generate", "sum", np.array([[1.0, 2.0], [3.0, 4.0]]), max_tokens=3)

    assert answer.vectors.dtype == np.float32
    assert answer.vectors.tolist() == [[4.0, 6.0], [8.0, 12.0], [16.0, 24.0]]


@both
def test_log_probabilities(server: Application, call: Callable[..., Any]) -> None:
    """With logprobs=n each token has its log-probability and the n most probable ones."""
    answer = call(server.address, "generate", "text", "a", max_tokens=4, ignore_end_token=True, logprobs=2)

    assert [entry.token for entry in answer.log_probabilities] == list(answer.tokens)
    assert [len(entry.top) for entry in answer.log_probabilities] == [2] * 4


@both
def test_models_are_described(server: Application, call: Callable[..., Any]) -> None:
    """Every model is listed with its state; one alone is described the same way."""
    models = {model.name: model for model in call(server.address, "models")}

    assert {name: model.state for name, model in models.items()} == {
        "broken": "refused",
        "plain": "ready",
        "sum": "ready",
        "sums": "ready",
        "text": "ready",
    }
    assert "changed since it was written" in models["broken"].reason
    assert (models["text"].start_token, models["plain"].start_token) == (0, None)
    assert (models["text"].methods, models["sums"].methods) == (("Generate", "Score"), ("Predict",))
    assert (models["text"].labels, models["sums"].labels) == ((), ("first", "second"))
    assert call(server.address, "model", "text") == models["text"]


@both
@pytest.mark.parametrize(
    ("kind", "arguments", "options", "message"),
    [
        (NotFoundError, ("nope", "a"), {}, "'nope'.*plain, sum, sums, text"),
        (BundleError, ("broken", "a"), {}, "changed since it was written"),
        (InvalidRequestError, ("text", "a"), {"temperature": -1}, "^temperature: must lie in"),
        (InvalidRequestError, ("text", "a"), {"max_tokens": "many"}, "max_tokens: cannot be sent"),
        (InvalidRequestError, ("text", "a"), {"seed": -1}, "seed: cannot be sent"),
        (InvalidRequestError, ("text", "\ud800"), {}, "^prompt: cannot be sent"),
        (InvalidRequestError, ("text", [1.5]), {}, "prompt: must be text, integers"),
        (InvalidRequestError, ("text", np.zeros((2, 2, 2))), {}, "prompt: must be text, integers"),
        (DeadlineExceededError, ("text", "a"), {"timeout": 0.2, **ENDLESS}, "[Dd]eadline"),
    ],
)
def test_errors_are_statewises_own(
    server: Application, call: Callable[..., Any], kind: type, arguments: Any, options: Any, message: str
) -> None:
    """Whatever goes wrong, on either side, is raised as the error that it is."""
    with pytest.raises(kind, match=message):
        call(server.address, "generate", *arguments, **options)

    wait_until_free(server)


@both
def test_field_at_fault_is_given(server: Application, call: Callable[..., Any]) -> None:
    """The error of a bad request names the field for programs, too."""
    with pytest.raises(InvalidRequestError) as caught:
        call(server.address, "generate", "text", "a", top_p=0.0)

    assert caught.value.field == "top_p"


@both
def test_unreachable_server_is_told_with_the_address(call: Callable[..., Any]) -> None:
    """Without a server the error says where it was looked for, and how to start one."""
    with pytest.raises(UnavailableError, match=r"at 127\.0\.0\.1:1 .*statewise serve"):
        call("127.0.0.1:1", "models")


@both
def test_misspelt_option_is_refused(server: Application, call: Callable[..., Any]) -> None:
    """An option that does not exist is a TypeError, as for any Python function."""
    with pytest.raises(TypeError, match="max_token"):
        call(server.address, "generate", "text", "a", max_token=1)


def test_values_are_frozen(server: Application) -> None:
    """What a client returns cannot be changed by accident."""
    answer = call_sync(server.address, "generate", "text", "a", max_tokens=1)

    with pytest.raises(dataclasses.FrozenInstanceError):
        answer.text = "other"


def test_sampling_is_asked_for_only_where_an_option_says_so() -> None:
    """Without a sampling option the request is greedy; `None` is the same as leaving an option out."""
    plain = core.generate_request("m", "a", {"temperature": None, "seed": None})
    sampled = core.generate_request("m", "a", {"top_k": 5})

    assert not plain.HasField("sampling")
    assert sampled.sampling == pb.SamplingParameters(top_k=5)


def test_answer_without_an_end_is_an_error() -> None:
    """A stream that ends without its last message is not taken for an answer."""
    chunk = Chunk("a", (1,), None, (), None, None, None)

    with pytest.raises(InternalError, match="has no end"):
        core.fold([chunk])
    assert issubclass(InternalError, StatewiseError)


@both
def test_sequences_are_labelled(server: Application, call: Callable[..., Any]) -> None:
    """Each sequence gets its label with the probability of every one, and what answered is told."""
    first, second = call(server.address, "predict", "sums", [[1, 2], np.array([0])])

    assert (first.label, second.label) == ("second", "first")
    assert second.probabilities == {"first": 0.5, "second": 0.5}
    assert (first.tags, first.embedding, first.value) == (None, None, None)
    assert (first.info.model, first.info.version, first.info.variant) == ("sums", 1, "cpu-float32")


@both
def test_sequences_are_scored(server: Application, call: Callable[..., Any]) -> None:
    """A text's score has a log-probability for each of its items, and a perplexity that follows from them."""
    (score,) = call(server.address, "score", "text", ["ab"])

    assert score.tokens == (99, 100)
    assert score.log_probabilities.shape == (2,)
    assert score.total == pytest.approx(float(score.log_probabilities.sum()))
    assert score.perplexity == pytest.approx(np.exp(-score.total / 2))


@both
def test_one_text_is_no_list_of_sequences(server: Application, call: Callable[..., Any]) -> None:
    """A text given where a list is wanted would be read letter by letter; it is refused instead."""
    with pytest.raises(InvalidRequestError, match="inputs: must be a list of sequences"):
        call(server.address, "score", "text", "ab")


def test_a_length_penalty_of_zero_is_sent() -> None:
    """0 ranks by log-probability alone; it is not the same as leaving it out, which is 1."""
    request = core.generate_request("m", "a", {"num_beams": 2, "length_penalty": 0.0, "early_stopping": False})

    assert request.beam_search.HasField("length_penalty")
    assert request.beam_search.length_penalty == 0.0


def test_more_streams_than_the_server_takes_are_refused_with_the_reason() -> None:
    """Every one of them, however many come at once over one connection: RESOURCE_EXHAUSTED, not a lost connection."""

    async def run(address: str) -> list[Any]:
        async with AsyncClient(address) as client:
            calls = [client.generate("text", "a", max_tokens=1000, ignore_end_token=True) for _ in range(1200)]
            return await asyncio.gather(*calls, return_exceptions=True)

    with running_server(max_streams=20) as server:
        answers = asyncio.run(run(server.address))

    errors = [answer for answer in answers if not isinstance(answer, Generation)]
    assert errors
    assert {(type(error), str(error)) for error in errors} == {
        (OverloadedError, "20 streams are open already; retry later")
    }
