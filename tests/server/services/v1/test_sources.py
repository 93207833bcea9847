"""Encoder-decoders and beam search from client to engine and back, over a real connection."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from statewise import cli
from statewise.client import AsyncClient, Client
from statewise.errors import DeadlineExceededError, InvalidRequestError
from statewise.rules.sampling import GREEDY
from statewise.v1 import generation_pb2 as pb
from statewise.v1.generation_pb2_grpc import GenerationServiceStub
from statewise_export.pipeline import export_checkpoint
from statewise_server.app import Application
from statewise_training.reference.decoding import ReferenceDecoder
from tests.models import START, byte_tokenizer, make_checkpoint
from tests.serving import running_server

LONGEST = 24
SOURCE = "9. März"
IDS = byte_tokenizer().encode(SOURCE, add_special_tokens=False).ids
OPTIONS = {
    "plugin": "lstm_encoder_decoder",
    "text": True,
    "source_vocabulary_size": 258,
    "hidden_size": 16,
    "num_layers": 1,
    "max_source_positions": LONGEST,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Application, ReferenceDecoder]]:
    """A server of one encoder-decoder over bytes, and the model's reference."""
    folder = tmp_path_factory.mktemp("models")
    checkpoint = make_checkpoint("dates", tmp_path_factory.mktemp("checkpoint") / "dates", options=OPTIONS)
    export_checkpoint(checkpoint, folder)
    with running_server(models=folder, engine={"max_rows": 8}) as server:
        yield server, ReferenceDecoder(checkpoint.module, checkpoint.plugin.spec(checkpoint.config))


@pytest.fixture(scope="module")
def address(served: tuple[Application, ReferenceDecoder]) -> str:
    return f"127.0.0.1:{served[0].port}"


def run(capfd: Any, *arguments: str) -> tuple[str, str]:
    """Run the command in this process; returns standard output and standard error."""
    with pytest.raises(SystemExit) as exit_info:
        cli.main(arguments)
    assert not exit_info.value.code
    return capfd.readouterr()


def test_a_source_is_decoded_from_an_empty_prompt(served: tuple[Application, ReferenceDecoder], address: str) -> None:
    """Text and token ids mean the same source; the start token begins, and the items read are counted."""
    (expected,), _ = served[1].generate([np.array([START])], [GREEDY], 9, [np.array(IDS)])

    with Client(address) as client:
        text = client.generate("dates", source=SOURCE, max_tokens=9, ignore_end_token=True)
        tokens = client.generate("dates", [], source=IDS, max_tokens=9, ignore_end_token=True)
        model = client.model("dates")

    assert text.tokens == tokens.tokens == tuple(expected.tolist())
    assert (text.usage.prompt_tokens, text.usage.source_tokens) == (1, len(IDS))
    assert (model.source_kind, model.source_size, model.max_source_tokens) == ("tokens", 258, LONGEST)


def test_both_clients_and_the_command_search_with_beams(address: str, capfd: Any) -> None:
    """The same hypotheses, best first; text and tokens of the answer are the first one's."""
    options = {"num_beams": 4, "num_hypotheses": 3, "length_penalty": 0.5, "max_tokens": 6, "temperature": 0.0}

    async def ask() -> object:
        async with AsyncClient(address) as client:
            return await client.generate("dates", source=SOURCE, **options)

    with Client(address) as client:
        found = client.generate("dates", source=SOURCE, **options)
    command = ["generate", "dates", "--address", address, "--source", SOURCE, "--beams", "4", "--hypotheses", "3"]
    printed, _ = run(capfd, *command, "--length-penalty", "0.5", "--max-tokens", "6", "--json")

    assert len(found.hypotheses) == 3
    assert (found.text, found.tokens) == (found.hypotheses[0].text, found.hypotheses[0].tokens)
    assert asyncio.run(ask()).hypotheses == found.hypotheses
    answers = json.loads(printed)["hypotheses"]
    assert [tuple(answer["tokens"]) for answer in answers] == [hypothesis.tokens for hypothesis in found.hypotheses]
    for hypothesis in found.hypotheses:
        score = hypothesis.log_probability / len(hypothesis.tokens) ** 0.5
        assert hypothesis.score == pytest.approx(score, rel=1e-5)


