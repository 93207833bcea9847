"""A real server process and real clients: many together, and clients and servers that die."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest

from statewise import Client, Generation
from statewise.errors import (
    DeadlineExceededError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    StatewiseError,
    UnavailableError,
)
from statewise.v1 import generation_pb2 as pb
from tests.end_to_end.processes import ServerProcess, client_process, serving
from tests.models import reference_decoder

LONG = {"max_tokens": 60_000, "ignore_end_token": True}


@pytest.fixture(scope="module")
def server(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One server for the tests that leave it alive."""
    flags = ["--max-rows", "4", "--max-waiting", "8", "--max-message-bytes", "100000"]
    with serving(repository, tmp_path_factory.mktemp("server"), *flags) as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    """A client of the shared server; afterwards canaries are answered and no row is in use."""
    with Client(server.address, timeout=30) as connected:
        yield connected
        server.wait_until_idle()
        for model in ("lstm-2", "transformer"):
            assert connected.generate(model, [5, 6], max_tokens=4).tokens == _reference(model, [5, 6], 4)


def _reference(model: str, prompt: list[int], count: int) -> tuple[int, ...]:
    from statewise.rules.sampling import GREEDY

    (row,), _ = reference_decoder(model).generate([np.array(prompt)], [GREEDY], count)
    return tuple(row.tolist())


@pytest.mark.parametrize("models", [("gru-text", "transformer"), ("lstm-2", "transformer")], ids="+".join)
def test_requests_together_get_what_each_gets_alone(repository: Path, tmp_path: Path, models: tuple[str, ...]) -> None:
    """64 ragged requests to two families: bit for bit the tokens and log-probabilities that each gets alone."""
    rng = np.random.default_rng(1)
    requests = [
        {
            "model": models[index % len(models)],
            "prompt": rng.integers(2, 250, int(rng.integers(1, 300))).tolist(),
            "max_tokens": int(rng.integers(1, 40)),
            "temperature": float(index % 3) / 2,
            "top_p": 0.9 if index % 2 else 1.0,
            "seed": index,
            "logprobs": 2,
        }
        for index in range(64)
    ]

    def ask(request: dict[str, object]) -> tuple[object, ...]:
        answer: Generation = client.generate(**request)  # type: ignore[arg-type]
        return answer.tokens, answer.text, answer.log_probabilities, answer.finish_reason

    with serving(repository, tmp_path, "--max-rows", "16") as server, Client(server.address, timeout=60) as client:
        with ThreadPoolExecutor(32) as pool:
            together = list(pool.map(ask, requests))
        alone = [ask(request) for request in requests]

    assert together == alone


def test_text_streams_whole_and_equals_the_unary_answer(client: Client) -> None:
    """The pieces of a stream are the answer; info comes first, usage last."""
    with client.stream("gru-text", "Über", max_tokens=80, temperature=1.0, seed=3) as stream:
        chunks = list(stream)
    whole = client.generate("gru-text", "Über", max_tokens=80, temperature=1.0, seed=3)

    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert sum((chunk.tokens for chunk in chunks), ()) == whole.tokens
    assert chunks[0].info is not None
    assert chunks[0].info.seed == 3
    assert chunks[-1].usage == whole.usage
    assert whole.usage.prompt_tokens == len("Über".encode()) + 1


def test_a_series_goes_on_as_vectors(client: Client) -> None:
    """A model of real vectors takes floats [time, features] and gives them."""
    series = np.random.default_rng(0).standard_normal((9, 3)).astype(np.float32)

    answer = client.generate("gru-series", series, max_tokens=7)

    assert answer.vectors is not None
    assert answer.vectors.shape == (7, 3)


@pytest.mark.parametrize(
    ("model", "prompt", "options", "error", "words"),
    [
        ("nobody", [5], {}, NotFoundError, "lstm-2"),
        ("lstm-2", [], {}, InvalidRequestError, "start token"),
        ("lstm-2", "text", {}, InvalidRequestError, "tokenizer"),
        ("lstm-2", [5, 300], {}, InvalidRequestError, "vocabulary"),
        ("lstm-2", [-1], {}, InvalidRequestError, "vocabulary"),
        ("lstm-2", [1] * 65_537, {}, InvalidRequestError, "65536"),
        ("transformer", [5] * 401, {}, InvalidRequestError, "has 401 items, .* at most 400"),
        ("transformer", [5] * 400, {"max_tokens": 2}, InvalidRequestError, "2 after 400 items exceed the model's 400"),
        ("transformer", [5] * 300, {"max_tokens": 102}, InvalidRequestError, "max_tokens: 102 after 300"),
        ("transformer", [5], {"max_tokens": 401}, InvalidRequestError, r"max_tokens: must lie in \[1, 400\]"),
        ("lstm-2", [5], {"max_tokens": 0}, InvalidRequestError, "max_tokens"),
        ("lstm-2", [5], {"max_tokens": 65_537}, InvalidRequestError, "max_tokens"),
        ("lstm-2", [5], {"temperature": float("nan")}, InvalidRequestError, "temperature"),
        ("lstm-2", [5], {"temperature": -1.0}, InvalidRequestError, "temperature"),
        ("lstm-2", [5], {"top_p": 0.0}, InvalidRequestError, "top_p"),
        ("lstm-2", [5], {"top_k": -1}, InvalidRequestError, "top_k"),
        ("lstm-2", [5], {"logprobs": 21}, InvalidRequestError, "logprobs"),
        ("gru-text", "a", {"stop": [str(i) for i in range(9)]}, InvalidRequestError, "stop"),
        ("gru-series", [5], {}, InvalidRequestError, "vectors"),
        ("gru-series", np.zeros((2, 4), np.float32), {}, InvalidRequestError, "features"),
        ("gru-series", np.full((2, 3), np.nan, np.float32), {}, InvalidRequestError, "NaN"),
        ("lstm-2", [5], {"timeout": 0.0}, DeadlineExceededError, "(?i)deadline"),
        ("lstm-2", [299] * 60_000, {}, OverloadedError, "arger"),
    ],
)
def test_bad_requests_are_refused_with_a_reason(
    client: Client, model: str, prompt: object, options: dict[str, object], error: type[StatewiseError], words: str
) -> None:
    """Each kind of bad request has its error, whose message names the culprit."""
    with pytest.raises(error, match=words):
        client.generate(model, prompt, **options)  # type: ignore[arg-type]


