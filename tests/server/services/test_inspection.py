"""PredictionService.Inspect over a real connection."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import numpy as np
import pytest
import torch

from server.app import Application
from statewise.client import AsyncClient, Client
from statewise.v1 import generation_pb2, prediction_pb2
from statewise.v1.prediction_pb2_grpc import PredictionServiceStub
from tests.inspected import MAX_POSITIONS, NUM_HEADS, NUM_LAYERS, START, checkpoint_of, repository
from tests.serving import running_server

INVALID, MISSING = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


@pytest.fixture(scope="module")
def server() -> Iterator[Application]:
    with running_server(models=repository()) as application:
        yield application


@pytest.fixture
def client(server: Application) -> Iterator[Client]:
    with Client(server.address, timeout=60) as client:
        yield client


def shown_by_pytorch(name: str, items: torch.Tensor) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        shown = checkpoint_of(name).module.inspect(items[None], torch.tensor([len(items)]))
    return {name: tensor[0].numpy() for name, tensor in shown.items()}


def test_text_shows_pytorchs_attention_with_its_items(client: Client) -> None:
    """The start token stands first, every item is named, and each layer's weights are PyTorch's."""
    inspection = client.inspect("attentive", "to é")

    assert inspection.items[:4] == ("<start>", "t", "o", " ")
    assert len(inspection.items) == 6  # é is two bytes, each of which has a name of its own
    assert all(inspection.items)
    assert (inspection.info.model, inspection.info.version) == ("attentive", 1)
    ids = checkpoint_ids("to é")
    expected = shown_by_pytorch("attentive", torch.tensor([START, *ids]))
    assert list(inspection.tensors) == [f"attention.{layer}" for layer in range(NUM_LAYERS)]
    for name, weights in inspection.tensors.items():
        assert weights.shape == (NUM_HEADS, 6, 6)
        np.testing.assert_allclose(weights, expected[name], atol=1e-5)
        np.testing.assert_allclose(weights.sum(2), 1, atol=1e-5)


def checkpoint_ids(text: str) -> list[int]:
    from training.tokenizers import byte_level

    return byte_level().encode(text, add_special_tokens=False).ids


def test_vectors_show_pytorchs_gates(client: Client) -> None:
    """A model of real vectors has no names for its items, and its gates are PyTorch's."""
    series = np.random.default_rng(0).standard_normal((21, 2)).astype(np.float32)

    inspection = client.inspect("gated", series)

    expected = shown_by_pytorch("gated", torch.from_numpy(series))
    assert inspection.items == ()
    assert list(inspection.tensors) == list(expected)
    for name, gate in inspection.tensors.items():
        np.testing.assert_allclose(gate, expected[name], atol=1e-5)


def test_token_ids_show_what_the_text_shows(client: Client) -> None:
    """Ids may be sent in place of text."""
    by_text, by_ids = client.inspect("attentive", "abc"), client.inspect("attentive", checkpoint_ids("abc"))

    assert by_text.items == by_ids.items
    for name, weights in by_text.tensors.items():
        np.testing.assert_array_equal(by_ids.tensors[name], weights)


async def ask_async(address: str) -> dict[str, np.ndarray]:
    async with AsyncClient(address) as client:
        return dict((await client.inspect("attentive", "abc", timeout=60)).tensors)


def test_the_asynchronous_client_gives_the_same(server: Application, client: Client) -> None:
    """Both clients are one."""
    import asyncio

    tensors = asyncio.run(ask_async(server.address))

    for name, weights in client.inspect("attentive", "abc").tensors.items():
        np.testing.assert_array_equal(tensors[name], weights)


BAD_INPUT = {
    "no input": ({"model": "attentive"}, INVALID, "input: is missing"),
    "vectors for text": (
        {"model": "attentive", "input": {"vectors": {"features": 1, "values": [1]}}},
        INVALID,
        "input.vectors: model 'attentive' reads tokens or text",
    ),
    "text for vectors": (
        {"model": "gated", "input": {"text": "a"}},
        INVALID,
        "input.text: model 'gated' reads vectors",
    ),
    "a wrong width": (
        {"model": "gated", "input": {"vectors": {"features": 3, "values": [1, 2, 3]}}},
        INVALID,
        "input.vectors.features: model 'gated' reads 2 features, got 3",
    ),
    "no vectors": (
        {"model": "gated", "input": {"vectors": {"features": 2}}},
        INVALID,
        "input.vectors.values: must hold time x 2 numbers",
    ),
    "half a vector": (
        {"model": "gated", "input": {"vectors": {"features": 2, "values": [1, 2, 3]}}},
        INVALID,
        "must hold time x 2 numbers, time at least 1; got 3",
    ),
    "NaN": (
        {"model": "gated", "input": {"vectors": {"features": 2, "values": [1, float("nan")]}}},
        INVALID,
        "input.vectors.values: holds NaN",
    ),
    "an id outside the vocabulary": (
        {"model": "attentive", "input": {"tokens": {"ids": [3, 258]}}},
        INVALID,
        "input.tokens.ids: id 258 is outside the vocabulary (0 to 257)",
    ),
    "a sequence beyond the model": (
        {"model": "attentive", "input": {"text": "a" * MAX_POSITIONS}},
        INVALID,
        f"input.text: has {MAX_POSITIONS + 1} items, a start token included; at most {MAX_POSITIONS} are allowed",
    ),
    "a negative version": (
        {"model": "attentive", "version": -1, "input": {"text": "a"}},
        INVALID,
        "version: must be 0",
    ),
    "an unknown model": ({"model": "nobody", "input": {"text": "a"}}, MISSING, "no model 'nobody'"),
    "a model that shows nothing": (
        {"model": "sum", "input": {"vectors": {"features": 2, "values": [1, 2]}}},
        INVALID,
        "`statewise export --inspect`",
    ),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_told_with_its_field(server: Application, case: str) -> None:
    """Each has a code and a message with the field, the value and what is possible."""
    fields, code, message = BAD_INPUT[case]
    given = dict(fields)
    sequence = generation_pb2.Items(**given.pop("input", {}))
    request = prediction_pb2.InspectRequest(**given)
    if sequence.WhichOneof("kind"):
        request.input.CopyFrom(sequence)

    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        PredictionServiceStub(channel).Inspect(request, timeout=30)

    assert caught.value.code() is code, caught.value.details()
    assert message in caught.value.details()


def test_an_answer_that_would_be_too_large_is_refused_before_it_is_made(server: Application, monkeypatch) -> None:
    """The message has the numbers, and the longest sequence that it names is answered."""
    monkeypatch.setattr("server.services.inspection.MAX_NUMBERS", NUM_LAYERS * NUM_HEADS * 10**2)
    with Client(server.address, timeout=60) as client:
        with pytest.raises(
            Exception, match="of 11 items would be 484 numbers, at most 400 are sent; give at most 10 it"
        ):
            client.inspect("attentive", "a" * 10)

        assert len(client.inspect("attentive", "a" * 9).items) == 10
