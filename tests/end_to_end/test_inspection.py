"""What models show, from the exported graph through the server to clients and pictures."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from statewise.bundles.reader import open_bundle
from statewise.cli import main
from statewise.client import AsyncClient, Client
from statewise.v1 import generation_pb2, prediction_pb2
from statewise.v1.prediction_pb2_grpc import PredictionServiceStub
from statewise_export.certify.certify import run_checks
from statewise_export.certify.sequences.graphs import INSPECT
from statewise_export.certify.trial import Trial
from statewise_export.graphs.variant import Tracer
from statewise_server.app import Application
from statewise_training.data.tokenizers import byte_level
from tests.inspected import MAX_POSITIONS, NUM_HEADS, START, checkpoint_of, repository
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


def ids_of(text: str) -> list[int]:
    return byte_level().encode(text, add_special_tokens=False).ids


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
    ids = ids_of("to é")
    expected = shown_by_pytorch("attentive", torch.tensor([START, *ids]))
    assert list(inspection.tensors) == ["attention.0"]
    for name, weights in inspection.tensors.items():
        assert weights.shape == (NUM_HEADS, 6, 6)
        np.testing.assert_allclose(weights, expected[name], atol=1e-5)
        np.testing.assert_allclose(weights.sum(2), 1, atol=1e-5)


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
    by_text, by_ids = client.inspect("attentive", "abc"), client.inspect("attentive", ids_of("abc"))

    assert by_text.items == by_ids.items
    for name, weights in by_text.tensors.items():
        np.testing.assert_array_equal(by_ids.tensors[name], weights)


async def ask_async(address: str) -> dict[str, np.ndarray]:
    async with AsyncClient(address) as client:
        return dict((await client.inspect("attentive", "abc", timeout=60)).tensors)


def test_the_asynchronous_client_gives_the_same(server: Application, client: Client) -> None:
    """Both clients are one."""
    tensors = asyncio.run(ask_async(server.address))

    for name, weights in client.inspect("attentive", "abc").tensors.items():
        np.testing.assert_array_equal(tensors[name], weights)


BAD_INPUT = {
    "no input": ({"model": "attentive"}, INVALID, "input: is missing"),
    "vectors for text": (
        {"model": "attentive", "input": {"vectors": {"features": 1, "values": [1]}}},
        INVALID,
        "input.vectors.values: model 'attentive' reads tokens or text",
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
    monkeypatch.setattr("statewise_server.local.predicting.MAX_INSPECTED_NUMBERS", NUM_HEADS * 10**2)
    with Client(server.address, timeout=60) as client:
        with pytest.raises(
            Exception, match="of 11 items would be 242 numbers, at most 200 are given; give at most 10 it"
        ):
            client.inspect("attentive", "a" * 10)

        assert len(client.inspect("attentive", "a" * 9).items) == 10


def plot(server: Application, *arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["plot", *map(str, arguments), "--address", server.address])
    return int(stopped.value.code or 0)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """Thirty moments of two numbers."""
    path = tmp_path / "series.csv"
    np.savetxt(path, np.random.default_rng(1).standard_normal((30, 2)), delimiter=",")
    return path


def size_of(picture: Path) -> tuple[int, int]:
    """Width and height of a picture that is not blank."""
    pixels = imread(picture)
    assert pixels.std() > 0.05
    return pixels.shape[1], pixels.shape[0]


def test_attention_of_a_served_model_becomes_a_picture(server: Application, tmp_path: Path, capsys) -> None:
    """All heads stand side by side, and one head alone takes half of the room."""
    assert plot(server, "attention", "attentive", "The cat sat on the mat", "-o", tmp_path / "all.png") == 0
    assert plot(server, "attention", "attentive", "The cat", "--head", "1", "-o", tmp_path / "one.png") == 0

    assert capsys.readouterr().out.splitlines()[-1] == f"picture: {tmp_path / 'one.png'}"
    (width, height), (width_of_one, height_of_one) = size_of(tmp_path / "all.png"), size_of(tmp_path / "one.png")
    assert (height, width_of_one < 0.7 * width) == (height_of_one, True)


def test_gates_of_a_served_model_become_a_picture(server: Application, series: Path, tmp_path: Path) -> None:
    """Both layers stand below each other, and one layer alone takes about half of the room."""
    assert plot(server, "gates", "gated", "--series", series, "-o", tmp_path / "all.png") == 0
    assert plot(server, "gates", "gated", "--series", series, "--layer", "1", "-o", tmp_path / "one.png") == 0

    (width, height), (width_of_one, height_of_one) = size_of(tmp_path / "all.png"), size_of(tmp_path / "one.png")
    assert (width, height_of_one < 0.7 * height) == (width_of_one, True)


BAD_PLOTS = {
    "gates of a Transformer": (("gates", "attentive", "ab"), "'attentive' shows no gates (it shows attention.0)"),
    "attention of an LSTM": (("attention", "gated", "--series", "SERIES"), "use `statewise plot gates`"),
    "a layer beyond the last": (("attention", "attentive", "ab", "--layer", "7"), "no layer 7 (layers: 0)"),
    "a head beyond the last": (("attention", "attentive", "ab", "--head", "2"), "no head 2; the heads are 0 to 1"),
    "a layer that is no number": (
        ("attention", "attentive", "ab", "--layer", "-1"),
        "--layer: must be a number from 0",
    ),
    "no input": (("attention", "attentive"), "give one of text, --tokens and --series, got none"),
    "two inputs": (("attention", "attentive", "ab", "--tokens", "1"), "got text and --tokens"),
    "ids that are none": (("attention", "attentive", "--tokens", "1,x"), "--tokens: must be ids"),
    "a series that is not there": (("gates", "gated", "--series", "nowhere.csv"), "nowhere.csv"),
    "a model that shows nothing": (
        ("gates", "sum", "--series", "SERIES"),
        "export it with `statewise export --inspect`",
    ),
    "another format": (("gates", "gated", "--series", "SERIES", "-o", "a.jpg"), "a.jpg does not end in .png"),
}


@pytest.mark.parametrize("case", BAD_PLOTS)
def test_what_cannot_be_drawn_is_told(
    server: Application, series: Path, case: str, tmp_path: Path, monkeypatch, capsys
) -> None:
    """Exit code 2, one message with what is possible, and no picture."""
    arguments, message = BAD_PLOTS[case]
    monkeypatch.chdir(tmp_path)

    assert plot(server, *(series if argument == "SERIES" else argument for argument in arguments)) == 2

    assert message in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert list(tmp_path.iterdir()) == [series]


def test_the_certificate_finds_a_gate_that_is_not_pytorchs() -> None:
    """Beside a module whose forget gates stand a little further open, the graph misses, and names no other graph."""
    checkpoint, bundle = checkpoint_of("gated"), open_bundle(repository() / "gated" / "1")
    module = copy.deepcopy(checkpoint.module)
    with torch.no_grad():
        module.rnn.bias_ih_l1[8:16] += 1e-3  # input, forget, cell, output

    def missed(module: torch.nn.Module) -> set[str]:
        trial = Trial(bundle, "cpu-float32", Tracer(replace(checkpoint, module=module)))
        return {outcome.name for outcome in run_checks(trial, [INSPECT]) if not outcome.passed}

    assert missed(checkpoint.module) == set()
    assert missed(module) == {"inspect: against PyTorch"}


def test_verify_makes_the_certificate_of_what_is_shown_again(capsys) -> None:
    """Its table has a line for the graph."""
    with pytest.raises(SystemExit) as stopped:
        main(["verify", str(repository() / "gated")])

    assert stopped.value.code == 0
    assert "inspect: against PyTorch" in " ".join(capsys.readouterr().err.split())