def test_invalid_utf8_is_an_invalid_argument(server: ServerProcess, client: Client) -> None:
    """Bytes that are no text are refused as INVALID_ARGUMENT that names the field; other damage as INTERNAL."""
    with grpc.insecure_channel(server.address) as channel:
        generate = channel.unary_stream("/statewise.v1.GenerationService/Generate")
        model = b"\x0a\x06lstm-2"
        codes = {}
        for name, payload in {"bad text": model + b"\x1a\x02\xff\xfe", "damaged": b"\x0a\x7f"}.items():
            with pytest.raises(grpc.RpcError) as caught:
                list(generate(payload, timeout=10))
            codes[name] = caught.value.code()
            if name == "bad text":
                assert "text" in caught.value.details()

    assert codes == {"bad text": grpc.StatusCode.INVALID_ARGUMENT, "damaged": grpc.StatusCode.INTERNAL}


def test_a_full_queue_refuses_and_what_was_accepted_goes_on(server: ServerProcess, client: Client) -> None:
    """4 rows and 8 places to wait: the 13th stream is refused at once, the first still runs."""
    streams = [client.stream("lstm-2", [5], **LONG) for _ in range(12)]
    while server.rows_in_use() < 12:
        time.sleep(0.01)

    with pytest.raises(OverloadedError, match="retry"):
        client.generate("lstm-2", [5], max_tokens=1)

    assert next(streams[0]).tokens
    for stream in streams:
        stream.close()


def test_cancelling_in_queue_prefill_and_decode_frees_every_row(server: ServerProcess, client: Client) -> None:
    """Streams are left while they wait, read a long prompt, and decode."""
    decoding = [client.stream("lstm-2", [5], **LONG) for _ in range(3)]
    prefilling = client.stream("lstm-2", [7] * 40_000, **LONG)
    waiting = client.stream("lstm-2", [5], **LONG)
    for stream in decoding:
        next(stream)
    for stream in (waiting, prefilling, *decoding):
        stream.close()

    server.wait_until_idle()


def test_a_deadline_ends_a_running_stream(client: Client) -> None:
    """A stream past its deadline ends with DeadlineExceededError."""
    with pytest.raises(DeadlineExceededError):
        client.generate("lstm-2", [5], timeout=0.3, **LONG)


def test_a_killed_client_frees_its_row(server: ServerProcess, client: Client) -> None:
    """`kill -9` of a client in the middle of its stream."""
    code = (
        "import sys; from statewise import Client\n"
        "stream = Client(sys.argv[1]).stream('lstm-2', [5], max_tokens=60000, ignore_end_token=True)\n"
        "print(len(next(stream).tokens), flush=True); list(stream)"
    )
    with client_process(code, server.address) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) >= 1
        assert server.rows_in_use() == 1
        process.kill()
        server.wait_until_idle()


def test_sigterm_completes_what_runs_and_refuses_the_rest(repository: Path, tmp_path: Path) -> None:
    """During the grace a stream runs to its end, a new call is UNAVAILABLE, and the exit code is 0."""
    with serving(repository, tmp_path, "--grace-seconds", "30") as server, Client(server.address) as client:
        stream = client.stream("lstm-2", [5], max_tokens=20_000, ignore_end_token=True)
        count = len(next(stream).tokens)
        os.kill(server.process.pid, signal.SIGTERM)
        time.sleep(0.2)

        with pytest.raises(UnavailableError):
            client.generate("lstm-2", [5], max_tokens=1)
        count += sum(len(chunk.tokens) for chunk in stream)

        assert count == 20_000
        assert server.process.wait(timeout=20) == 0


def test_a_killed_server_is_unavailable_to_its_clients(repository: Path, tmp_path: Path) -> None:
    """`kill -9` of the server ends running and new calls with UnavailableError."""
    with serving(repository, tmp_path) as server, Client(server.address, timeout=10) as client:
        stream = client.stream("lstm-2", [5], **LONG)
        next(stream)
        threading.Timer(0.1, server.process.kill).start()

        with pytest.raises(UnavailableError):
            list(stream)
        with pytest.raises(UnavailableError, match=server.address):
            client.models()


def test_random_bytes_never_give_unknown(server: ServerProcess, client: Client) -> None:
    """Whatever bytes a request holds, the code is a considered one."""
    rng = np.random.default_rng(0)
    template = pb.GenerateRequest(model="lstm-2", tokens=pb.TokenSequence(ids=[5, 6]))
    template.stop.max_tokens = 3
    good = template.SerializeToString()
    codes = set()
    with grpc.insecure_channel(server.address) as channel:
        generate = channel.unary_stream("/statewise.v1.GenerationService/Generate")
        for _ in range(200):
            raw = bytearray(good)
            for place in rng.integers(0, len(raw), 3):
                raw[place] = rng.integers(0, 256)
            call = generate(bytes(raw), timeout=5)
            if rng.random() < 0.2:
                call.cancel()
            codes.add(call.code())

    assert grpc.StatusCode.INVALID_ARGUMENT in codes
    assert grpc.StatusCode.UNKNOWN not in codes