def test_a_deadline_ends_a_search_and_leaves_nothing(
    served: tuple[Application, ReferenceDecoder], address: str
) -> None:
    """The caller is told, and all rows are free."""
    with Client(address) as client, pytest.raises(DeadlineExceededError):
        client.generate("dates", source=SOURCE, num_beams=8, max_tokens=60_000, ignore_end_token=True, timeout=0.3)

    (engine,) = [entry.engine for entry in served[0].repository.entries() if entry.engine]
    deadline = time.monotonic() + 10
    while engine.num_running and time.monotonic() < deadline:
        time.sleep(0.005)
    assert engine.num_running == 0


def items(**fields: object) -> pb.Items:
    return pb.Items(**fields)


BAD: dict[str, tuple[dict[str, object], str, str]] = {
    "none": ({"source": None}, "source", "is missing"),
    "no kind": ({"source": pb.Items()}, "source", "is missing"),
    "empty text": ({"source": items(text="")}, "source.text", "is empty"),
    "empty tokens": ({"source": items(tokens=pb.TokenSequence())}, "source.tokens.ids", "is empty"),
    "long text": ({"source": items(text="a" * (LONGEST + 1))}, "source.text", f"{LONGEST + 1} items, .* {LONGEST}"),
    "endless": ({"source": items(tokens=pb.TokenSequence(ids=[2] * 10**6))}, "source.tokens.ids", "1000000 items"),
    "unknown": ({"source": items(tokens=pb.TokenSequence(ids=[258]))}, "source.tokens.ids", "outside the vocabulary"),
    "vectors": (
        {"source": items(vectors=pb.VectorSequence(features=1, values=[1]))},
        "source.vectors.values",
        "tokens or text",
    ),
    "sampled": ({"beam_search": pb.BeamSearch(num_beams=2), "sampling": pb.SamplingParameters()}, "sampling", "draws"),
    "no beams": ({"beam_search": pb.BeamSearch()}, "beam_search.num_beams", "got 0"),
    "too many": ({"beam_search": pb.BeamSearch(num_beams=9)}, "beam_search.num_beams", "room for 8"),
    "stop": (
        {"beam_search": pb.BeamSearch(num_beams=2), "stop": pb.StopConditions(strings=["a"])},
        "stop.strings",
        "does not stop at strings",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_refused_with_its_field(address: str, name: str) -> None:
    """INVALID_ARGUMENT with the wire's name of the field, and what is wrong with it."""
    changes, field, message = BAD[name]
    fields = {"model": "dates", "source": items(text="a"), **changes}

    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        list(GenerationServiceStub(channel).Generate(pb.GenerateRequest(**fields), timeout=20))

    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(caught.value.trailing_metadata())["statewise-field"] == field
    assert re.search(message, caught.value.details())


def test_beam_options_need_a_number_of_beams(address: str) -> None:
    """The client says so before anything is sent."""
    with Client(address) as client, pytest.raises(InvalidRequestError, match="length_penalty"):
        client.generate("dates", source=SOURCE, length_penalty=2.0)


def test_the_command_prints_a_table_of_hypotheses(address: str, capfd: Any) -> None:
    """Several answers with their scores; a source may be token ids."""
    ids = ",".join(map(str, IDS))
    command = ["generate", "dates", "--address", address, "--source-tokens", ids, "--beams", "3", "--hypotheses", "2"]

    output, statistics = run(capfd, *command, "--max-tokens", "4")

    assert "score" in output
    assert f"a source of {len(IDS)}" in statistics
